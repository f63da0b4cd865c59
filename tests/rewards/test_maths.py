"""The maths verifier: where the final answer stands, what equals what, and the real GSM8K solutions."""

import gzip
import itertools
import json
from fractions import Fraction
from pathlib import Path

import pytest

from trueward.rewards import Case
from trueward.rewards.maths import final_answer, maths, number_of, same_answer


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("48/2 = <<48/2=24>>24 clips.\n#### 72", "72"),
        ("so it is\n#### 1,234\n", "1,234"),
        ("#### 3\nno, again\n#### 4", "4"),
        (r"thus \boxed{\frac{1}{2}} is it", r"\frac{1}{2}"),
        (r"\boxed{1} or rather \fbox{2} and \boxed{x^{2}+1}", "x^{2}+1"),
        ("3 plus 4 is 7 .", "7"),
        ("she sold 48-24 clips", "24"),
        ("the difference is -3.", "-3"),
        ("1,000 and then 2,500.75 dollars", "2,500.75"),
        ("3/4 of it", "3/4"),
        ("about .5", ".5"),
        ("i do not know .", None),
        ("#### ", None),
        (r"\boxed{7", "7"),
        ("", None),
    ],
)
def test_where_the_final_answer_stands(text: str, answer: str | None) -> None:
    assert final_answer(text) == answer


@pytest.mark.parametrize(
    ("first", "second", "same"),
    [
        ("72", "72.0", True),
        ("1,234", "1234", True),
        ("$18", "18", True),
        ("18 dollars", "18", True),
        ("50%", "50", True),
        ("0.5", "1/2", True),
        (r"\frac{1}{2}", "0.50", True),
        (r"\dfrac{-3}{6}", "-0.5", True),
        (r"-\frac{1}{2}", "-1/2", True),
        ("1.5e3", "1500", True),
        ("0.33", "1/3", False),
        ("-3", "3", False),
        ("1/0", "0", False),
        ("x+1", "x + 1", True),
        ("x+1", "x+2", False),
        (r"\left( 3 , 4 \right)", "(3,4)", True),
        ("3 or 4", "4", False),
        ("9" * 80, "9" * 79 + "8", False),
        ("1e99", "1e98", False),
    ],
)
def test_what_equals_what(first: str, second: str, same: bool) -> None:
    assert same_answer(first, second) is same
    assert same_answer(second, first) is same


def test_numbers_are_exact() -> None:
    assert number_of("0.1") == Fraction(1, 10)
    assert number_of("12 apples") is None


def test_three_outcomes() -> None:
    right, wrong, silent, unjudged = maths(
        [Case("it is 7 .", "#### 7"), Case("it is 8 .", "7"), Case("i do not know .", "7"), Case("7", "")]
    )
    assert [v.score for v in (right, wrong, silent, unjudged)] == [1.0, 0.0, 0.0, None]
    assert unjudged.error == "raised"


def test_gsm8k_solutions_agree_with_themselves_and_their_labels(shared: Path) -> None:
    with gzip.open(shared / "gsm8k" / "train.jsonl.gz", "rt", encoding="utf-8") as stream:
        answers = [json.loads(line)["answer"] for line in stream]
    verdicts = maths([Case(answer, answer) for answer in answers])
    assert len(verdicts) == 7473
    assert all(verdict.score == 1.0 for verdict in verdicts)
    assert all(number_of(final_answer(answer) or "") is not None for answer in answers)
    shifted = maths([Case(a, b) for a, b in itertools.pairwise(answers)])
    assert sum(v.score or 0 for v in shifted) < 0.05 * len(shifted)
