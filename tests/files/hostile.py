"""Hostile variants of valid settings: any value of a nested dict or list replaced, removed or nested more deeply."""

import copy
import json

from hypothesis import strategies as st

VALUES = [
    *(None, True, False, 0, -1, 1, 3, 4097, 10**7, 10**30, -(10**30), 0.0, -0.5, 1e-300, 1e300),
    *(float("nan"), float("inf"), "", "3", "true", "x" * 3000, "a\nb\x1b[31m", "\x00", "\ud800", "../..", [], {}),
    *([[]], [1, 2], [None], ["x"], [float("nan")] * 3, [[1, 2], [3]], {"a": 1}, {"content": 5}, {"": {}}),
    *([1] * 10_000, {str(i): i for i in range(500)}),
]


def places(value, path=()):
    """The paths of all values inside a nested dict or list."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inside in items:
        yield (*path, key)
        yield from places(inside, (*path, key))


def changed(value, path, new=None, *, remove=False):
    """A copy of a nested value with the value at a path replaced or removed."""
    value = place = copy.deepcopy(value)
    for key in path[:-1]:
        place = place[key]
    if remove:
        del place[path[-1]]
    else:
        place[path[-1]] = new
    return value


def deep(count):
    """A list in a list in a list ..."""
    value = []
    for _ in range(count):
        value = [value]
    return value


def variants(valid):
    """Variants of a valid value with one or two hostile changes."""

    @st.composite
    def variant(draw):
        value = valid
        for _ in range(draw(st.integers(1, 2))):
            paths = [*places(value)]
            if paths:
                path = draw(st.sampled_from(paths))
                new = draw(st.sampled_from(VALUES) | st.integers(2, 60).map(deep))
                value = changed(value, path, new, remove=draw(st.integers(0, 7)) == 0)
        return value

    return variant()


def as_json(value):
    """The text of a JSON file; half a surrogate pair and NaN are written, as Python writes them."""
    return json.dumps(value)


def refusal(call, *arguments, **options):
    """The result of a call, or None if it is refused as it should be: by a ValueError of one short line."""
    try:
        return call(*arguments, **options)
    except ValueError as error:
        message = str(error)
        assert message.isprintable() and len(message) < 1200, message
        return None
