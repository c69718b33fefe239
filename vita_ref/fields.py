"""The types of config fields, with their ranges, and the one check of all config dataclasses.

Test: ``pytest tests/test_config.py``
"""

from dataclasses import fields
from typing import Annotated, Literal, get_args, get_origin

# Annotated has the least and the largest value of a number. Larger sizes than these are no models, but damaged files.
Size = Annotated[int, 1, 2**20]
Layers = Annotated[int, 1, 1000]
Vocabulary = Annotated[int, 1, 2**24]
Length = Annotated[int, 1, 2**31]  # positions
TokenId = Annotated[int, 0, 2**31]
Code = Annotated[int, 0, 2**20]
Signed = Annotated[int, -(2**31), 2**31]
Rate = Annotated[int, 1000, 384_000]  # Hz
Eps = Annotated[float, 1e-12, 1]
Positive = Annotated[float, 1e-6, 1e6]
LONGEST = 4096  # values of a list


def check_fields(config):
    """Checks the type and the range of every field of a dataclass, by the annotation of the field.

    Raises: ValueError with the name of the field, what was expected, and the value.
    """
    for f in fields(config):
        value = getattr(config, f.name)
        expected = _mismatch(value, f.type)
        if expected:
            from .files.messages import shown

            raise ValueError(f"{f.name} must be {expected}, got {shown(value)}")


def _mismatch(value, kind):
    """None if a value is of a kind, otherwise a description of the kind."""
    origin, parts = get_origin(kind), get_args(kind)
    if origin is Annotated:
        return _number_mismatch(value, *parts)
    if origin is Literal:
        return None if type(value) is str and value in parts else f"one of {', '.join(parts)}"
    if origin is tuple:
        if type(value) is not tuple or len(value) > LONGEST:
            return f"a list of at most {LONGEST} values"
        inside = next(filter(None, (_mismatch(each, parts[0]) for each in value)), None)
        return inside and f"a list, each value {inside}"
    if type(None) in parts:  # X | None
        expected = None if value is None else _mismatch(value, parts[0])
        return expected and f"{expected}, or null"
    names = {bool: "true or false", str: "a text", dict: "an object"}
    return None if type(value) is kind else names.get(kind, f"a {kind.__name__}")


def _number_mismatch(value, kind, low, high):
    """None if a value is an int, or a float or an int for a float, in low..high. NaN is in no range."""
    if type(value) not in (int, kind) or not low <= value:
        return f"{'an integer' if kind is int else 'a number'} of at least {low}"
    return None if value <= high else f"{'an integer' if kind is int else 'a number'} of at most {high}"
