r"""The maths verifier: the final answer of a text, compared as an exact number.

The final answer stands, in this order of preference, after the last `####` (GSM8K), in the last `\boxed{...}`
(MATH), or is the last number of the text. Numbers are exact fractions: 0.50 equals 1/2, 0.33 does not equal
1/3. An answer that is no number is compared as text without spaces and layout; algebra needs `math-verify`.
"""

import re
from collections.abc import Sequence
from fractions import Fraction

from trueward.rewards.verdict import Case, Verdict, failed, scored

__all__ = ["final_answer", "maths", "number_of", "same_answer"]

# Longer digit strings are no answers, and exact arithmetic on them costs the square of their length.
_MAX_CHARACTERS = 60
_DIGITS = r"(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)"
_NUMBER = rf"{_DIGITS}(?:\.\d+)?|\.\d+"
# A minus after a digit, a word or a bracket is a subtraction; elsewhere it is a sign.
_LAST = re.compile(rf"(?:(?<![\w).}}\]])[-−]\s?\$?)?(?:{_NUMBER})(?:/{_DIGITS})?")
_PLAIN = re.compile(rf"([-+−]?)({_NUMBER})(?:[eE]([-+]?\d{{1,2}}))?")
_RATIO = re.compile(r"([-+−]?)(\d+)/(\d+)")
_TEX_RATIO = re.compile(r"([-+−]?)\\[dt]?frac\{([-+−]?\d+)\}\{(\d+)\}")
_LAYOUT = re.compile(
    r"\\(?:left|right|!|,|;|:|quad|displaystyle)(?![a-zA-Z])|\\(?:text|mathrm|mbox)\{[^{}]*\}"
)
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


def _plain(text: str) -> str:
    """Without units, currency and layout that do not change a number."""
    text = _LAYOUT.sub("", text).strip().rstrip(".").strip()
    text = re.sub(r"\\?[$%]|\\(?:degree|circ)|[£€°]", "", text)
    return re.sub(r"\s+", "", text)


def number_of(text: str) -> Fraction | None:
    r"""The number that a whole text is: an integer, decimal, a/b or \frac{a}{b}; None for anything else."""
    text = _plain(text)
    if len(text) > _MAX_CHARACTERS:
        return None
    if plain := _PLAIN.fullmatch(text):
        sign, digits, exponent = plain.groups()
        value = Fraction(digits.replace(",", "")) * Fraction(10) ** int(exponent or 0)
        return -value if sign in ("-", "−") else value
    if ratio := _RATIO.fullmatch(text) or _TEX_RATIO.fullmatch(text):
        sign, above, below = ratio.groups()
        if int(below) == 0:
            return None
        value = Fraction(int(above.replace("−", "-")), int(below))
        return -value if sign in ("-", "−") else value
    return None


def _words(text: str) -> str | None:
    """The number that stands alone in an answer with words around it, such as `18 dollars`."""
    numbers = _LAST.findall(text)
    return numbers[0] if len(numbers) == 1 else None


def _value(answer: str) -> Fraction | None:
    value = number_of(answer)
    if value is None and (alone := _words(answer)) is not None:
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
        return _plain(first) == _plain(second)
    return _value(first) is not None and _value(first) == _value(second)


def maths(cases: Sequence[Case]) -> list[Verdict]:
    """1 where the completion's final answer is that of the reference, else 0.

    A completion without a final answer is wrong. A reference without one is an error: nothing can be judged.
    """
    return [_judge(case) for case in cases]


def _judge(case: Case) -> Verdict:
    expected = final_answer(case.answer) or case.answer.strip()
    if not expected:
        return failed("raised", "the reference states no answer")
    stated = final_answer(case.completion)
    if stated is None:
        return scored(0.0, "no final answer")
    return scored(float(same_answer(stated, expected)), f"{stated} against {expected}")
