"""Win rates: both orders asked, ties half, empty answers lost."""

import math
from dataclasses import dataclass, field

import pytest

from trueward.core.errors import EvidenceError
from trueward.evals.winrate import ScoreJudge, win_rate_report


@dataclass
class FirstPlace:
    """Always prefers whichever answer is shown first."""

    name: str = "first place"
    asked: list[tuple[str, str, str]] = field(default_factory=list)

    def compare(self, prompt: str, first: str, second: str) -> float:
        self.asked.append((prompt, first, second))
        return 1.0


LENGTH = ScoreJudge(name="length", score=lambda prompt, completion: float(len(completion)))


def test_hand_values() -> None:
    result = win_rate_report(LENGTH, ["p"] * 4, ["long", "a", "ab", "abc"], ["x", "abc", "cd", "d"])
    assert result.outcomes == (1.0, 0.0, 0.5, 1.0)
    assert result.estimate.value == 0.625 and result.estimate.n == 4
    assert (result.inconsistent, result.ties, result.judge) == (0.0, 0.25, "length")
    assert (result.empty_first, result.empty_second) == (0, 0)


def test_swapping_the_models_mirrors_the_rate() -> None:
    first, second = ["aa", "b", "", "dddd"], ["a", "bb", "c", " "]
    forward = win_rate_report(LENGTH, ["p"] * 4, first, second)
    backward = win_rate_report(LENGTH, ["p"] * 4, second, first)
    assert [1 - outcome for outcome in forward.outcomes] == list(backward.outcomes)
    assert (
        (forward.empty_first, forward.empty_second) == (backward.empty_second, backward.empty_first) == (1, 1)
    )


def test_position_bias_is_cancelled_and_seen() -> None:
    judge = FirstPlace()
    result = win_rate_report(judge, ["p", "q"], ["a", "b"], ["c", "d"])
    assert result.outcomes == (0.5, 0.5) and result.inconsistent == 1.0 and result.ties == 1.0
    assert judge.asked == [("p", "a", "c"), ("p", "c", "a"), ("q", "b", "d"), ("q", "d", "b")]


def test_empty_answers_lose_without_a_question() -> None:
    judge = FirstPlace()
    result = win_rate_report(judge, ["p"] * 3, ["", " \n", "a"], ["b", "", ""])
    assert result.outcomes == (0.0, 0.5, 1.0) and not judge.asked
    assert (result.empty_first, result.empty_second, result.inconsistent) == (2, 2, 0.0)


@pytest.mark.parametrize(
    ("prompts", "first", "second"), [([], [], []), (["p"], ["a"], []), (["p", "q"], ["a"], ["b"])]
)
def test_counts_must_agree(prompts: list[str], first: list[str], second: list[str]) -> None:
    with pytest.raises(EvidenceError, match="as many"):
        win_rate_report(LENGTH, prompts, first, second)


def test_judges_must_judge() -> None:
    with pytest.raises(EvidenceError, match="not a number"):
        win_rate_report(ScoreJudge(name="broken", score=lambda *_: math.nan), ["p"], ["a"], ["b"])

    @dataclass
    class Odd:
        name: str = "odd"

        def compare(self, prompt: str, first: str, second: str) -> float:
            return 0.7

    with pytest.raises(EvidenceError, match="no verdict"):
        win_rate_report(Odd(), ["p"], ["a"], ["b"])
