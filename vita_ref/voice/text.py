"""Preparation of text for speech: splits a text into sentences as soon as they are complete, and writes them as words.

    pieces of text -> sentences -> prepare_text -> words and simple punctuation, without digits or markup

The language, English or Chinese, is decided sentence by sentence from the script.

Test: ``pytest tests/voice/test_text.py``
"""

import re
import unicodedata

from .numbers import NUMBER, chinese_number, english_number

HAN = r"\u3400-\u9fff"  # Chinese characters
CLOSERS = r"\"')\]”’」』）】*_`"  # characters that may follow the stop of a sentence and belong to it

# Each alternative but the last one also requires the character that follows. So the result does not depend on how the
# text is cut into pieces.
SENTENCE_END = re.compile(
    rf"""
        (?: [。！？] | (?<=[{HAN}]) [.!?] )         # a Chinese stop, or another stop after a Chinese character,
        [。！？.!?]* [{CLOSERS}]*                    # more stops, closing quotes and brackets,
        (?= [^。！？.!?{CLOSERS}] )                  # and then anything else
    |
        (?P<stop> [.!?…]+ ) [{CLOSERS}]* (?= \s )   # an English stop in front of a space
    |
        \n                                          # the end of a line
    """,
    re.VERBOSE,
)
ABBREVIATION = re.compile(  # matches a text that ends with an abbreviation, whose dot is no stop
    r"""
    \b (?:
        mrs? | ms | dr | prof | st | vs | etc | cf | fig | no | approx | jr | sr | inc | ltd
    |
        [a-z] (?: \.[a-z] )*                        # an initial, or e.g
    ) $
    """,
    re.VERBOSE | re.IGNORECASE,
)
NO_WORD = re.compile(r"\W*(\d{1,2}\.\s*)?")  # only signs and the number of a list item: no sentence

MARKUP = {  # name: (pattern, replacement), applied in this order
    "code fences, horizontal rules, the line under a table head": (
        r"(?m)^\s*(```|~~~).*$|^\s*([-*_]\s*){3,}$|^\s*\|[\s:|-]+$",
        "",
    ),
    "headings, quotations, list items": (r"(?m)^\s*(#{1,6}|>|[-*+•])\s+", ""),
    "links and images: their text stays": (r"!?\[([^\]]*)\]\([^)]*\)", r"\1"),
    "tags, special tokens, addresses": (r"</?[a-zA-Z|!][^<>]*>|https?://\S+", " "),
    "a star between digits is a product": (r"(?<=\d)\s*\*\s*(?=\d)", "×"),
    "a dash between digits is a range": (r"(?<=\d)\s*[–~～]\s*(?=\d)", "→"),
    "doubled emphasis, strikethrough, code": (r"\*\*|__|~~|`+", ""),
    "single emphasis around words": (r"(?<!\w)([*_])(\S(?:[^*_\n]*\S)?)\1(?!\w)", r"\2"),
    "ellipsis": (r"…", "... "),
    "table cells, dashes, line ends: a pause": (r"\s*\|\s*|\s*—+\s*|\s+-+\s+|\n+", ", "),
}
SIGNS = {  # sign: its name in English and in Chinese; °C stands before °
    "&": ("and", "和"),
    "+": ("plus", "加"),
    "=": ("equals", "等于"),
    "×": ("times", "乘"),
    "→": ("to", "到"),
    "°C": ("degrees Celsius", "摄氏度"),
    "°": ("degrees", "度"),
    "@": ("at", "艾特"),
}
DOT_IN_NAME = r"(?<=[A-Za-z])\.(?=[A-Za-z]{2})"  # site.com
OTHER_SIGNS = r"[^\w\s.,!?;:'。、-]|_"  # all that is no letter, digit, space or punctuation to keep
LOOSE_MARKS = r"(?<!\w)['-]+|['-]+(?!\w)"  # apostrophes and hyphens that are not inside a word
PUNCTUATION = ".,!?;:，。！？；：、"
TO_CHINESE = str.maketrans(",.!?;:", "，。！？；：")
TO_ENGLISH = str.maketrans("。、", ".,")


def sentences(pieces):
    """Yields the sentences of a text that arrives in pieces, each as soon as its end is certain.

    ``pieces``: an iterable of str, or a str. The sentences do not depend on how the text is cut into pieces.
    A dot does not end a sentence in "e.g.", "Dr.", after an initial, in 3.14, or after the number of a list item.
    """
    text, searched = "", 0  # the text since the last sentence, and how much of it has been searched
    for piece in pieces:
        text += piece
        while end := SENTENCE_END.search(text, searched):
            searched = end.end()
            abbreviated = end["stop"] == "." and ABBREVIATION.search(text[: end.start()])
            if not abbreviated and not NO_WORD.fullmatch(text[:searched]):
                yield text[:searched].strip()
                text, searched = text[searched:], 0
    if text.strip():
        yield text.strip()


def prepare_text(text):
    """A sentence, or several, as words and punctuation: digits as words, without markup and other signs.

    Example: ``"**Up 3.5%** since 1984!!"`` gives ``"Up three point five percent since nineteen eighty-four!"``.
    """
    for pattern, replacement in MARKUP.values():
        text = re.sub(pattern, replacement, text.strip())
    text = unicodedata.normalize("NFKC", text).replace("’", "'")
    chinese = is_chinese(text)
    text = NUMBER.sub(chinese_number if chinese else english_number, text)
    for sign, (english_name, chinese_name) in SIGNS.items():
        text = text.replace(sign, chinese_name if chinese else f" {english_name} ")
    text = re.sub(DOT_IN_NAME, " dot ", text)
    text = re.sub(OTHER_SIGNS, " ", text)
    text = re.sub(LOOSE_MARKS, " ", text)
    return _tidy_punctuation(text, chinese)


def is_chinese(text):
    """Whether a text has more Chinese characters than words in Latin letters."""
    return len(re.findall(f"[{HAN}]", text)) > len(re.findall(r"[A-Za-z]+", text))


def _tidy_punctuation(text, chinese):
    """Leaves punctuation of one script, one mark at a time, at the ends only a stop, and single spaces."""
    text = text.translate(TO_CHINESE if chinese else TO_ENGLISH)
    text = re.sub(rf"\s*([{PUNCTUATION}])[\s{PUNCTUATION}]*", r"\1" if chinese else r"\1 ", text)
    text = re.sub(r"\s+", " ", text)
    text = re.sub(rf"(?<=[{HAN}]) (?=[{HAN}])", "", text)  # Chinese has no spaces between words
    return text.strip(" ,;:，；：、")
