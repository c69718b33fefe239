"""Figures, markup and stops become words; a text that is still being written becomes sentences."""

import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vita_ref.voice.text import number_han, number_words, prepare_text, sentences

SMALL = (
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen "
    "seventeen eighteen nineteen"
)
TENS = "_ _ twenty thirty forty fifty sixty seventy eighty ninety"
WORDS = {word: n for n, word in enumerate(SMALL.split())}
WORDS |= {word: 10 * n for n, word in enumerate(TENS.split())}
SIZES = {"thousand": 10**3, "million": 10**6, "billion": 10**9, "trillion": 10**12}
HAN = dict(zip("零一二三四五六七八九", range(10)))


def value_of_words(text):
    """Reads English number words: an inverse written on its own."""
    total = group = 0
    for word in text.replace("-", " ").split():
        if word in SIZES:
            total, group = total + group * SIZES[word], 0
        elif word == "hundred":
            group *= 100
        else:
            group += WORDS[word]
    return total + group


def value_of_han(text):
    """Reads a Chinese number: split at the largest size, each side in turn."""
    for sign, size in (("亿", 10**8), ("万", 10**4), ("千", 1000), ("百", 100), ("十", 10)):
        if sign in text:
            head, _, tail = text.rpartition(sign) if size > 1000 else text.partition(sign)
            return value_of_han(head) * size + value_of_han(tail)
    return HAN[text[-1]] if text else 0


@settings(deadline=None, max_examples=200)
@given(st.integers(0, 14).flatmap(lambda digits: st.integers(0, 10**digits)))
def test_numbers_in_words_read_back_as_themselves(n):
    assert value_of_words(number_words(n)) == n
    assert value_of_han(number_han(n)) == n


@pytest.mark.parametrize("n, han", [(20, "二十"), (101, "一百零一"), (1010, "一千零一十"), (100005, "一十万零五")])
def test_chinese_numbers_fill_gaps_with_one_zero(n, han):
    assert number_han(n) == han


@pytest.mark.parametrize(
    "written, spoken",
    [
        ("**Up 3.5%** since 1984!!", "Up three point five percent since nineteen eighty-four!"),
        ("It costs $1,234.50.", "It costs one thousand two hundred thirty-four point five zero dollars."),
        ("1905, 2000, 2005, 2024", "nineteen oh five, two thousand, two thousand five, twenty twenty-four"),
        ("At 10:30, 9:05 and 12:00.", "At ten thirty, nine oh five and twelve o'clock."),
        ("-5°C, 20 - 3, room 007", "minus five degrees Celsius, twenty, three, room zero zero seven"),
        ("the 1st, 3rd, 12th and 20th", "the first, third, twelfth and twentieth"),
        ("5 * 3 = 15 & 2 + 2", "five times three equals fifteen and two plus two"),
        ("pages 3–5", "pages three to five"),
        ("# Title\n\n- one *item* with `code`\n- [link](http://a.b/c)<|im_end|>", "Title, one item with code, link"),
        ("| a | b |\n|---|---|\n| 1 | 2 |", "a, b, one, two"),
        ("```python\nx\n```", "x"),
        ("“Well”—she said…", "Well, she said."),
        ("GPT-4 has 448px tiles", "GPT four has four hundred forty-eight px tiles"),
        ("it’s a well-known snake_case 😀", "it's a well-known snake case"),
        ("Mail me@site.com", "Mail me at site dot com"),
        ("今天是2024年5月1日,气温-3.5°C,湿度45%.", "今天是二零二四年五月一日，气温负三点五摄氏度，湿度百分之四十五。"),
        ("共有10005人、15件，花了¥3.50!", "共有一万零五人、十五件，花了三点五零元！"),
        ("下午3:05开会；12:00 吃饭，10:30 走", "下午三点零五分开会；十二点吃饭，十点三十分走"),
        ("**你好**，ＡＢＣ１２", "你好，ABC十二"),
        ("", ""),
        ("**", ""),
    ],
)
def test_what_is_written_and_what_is_said(written, spoken):
    assert prepare_text(written) == spoken


@settings(deadline=None, max_examples=200)
@given(st.text(alphabet="ab Z019.,:%-$*_`#|[]()<>\n!?你好年。，、“”😀°+", max_size=30))
def test_what_is_said_has_no_figures_and_no_markup(written):
    spoken = prepare_text(written)
    assert not re.search(r"[\d%$*_`#|\[\]()<>\n“”😀°+]|\s\s", spoken)
    assert not re.match(r"[\s,;:-]", spoken) and spoken == spoken.strip()


TEXT = (
    'Dr. Smith paid 3.14 dollars, e.g. to J. Doe. "Really?" he asked.  Yes! OK... then\nA list:\n1. one\n2. two\n'
    "你好。“我很好！”他说。好吗？？好.再见"
)
PARTS = [
    "Dr. Smith paid 3.14 dollars, e.g. to J. Doe.",
    '"Really?"',
    "he asked.",
    "Yes!",
    "OK...",
    "then",
    "A list:",
    "1. one",
    "2. two",
    "你好。",
    "“我很好！”",
    "他说。",
    "好吗？？",
    "好.",
    "再见",
]


def test_sentences_end_at_stops_and_lines_but_not_in_numbers_and_abbreviations():
    assert list(sentences([TEXT])) == PARTS


@settings(deadline=None, max_examples=200)
@given(st.one_of(st.just(TEXT), st.text(alphabet='ab J1 .!?\n"”*你好。！', max_size=40)), st.data())
def test_however_the_text_is_cut_the_sentences_are_the_same(text, data):
    cuts = sorted(data.draw(st.lists(st.integers(0, len(text)), max_size=8)))
    pieces = [text[a:b] for a, b in zip([0, *cuts], [*cuts, len(text)])]
    whole = list(sentences([text]))
    assert list(sentences(pieces)) == list(sentences(text)) == whole
    assert "".join("".join(whole).split()) == "".join(text.split())


def test_a_sentence_comes_before_the_next_one_is_written():
    taken = []

    def written():
        for piece in ["One. ", "Two is ", "long. ", "Three"]:
            taken.append(piece)
            yield piece

    assert next(sentences(written())) == "One." and taken == ["One. "]
