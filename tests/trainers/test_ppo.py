"""PPO on tiny models: it learns, resumes bit-equal, keeps its budget, and says what is wrong."""

import io
import json
import os
import signal
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from torch import nn

from tests.trainers import language, toy
from trueward.core.errors import RunError
from trueward.core.files import read_jsonl
from trueward.data.chat import TokenGroup
from trueward.rollouts import LocalEngine, Rollout
from trueward.trainers.accumulate import accumulate
from trueward.trainers.experience import PPOModels, ppo_models, score_rollouts
from trueward.trainers.loop import TrainResult
from trueward.trainers.ppo import PPOHooks, adapted_kl_coef, train_ppo, without_dropout
from trueward.trainers.ppo_rollout import Environment, advantages_of, draw
from trueward.trainers.ppo_settings import PPOSettings
from trueward.trainers.ppo_tokens import token_table
from trueward.trainers.ppo_update import PPOObjective
from trueward.trainers.reward import reward_function


def settings(**changes: Any) -> PPOSettings:
    small = {
        "iterations": 4,
        "prompts_per_iteration": 12,
        "completions_per_prompt": 2,
        "max_new_tokens": 6,
        "minibatches": 2,
        "lr": 0.01,
        "max_tokens_per_forward": 60,
        "tokens_every": 2,
    }
    return PPOSettings(**{**small, **changes})


def prompts(n: int = 20) -> list[TokenGroup]:
    return [TokenGroup(group.prompt_ids, (), group.id) for group in language.demonstrations(n)]


def low_words(groups: Sequence[TokenGroup], rollouts: Sequence[Rollout]) -> list[float]:
    """Share of words below 12."""
    return [sum(3 < i < 12 for i in rollout.ids) / len(rollout.ids) for rollout in rollouts]


def run(folder: Path, policy: nn.Module, *, resume: bool = False, **changes: Any) -> TrainResult:
    own = {key: changes.pop(key) for key in ("engine", "reward", "hooks") if key in changes}
    chosen = settings(**changes)
    models = ppo_models(policy, chosen)
    return train_ppo(
        models,
        prompts(),
        **{"engine": LocalEngine(policy, [language.STOP]), "reward": low_words, **own},
        settings=chosen,
        folder=folder,
        resume=resume,
    )


def head_weights(folder: Path) -> bytes:
    """Weights of the newest checkpoint, value head included."""
    return max((folder / "checkpoints").iterdir()).joinpath("weights.safetensors").read_bytes()


def test_the_policy_learns_what_is_rewarded(tmp_path: Path) -> None:
    policy = language.policy()
    hooks = PPOHooks(gold=low_words, decode=lambda ids: " ".join(map(str, ids)))
    result = run(tmp_path, policy, iterations=25, prompts_per_iteration=24, kl_coef=0.001, hooks=hooks)
    rows = list(read_jsonl(tmp_path / "metrics.jsonl"))
    first, last = (sum(row["reward"] for row in part) / 3 for part in (rows[:3], rows[-3:]))
    assert last > first + 0.3
    assert rows[0]["objective/kl"] == pytest.approx(0, abs=1e-5), (
        "the first completions are the reference's own"
    )
    assert rows[-1]["objective/kl_k3"] > 0.5
    assert all(row["gold"] == row["reward"] for row in rows)
    assert max(row["sampler_gap/max"] for row in rows) < 1e-4
    assert (result.step, result.stopped, result.skipped) == (25, "", 0)


@pytest.mark.parametrize(
    ("make", "changes"),
    [
        (language.policy, {}),
        (language.adapted, {}),
        (language.policy, {"value_backbone": "separate", "kl_controller": "adaptive", "kl_horizon": 50.0}),
        (language.policy, {"kl_budget": 50.0}),
    ],
    ids=["full", "lora", "separate-adaptive", "budget"],
)
def test_four_iterations_equal_two_and_two(tmp_path: Path, make: Any, changes: dict[str, Any]) -> None:
    whole, cut, after = make(), make(), make()
    run(tmp_path / "whole", whole, **changes)

    calls = 0

    def evaluate(model: nn.Module) -> dict[str, float]:
        nonlocal calls
        calls += 1
        if calls == 2:
            os.kill(os.getpid(), signal.SIGTERM)
        return {}

    first = run(tmp_path / "cut", cut, hooks=PPOHooks(evaluate=evaluate), eval_every=1, **changes)
    assert (first.step, first.interrupted) == (2, True)
    second = run(tmp_path / "cut", after, resume=True, **changes)
    assert (second.step, second.interrupted, second.resumed_from) == (4, False, 2)
    assert toy.equal(toy.weights(whole), toy.weights(after))
    assert head_weights(tmp_path / "whole") == head_weights(tmp_path / "cut")
    assert toy.figures(tmp_path / "whole") == toy.figures(tmp_path / "cut")
    tokens = [(tmp_path / name / "ppo_tokens.jsonl").read_text() for name in ("whole", "cut")]
    assert tokens[0] == tokens[1]


def test_a_signal_while_sampling_drops_the_iteration(tmp_path: Path) -> None:
    class Pressed:
        def __init__(self, policy: nn.Module) -> None:
            self._inner, self._calls = LocalEngine(policy, [language.STOP]), 0

        def generate(self, prompts: Sequence[Sequence[int]], **options: Any) -> list[Rollout]:
            self._calls += 1
            if self._calls == 3:
                os.kill(os.getpid(), signal.SIGINT)
            return self._inner.generate(prompts, **options)

    whole, cut, after = (language.policy() for _ in range(3))
    run(tmp_path / "whole", whole)
    first = run(tmp_path / "cut", cut, engine=Pressed(cut))
    assert (first.step, first.interrupted) == (2, True)
    run(tmp_path / "cut", after, resume=True)
    assert toy.equal(toy.weights(whole), toy.weights(after))


def experienced(chosen: PPOSettings) -> tuple[PPOModels, Any, Any]:
    policy = language.policy()
    models = ppo_models(policy, chosen)
    with torch.no_grad():
        models.value_head.linear.weight.normal_(generator=torch.Generator().manual_seed(0))  # type: ignore[union-attr,operator]
        for parameter in policy.parameters():
            parameter.mul_(1.3)
    environment = Environment(LocalEngine(policy, [language.STOP]), low_words, None)
    drawn = draw(models, prompts(12), environment, chosen, iteration=0)
    return models, drawn, advantages_of(drawn, chosen, kl_coef=0.1)


@pytest.mark.parametrize("backbone", ["shared", "separate"])
def test_micro_batches_do_not_change_the_update(backbone: str) -> None:
    chosen = settings(value_backbone=backbone)
    models, drawn, learning = experienced(chosen)
    objective = PPOObjective(models, drawn.experience, learning.targets, chosen)
    parts = models.trained()

    def gradients(max_tokens: int) -> tuple[int, float, dict[str, torch.Tensor]]:
        parts.zero_grad(set_to_none=True)
        items = [3, 0, 7, 5]
        got = accumulate(parts, objective, items, max_tokens=max_tokens, precision="float32", seed=0)
        calls = len(objective.micro_batches(items, max_tokens))
        return calls, got.loss, {n: p.grad.clone() for n, p in parts.named_parameters() if p.grad is not None}

    calls, loss, grads = gradients(20)
    whole_calls, whole_loss, whole_grads = gradients(1000)
    assert calls >= 3 and whole_calls == 1
    assert loss == pytest.approx(whole_loss, rel=1e-4, abs=1e-6)
    for name, grad in whole_grads.items():
        torch.testing.assert_close(grads[name], grad, rtol=1e-3, atol=1e-6)


def test_before_the_first_update_the_loss_is_minus_the_advantage() -> None:
    chosen = settings()
    models, drawn, learning = experienced(chosen)
    objective = PPOObjective(models, drawn.experience, learning.targets, chosen)
    items = [1, 4]
    out = objective.loss(models.trained(), items)
    rows = [2, 3, 8, 9]
    assert float(out.sums["policy_loss"][0]) == pytest.approx(
        -float(learning.targets.advantages_BT[rows].sum()), rel=1e-3, abs=1e-4
    )
    errors = learning.targets.returns_CBT[0, rows] - drawn.experience.old_values_CBT[0, rows]
    assert float(out.sums["value_loss"][0]) == pytest.approx(0.5 * float(errors.square().sum()), rel=1e-3)
    assert float(out.sums["clip_ratio/mean"][0]) == 0
    assert out.sums["policy_loss"][1] == int(drawn.experience.mask_BT[rows].sum()) == objective.count(items)


def test_token_rewards_add_up_to_score_minus_kl() -> None:
    chosen = settings(missing_eos_penalty=2.0, max_new_tokens=2)
    _, drawn, learning = experienced(chosen)
    seen = drawn.experience
    for row, rollout in enumerate(seen.rollouts):
        log_ratio = seen.old_logps_BT[row] - seen.ref_logps_BT[row]
        expected = (
            drawn.scores_CB[0, row] - 0.1 * log_ratio[: len(rollout.ids)].sum() - 2.0 * (not rollout.finished)
        )
        assert float(learning.rewards_CBT[0, row].sum()) == pytest.approx(float(expected), rel=1e-4, abs=1e-5)
    assert {rollout.finished for rollout in seen.rollouts} == {True, False}
    assert drawn.figures["completions/clipped_ratio"] == sum(not r.finished for r in seen.rollouts) / 24


def test_the_budget_ends_the_run_within_it(tmp_path: Path) -> None:
    policy, again = language.policy(), language.policy()
    changes = {"iterations": 30, "lr": 0.03, "kl_coef": 0.0, "kl_budget": 0.5}
    result = run(tmp_path, policy, **changes)
    assert "the last policy measured within the budget was put back" in result.stopped
    assert not result.interrupted and 0 < result.step < 30
    # The last logged row was measured on the very policy that came out.
    assert 0 < result.metrics_last["objective/kl_k3"] <= 0.5
    ref, engine = language.policy(), LocalEngine(policy, [language.STOP])
    chosen = settings(**changes)
    models = ppo_models(policy, chosen, ref=ref)
    measured = draw(models, prompts(20), Environment(engine, low_words, None), chosen, iteration=99)
    assert measured.kl_k3 < 1.0
    resumed = run(tmp_path, again, resume=True, **changes)
    assert resumed.stopped == result.stopped
    assert toy.equal(toy.weights(policy), toy.weights(again))


@pytest.mark.parametrize(
    ("kl", "expected"),
    [
        # 24 completions, horizon 240: K = 0.1, so 0.05 (1 + 0.1 e).
        (6.6, 0.05 * (1 + 0.1 * 0.1)),
        (60.0, 0.05 * (1 + 0.1 * 0.2)),
        (0.0, 0.05 * (1 - 0.1 * 0.2)),
    ],
    ids=["error 0.1", "clipped above", "clipped below"],
)
def test_adaptive_kl_by_hand(kl: float, expected: float) -> None:
    assert adapted_kl_coef(0.05, kl, settings(kl_controller="adaptive", kl_horizon=240.0)) == pytest.approx(
        expected
    )
    assert adapted_kl_coef(0.05, kl, settings()) == 0.05


def test_an_engine_with_other_weights_is_noticed(tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"disagree about a token's log-prob.*max_sampler_gap"):
        run(tmp_path, language.policy(), engine=LocalEngine(language.policy(1), [language.STOP]))


def test_a_temperature_is_that_of_all_log_probs(tmp_path: Path) -> None:
    result = run(tmp_path, language.policy(), temperature=0.7, iterations=1)
    assert result.metrics_last["sampler_gap/max"] < 1e-4


def test_scores_must_be_finite_and_as_many_as_completions(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="not finite"):
        run(tmp_path, language.policy(), reward=lambda groups, rollouts: [float("nan")] * len(rollouts))
    with pytest.raises(RunError, match="another number of scores"):
        run(tmp_path, language.policy(), reward=lambda groups, rollouts: [1.0])


def test_a_reward_model_is_a_reward(tmp_path: Path) -> None:
    model = language.reward_model()
    score = reward_function(model, max_tokens_per_forward=30)
    groups = prompts(2)
    rollouts = [
        Rollout(0, (9, 10, 2), (0.0,) * 3, True),
        Rollout(0, (11, 2), (0.0,) * 2, True),
        Rollout(1, (5,), (0.0,), False),
    ]
    with torch.no_grad():
        expected = [
            float(model(torch.tensor([[*groups[r.prompt].prompt_ids, *r.ids]])).logits[0, 0])
            for r in rollouts
        ]
    assert score(groups, rollouts) == pytest.approx(expected, abs=1e-5)
    assert run(tmp_path, language.policy(), reward=score, iterations=1).step == 1


def test_bfloat16_and_activation_checkpointing_run(tmp_path: Path) -> None:
    half = run(tmp_path / "half", language.policy(), precision="bfloat16", max_sampler_gap=0.5)
    assert half.step == 4
    kept, twice = language.policy(), language.policy()
    run(tmp_path / "kept", kept)
    run(tmp_path / "twice", twice, activation_checkpointing=True)
    for name, weight in toy.weights(twice).items():
        torch.testing.assert_close(weight, toy.weights(kept)[name], rtol=1e-3, atol=1e-4)


def test_dropout_is_switched_off() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.Dropout(0.5))
    without_dropout(model)
    x = torch.ones(1, 2)
    assert torch.equal(model.train()(x), model(x))


def test_the_value_backbone_is_a_model_of_its_own() -> None:
    shared, separate = (
        ppo_models(language.policy(), settings(value_backbone=v)) for v in ("shared", "separate")
    )
    assert shared.value_backbone is None
    count = sum(p.numel() for p in shared.policy.parameters())
    assert sum(p.numel() for p in separate.trained().parameters()) == 2 * count + 17
    assert shared.frozen is not None and not any(p.requires_grad for p in shared.frozen.parameters())
    assert ppo_models(language.adapted(), settings()).frozen is None


def test_the_table_of_tokens(tmp_path: Path) -> None:
    run(tmp_path, language.policy(), hooks=PPOHooks(decode=lambda ids: f"[b]{ids[0]}"))
    rows = list(read_jsonl(tmp_path / "ppo_tokens.jsonl"))
    assert [row["step"] for row in rows] == [1, 3]
    tokens = rows[0]["tokens"]
    # At the first iteration KL and values are 0, so the score stands alone at the last token.
    assert [t["kl"] for t in tokens] == pytest.approx([0.0] * len(tokens), abs=1e-5)
    assert [t["reward"] for t in tokens] == pytest.approx(
        [0.0] * (len(tokens) - 1) + [rows[0]["score"]], abs=1e-5
    )
    console = Console(width=120, record=True, file=io.StringIO())
    console.print(token_table(rows[0]))
    shown = console.export_text()
    assert f"'[b]{tokens[0]['id']}'" in shown, "a token's text is never markup"


def test_minibatches_that_are_not_finite_are_dumped(tmp_path: Path) -> None:
    policy = language.policy()
    with pytest.raises(RunError, match="max_skips"):
        run(
            tmp_path,
            policy,
            reward=lambda groups, rollouts: [1e38 * (-1) ** i for i in range(len(rollouts))],
            max_skips=0,
        )
    dump = json.loads(next((tmp_path / "bad_batches").iterdir()).read_text())
    assert dump["items"][0]["completions"] and dump["items"][0]["old_logps"]


def test_rollouts_are_scored_as_the_plain_model_scores_them() -> None:
    chosen = settings(max_tokens_per_forward=25)
    policy = language.policy()
    models = ppo_models(policy, chosen)
    groups = prompts(3)
    drawn = LocalEngine(policy, [language.STOP]).generate(
        [g.prompt_ids for g in groups], num_completions=2, max_new_tokens=6, temperature=1.0, seed=1
    )
    seen = score_rollouts(models, groups, drawn, chosen)
    for row, rollout in enumerate(drawn):
        ids = torch.tensor([[*groups[rollout.prompt].prompt_ids, *rollout.ids]])
        with torch.no_grad():
            logps = policy(ids).logits[0, -len(rollout.ids) - 1 : -1].log_softmax(-1)
        expected = logps.gather(1, torch.tensor(rollout.ids).unsqueeze(1)).squeeze(1)
        torch.testing.assert_close(seen.old_logps_BT[row, : len(rollout.ids)], expected, rtol=1e-4, atol=1e-5)
        assert seen.mask_BT[row].sum() == len(rollout.ids)
