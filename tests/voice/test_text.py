"""Text for speech: digits, markup and signs become words, and text that is still being written becomes sentences."""

import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vita_ref.voice import text as text_module
from vita_ref.voice.text import MARKUP, prepare_text, sentences


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
def test_text_is_prepared_as_in_these_examples(written, spoken):
    assert prepare_text(written) == spoken


MARKUP_EXAMPLES = {  # for each rule a text that comes out differently without it
    "code fences, horizontal rules, the line under a table head": ("```python\nx\n```", "x"),
    "headings, quotations, list items": ("+ one\n+ two", "one, two"),
    "links and images: their text stays": ("[a link](page.html)", "a link"),
    "tags, special tokens, addresses": ("<b>bold</b> see http://a.b/c", "bold see"),
    "a star between digits is a product": ("5 * 3", "five times three"),
    "a dash between digits is a range": ("3–5", "three to five"),
    "doubled emphasis, strikethrough, code": ("un**believ**able", "unbelievable"),
    "single emphasis around words": ("*It*'s cold", "It's cold"),
    "ellipsis": ("So…-5?", "So. minus five?"),
    "table cells, dashes, line ends: a pause": ("one | two — three", "one, two, three"),
}


@pytest.mark.parametrize("rule", MARKUP)
def test_each_markup_rule_is_needed(rule, monkeypatch):
    written, spoken = MARKUP_EXAMPLES[rule]
    assert prepare_text(written) == spoken
    monkeypatch.delitem(text_module.MARKUP, rule)
    assert prepare_text(written) != spoken


@settings(deadline=None, max_examples=200)
@given(st.text(alphabet="ab Z019.,:%-$*_`#|[]()<>\n!?你好年。，、“”😀°+", max_size=30))
def test_prepared_text_has_no_digits_no_markup_and_no_double_spaces(written):
    spoken = prepare_text(written)
    assert not re.search(r"[\d%$*_`#|\[\]()<>\n“”😀°+]|\s\s", spoken)
    assert not re.match(r"[\s,;:-]", spoken) and spoken == spoken.strip()


TEXT = (
    'Dr. Smith paid 3.14 dollars, e.g. to J. Doe. "Really?" he asked.  Yes! OK... then\nA list:\n1. one\n2. two\n'
    "你好。“我很好！”他说。好吗？？好.再见"
)
SENTENCES = [
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
    assert list(sentences([TEXT])) == SENTENCES


@settings(deadline=None, max_examples=200)
@given(text=st.one_of(st.just(TEXT), st.text(alphabet='ab J1 .!?\n"”*你好。！', max_size=40)), data=st.data())
def test_the_sentences_do_not_depend_on_how_the_text_is_cut_into_pieces(text, data):
    cuts = sorted(data.draw(st.lists(st.integers(0, len(text)), max_size=8)))
    pieces = [text[start:stop] for start, stop in zip([0, *cuts], [*cuts, len(text)])]
    assert list(sentences(pieces)) == list(sentences(text)) == list(sentences([text]))


@settings(deadline=None, max_examples=200)
@given(st.text(alphabet='ab J1 .!?\n"”*你好。！', max_size=40))
def test_the_sentences_together_are_the_text_but_for_spaces(text):
    def without_spaces(written):
        return "".join(written.split())

    assert without_spaces("".join(sentences([text]))) == without_spaces(text)


def test_a_sentence_is_yielded_before_the_next_one_is_written():
    written = []

    def pieces():
        for piece in ["One. ", "Two is ", "long. ", "Three"]:
            written.append(piece)
            yield piece

    assert next(sentences(pieces())) == "One." and written == ["One. "]
