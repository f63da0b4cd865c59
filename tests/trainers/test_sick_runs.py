"""Tiny runs made sick on purpose through the real trainers, and what doctor and trainer say of them."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from tests.pipeline.toy import call
from tests.trainers import language, toy
from tests.trainers.test_group import Biased
from tests.trainers.test_group import run as train_group
from tests.trainers.test_ppo import run as train_ppo
from trueward.core.errors import RunError
from trueward.data.chat import TokenGroup
from trueward.rollouts import Rollout
from trueward.trainers.loop import TrainResult
from trueward.trainers.preference import PreferenceSettings, train_preference
from trueward.trainers.sft import train_sft


def findings(folder: Path, capsys: pytest.CaptureFixture[str]) -> dict[str, str]:
    """Rule -> what was seen, as the command prints it."""
    code = call("doctor", str(folder), "--json")
    (stage,) = json.loads(capsys.readouterr().out)["stages"]
    assert code == int(bool(stage["findings"]))
    return {finding["rule"]: finding["seen"] for finding in stage["findings"]}


def sft(folder: Path, policy: nn.Module, **changes: Any) -> TrainResult:
    settings = toy.settings(**{"lr": 0.01, "max_tokens_per_forward": 64, "steps": 24, **changes})
    return train_sft(policy, language.demonstrations(), settings=settings, folder=folder)


def dpo(folder: Path, policy: nn.Module, groups: Sequence[TokenGroup], **changes: Any) -> TrainResult:
    settings = toy.settings(**{"lr": 0.003, "max_tokens_per_forward": 64, "steps": 16, **changes})
    return train_preference(policy, groups, settings=settings, preference=PreferenceSettings(), folder=folder)


def equal(groups: Sequence[TokenGroup], rollouts: Sequence[Rollout]) -> list[float]:
    return [1.0] * len(rollouts)


def test_a_run_that_learns_is_healthy(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sft(tmp_path, language.policy())
    assert findings(tmp_path, capsys) == {}


def test_an_exploding_learning_rate_spikes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    result = sft(tmp_path, language.policy(), lr=3.0, max_grad_norm=0.0, schedule="linear", warmup_ratio=0.9)
    seen = findings(tmp_path, capsys)
    assert {"loss spikes", "loss rises"} & seen.keys()
    assert len(result.warnings) == len(seen)


def test_a_learning_rate_that_rounds_away(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    policy = language.policy()
    before = toy.weights(policy)
    sft(tmp_path, policy, lr=1e-12, steps=3)
    for name, weight in toy.weights(policy).items():
        torch.testing.assert_close(weight, before[name], rtol=0, atol=1e-10)
    assert "never rose above 1e-12" in findings(tmp_path, capsys)["learning rate of zero"]


def test_dpo_on_near_copies_displaces_chosen(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    # Pairs that share their tokens but for one: what lowers rejected lowers chosen (Razin et al. 2024).
    groups = []
    for i, group in enumerate(language.demonstrations()):
        shared = list(group.completions[0].ids[:1]) * 6
        chosen = language.completion([*shared, 8 + i % 4, language.STOP])
        rejected = language.completion([*shared, 12 + i % 12, language.STOP])
        groups.append(TokenGroup(group.prompt_ids, (chosen, rejected), f"p{i}"))
    result = dpo(tmp_path, language.policy(), groups, lr=0.1)
    seen = findings(tmp_path, capsys)["chosen falls"]
    assert any(warning.startswith(seen) for warning in result.warnings)


def test_ppo_with_a_constant_reward(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    result = train_ppo(tmp_path, language.policy(), reward=equal)
    assert findings(tmp_path, capsys)["equal rewards"] == "all completions get the same score"
    assert any("all completions get the same score" in warning for warning in result.warnings)


def test_groups_whose_rewards_are_all_equal(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    result = train_group(tmp_path, language.policy(), reward=equal)
    assert "in 100% of the groups" in findings(tmp_path, capsys)["groups without advantage"]
    assert any("in 100% of the groups all scores are equal" in warning for warning in result.warnings)


def test_groups_of_another_sampler(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    policy = language.policy()
    train_group(tmp_path, policy, engine=Biased(policy, 0.3), max_sampler_gap=0.5, iterations=2)
    assert {"sampler and trainer disagree", "off-policy samples"} <= findings(tmp_path, capsys).keys()


def test_a_run_that_died_of_steps_that_were_not_finite(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(RunError, match="max_skips"):
        train_ppo(
            tmp_path,
            language.policy(),
            reward=lambda groups, rollouts: [1e38 * (-1) ** i for i in range(len(rollouts))],
            max_skips=0,
        )
    # Nothing was logged before it died: the dump is what there is.
    assert "1 steps were not finite" in findings(tmp_path, capsys)["skipped steps"]
