"""Rewards summed by weights: hand values, parts in the metrics, a part that fails is named."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from tests.trainers import language
from tests.trainers.test_ppo import low_words, prompts, settings
from trueward.core.errors import RunError
from trueward.core.files import read_jsonl
from trueward.data.chat import TokenGroup
from trueward.rewards import Verdict, failed, scored
from trueward.rollouts import LocalEngine, Rollout
from trueward.trainers.experience import ppo_models
from trueward.trainers.ppo import train_ppo
from trueward.trainers.reward_sum import RewardPart, VerdictSum, WeightedReward, parts_of

ROLLOUTS = [Rollout(0, (4, 9, 15, 2), (0.0,) * 4, True), Rollout(0, (5, 6), (0.0,) * 2, False)]


def length(groups: Sequence[TokenGroup], rollouts: Sequence[Rollout]) -> list[float]:
    return [float(len(rollout.ids)) for rollout in rollouts]


def test_weights_and_scales_by_hand() -> None:
    # low_words: 2/4 and 1. Length: 4 and 2, less 3, over 2: 0.5 and -0.5.
    total = WeightedReward(
        [RewardPart("low", low_words, 0.7), RewardPart("length", length, -0.3, shift=3.0, scale=2.0)]
    )
    assert total(prompts(1), ROLLOUTS) == pytest.approx([0.7 * 0.5 - 0.3 * 0.5, 0.7 + 0.3 * 0.5])
    # Metrics are raw: no weight, no scale.
    assert parts_of(total) == pytest.approx({"reward/low": 0.75, "reward/length": 3.0})
    assert parts_of(low_words) == {}


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_part_that_is_not_finite_is_named(bad: float) -> None:
    parts = [RewardPart("low", low_words, 1.0), RewardPart("broken", lambda *_: [1.0, bad], 0.0)]
    for total in (WeightedReward(parts), VerdictSum(WeightedReward(parts))):
        with pytest.raises(RunError, match="reward broken of 1 completions is not finite"):
            total(prompts(1), ROLLOUTS)


def test_a_part_without_a_score_stops_ppo_and_is_counted_by_groups() -> None:
    def verifier(*_: Any) -> list[Verdict]:
        return [scored(1.0, "right"), failed("timed out", "10 s")]

    total = WeightedReward([RewardPart("low", low_words, 1.0), RewardPart("check", verifier, 2.0)])
    with pytest.raises(RunError, match=r"no score .timed out.: check: 10 s"):
        total(prompts(1), ROLLOUTS)
    first, second = VerdictSum(total)(prompts(1), ROLLOUTS)
    assert first.score == pytest.approx(2.5)
    assert first.detail == "low 0.5; check 1"
    assert (second.score, second.error) == (None, "timed out")
    assert parts_of(total)["reward/check"] == 1.0


def test_another_number_of_scores_is_named() -> None:
    total = WeightedReward([RewardPart("short", lambda *_: [1.0], 1.0)])
    with pytest.raises(RunError, match="reward short returned another number of scores"):
        total(prompts(1), ROLLOUTS)


@pytest.mark.parametrize(
    "parts",
    [
        [],
        [RewardPart("a", length, math.nan)],
        [RewardPart("a", length, 1.0, scale=0.0)],
        [RewardPart("a", length, 1.0), RewardPart("a", length, 1.0)],
    ],
    ids=["none", "weight", "scale", "name twice"],
)
def test_what_is_refused(parts: list[RewardPart]) -> None:
    with pytest.raises(ValueError, match=r"finite weight|name of its own"):
        WeightedReward(parts)


def run(folder: Path, weight: float) -> list[dict[str, Any]]:
    model, asked = language.policy(), settings(iterations=3)
    total = WeightedReward([RewardPart("low", low_words, 1.0), RewardPart("length", length, weight)])
    engine = LocalEngine(model, [language.STOP])
    train_ppo(ppo_models(model, asked), prompts(), engine=engine, reward=total, settings=asked, folder=folder)
    return list(read_jsonl(folder / "metrics.jsonl"))


def test_weights_act_in_ppo_and_parts_are_logged(tmp_path: Path) -> None:
    liked, disliked = run(tmp_path / "liked", 1.0), run(tmp_path / "disliked", -1.0)
    for row, weight in ((liked[0], 1.0), (disliked[0], -1.0)):
        assert row["reward"] == pytest.approx(row["reward/low"] + weight * row["reward/length"], rel=1e-5)
    # The same first answers, then the weight decides.
    assert liked[0]["reward/length"] == disliked[0]["reward/length"]
    assert liked[-1]["reward/length"] > disliked[-1]["reward/length"]
