"""The maths verifiers on real answers, against each other and against what publishers say is right.

Also the two baselines of verified maths: always the most common training answer, and the question's last
number.
"""

import gzip
import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from trueward.core.stats import Estimate, wilson
from trueward.data.records import Demonstration, Record
from trueward.rewards import Case, Verdict, VerifierSettings, all_of
from trueward.rewards.maths import final_answer, maths

__all__ = ["agreement", "last_number_rate", "most_common_rate"]

_SYMBOLIC_SOLUTIONS = 1319
_NAMES = ("maths", "math_verify")


def _rows(file: Path) -> list[dict[str, Any]]:
    with gzip.open(file, "rt", encoding="utf-8") as stream:
        return [json.loads(line) for line in stream]


def _demonstrations(records: Sequence[Record]) -> list[Demonstration]:
    return [record for record in records if isinstance(record, Demonstration)]


def _rate(completions: Sequence[str], held: Sequence[Demonstration]) -> Estimate:
    verdicts = maths([Case(c, r.messages[-1].content) for c, r in zip(completions, held, strict=True)])
    return wilson(sum(verdict.score == 1 for verdict in verdicts), len(verdicts))


def most_common_rate(train: Sequence[Record], held: Sequence[Record]) -> Estimate:
    """Pass rate of the final answer that most training solutions have."""
    answers = Counter(final_answer(r.messages[-1].content) for r in _demonstrations(train))
    asked = _demonstrations(held)
    ((best, _),) = answers.most_common(1)
    return _rate([rf"\boxed{{{best}}}"] * len(asked), asked)


def last_number_rate(held: Sequence[Record]) -> Estimate:
    """Pass rate of the last number in the question."""
    asked = _demonstrations(held)
    return _rate([r.messages[-2].content for r in asked], asked)


def _compare(cases: Sequence[Case], truth: Sequence[bool]) -> dict[str, Any]:
    """Each verifier against the truth and both against each other; errors are counted apart."""
    verdicts: dict[str, list[Verdict]] = {
        name: all_of([VerifierSettings(name=name)])(cases) for name in _NAMES
    }
    found: dict[str, Any] = {"cases": len(cases), "right": sum(truth)}
    for name, given in verdicts.items():
        judged = [(v.score == 1, t) for v, t in zip(given, truth, strict=True) if v.score is not None]
        found[name] = {
            "agrees": dict(wilson(sum(a == b for a, b in judged), len(judged))._asdict()),
            "false_right": sum(a and not b for a, b in judged),
            "false_wrong": sum(b and not a for a, b in judged),
            "errors": len(given) - len(judged),
        }
    both = [
        (a.score, b.score)
        for a, b in zip(*verdicts.values(), strict=True)
        if a.score is not None and b.score is not None
    ]
    found["both_agree"] = dict(wilson(sum(a == b for a, b in both), len(both))._asdict())
    return found


def agreement(data: Path) -> dict[str, Any]:
    """Agreement over all answers of GSM8K's test set, marked solutions to it, and MATH-500."""
    tests, problems = _rows(data / "gsm8k/test.jsonl.gz"), _rows(data / "math/math500-test.jsonl.gz")
    solved = _rows(data / "gsm8k/example_model_solutions.jsonl.gz")
    models = [key for key, value in solved[0].items() if isinstance(value, dict)]
    marked = [(r[m], f"#### {r['ground_truth'].rpartition('A: ')[2]}") for r in solved for m in models]
    step = len(marked) // _SYMBOLIC_SOLUTIONS
    few = marked[:: step + 1]
    after = [*problems[1:], problems[0]]
    other = [(p, q) for p, q in zip(problems, after, strict=True) if p["answer"] != q["answer"]]
    return {
        "GSM8K test answers, each with itself": _compare(
            [Case(r["answer"], r["answer"]) for r in tests], [True] * len(tests)
        ),
        "GSM8K answers of four models, marked by their publisher": _compare(
            [Case(solution["solution"], answer) for solution, answer in few],
            [bool(solution["is_correct"]) for solution, _ in few],
        ),
        "MATH-500 solutions with their answers": _compare(
            [Case(p["solution"], _boxed(p["answer"])) for p in problems], [True] * len(problems)
        ),
        "MATH-500 solutions with the next problem's answer": _compare(
            [Case(p["solution"], _boxed(q["answer"])) for p, q in other], [False] * len(other)
        ),
    }


def _boxed(answer: str) -> str:
    return rf"\boxed{{{answer}}}"
