"""A round with one optimizer step scores its policy once, in the update, and says the same of it."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from tests.trainers import language
from tests.trainers.test_group import Biased, drawn_with, low_words, prompts, run, settings
from trueward.core.errors import RunError
from trueward.core.files import read_jsonl
from trueward.data.chat import TokenGroup
from trueward.rollouts import Rollout
from trueward.trainers import group_experience, group_update
from trueward.trainers.group_experience import GroupExperience
from trueward.trainers.group_settings import GroupSettings


@pytest.fixture
def forwards(monkeypatch: pytest.MonkeyPatch) -> list[tuple[nn.Module, bool]]:
    """Model and whether there is a gradient, of each scored forward."""
    seen: list[tuple[nn.Module, bool]] = []

    def watch(module: Any) -> None:
        plain = module.score_completions

        def score(model: nn.Module, *args: Any, **options: Any) -> Any:
            seen.append((model, torch.is_grad_enabled()))
            return plain(model, *args, **options)

        monkeypatch.setattr(module, "score_completions", score)

    watch(group_experience)
    watch(group_update)
    return seen


def policy_forwards(forwards: Sequence[tuple[nn.Module, bool]], policy: nn.Module) -> list[bool]:
    return [grad for model, grad in forwards if model is policy]


def all_equal(groups: Sequence[TokenGroup], rollouts: Sequence[Rollout]) -> list[float]:
    return [1.0] * len(rollouts)


@pytest.mark.parametrize(
    ("changes", "once"),
    [
        ({}, True),
        ({"kl_coef": 0.1}, True),
        ({"kl_coef": 0.1, "kl_in": "reward"}, False),
        ({"importance": "truncate"}, False),
        ({"epochs": 2}, False),
        ({"minibatches": 2}, False),
    ],
)
def test_the_policy_is_scored_before_only_where_someone_asks(
    tmp_path: Path, forwards: list[tuple[nn.Module, bool]], changes: dict[str, Any], once: bool
) -> None:
    assert settings(**changes).scored_by_update == once
    policy = language.policy()
    run(tmp_path, policy, iterations=1, max_tokens_per_forward=10_000, **changes)
    seen = policy_forwards(forwards, policy)
    assert seen.count(False) == (0 if once else 1)
    assert seen.count(True) == changes.get("epochs", 1) * changes.get("minibatches", 1)


@pytest.mark.parametrize("reference", [True, False])
def test_scoring_before_gives_the_same_run(
    tmp_path: Path, reference: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    kl_coef = 0.1 if reference else 0.0
    policies, rows = [], []
    for name, once in (("once", True), ("twice", False)):
        monkeypatch.setattr(GroupSettings, "scored_by_update", property(lambda self, once=once: once))
        policy = language.policy()
        run(tmp_path / name, policy, reference=reference, kl_coef=kl_coef)
        policies.append(torch.cat([p.detach().flatten() for p in policy.parameters()]))
        rows.append(list(read_jsonl(tmp_path / name / "metrics.jsonl")))
    torch.testing.assert_close(*policies, atol=1e-5, rtol=1e-4)
    for one, other in zip(*rows, strict=True):
        assert one.keys() == other.keys()
        for key in ("objective/entropy", "completions/mean_length", "objective/kl", "tokens", "loss"):
            assert one.get(key) == pytest.approx(other.get(key), abs=1e-4)
        assert one["objective/entropy"] > 1
        assert one["sampler_gap/max"] < 1e-4


def test_a_round_without_an_update_is_still_known(tmp_path: Path) -> None:
    run(tmp_path, language.policy(), iterations=1, reward=all_equal)
    (row,) = read_jsonl(tmp_path / "metrics.jsonl")
    assert row["objective/entropy"] > 1
    assert row["sampler_gap/max"] < 1e-4
    assert "loss" not in row


def test_a_sampler_that_disagrees_is_refused_before_the_weights_move(tmp_path: Path) -> None:
    policy = language.policy()
    before = {name: value.clone() for name, value in policy.state_dict().items()}
    with pytest.raises(RunError, match="disagree about a token's log-prob"):
        run(tmp_path, policy, engine=Biased(policy, 0.1))
    assert all(torch.equal(value, before[name]) for name, value in policy.state_dict().items())
    assert (tmp_path / "checkpoints").exists(), "the last whole iteration is kept"
    result = run(tmp_path, policy, resume=True)
    assert result.step == settings().iterations


def test_a_refused_round_is_not_counted_as_idle(tmp_path: Path) -> None:
    policy = language.policy()
    with pytest.raises(RunError, match="disagree about a token's log-prob"):
        run(tmp_path, policy, engine=Biased(policy, 0.1), reward=all_equal, iterations=1, max_idle=2)
    # Two idle rounds end the run: the refused one would have been the first.
    result = run(tmp_path, policy, resume=True, reward=all_equal, iterations=1, max_idle=2)
    assert result.step == 1


def test_one_row_that_disagrees_is_found_among_many() -> None:
    policy = language.policy()
    chosen = settings(max_tokens_per_forward=30)
    seen = drawn_with(policy, chosen, low_words).experience
    assert not seen.old_logps_BT.any(), "not yet known"
    group_experience.score_policy(group_experience.group_models(policy, chosen), seen, chosen)
    assert seen.sampler_gap < 1e-4
    assert not seen.old_logps_BT[~seen.mask_BT].any()
    seen.sampler_logps_BT[3, 0] += 1
    assert seen.sampler_gap == pytest.approx(1, abs=1e-4)
    with pytest.raises(RunError, match="max_sampler_gap"):
        group_experience.score_policy(group_experience.group_models(policy, chosen), seen, chosen)


def test_rows_are_those_of_their_completions() -> None:
    policy = language.policy()
    whole, cut = (settings(max_tokens_per_forward=size) for size in (10_000, 30))
    tables = []
    for chosen in (whole, cut):
        seen: GroupExperience = drawn_with(policy, chosen, low_words).experience
        group_experience.score_policy(group_experience.group_models(policy, chosen), seen, chosen)
        tables.append(seen)
    assert len(tables[0].groups) == len(prompts()[:6])
    for name in ("old_logps_BT", "entropy_BT", "ref_logps_BT"):
        torch.testing.assert_close(*(getattr(seen, name) for seen in tables))
    # The reference is the policy itself, as it was.
    torch.testing.assert_close(tables[0].old_logps_BT, tables[0].ref_logps_BT)
