"""The confidence loss in the trainer: imitation is Bradley-Terry, alpha warms up, resume, what is refused."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.trainers import language, toy
from trueward.core.errors import DataError
from trueward.core.files import read_jsonl
from trueward.objectives.distill import weak_to_strong
from trueward.trainers.reward import RewardObjective, RewardPair, RewardSettings, pair_rewards, score_pairs
from trueward.trainers.weak_to_strong import (
    WeakToStrongObjective,
    WeakToStrongSettings,
    train_weak_to_strong,
)


def pairs(n: int = 24) -> list[RewardPair]:
    """Every other pair seen the other way round; the supervisor is right in four of five."""
    found = []
    for i, group in enumerate(language.comparisons(n)):
        better_first = i % 2 == 0
        turned = group if better_first else replace(group, completions=group.completions[::-1])
        found.append(RewardPair(turned, None, 0.8 if better_first != (i % 5 == 4) else 0.2))
    return found


def run(folder: Path, model: Any, *, alpha: float = 0.5, **changes: Any) -> Any:
    own = {key: changes.pop(key) for key in ("resume", "evaluate", "items") if key in changes}
    return train_weak_to_strong(
        model,
        own.pop("items", pairs()),
        settings=toy.settings(**{"lr": 0.005, "max_tokens_per_forward": 64, **changes}),
        confidence=WeakToStrongSettings(alpha=alpha),
        folder=folder,
        **own,
    )


def test_imitation_is_bradley_terry() -> None:
    model, items = language.reward_model(), pairs(6)
    objective = WeakToStrongObjective(WeakToStrongSettings(alpha=0.0))
    objective.at(3, 10)
    plain = RewardObjective(RewardSettings(centering=0.0))
    ours, theirs = (one.loss(model, items).loss_sum.detach() for one in (objective, plain))
    assert float(ours) == pytest.approx(float(theirs), rel=1e-6)


def test_alpha_rises_over_a_fifth_of_the_steps() -> None:
    model, items = language.reward_model(), pairs(6)
    objective = WeakToStrongObjective(WeakToStrongSettings(alpha=0.6))
    first_B, second_B, _ = pair_rewards(model, items)
    weak_B = torch.tensor([item.soft_label for item in items])
    for step, alpha in ((0, 0.0), (1, 0.3), (2, 0.6), (9, 0.6)):
        objective.at(step, 10)
        expected = weak_to_strong(first_B - second_B, weak_B, alpha=alpha, threshold=0.5).loss_B.sum()
        out = objective.loss(model, items)
        assert float(out.loss_sum.detach()) == pytest.approx(float(expected.detach()), rel=1e-6)
        total, count = out.sums["weak_to_strong/alpha"]
        assert float(total) / count == pytest.approx(alpha)


def test_it_learns_and_a_stopped_run_goes_on(tmp_path: Path) -> None:
    whole, stopped = language.reward_model(), language.reward_model()
    result = run(tmp_path / "whole", whole, steps=30)
    assert result.step == 30
    rows = list(read_jsonl(tmp_path / "whole" / "metrics.jsonl"))
    assert rows[-1]["loss"] < rows[0]["loss"]
    assert [row["weak_to_strong/alpha"] for row in rows[:7]] == pytest.approx(
        [0, *(k / 12 for k in range(1, 7))]
    )
    truth = [float(i % 2 == 0) for i in range(24)]
    first, second = score_pairs(whole, pairs(), max_tokens_per_forward=64)
    assert sum((a > b) == bool(t) for a, b, t in zip(first, second, truth, strict=True)) > 20
    # Stopped within the warm-up, so that a step counted from 0 again would show.
    assert run(
        tmp_path / "stopped", stopped, steps=30, eval_every=1, evaluate=toy.interrupt_at(4)
    ).interrupted
    fresh = language.reward_model()
    run(tmp_path / "stopped", fresh, steps=30, resume=True)
    assert toy.equal(toy.weights(fresh), toy.weights(whole))


@pytest.mark.parametrize("change", [{"soft_label": None}, {"margin": 1.0}], ids=str)
def test_refused(tmp_path: Path, change: dict[str, float | None]) -> None:
    with pytest.raises(DataError, match="is not labelled by a weak supervisor"):
        run(tmp_path, language.reward_model(), items=[*pairs(4), replace(pairs(1)[0], **change)])  # type: ignore[arg-type]
