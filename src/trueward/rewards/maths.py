r"""The maths verifier: the final answer of a text, compared as an exact number.

The final answer stands, in this order of preference, after the last `####` (GSM8K), in the last `\boxed{...}`
(MATH), or is the last number of the text. A reference without either mark is the answer itself (a column of
answers), unless it is prose. Numbers are exact fractions: 0.50 equals 1/2, 0.33 does not equal 1/3. An answer
that is no number is compared as text without spaces and layout; algebra needs `math-verify`.
"""

import re
from collections.abc import Sequence
from fractions import Fraction

from trueward.rewards.verdict import Case, Verdict, failed, scored

__all__ = ["final_answer", "maths", "number_of", "reference_answer", "same_answer"]

# Longer digit strings are no answers, and exact arithmetic on them costs the square of their length.
_MAX_CHARACTERS = 60
_DIGITS = r"(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)"
_NUMBER = rf"{_DIGITS}(?:\.\d+)?|\.\d+"
_TEX_FRACTION = r"\\[dt]?frac\s*(?:\{[-+−]?\d+\}|\d)\s*(?:\{\d+\}|\d)"
# A minus after a digit, a word or a bracket is a subtraction; elsewhere it is a sign.
_LAST = re.compile(rf"(?:(?<![\w).}}\]])[-−]\s?\$?)?(?:{_TEX_FRACTION}|(?:{_NUMBER})(?:/{_DIGITS})?)")
_PLAIN = re.compile(rf"([-+−]?)({_NUMBER})(?:[eE]([-+]?\d{{1,2}}))?")
_RATIO = re.compile(r"([-+−]?)(\d+)/(\d+)")
_TEX_RATIO = re.compile(r"([-+−]?)(\d*)\\[dt]?frac(?:\{([-+−]?\d+)\}|(\d))(?:\{(\d+)\}|(\d))")
_MIXED = re.compile(r"([-+−]?)(\d+)\s+(\d+)/(\d+)")
# Digits that spaces part are one number only in groups of three.
_PARTED = re.compile(r"\d\s+(?!\d{3}(?!\d))[\d.]")
_LAYOUT = re.compile(r"\\(?:left|right|!|,|;|:|quad|displaystyle)(?![a-zA-Z])")
_TEXT = re.compile(r"\\(?:text|textbf|mathrm|mbox)\s*\{([^{}]*)\}")
# A unit stands behind its number, perhaps with a power.
_UNIT = re.compile(r"\s*\\(?:text|mathrm|mbox)\s*\{[^{}]*\}(?:\^\{?\d\}?)?\s*$")
_COMMAND = re.compile(r"\\[a-zA-Z]+")
_WORD = re.compile(r"[^\W\d_]{2,}")
_PROSE_WORDS = 3
_ASSIGNED = re.compile(r"\s*[a-zA-Z]\s*=")
# What may stand beside the one number of an answer: words and punctuation, nothing that could be algebra.
_BESIDE = re.compile(r"(?:[^\W\d_]{2,}|[\s.,:;!'])*")
_ALGEBRA = re.compile(r"\b(?:pi|sqrt|log|ln|exp|sin|cos|tan|theta|infinity|or|and)\b", re.IGNORECASE)
_BOX = re.compile(r"\\f?boxed\s*\{")


def _boxed(text: str) -> str | None:
    r"""Content of the last \boxed{...}, braces matched; None where there is none or it never closes."""
    found = list(_BOX.finditer(text))
    if not found:
        return None
    start = found[-1].end()
    depth = 1
    for index in range(start, len(text)):
        depth += {"{": 1, "}": -1}.get(text[index], 0)
        if depth == 0:
            return text[start:index].strip()
    return None


def final_answer(text: str) -> str | None:
    """The final answer that a text states, as it is written there; None where it states none."""
    if "####" in text:
        after = text.rpartition("####")[2].strip()
        return after.splitlines()[0].strip() if after else None
    box = _boxed(text)
    if box is not None:
        return box or None
    numbers = _LAST.findall(text)
    return numbers[-1] if numbers else None


def reference_answer(text: str) -> str | None:
    r"""The answer that a reference states; None where it states none.

    Without a mark (`####`, a box) a reference of one line and fewer than three words is the answer, as in a
    column of answers: the last number of `\frac{14}{3}` would be 3. Of prose the last number counts.
    """
    marked = "####" in text or _boxed(text) is not None
    words = _WORD.findall(_COMMAND.sub(" ", _TEXT.sub(" ", text)))
    if marked or len(words) >= _PROSE_WORDS or len(text.strip().splitlines()) > 1:
        return final_answer(text) if marked else final_answer(text) or text.strip()
    return text.strip() or None


def _plain(text: str) -> str:
    """Without currency, percent and layout that do not change an answer; spaces stay."""
    text = _LAYOUT.sub("", text).strip().rstrip(".").strip()
    return re.sub(r"\\?[$%]|\\(?:degree|circ)|[£€°]|\^\s*(?:\\circ|\{\s*\\circ\s*\})", "", text).strip()


def _signed(sign: str, value: Fraction) -> Fraction:
    return -value if sign in ("-", "−") else value


def _ratio(above: str, below: str) -> Fraction | None:
    return Fraction(int(above.replace("−", "-")), int(below)) if int(below) else None


def number_of(text: str) -> Fraction | None:
    r"""The number that a whole text is: an integer, decimal, a/b, \frac{a}{b}, or a mixed one as 1 1/2; else
    None."""
    text = _plain(_UNIT.sub("", text))
    if len(text) > _MAX_CHARACTERS:
        return None
    if mixed := _MIXED.fullmatch(text):
        sign, whole, above, below = mixed.groups()
        part = _ratio(above, below)
        return None if part is None else _signed(sign, int(whole) + part)
    if _PARTED.search(text):
        return None
    text = re.sub(r"\s+", "", text)
    if plain := _PLAIN.fullmatch(text):
        sign, digits, exponent = plain.groups()
        return _signed(sign, Fraction(digits.replace(",", "")) * Fraction(10) ** int(exponent or 0))
    if ratio := _RATIO.fullmatch(text):
        sign, above, below = ratio.groups()
        part = _ratio(above, below)
        return None if part is None else _signed(sign, part)
    if tex := _TEX_RATIO.fullmatch(text):
        sign, whole, *parts = tex.groups()
        part = _ratio(parts[0] or parts[1], parts[2] or parts[3])
        if part is None or (whole and part < 0):
            return None
        return _signed(sign, int(whole or 0) + part)
    return None


def _as_text(text: str) -> str:
    r"""An answer that is no number, to be compared: the words of \text{...} count, spaces do not."""
    return re.sub(r"\s+", "", _plain(_TEXT.sub(r"\1", text)))


def _alone(answer: str) -> str | None:
    """The one number of an answer with words beside it, as `18 dollars` or `x = 5`; not of `2x` or `2 pi`."""
    answer = _plain(_ASSIGNED.sub("", _TEXT.sub(r" \1 ", answer), count=1))
    numbers = _LAST.findall(answer)
    if len(numbers) != 1 or _ALGEBRA.search(answer):
        return None
    before, _, after = answer.partition(numbers[0])
    glued = (before and before[-1].isalpha()) or (after and after[0].isalpha())
    return numbers[0] if not glued and _BESIDE.fullmatch(f"{before} {after}") else None


def _value(answer: str) -> Fraction | None:
    value = number_of(answer)
    if value is None and (alone := _alone(answer)) is not None:
        value = number_of(alone)
    return value


def same_answer(first: str, second: str) -> bool:
    """Whether two final answers are the same number, or, where neither is one, the same text."""
    if first.strip() == second.strip():
        return True
    numbers = number_of(first), number_of(second)
    if None not in numbers:
        return numbers[0] == numbers[1]
    if numbers == (None, None):
        return _as_text(first) == _as_text(second)
    return _value(first) is not None and _value(first) == _value(second)


def maths(cases: Sequence[Case]) -> list[Verdict]:
    """1 where the completion's final answer is that of the reference, else 0.

    A completion without a final answer is wrong. A reference without one is an error: nothing can be judged.
    """
    return [_judge(case) for case in cases]


def _judge(case: Case) -> Verdict:
    expected = reference_answer(case.answer)
    if expected is None:
        return failed("raised", "the reference states no answer")
    stated = final_answer(case.completion)
    if stated is None:
        return scored(0.0, "no final answer")
    return scored(float(same_answer(stated, expected)), f"{stated} against {expected}")
