"""What comes from a user or a file is shown in one short line, without control characters."""

from pathlib import Path

import pytest
import torch
from hostile import VALUES, deep
from hypothesis import given, settings
from hypothesis import strategies as st

from vita_ref.files.messages import escaped, one_line_errors, shown

few = settings(max_examples=60, deadline=None, derandomize=True)
nested = st.recursive(
    st.text() | st.binary() | st.integers() | st.floats() | st.sampled_from(VALUES),
    lambda inside: st.lists(inside, max_size=9) | st.dictionaries(st.text(), inside, max_size=9),
    max_leaves=12,
)


@few
@given(nested, st.integers(20, 200))
def test_any_value_is_shown_in_one_line_of_limited_length(value, limit):
    text = shown(value, limit)
    assert text.isprintable() and 0 < len(text) <= limit


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ("float32", "'float32'"), (None, "None"), (True, "True"), (2.5, "2.5"), ([1, 2], "[1, 2]"),
        ("a\nb\x1b[31m", r"'a\nb\x1b[31m'"), (Path("a b"), "'a b'"), ({"a": [1]}, "{'a': [1]}"),
    ],
)  # fmt: skip
def test_a_short_value_is_shown_as_python_writes_it(value, text):
    assert shown(value) == text


HUGE = ["x" * 10**7, b"\xff" * 10**7, 10**5000, deep(900), torch.zeros(99, 99), [0] * 10**6]


@pytest.mark.parametrize("value", HUGE, ids=range(len(HUGE)))
def test_a_huge_value_is_cut(value):
    assert len(shown(value)) <= 80 and shown(value).isprintable()


@few
@given(st.text())
def test_an_escaped_text_has_no_control_characters_and_can_be_read_back(text):
    line = escaped(text)
    assert line.isprintable()
    if "\\" not in text:
        assert line.encode("latin-1", "backslashreplace").decode("unicode_escape") == text


def test_errors_of_a_function_become_one_line_and_others_pass():
    @one_line_errors
    def fail(error):
        raise error

    with pytest.raises(ValueError, match=r"^a\\nb$"):
        fail(ValueError("a\nb"))
    with pytest.raises(KeyError):
        fail(KeyError("a\nb"))
