"""Safe RLHF: advantages and lambda by hand, a bound that is met, a resume, and rewards as a weighted sum."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import nn

from tests.trainers import language, toy
from tests.trainers.test_ppo import low_words, prompts, settings
from trueward.core.errors import RunError
from trueward.core.files import read_json, read_jsonl
from trueward.data.chat import TokenGroup
from trueward.rollouts import LocalEngine, Rollout
from trueward.trainers.experience import PPOModels, ppo_models
from trueward.trainers.loop import TrainResult
from trueward.trainers.ppo import train_ppo
from trueward.trainers.ppo_constraint import mixed_advantages, priced
from trueward.trainers.ppo_rollout import Environment, advantages_of, draw
from trueward.trainers.ppo_update import PPOObjective
from trueward.trainers.reward_sum import weighted_reward

BOUND = {"threshold": 0.25, "init_lambda": 0.5, "lambda_lr": 2.0}


def word_four(groups: Sequence[TokenGroup], rollouts: Sequence[Rollout]) -> list[float]:
    """Share of words 4 to 7, which low_words likes."""
    return [sum(3 < i < 8 for i in rollout.ids) / len(rollout.ids) for rollout in rollouts]


def constrained(**changes: Any) -> tuple[PPOModels, Any, Any]:
    chosen = settings(constraint=BOUND, **changes)
    policy = language.policy()
    models = ppo_models(policy, chosen, cost=word_four, ref=language.policy(1))
    with torch.no_grad():
        for head, seed in zip(models.value_heads, (0, 1), strict=True):
            noise = torch.Generator().manual_seed(seed)
            head.linear.weight.normal_(generator=noise)  # type: ignore[union-attr,operator]
    environment = Environment(LocalEngine(policy, [language.STOP]), low_words, None)
    return models, draw(models, prompts(12), environment, chosen, iteration=0), chosen


def test_lambda_by_hand() -> None:
    chosen = settings(constraint={**BOUND, "max_lambda": 0.6})
    # log lambda + lr * lambda * (cost - threshold), with lambda 0.5: 0.5 e^(2 * 0.5 * (0.35 - 0.25)).
    rise = priced(math.log(0.5), {"cost": 0.35}, chosen)
    assert rise.figures["constraint/lambda"] == pytest.approx(0.5 * math.exp(0.1))
    assert rise.figures["constraint/slack"] == pytest.approx(-0.1)
    assert rise.log_lambda == pytest.approx(math.log(0.5) + 0.1)
    held = priced(math.log(0.5), {"cost": 1.0}, chosen)
    assert held.figures["constraint/lambda"] == pytest.approx(0.6)
    assert priced(None, {}, settings()) == (None, {})


def test_advantages_by_hand() -> None:
    reward_BT, cost_BT = torch.tensor([[2.0, -1.0]]), torch.tensor([[1.0, 3.0]])
    both_CBT = torch.stack([reward_BT, cost_BT])
    # lambda = 3: (2 - 3 * 1) / 4 and (-1 - 3 * 3) / 4.
    mixed_BT = mixed_advantages(both_CBT, math.log(3.0))
    torch.testing.assert_close(mixed_BT, torch.tensor([[-0.25, -2.5]]))
    assert torch.equal(mixed_advantages(reward_BT.unsqueeze(0), None), reward_BT)


def test_kl_has_its_price_at_any_lambda() -> None:
    """Scores of 0 leave the KL alone: without values, reward and cost are KL and its negative."""
    _, drawn, chosen = constrained(whiten_advantages=False)
    seen = drawn.experience
    still = seen.__class__(**{**vars_of(seen), "old_values_CBT": torch.zeros_like(seen.old_values_CBT)})
    free = drawn._replace(experience=still, scores_CB=torch.zeros_like(drawn.scores_CB))
    cheap, dear = (advantages_of(free, chosen, kl_coef=0.1, log_lambda=x) for x in (-3.0, 3.0))
    assert float(cheap.targets.advantages_BT.abs().max()) > 1e-3
    torch.testing.assert_close(cheap.targets.advantages_BT, dear.targets.advantages_BT)


def vars_of(record: Any) -> dict[str, Any]:
    return {name: getattr(record, name) for name in record.__slots__}


def test_each_critic_learns_its_own_returns() -> None:
    models, drawn, chosen = constrained(value_coef=1.0)
    learning = advantages_of(drawn, chosen, kl_coef=0.0, log_lambda=0.0)
    out = PPOObjective(models, drawn.experience, learning.targets, chosen).loss(models.trained(), [1, 4])
    rows = [2, 3, 8, 9]
    errors_CBT = (learning.targets.returns_CBT - drawn.experience.old_values_CBT)[:, rows]
    names = ("value_loss", "cost/value_loss")
    expected = [0.5 * float(errors_BT.square().sum()) for errors_BT in errors_CBT]
    assert [float(out.sums[name][0]) for name in names] == pytest.approx(expected, rel=1e-3)
    assert float(out.loss_sum.detach()) == pytest.approx(
        float(out.sums["policy_loss"][0]) + sum(expected), rel=1e-3
    )
    assert expected[0] != pytest.approx(expected[1], rel=0.01)


def run(
    folder: Path, policy: nn.Module, bound: dict[str, float] | None, *, resume: bool = False, **changes: Any
) -> TrainResult:
    chosen = settings(**{"iterations": 2, "save_every": 1, "constraint": bound, "kl_coef": 0.0, **changes})
    return train_ppo(
        ppo_models(policy, chosen, cost=word_four if bound else None),
        prompts(),
        engine=LocalEngine(policy, [language.STOP]),
        reward=low_words,
        settings=chosen,
        folder=folder,
        resume=resume,
    )


def test_a_run_resumes_bit_equal_with_its_lambda(tmp_path: Path) -> None:
    whole, cut, after = (language.policy() for _ in range(3))
    run(tmp_path / "whole", whole, BOUND)
    run(tmp_path / "cut", cut, BOUND)
    for path in sorted((tmp_path / "cut" / "checkpoints").iterdir())[1:]:
        path.rename(tmp_path / path.name)
    assert run(tmp_path / "cut", after, BOUND, resume=True).resumed_from == 1
    assert toy.equal(toy.weights(whole), toy.weights(after))
    assert toy.figures(tmp_path / "whole") == toy.figures(tmp_path / "cut")
    rows = list(read_jsonl(tmp_path / "whole" / "metrics.jsonl"))
    assert rows[0]["constraint/lambda"] != rows[1]["constraint/lambda"]
    state = read_json(max((tmp_path / "cut" / "checkpoints").iterdir()) / "state.json")
    assert math.exp(state["log_lambda"]) == pytest.approx(rows[1]["constraint/lambda"])
    assert all(row["constraint/slack"] == pytest.approx(0.25 - row["cost"]) for row in rows)


def test_the_bound_is_met_where_the_reward_alone_breaks_it(tmp_path: Path) -> None:
    changes: dict[str, Any] = {
        "iterations": 10,
        "prompts_per_iteration": 16,
        "max_tokens_per_forward": 400,
        "lr": 0.03,
    }
    strict = {"threshold": 0.1, "init_lambda": 1.0, "lambda_lr": 4.0}
    missed = run(
        tmp_path / "loose", language.policy(), {**strict, "lambda_lr": 1e-6, "init_lambda": 1e-6}, **changes
    )
    met = run(tmp_path / "met", language.policy(), strict, **changes)
    costs = {
        name: [row["cost"] for row in read_jsonl(tmp_path / name / "metrics.jsonl")][-4:]
        for name in ("loose", "met")
    }
    assert sum(costs["loose"]) / 4 > 0.25 and any("the constraint is missed" in w for w in missed.warnings)
    assert sum(costs["met"]) / 4 < 0.12 and not any("constraint" in w for w in met.warnings)
    assert met.metrics_last["reward"] > 0.5


def test_cost_and_constraint_go_together() -> None:
    with pytest.raises(ValueError, match="got a cost with constraint None"):
        ppo_models(language.policy(), settings(), cost=word_four)
    with pytest.raises(ValueError, match="got no cost with constraint threshold="):
        ppo_models(language.policy(), settings(constraint=BOUND))
    with pytest.raises(ValidationError, match="whiten_rewards changes the unit"):
        settings(constraint=BOUND, whiten_rewards=True)
    with pytest.raises(ValidationError, match=r"init_lambda \(0.5\) must not exceed max_lambda"):
        settings(constraint={**BOUND, "max_lambda": 0.1})


def test_a_weighted_reward_of_rewards() -> None:
    rollouts = [Rollout(0, (4, 9, 15, 2), (0.0,) * 4, True), Rollout(0, (5, 6), (0.0,) * 2, False)]
    # low_words: 2/4 and 1; word_four: 1/4 and 1. Times 2 and -0.5.
    score = weighted_reward([(low_words, 2.0), (word_four, -0.5)])
    assert score(prompts(1), rollouts) == pytest.approx([0.875, 1.5])
    with pytest.raises(ValueError, match="parts of finite weight"):
        weighted_reward([])
    with pytest.raises(RunError, match="reward part1 of 2 completions is not finite"):
        weighted_reward([(lambda groups, rollouts: [math.nan] * 2, 1.0)])(prompts(1), rollouts)
