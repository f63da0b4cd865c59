"""SFT, reward modelling and DPO on tiny models: they learn, agree with plain formulas, and resume
bit-equal."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from tests.trainers import language, toy
from trueward.core.errors import DataError
from trueward.core.files import read_jsonl
from trueward.data.chat import Completion, TokenGroup
from trueward.evals import evaluate_reward_model
from trueward.models.packing import count_tokens
from trueward.trainers.accumulate import StepObjective, accumulate
from trueward.trainers.loop import Evaluate, TrainResult
from trueward.trainers.preference import (
    PreferenceObjective,
    PreferencePair,
    PreferenceSettings,
    evaluate_preference,
    reference_pairs,
    train_preference,
)
from trueward.trainers.reward import (
    RewardObjective,
    RewardPair,
    RewardSettings,
    score_pairs,
    train_reward,
)
from trueward.trainers.sft import SFTObjective, evaluate_sft, train_sft


def sft(
    folder: Path, model: nn.Module, *, evaluate: Evaluate | None = None, resume: bool = False, **s: Any
) -> TrainResult:
    settings = toy.settings(**{"lr": 0.01, "max_tokens_per_forward": 64, **s})
    return train_sft(
        model, language.demonstrations(), settings=settings, folder=folder, evaluate=evaluate, resume=resume
    )


def reward(
    folder: Path, model: nn.Module, *, evaluate: Evaluate | None = None, resume: bool = False, **s: Any
) -> TrainResult:
    settings = toy.settings(**{"lr": 0.01, "max_tokens_per_forward": 64, **s})
    pairs = [RewardPair(group) for group in language.comparisons()]
    return train_reward(
        model,
        pairs,
        settings=settings,
        reward=RewardSettings(),
        folder=folder,
        evaluate=evaluate,
        resume=resume,
    )


def dpo(
    folder: Path, model: nn.Module, *, evaluate: Evaluate | None = None, resume: bool = False, **s: Any
) -> TrainResult:
    settings = toy.settings(**{"lr": 0.003, "max_tokens_per_forward": 64, **s})
    return train_preference(
        model,
        language.comparisons(),
        settings=settings,
        preference=PreferenceSettings(),
        folder=folder,
        evaluate=evaluate,
        resume=resume,
    )


TRAINERS: list[tuple[Callable[..., TrainResult], Callable[[], nn.Module]]] = [
    (sft, language.policy),
    (reward, language.reward_model),
    (reward, language.adapted_reward_model),
    (dpo, language.policy),
    (dpo, language.adapted),
]
IDS = ["sft", "reward", "reward-lora", "dpo", "dpo-lora"]


@pytest.mark.parametrize(("trainer", "make"), TRAINERS, ids=IDS)
def test_ten_steps_equal_five_and_five(
    tmp_path: Path, trainer: Callable[..., TrainResult], make: Callable[[], nn.Module]
) -> None:
    whole, cut, after = make(), make(), make()
    trainer(tmp_path / "whole", whole)
    first = trainer(tmp_path / "cut", cut, evaluate=toy.interrupt_at(5), eval_every=1)
    assert (first.step, first.interrupted) == (5, True)
    second = trainer(tmp_path / "cut", after, resume=True)
    assert (second.step, second.resumed_from) == (10, 5)
    assert toy.equal(toy.weights(whole), toy.weights(after))
    assert toy.figures(tmp_path / "whole") == toy.figures(tmp_path / "cut")


def pairs_of(groups: list[TokenGroup]) -> list[PreferencePair]:
    return [PreferencePair(group, -3.0 - i, -2.0 - i) for i, group in enumerate(groups)]


OBJECTIVES: list[tuple[StepObjective[Any], list[Any], Callable[[], nn.Module]]] = [
    (SFTObjective(), language.demonstrations(4), language.policy),
    (
        RewardObjective(RewardSettings(centering=0.1)),
        [
            RewardPair(g, margin=0.1 * i, soft_label=1 - 0.1 * i)
            for i, g in enumerate(language.comparisons(4))
        ],
        language.reward_model,
    ),
    (
        PreferenceObjective(PreferenceSettings(label_smoothing=0.1)),
        pairs_of(language.comparisons(4)),
        language.policy,
    ),
]


@pytest.mark.parametrize(("objective", "items", "make"), OBJECTIVES, ids=["sft", "reward", "dpo"])
def test_four_forwards_of_one_equal_one_of_four(
    objective: StepObjective[Any], items: list[Any], make: Callable[[], nn.Module]
) -> None:
    def gradients(max_tokens: int) -> tuple[int, float, dict[str, float], dict[str, torch.Tensor]]:
        model = make()
        calls = len(objective.micro_batches(items, max_tokens))
        got = accumulate(model, objective, items, max_tokens=max_tokens, precision="float32", seed=0)
        return (
            calls,
            got.loss,
            got.means,
            {n: p.grad for n, p in model.named_parameters() if p.grad is not None},
        )

    calls, loss, means, grads = gradients(18)
    calls_whole, loss_whole, means_whole, grads_whole = gradients(1000)
    assert calls >= 3 and calls_whole == 1
    # Float32 sums in another order.
    assert loss == pytest.approx(loss_whole, rel=1e-5)
    assert means == pytest.approx(means_whole, rel=1e-4, abs=1e-6)
    assert grads.keys() == grads_whole.keys()
    for name, grad in grads.items():
        torch.testing.assert_close(grad, grads_whole[name], rtol=1e-4, atol=1e-6)


def test_sft_learns_and_its_loss_is_cross_entropy(tmp_path: Path) -> None:
    model, groups = language.policy(), language.demonstrations()
    before = evaluate_sft(model, groups, max_tokens_per_forward=100)
    total, count = 0.0, 0
    for group in groups:
        ids = torch.tensor([[*group.prompt_ids, *group.completions[0].ids]])
        logits = model(ids).logits[0, len(group.prompt_ids) - 1 : -1]
        total += cross_entropy(logits, ids[0, len(group.prompt_ids) :], reduction="sum").item()
        count += len(logits)
    assert before.num_tokens == count
    assert before.loss == pytest.approx(total / count, rel=1e-5)
    assert before.loss == pytest.approx(math.log(language.VOCAB), abs=0.2)
    result = sft(tmp_path, model, steps=60, lr=0.02)
    after = evaluate_sft(model, groups, max_tokens_per_forward=100)
    assert after.loss < 0.3 * before.loss
    assert after.mean_token_accuracy > 0.8
    assert result.metrics_last["mean_token_accuracy"] > 0.8


def test_untrained_tokens_do_not_count() -> None:
    group = language.demonstrations(1)[0]
    ids = group.completions[0].ids
    half = TokenGroup(group.prompt_ids, (Completion(ids, (False, *(True,) * (len(ids) - 1))),))
    shifted = TokenGroup((*group.prompt_ids, ids[0]), (language.completion(ids[1:]),))
    model = language.policy()
    masked, moved = (evaluate_sft(model, [g], max_tokens_per_forward=100) for g in (half, shifted))
    assert masked.num_tokens == moved.num_tokens == len(ids) - 1
    assert masked.loss == pytest.approx(moved.loss, rel=1e-5)


def test_bfloat16_forward_is_close_and_weights_stay_float32(tmp_path: Path) -> None:
    model, exact = language.policy(), language.policy()
    sft(tmp_path / "half", model, precision="bfloat16", steps=20)
    sft(tmp_path / "full", exact, steps=20)
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    half, full = (toy.figures(tmp_path / name) for name in ("half", "full"))
    # bfloat16 keeps 8 bits: 0.4 % a product; the runs drift apart slowly.
    assert half[0]["loss"] != full[0]["loss"]
    assert half[-1]["loss"] == pytest.approx(full[-1]["loss"], rel=0.1)


def test_activation_checkpointing_gives_the_same_run(tmp_path: Path) -> None:
    model, plain = language.policy(), language.policy()
    sft(tmp_path / "checkpointed", model, activation_checkpointing=True)
    sft(tmp_path / "plain", plain)
    for name, weight in toy.weights(model).items():
        torch.testing.assert_close(weight, toy.weights(plain)[name], rtol=1e-4, atol=1e-5)


def test_reward_learns_and_reports_calibration(tmp_path: Path) -> None:
    model = language.reward_model()
    held_out = [RewardPair(group) for group in language.comparisons(40, seed=1)]
    before = evaluate_reward_model(*score_pairs(model, held_out, max_tokens_per_forward=100))
    reward(tmp_path, model, steps=40)
    after = evaluate_reward_model(*score_pairs(model, held_out, max_tokens_per_forward=100))
    assert after.accuracy.value > 0.95 > before.accuracy.value
    assert after.accuracy.n == 40 == sum(b.n for b in after.bins)
    assert after.loss < 0.3 < before.loss
    assert 0 <= after.ece <= 0.5


def test_pairs_are_scored_in_their_order() -> None:
    # One model, the same pair both ways: the scores change places.
    group = language.comparisons(1)[0]
    turned = TokenGroup(group.prompt_ids, group.completions[::-1])
    model = language.reward_model()
    pairs = [RewardPair(group), RewardPair(turned), RewardPair(group)]
    # A budget of two pairs cuts them into two forwards.
    budget = 2 * count_tokens(group)
    chosen, rejected = score_pairs(model, pairs, max_tokens_per_forward=budget)
    assert chosen == pytest.approx([chosen[0], rejected[0], chosen[0]], rel=1e-5)
    assert rejected == pytest.approx([rejected[0], chosen[0], rejected[0]], rel=1e-5)
    assert chosen[0] != pytest.approx(rejected[0], rel=1e-5)


def test_dpo_starts_at_log_two_and_learns(tmp_path: Path) -> None:
    model = language.policy()
    held_out = reference_pairs(
        model, language.comparisons(40, seed=1), ref_model=None, cache=tmp_path, max_tokens_per_forward=100
    )
    dpo(tmp_path, model, steps=40)
    rows = list(read_jsonl(tmp_path / "metrics.jsonl"))
    assert rows[0]["loss"] == pytest.approx(math.log(2), abs=1e-6)
    assert rows[0]["rewards/margins"] == pytest.approx(0, abs=1e-5)
    found = evaluate_preference(model, held_out, preference=PreferenceSettings(), max_tokens_per_forward=100)
    assert found.accuracy.value > 0.9
    assert found.margin.low > 0
    assert found.loss.value < 0.6
    assert found.rejected_per_token_change < 0


def test_reference_log_probs_are_cached_by_model_and_data(tmp_path: Path) -> None:
    def pairs(model: nn.Module, n: int) -> list[PreferencePair]:
        groups = language.comparisons(n)
        return reference_pairs(model, groups, ref_model=None, cache=tmp_path, max_tokens_per_forward=100)

    def files() -> int:
        return len(list(tmp_path.glob("ref_logps-*.safetensors")))

    first = pairs(language.policy(), 5)
    assert files() == 1
    assert pairs(language.policy(), 5) == first
    assert files() == 1
    pairs(language.policy(), 6)
    pairs(language.policy(1), 5)
    assert files() == 3


def test_the_reference_of_an_adapter_is_the_model_without_it(tmp_path: Path) -> None:
    model = language.adapted()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.3)
    groups = language.comparisons(5)
    got = reference_pairs(model, groups, ref_model=None, cache=tmp_path, max_tokens_per_forward=100)
    plain = reference_pairs(
        language.policy(), groups, ref_model=None, cache=tmp_path, max_tokens_per_forward=100
    )
    for with_adapter, without in zip(got, plain, strict=True):
        assert with_adapter.ref_chosen == pytest.approx(without.ref_chosen, rel=1e-5)


def test_an_unknown_method_lists_the_nearest() -> None:
    with pytest.raises(ValueError, match="did you mean 'dpo'"):
        PreferenceSettings(method="dpoo")


def test_a_group_that_is_no_pair_is_refused(tmp_path: Path) -> None:
    groups = language.demonstrations(2)
    with pytest.raises(DataError, match="d0 is not two completions"):
        reference_pairs(language.policy(), groups, ref_model=None, cache=tmp_path, max_tokens_per_forward=100)
    with pytest.raises(DataError, match="d0 does not hold two completions"):
        score_pairs(language.reward_model(), [RewardPair(groups[0])], max_tokens_per_forward=100)
