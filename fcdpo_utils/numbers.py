"""Numbers as exact fractions: reading, writing and comparing them, and which numbers a text states.

Knows nothing of calls being run, of tools or of tasks.
"""

import re
from collections.abc import Collection
from fractions import Fraction
from pathlib import Path

import yaml

from fcdpo_utils.calls import Value

MAX_MAGNITUDE = 10**15
_NUMBER = re.compile(r"[+-]?(\d{1,30}(\.\d{0,30})?|\.\d{1,30})(/\d{1,30})?")

_DIGITS = r"(?:\d{1,3}(?:,\d{3})+(?!\d)(?:\.\d+)?|\d+(?:\.\d+)?|(?<!\.)\.\d+)"
_LITERAL = re.compile(rf"(?<!\w){_DIGITS}(?:/{_DIGITS})?")  # behind a letter it is a part of a name: F1
_TOKEN = re.compile(rf"{_LITERAL.pattern}|[^\W\d_]+|[^\s\w-]")
# what words say: a value, one that multiplies, a part of one, nothing ("half of a million")
_WORDS, _MULTIPLES, _PARTS, _SILENT = yaml.safe_load(Path(__file__).with_suffix(".yaml").read_text(encoding="utf-8"))


def parse_number(value: Value) -> Fraction:
    """An int, a finite float, or text such as "3", "2.5", "-1/3" as an exact fraction.

    Raises TypeError or ValueError for bool, several numbers, other text, a zero denominator or |value| > 1e15.
    """
    if isinstance(value, bool | list):
        raise TypeError("not a number")
    text = str(value).strip()
    if isinstance(value, str) and not _NUMBER.fullmatch(text):
        raise ValueError("not a number")
    try:
        numerator, _, denominator = text.partition("/")
        number = Fraction(numerator) / Fraction(denominator or 1)
    except ZeroDivisionError:
        raise ValueError("zero denominator") from None
    if abs(number) > MAX_MAGNITUDE or number.denominator > MAX_MAGNITUDE:
        raise ValueError("number too large")
    return number


def format_number(number: Fraction) -> str:
    """Shortest exact text: "7", "2.5" for a finite decimal of at most six places, else "22/7"."""
    scaled = number * 10**6
    if number.denominator == 1 or scaled.denominator != 1:
        return str(number)
    whole, part = divmod(abs(scaled.numerator), 10**6)
    return f"{'-' if number < 0 else ''}{whole}.{part:06d}".rstrip("0")


def answers_equal(a: Fraction, b: Fraction) -> bool:
    """Two whole numbers exactly, anything else within a relative 1e-6."""
    return a == b if a.denominator == b.denominator == 1 else abs(a - b) <= max(abs(a), abs(b)) / 10**6


def numbers_in(text: str) -> set[Fraction]:
    """The numbers that a text states in digits or words, without their signs: "$1,250.50", "twenty-five", "twice".

    Compounds state what they are made of too: "20%" gives 20, 100 and 1/5; "two dozen" 2, 12 and 24; "half" 2 and 1/2.
    """
    found: set[Fraction] = set()
    total = last = Fraction(0)  # of the number being read: "two thousand" and "five hundred"
    before = ""
    for token in _TOKEN.findall(text.lower()):
        word = token if token in _PARTS else token.removesuffix("s")
        if word in _PARTS:
            part = Fraction(1, _PARTS[word])
            found |= {1 / part, part, last + part} if before in _SILENT else {1 / part, part}  # two and a half
            last = (last or 1) * part
        elif word in _MULTIPLES:
            found.add(Fraction(_MULTIPLES[word]))
            last = (last or 1) * _MULTIPLES[word]
            total, last = (total + last, Fraction(0)) if last >= 1000 else (total, last)
        elif token in _WORDS or (_LITERAL.fullmatch(token) and len(token) < 50):
            *parts, value = [Fraction(_WORDS[token])] if token in _WORDS else _values(token)
            room = 1 if token not in _WORDS else 100 if last % 100 == 0 else 10 if last % 10 == 0 else 0
            total, last = (total, last + value) if value < room else (Fraction(0), value)  # two hundred, fifty, five
            found |= {*parts, value}
        elif token not in _SILENT:
            total = last = Fraction(0)
        found |= {total + last} - {0}
        before = token
    return found


def is_stated(value: Value, stated: Collection[Fraction]) -> bool:
    """Whether every number of an argument, or in its text, is among `stated`, signs aside; "F1" is a name."""
    if isinstance(value, bool | list):
        return isinstance(value, bool) or all(is_stated(item, stated) for item in value)

    def known(number: Fraction) -> bool:
        return abs(number) in stated or any(answers_equal(abs(number), other) for other in stated)

    literals = _LITERAL.findall(value) if isinstance(value, str) else [str(value)]
    return all(known(whole) or (parts and all(map(known, parts))) for *parts, whole in map(_values, literals))


def is_result(answer: str, line: str) -> bool:
    """Whether `line` gives `answer`: its one number, sign and all, or else the same text up to case and spaces."""
    numbers = _signed(answer)
    if len(numbers) == 1:
        return any(answers_equal(numbers[0], number) for number in _signed(line))
    return answer.lower().split() == line.lower().split()


def _signed(text: str) -> list[Fraction]:
    found = [(text[: match.start()], _values(match[0])[-1]) for match in _LITERAL.finditer(text)]
    return [-number if before.endswith("-") else number for before, number in found]


def _values(literal: str) -> list[Fraction]:
    """A number in digits; behind its two parts where it is "1/3"."""
    parts = [Fraction(part) for part in literal.replace(",", "").split("/")]
    return [*parts, parts[0] / parts[1]] if len(parts) == 2 and parts[1] else parts
