"""Numbers as words: an inverse that is written independently reads them back."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vita_ref.voice.numbers import (
    NUMBER,
    chinese_cardinal,
    chinese_number,
    english_cardinal,
    english_number,
)

SMALL = (
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen "
    "seventeen eighteen nineteen"
)
TENS = "twenty thirty forty fifty sixty seventy eighty ninety"
WORDS = {word: n for n, word in enumerate(SMALL.split())}
WORDS |= {word: 10 * n for n, word in enumerate(TENS.split(), start=2)}
SIZES = {"thousand": 10**3, "million": 10**6, "billion": 10**9, "trillion": 10**12}
CHINESE_DIGITS = dict(zip("零一二三四五六七八九", range(10)))
CHINESE_SIZES = {"亿": 10**8, "万": 10**4, "千": 1000, "百": 100, "十": 10}
NUMBERS = st.integers(0, 14).flatmap(lambda digits: st.integers(0, 10**digits))


def read_english(words):
    """The value of an English cardinal."""
    total = group = 0
    for word in words.replace("-", " ").split():
        if word in SIZES:
            total, group = total + group * SIZES[word], 0
        elif word == "hundred":
            group *= 100
        else:
            group += WORDS[word]
    return total + group


def read_chinese(words):
    """The value of a Chinese cardinal: it is split at its largest size, and both sides are read in turn."""
    for sign, size in CHINESE_SIZES.items():
        if sign in words:
            front, _, rest = words.partition(sign)
            return read_chinese(front) * size + read_chinese(rest)
    return CHINESE_DIGITS[words[-1]] if words else 0


@settings(deadline=None, max_examples=200)
@given(NUMBERS)
def test_an_english_cardinal_reads_back_as_its_number(n):
    assert read_english(english_cardinal(n)) == n


@settings(deadline=None, max_examples=200)
@given(NUMBERS)
def test_a_chinese_cardinal_reads_back_as_its_number(n):
    assert read_chinese(chinese_cardinal(n)) == n


@pytest.mark.parametrize("n, words", [(20, "二十"), (101, "一百零一"), (1010, "一千零一十"), (100005, "一十万零五")])
def test_a_gap_in_a_chinese_cardinal_is_one_zero(n, words):
    assert chinese_cardinal(n) == words


@pytest.mark.parametrize(
    "written, english, chinese",
    [
        ("007", "zero zero seven", "零零七"),  # a leading zero: digit by digit
        ("1234567890123456", "one two three four five six seven eight nine zero one two three four five six", None),
        ("-5", "minus five", "负五"),
        ("$3.50", "three point five zero dollars", "三点五零美元"),
        ("45%", "forty-five percent", "百分之四十五"),
        ("1,984", "one thousand nine hundred eighty-four", "一千九百八十四"),  # with a comma it is no year
        ("1984", "nineteen eighty-four", "一千九百八十四"),
        ("1984年", None, "一九八四年"),
        ("1900", "nineteen hundred", None),
        ("9:05", "nine oh five", "九点零五分"),
        ("12:00", "twelve o'clock", "十二点"),
        ("22nd", "twenty-second", None),
        ("30th", "thirtieth", None),
    ],
)
def test_a_number_in_a_text_is_read_with_its_sign_unit_and_form(written, english, chinese):
    match = NUMBER.fullmatch(written)
    if english is not None:
        assert english_number(match).strip() == english
    if chinese is not None:
        assert chinese_number(match) == chinese
