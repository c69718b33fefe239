"""Numbers as words, in English and in Chinese.

    "$3.50" -> a match of NUMBER -> english_number -> "three point five zero dollars"

A cardinal is a whole number as words. A number in a text may also have a sign, a currency, decimals, a percent sign
or an ordinal ending, or be a year or a time of day.

Test: ``pytest tests/voice/test_numbers.py``
"""

import re

NUMBER = re.compile(
    r"""
    (?P<minus>      (?<! [A-Za-z0-9_.)] ) [-−] )?      # a minus sign, not the hyphen of GPT-4 or 3-5
    (?P<currency>   [$€¥] )?
    (?P<whole>      \d{1,3} (?:,\d{3})+ (?!\d) | \d+ )  # 1,234,567 or 1234567
    (?:
        : (?P<minute> [0-5]\d ) (?!\d)                  # the minutes of a time of day: 10:30
    |
        (?P<decimals> \.\d+ )?
        \s? (?P<percent> % )?
    )
    (?P<year>       年 )?                                # Chinese: the number is a year
    (?P<ordinal>    (?: st | nd | rd | th ) \b )?       # 1st
    """,
    re.VERBOSE,
)

ONES = (
    *("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"),
    *("ten", "eleven", "twelve", "thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen", "nineteen"),
)
TENS = ("", "", "twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety")
IRREGULAR_ORDINALS = {
    "one": "first",
    "two": "second",
    "three": "third",
    "five": "fifth",
    "eight": "eighth",
    "nine": "ninth",
    "twelve": "twelfth",
}
SIZES = ((10**12, "trillion"), (10**9, "billion"), (10**6, "million"), (1000, "thousand"), (100, "hundred"))
MONEY = {None: "", "$": " dollars", "€": " euros", "¥": " yuan"}
ENGLISH_LIMIT = 10**15  # from here on, numbers are read digit by digit

CHINESE_DIGITS = "零一二三四五六七八九"
CHINESE_SIZES = ((10**8, "亿"), (10**4, "万"), (1000, "千"), (100, "百"), (10, "十"))
CHINESE_MONEY = {None: "", "$": "美元", "€": "欧元", "¥": "元"}
CHINESE_LIMIT = 10**16


def english_cardinal(n):
    """A whole number from 0 in English: 1005 gives "one thousand five"."""
    if n < 20:
        return ONES[n]
    if n < 100:
        return TENS[n // 10] + (f"-{ONES[n % 10]}" if n % 10 else "")
    size, name = next(entry for entry in SIZES if n >= entry[0])
    return f"{english_cardinal(n // size)} {name}" + (f" {english_cardinal(n % size)}" if n % size else "")


def chinese_cardinal(n):
    """A whole number from 0 in Chinese: 1005 gives 一千零五, 15 gives 一十五."""
    if n < 10:
        return CHINESE_DIGITS[n]
    size, name = next(entry for entry in CHINESE_SIZES if n >= entry[0])
    rest = n % size
    zero = "零" if 0 < rest < size // 10 else ""
    return chinese_cardinal(n // size) + name + zero + (chinese_cardinal(rest) if rest else "")


def english_number(match):
    """The English words for a match of `NUMBER`, with a space on both sides."""
    words = _english_whole(match)
    if match["decimals"]:
        words += " point " + _english_digits(match["decimals"])
    if match["ordinal"]:
        words = _english_ordinal(words)
    minus, percent = "minus " if match["minus"] else "", " percent" if match["percent"] else ""
    return f" {minus}{words}{MONEY[match['currency']]}{percent} "


def chinese_number(match):
    """The Chinese words for a match of `NUMBER`."""
    words = _chinese_whole(match)
    if match["minute"]:
        words += "点" + _chinese_minute(match["minute"])
    if match["decimals"]:
        words += "点" + _chinese_digits(match["decimals"])
    front = ("负" if match["minus"] else "") + ("百分之" if match["percent"] else "")
    return front + words + CHINESE_MONEY[match["currency"]] + (match["year"] or "")


def _english_whole(match):
    """The part before the decimals: a time of day, a year, single digits or a cardinal."""
    written = match["whole"]
    n = int(written.replace(",", ""))
    has_unit = match["decimals"] or match["percent"] or match["currency"]
    if match["minute"]:
        return _english_pair(n, int(match["minute"]), "o'clock")
    if len(written) == 4 and (1100 <= n < 2000 or 2010 <= n < 2100) and not has_unit:  # probably a year
        return _english_pair(n // 100, n % 100, "hundred")
    if n >= ENGLISH_LIMIT or written[0] == "0" and n:
        return _english_digits(written)
    return english_cardinal(n)


def _english_pair(high, low, if_zero):
    """Two pairs of digits: 19 and 84 give "nineteen eighty-four", 19 and 5 give "nineteen oh five"."""
    if low == 0:
        return f"{english_cardinal(high)} {if_zero}"
    return f"{english_cardinal(high)} {'oh ' if low < 10 else ''}{english_cardinal(low)}"


def _english_ordinal(words):
    """ "twenty-one" gives "twenty-first"."""
    front, last = re.fullmatch(r"(.*?)(\w+)", words).groups()
    return front + IRREGULAR_ORDINALS.get(last, re.sub("y$", "ie", last) + "th")


def _english_digits(written):
    return " ".join(ONES[int(digit)] for digit in written if digit not in ".,")


def _chinese_whole(match):
    """The part before minutes and decimals: single digits or a cardinal."""
    written = match["whole"]
    n = int(written.replace(",", ""))
    leading_zero = written[0] == "0" and n and not match["minute"]
    if n >= CHINESE_LIMIT or leading_zero or match["year"] and len(written) == 4:
        return _chinese_digits(written)
    return _drop_leading_one(chinese_cardinal(n))


def _chinese_minute(written):
    """Minutes behind 点: 05 gives 零五分, 30 gives 三十分, 00 gives nothing."""
    if written == "00":
        return ""
    return ("零" if written[0] == "0" else "") + _drop_leading_one(chinese_cardinal(int(written))) + "分"


def _chinese_digits(written):
    return "".join(CHINESE_DIGITS[int(digit)] for digit in written if digit not in ".,")


def _drop_leading_one(words):
    """一十五 gives 十五: a number that begins with ten is read without its one."""
    return re.sub("^一十", "十", words)
