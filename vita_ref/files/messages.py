"""How error messages write what came from a user or a file: in one line, cut, and without control characters.

Test: ``pytest tests/files/test_messages.py``
"""

import functools
import os
import reprlib


def shown(value, limit=80):
    """A value as Python writes it, in one line of at most ``limit`` characters. Only the parts that are shown are read.

    Example: ``shown("a\\nb")`` is ``'a\\\\nb'``, and a text of a thousand characters is cut in the middle.
    """
    brief = reprlib.Repr()
    brief.maxlevel = brief.maxlist = brief.maxtuple = brief.maxdict = brief.maxset = 4
    brief.maxstring = brief.maxlong = brief.maxother = limit
    value = os.fspath(value) if isinstance(value, os.PathLike) else value
    value = value if not isinstance(value, (bytes, bytearray)) else bytes(value[: limit + 1])
    try:
        text = escaped(" ".join(brief.repr(value).split()))
    except ValueError:  # Python refuses to write an integer of more than 4,300 digits
        text = f"an integer of {value.bit_length()} bits" if isinstance(value, int) else f"a {type(value).__name__}"
    return text if len(text) <= limit else text[: limit - 3] + "..."


def escaped(text):
    """A text with its control characters written as escapes, so that it is one line and changes no terminal."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def one_line_errors(function):
    """A function whose ValueErrors have `escaped` messages: names of files and tensors may have any characters."""

    @functools.wraps(function)
    def checked(*arguments, **options):
        try:
            return function(*arguments, **options)
        except ValueError as error:
            if str(error).isprintable():
                raise
            raise ValueError(escaped(str(error))) from None

    return checked


def counted(n, noun):
    """A number and its noun: 1 frame, 2 frames, 0 frames."""
    return f"{n} {noun}{'s' * (n != 1)}"
