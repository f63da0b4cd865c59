"""Engines and rewards that do not keep their word, and training without data: errors that say so."""

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from trueward.core.errors import DataError, RunError
from trueward.data.chat import Completion, TokenGroup
from trueward.models.tiny import tiny_model
from trueward.rollouts import Rollout
from trueward.trainers import (
    PreferenceSettings,
    RewardPair,
    RewardSettings,
    TrainSettings,
    UnpairedSettings,
    train_preference,
    train_reward,
    train_unpaired,
)
from trueward.trainers.drawing import draw_completions, finite_scores
from trueward.trainers.experience import scores_of

PROMPTS = [TokenGroup((1, 4), (), "a"), TokenGroup((1, 5), (), "b")]


def drawn(prompt: int) -> Rollout:
    return Rollout(prompt, (6, 2), (-1.0, -0.5), True)


class Scripted:
    """Returns what it was given."""

    def __init__(self, rollouts: Sequence[Rollout]) -> None:
        self._rollouts = list(rollouts)

    def generate(self, prompts: Sequence[Sequence[int]], **asked: Any) -> list[Rollout]:
        assert [tuple(p) for p in prompts] == [(1, 4), (1, 5)]
        return self._rollouts


def ask(rollouts: Sequence[Rollout]) -> list[Rollout]:
    return draw_completions(
        Scripted(rollouts), PROMPTS, num_completions=2, max_new_tokens=2, temperature=1.0, seed=0
    )


GOOD = [drawn(0), drawn(0), drawn(1), drawn(1)]


def test_what_was_asked_for_passes() -> None:
    assert ask(GOOD) == GOOD


@pytest.mark.parametrize(
    ("rollouts", "said"),
    [
        ([], "other completions than it was asked for"),
        (GOOD[:3], "3 completions of 2 prompts"),
        ([GOOD[i] for i in (0, 2, 1, 3)], "prompt by prompt"),
        ([*GOOD[:3], drawn(2)], "other completions"),
        ([*GOOD[:3], Rollout(1, (), (), True)], "without tokens, got 'b'"),
        ([*GOOD[:3], Rollout(1, (6, 2), (-1.0,), True)], "another number of log-probs than of tokens, got 1"),
    ],
    ids=["none", "too few", "another order", "another prompt", "an empty one", "a log-prob is missing"],
)
def test_an_engine_is_held_to_its_word(rollouts: list[Rollout], said: str) -> None:
    with pytest.raises(RunError, match=said):
        ask(rollouts)


@pytest.mark.parametrize(
    ("bad", "said"),
    [(math.nan, "nan"), (math.inf, "inf"), (None, "None"), ("good", "good"), ([1.0], "1.0")],
    ids=["NaN", "infinity", "None", "a word", "a list"],
)
def test_a_score_is_one_finite_number(bad: object, said: str) -> None:
    with pytest.raises(RunError, match=f"the reward of 1 completions is not finite, got .*{said}"):
        finite_scores([1.0, bad, 2.0, 3.0], GOOD, name="the reward", remedy="mend it")
    with pytest.raises(RunError, match="the reward of 1 completions is not finite"):
        scores_of(lambda prompts, rollouts: [1.0, bad, 2.0, 3.0], PROMPTS, GOOD, name="the reward")  # type: ignore[list-item, return-value]


def test_scores_are_as_many_as_completions_and_may_be_a_tensor() -> None:
    with pytest.raises(RunError, match="another number of scores, got 3, expected 4"):
        scores_of(lambda prompts, rollouts: [1.0] * 3, PROMPTS, GOOD, name="the reward")
    as_tensor: Callable[..., Any] = lambda prompts, rollouts: torch.arange(4.0)  # noqa: E731
    assert scores_of(as_tensor, PROMPTS, GOOD, name="the reward").tolist() == [0, 1, 2, 3]


def test_training_on_nothing_is_said_by_every_trainer(tmp_path: Path) -> None:
    model, settings = tiny_model("llama"), TrainSettings(steps=1)
    for number, train in enumerate(
        (
            lambda folder: train_preference(
                model, [], settings=settings, preference=PreferenceSettings(), folder=folder
            ),
            lambda folder: train_unpaired(
                model, [], settings=settings, unpaired=UnpairedSettings(), folder=folder
            ),
        )
    ):
        with pytest.raises(DataError, match="there are no items to train on"):
            train(tmp_path / str(number))


@pytest.mark.parametrize(
    ("margin", "label"), [(math.nan, None), (math.inf, None), (None, 1.5), (None, math.nan)], ids=str
)
def test_a_pair_whose_margin_or_label_is_no_number(
    margin: float | None, label: float | None, tmp_path: Path
) -> None:
    sides = (Completion((6, 2), (True, True)), Completion((7, 2), (True, True)))
    pair = RewardPair(TokenGroup((1, 4), sides, "x"), margin, label)
    with pytest.raises(DataError, match="pair x has a margin or a soft label that cannot be trained on"):
        train_reward(
            tiny_model("llama"),
            [pair],
            settings=TrainSettings(steps=1),
            reward=RewardSettings(),
            folder=tmp_path,
        )
    assert not list(tmp_path.iterdir())
