"""What is shown while policy optimisation runs: reward and where the time goes, and never the loss; and that
completions are drawn from the whole distribution."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.trainers import language, test_group, test_ppo
from trueward.core.config import build
from trueward.core.errors import ConfigError
from trueward.core.files import read_jsonl
from trueward.trainers.group_settings import GroupSettings
from trueward.trainers.loop import TrainResult
from trueward.trainers.ppo import PPOHooks
from trueward.trainers.ppo_settings import PPOSettings


class Shown:
    """A bar that keeps what it was given."""

    def __init__(self) -> None:
        self.figures: list[str] = []

    def update(self, done: int, figure: str = "") -> None:
        self.figures.append(figure)


@pytest.mark.parametrize("run", [test_ppo.run, test_group.run], ids=["ppo", "group"])
def test_the_headline_is_the_reward_and_never_the_loss(
    run: Callable[..., TrainResult], tmp_path: Path
) -> None:
    bar = Shown()
    run(tmp_path, language.policy(), iterations=2, hooks=PPOHooks(bar=bar))
    rows = list(read_jsonl(tmp_path / "metrics.jsonl"))
    assert len(bar.figures) == 2
    for row, figure in zip(rows, bar.figures, strict=True):
        assert figure.startswith(f"reward {row['reward']:.3f}") and "loss" not in figure
        # The time of a step, split by phase.
        assert row["time/rollout_s"] > 0 and row["time/update_s"] > 0
        assert row["time/rollout_s"] + row["time/update_s"] <= row["step_s"] * 1.001


@pytest.mark.parametrize("settings", [PPOSettings, GroupSettings], ids=["ppo", "group"])
@pytest.mark.parametrize("key", ["top_p", "top_k", "min_p"])
def test_a_truncated_distribution_cannot_be_asked_for(settings: Any, key: str) -> None:
    with pytest.raises(ConfigError, match=f"unknown key '{key}'"):
        build(settings, {key: 0.9}, source="recipe")
