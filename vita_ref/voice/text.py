"""Text made speakable: an answer as it is written becomes sentences, and each of those plain words.

    pieces of text -> sentences -> prepare_text -> words and simple stops, without figures or markup

English and Chinese, told apart by their script, sentence by sentence.

Test: ``pytest tests/test_spoken.py``
"""

import re
import unicodedata

_HAN, _CLOSERS = r"\u3400-\u9fff", r"\"')\]”’」』）】*_`"
# A sentence ends at a Chinese stop, at an English one before a space or behind Chinese, or with its line.
# Each way but the last asks for the character that follows, so that it does not matter how the stream is cut.
_END = re.compile(
    rf"(?:[。！？]|(?<=[{_HAN}])[.!?])[。！？.!?]*[{_CLOSERS}]*(?=[^。！？.!?{_CLOSERS}])"
    rf"|(?P<stop>[.!?…]+)[{_CLOSERS}]*(?=\s)|\n"
)
_SHORT = r"(?i)\b(?:mrs?|ms|dr|prof|st|vs|etc|cf|fig|no|approx|jr|sr|inc|ltd|[a-z](?:\.[a-z])*)$"
_ONES = re.findall(
    r"\w+",
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen "
    "seventeen eighteen nineteen",
)
_TENS = re.findall(r"\w+", "twenty thirty forty fifty sixty seventy eighty ninety")
_ORDINALS = {"one": "first", "two": "second", "three": "third", "five": "fifth", "eight": "eighth", "nine": "ninth"}
_ORDINALS |= {"twelve": "twelfth"}
_SIZES_ENGLISH = ((10**12, "trillion"), (10**9, "billion"), (10**6, "million"), (1000, "thousand"), (100, "hundred"))
_SIZES_CHINESE = ((10**8, "亿"), (10**4, "万"), (1000, "千"), (100, "百"), (10, "十"))
_MONEY = {None: ("", ""), "$": (" dollars", "美元"), "€": (" euros", "欧元"), "¥": (" yuan", "元")}
_DIGITS = "零一二三四五六七八九"
_MARKUP = [  # what goes, and what stays of it
    (r"(?m)^\s*(```|~~~).*$|^\s*([-*_]\s*){3,}$|^\s*\|[\s:|-]+$", ""),  # fences, rules, the line under a table's head
    (r"(?m)^\s*(#{1,6}|>|[-*+•])\s+", ""),  # headings, quotations, items
    (r"!?\[([^\]]*)\]\([^)]*\)", r"\1"),  # links and pictures
    (r"</?[a-zA-Z|!][^<>]*>|https?://\S+", " "),  # tags, special tokens, addresses
    (r"(?<=\d)\s*\*\s*(?=\d)", "×"),
    (r"(?<=\d)\s*[–~～]\s*(?=\d)", "→"),
    (r"\*\*|__|~~|`+", ""),
    (r"(?<!\w)([*_])(\S(?:[^*_\n]*\S)?)\1(?!\w)", r"\2"),
    (r"…", "... "),
    (r"\s*\|\s*|\s*—+\s*|\s+-+\s+|\n+", ", "),
]
_SIGNS = {  # in English, in Chinese
    "&": ("and", "和"),
    "+": ("plus", "加"),
    "=": ("equals", "等于"),
    "×": ("times", "乘"),
    "→": ("to", "到"),
    "°C": ("degrees Celsius", "摄氏度"),
    "°": ("degrees", "度"),
    "@": ("at", "艾特"),
}
_NUMBER = re.compile(
    r"(?P<minus>(?<![A-Za-z0-9_.)])[-−])?(?P<money>[$€¥])?(?P<whole>\d{1,3}(?:,\d{3})+(?!\d)|\d+)"
    r"(?::(?P<minute>[0-5]\d)(?!\d)|(?P<part>\.\d+)?\s?(?P<percent>%)?)(?P<year>年)?(?P<ordinal>(?:st|nd|rd|th)\b)?"
)


def sentences(pieces):
    """Cuts a text that is still being written into sentences, each as soon as what follows shows that it is over.

    ``pieces`` is any iterable of str, a str too; however the text is cut, the sentences are the same.
    Not an end: the stop of "e.g.", of "Dr.", of an initial, within 3.14, behind the number of an item.
    """
    rest, seen = "", 0
    for piece in pieces:
        rest += piece
        while end := _END.search(rest, seen):
            seen = end.end()
            short = end["stop"] == "." and re.search(_SHORT, rest[: end.start()])
            if not short and not re.fullmatch(r"\W*(\d{1,2}\.\s*)?", rest[:seen]):
                yield rest[:seen].strip()
                rest, seen = rest[seen:], 0
    if rest.strip():
        yield rest.strip()


def prepare_text(text):
    """One sentence, or a few, as words and stops: figures written out, markup gone, other signs gone.

    Example: ``"**Up 3.5%** since 1984!!"`` gives ``"Up three point five percent since nineteen eighty-four!"``.
    """
    for pattern, stays in _MARKUP:
        text = re.sub(pattern, stays, text.strip())
    text = unicodedata.normalize("NFKC", text).replace("’", "'")
    chinese = len(re.findall(f"[{_HAN}]", text)) > len(re.findall(r"[A-Za-z]+", text))
    text = _NUMBER.sub(_say_chinese if chinese else _say_english, text)
    for sign, names in _SIGNS.items():
        text = text.replace(sign, names[1] if chinese else f" {names[0]} ")
    text = re.sub(r"(?<=[A-Za-z])\.(?=[A-Za-z]{2})", " dot ", text)
    text = re.sub(r"(?<!\w)['-]+|['-]+(?!\w)", " ", re.sub(r"[^\w\s.,!?;:'。、-]|_", " ", text))
    text = text.translate(str.maketrans(",.!?;:", "，。！？；：") if chinese else str.maketrans("。、", ".,"))
    text = re.sub(r"\s*([.,!?;:，。！？；：、])[\s.,!?;:，。！？；：、]*", r"\1" if chinese else r"\1 ", text)
    text = re.sub(rf"(?<=[{_HAN}]) (?=[{_HAN}])", "", re.sub(r"\s+", " ", text))
    return text.strip(" ,;:，；：、")


def number_words(n):
    """A whole number from 0 in English: 1005 -> one thousand five."""
    if n < 20:
        return _ONES[n]
    if n < 100:
        return _TENS[n // 10 - 2] + (f"-{_ONES[n % 10]}" if n % 10 else "")
    size, name = next(x for x in _SIZES_ENGLISH if n >= x[0])
    return f"{number_words(n // size)} {name}" + (f" {number_words(n % size)}" if n % size else "")


def number_han(n):
    """A whole number from 0 in Chinese: 1005 -> 一千零五; 15 -> 一十五."""
    if n < 10:
        return _DIGITS[n]
    size, name = next(x for x in _SIZES_CHINESE if n >= x[0])
    gap = "零" if 0 < n % size < size // 10 else ""
    return number_han(n // size) + name + gap + (number_han(n % size) if n % size else "")


def _say_english(m):
    whole, n = m["whole"], int(m["whole"].replace(",", ""))
    high, low = divmod(n, 100)
    counts = m["part"] or m["percent"] or m["money"]
    like_year = len(whole) == 4 and (1100 <= n < 2000 or 2010 <= n < 2100) and not counts
    if m["minute"] or like_year:  # two pairs of digits
        high, low = (n, int(m["minute"])) if m["minute"] else (high, low)
        rest = number_words(low) if low > 9 else f"oh {_ONES[low]}" if low else "o'clock" if m["minute"] else "hundred"
        said = f"{number_words(high)} {rest}"
    elif n >= 10**15 or whole[0] == "0" and n:
        said = " ".join(_ONES[int(d)] for d in whole if d != ",")
    else:
        said = number_words(n)
    if m["part"]:
        said += " point " + " ".join(_ONES[int(d)] for d in m["part"][1:])
    if m["ordinal"]:
        front, last = re.fullmatch(r"(.*?)(\w+)", said).groups()
        said = front + _ORDINALS.get(last, re.sub("y$", "ie", last) + "th")
    minus, percent = "minus " if m["minus"] else "", " percent" if m["percent"] else ""
    return f" {minus}{said}{_MONEY[m['money']][0]}{percent} "


def _say_chinese(m):
    whole, n = m["whole"], int(m["whole"].replace(",", ""))
    if n >= 10**16 or whole[0] == "0" and n and not m["minute"] or m["year"] and len(whole) == 4:
        said = "".join(_DIGITS[int(d)] for d in whole if d != ",")
    else:
        said = re.sub("^一十", "十", number_han(n))
    if m["minute"]:
        minute = re.sub("^一十", "十", number_han(int(m["minute"]))) + "分"
        said += "点" + ("零" if m["minute"][0] == "0" else "") + minute if m["minute"] != "00" else "点"
    if m["part"]:
        said += "点" + "".join(_DIGITS[int(d)] for d in m["part"][1:])
    front = ("负" if m["minus"] else "") + ("百分之" if m["percent"] else "")
    return front + said + _MONEY[m["money"]][1] + (m["year"] or "")
