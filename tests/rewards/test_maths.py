"""The maths verifier: where the final answer stands, what equals what, and the real GSM8K solutions."""

import gzip
import itertools
import json
from fractions import Fraction
from pathlib import Path

import pytest

from trueward.rewards import Case
from trueward.rewards.maths import final_answer, maths, number_of, reference_answer, same_answer


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
        (r"the answer is -\frac{14}{3}.", r"-\frac{14}{3}"),
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
        ("x = 5", "5", True),
        ("2x", "2", False),
        ("2 pi", "2", False),
        (r"2\pi", "2", False),
        (r"\sqrt{2}", "2", False),
        (r"x^2", "2", False),
        (r"\text{Evelyn}", r"\text{Bob}", False),
        (r"\text{(A)}", r"\text{(B)}", False),
        (r"\text{(A)}", "(A)", True),
        (r"3 \text{ or } 4", "34", False),
        ("2 3", "23", False),
        ("1 1/2", "11/2", False),
        ("1 1/2", "1.5", True),
        (r"1\frac{4}{5}", "9/5", True),
        (r"-137 \frac{1}{2}", "-137.5", True),
        (r"\frac9{19}", "9/19", True),
        (r"\frac{270}7\text{ degrees}", r"\frac{270}{7}", True),
        (r"15\mbox{ cm}^2", "15", True),
        (r"15\mbox{ cm}^2", "225", False),
        (r"\$32,\!348", "32348", True),
        (r"11,\! 111,\! 111,\! 100", "11111111100", True),
        ("1 234", "1234", True),
        (r"90^\circ", "90", True),
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


@pytest.mark.parametrize(
    ("reference", "answer"),
    [
        (r"\frac{14}{3}", r"\frac{14}{3}"),
        ("6 - 5i", "6 - 5i"),
        (r"864 \mbox{ inches}^2", r"864 \mbox{ inches}^2"),
        (r"\left( 3, \frac{\pi}{2} \right)", r"\left( 3, \frac{\pi}{2} \right)"),
        ("18 dollars", "18 dollars"),
        (r"so it is \boxed{6 - 5i}", "6 - 5i"),
        ("She makes 9 * 2 = 18 dollars.", "18"),
        ("16 - 3 - 4 = 9\nA: 18", "18"),
        ("#### ", None),
        (" ", None),
    ],
)
def test_what_a_reference_states(reference: str, answer: str | None) -> None:
    """A column of answers has no mark; the last number of `6 - 5i` is not what the data says is right."""
    assert reference_answer(reference) == answer


def test_bare_references_are_not_cut_down_to_their_last_number() -> None:
    cases = [Case("it is 3", r"\frac{14}{3}"), Case(r"\boxed{\frac{14}{3}}", r"\frac{14}{3}")]
    assert [verdict.score for verdict in maths(cases)] == [0.0, 1.0]


def test_real_solutions_are_judged_as_their_publishers_did(shared: Path) -> None:
    """GSM8K's example solutions of four models are marked right or wrong by OpenAI; MATH has answers beside
    solutions, and none fits the next problem's but the five where both are the same number."""
    with gzip.open(shared / "gsm8k" / "example_model_solutions.jsonl.gz", "rt", encoding="utf-8") as stream:
        rows = [json.loads(line) for line in stream]
    models = [key for key, value in rows[0].items() if isinstance(value, dict)]
    marked = [(Case(r[m]["solution"], r["ground_truth"]), r[m]["is_correct"]) for r in rows for m in models]
    assert len(marked) == 5276
    assert [v.score == 1 for v in maths([case for case, _ in marked])] == [right for _, right in marked]
    with gzip.open(shared / "math" / "math500-test.jsonl.gz", "rt", encoding="utf-8") as stream:
        problems = [json.loads(line) for line in stream]
    assert all(v.score == 1 for v in maths([Case(p["solution"], p["answer"]) for p in problems]))


def test_gsm8k_solutions_agree_with_themselves_and_their_labels(shared: Path) -> None:
    with gzip.open(shared / "gsm8k" / "train.jsonl.gz", "rt", encoding="utf-8") as stream:
        answers = [json.loads(line)["answer"] for line in stream]
    verdicts = maths([Case(answer, answer) for answer in answers])
    assert len(verdicts) == 7473
    assert all(verdict.score == 1.0 for verdict in verdicts)
    assert all(number_of(final_answer(answer) or "") is not None for answer in answers)
    shifted = maths([Case(a, b) for a, b in itertools.pairwise(answers)])
    assert sum(v.score or 0 for v in shifted) < 0.05 * len(shifted)
