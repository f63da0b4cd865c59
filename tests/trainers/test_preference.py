"""Every method of the preference table in the trainer: what it is given, that it learns, what it skips."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor

from tests.trainers import language, toy
from trueward.core.errors import ConfigError, DataError
from trueward.core.files import read_jsonl
from trueward.data.chat import TokenGroup
from trueward.objectives import preference
from trueward.trainers.accumulate import accumulate
from trueward.trainers.preference import (
    PreferenceObjective,
    PreferencePair,
    PreferenceSettings,
    evaluate_preference,
    preference_pairs,
    train_preference,
)
from trueward.trainers.preference_methods import PREFERENCE_METHODS

METHODS = pytest.mark.parametrize("name", PREFERENCE_METHODS)
FREE = [name for name, method in PREFERENCE_METHODS.items() if not method.reference]
TIED = [name for name, method in PREFERENCE_METHODS.items() if method.reference]


def items(settings: PreferenceSettings, num_pairs: int = 4) -> list[PreferencePair]:
    groups = language.comparisons(num_pairs)
    if not settings.record().reference:
        return [PreferencePair(group) for group in groups]
    return [PreferencePair(group, -3.0 - i, -2.0 - i) for i, group in enumerate(groups)]


def plain_logps(model: Any, group: TokenGroup) -> tuple[Tensor, Tensor]:
    """Summed log-probs of both completions by the model's own forward, one row at a time."""
    found = []
    for completion in group.completions:
        ids = torch.tensor([[*group.prompt_ids, *completion.ids]])
        logps = model(ids).logits[0].log_softmax(-1)[len(group.prompt_ids) - 1 : -1]
        found.append(logps[range(len(completion.ids)), list(completion.ids)].sum())
    return found[0], found[1]


@METHODS
def test_the_objective_gets_what_its_record_says(name: str) -> None:
    model = language.policy()
    settings = PreferenceSettings(method=name)
    pairs = items(settings)
    got = PreferenceObjective(settings).loss(model, pairs).loss_sum
    total = torch.zeros(())
    for pair in pairs:
        chosen, rejected = plain_logps(model, pair.group)
        c, r = (len(completion.ids) for completion in pair.group.completions)
        divide = name in ("ipo", "simpo", "orpo")
        values = [chosen / c, rejected / r] if divide else [chosen, rejected]
        if name == "sft":
            total = total - chosen / c
            continue
        if name not in ("simpo", "cpo", "orpo"):
            assert pair.ref_chosen is not None and pair.ref_rejected is not None
            refs = (
                (pair.ref_chosen / c, pair.ref_rejected / r)
                if divide
                else (pair.ref_chosen, pair.ref_rejected)
            )
            values += [torch.tensor(ref) for ref in refs]
        if name in ("rpo", "orpo"):
            values.append(-chosen / c)
        options = {} if name == "cpo" else settings.options()
        objective = getattr(preference, name)
        loss = objective(*(value.view(1) for value in values), **(options or {"beta": 0.1})).loss_B
        total = total + loss.sum() + (-chosen / c if name == "cpo" else 0.0)
    # Float32; packed and plain forwards sum in another order.
    assert got.item() == pytest.approx(total.item(), rel=1e-4, abs=1e-5)


@METHODS
def test_four_forwards_of_one_equal_one_of_four(name: str) -> None:
    settings = PreferenceSettings(method=name)
    objective, pairs = PreferenceObjective(settings), items(settings)

    def gradients(max_tokens: int) -> tuple[int, float, dict[str, float], dict[str, Tensor]]:
        model = language.policy()
        calls = len(objective.micro_batches(pairs, max_tokens))
        got = accumulate(model, objective, pairs, max_tokens=max_tokens, precision="float32", seed=0)
        grads = {n: p.grad for n, p in model.named_parameters() if p.grad is not None}
        return calls, got.loss, got.means, grads

    calls, loss, means, grads = gradients(18)
    calls_whole, loss_whole, means_whole, grads_whole = gradients(1000)
    assert calls >= 3 and calls_whole == 1
    assert loss == pytest.approx(loss_whole, rel=1e-5)
    assert means == pytest.approx(means_whole, rel=1e-4, abs=1e-6)
    # Relative to the largest: the targets of sppo_hard make gradients of a thousand.
    scale = max(float(grad.abs().max()) for grad in grads_whole.values())
    for key, grad in grads.items():
        torch.testing.assert_close(grad, grads_whole[key], rtol=1e-4, atol=1e-6 * max(1.0, scale))


@METHODS
def test_it_learns(tmp_path: Path, name: str) -> None:
    model, settings = language.policy(), PreferenceSettings(method=name)
    held_out = preference_pairs(
        model,
        language.comparisons(40, seed=1),
        preference=settings,
        ref_model=None,
        cache=tmp_path,
        max_tokens_per_forward=200,
    )
    before = evaluate_preference(model, held_out, preference=settings, max_tokens_per_forward=200)
    train_preference(
        model,
        language.comparisons(),
        settings=toy.settings(lr=0.005, steps=20, max_tokens_per_forward=200),
        preference=settings,
        folder=tmp_path / "run",
    )
    after = evaluate_preference(model, held_out, preference=settings, max_tokens_per_forward=200)
    assert after.loss.value < before.loss.value
    # Near d = 0, where a policy equal to its reference starts, the loss of discopop rises with the margin.
    if name != "discopop":
        assert after.margin.value > before.margin.value
    has_reference = name in TIED
    if has_reference and name != "discopop":
        assert after.accuracy.value > 0.85
    assert (after.chosen_per_token_change is not None) == has_reference
    assert bool(list((tmp_path / "run").glob("ref_logps-*"))) == has_reference
    row = next(iter(read_jsonl(tmp_path / "run" / "metrics.jsonl")))
    assert ("logps/chosen_per_token_change" in row) == has_reference
    assert ("eval/logps/chosen_per_token_change" in after.metrics()) == has_reference


@pytest.mark.parametrize("name", ["rpo", "simpo", "orpo"])
def test_ten_steps_equal_five_and_five(tmp_path: Path, name: str) -> None:
    def run(folder: str, model: Any, **more: Any) -> Any:
        settings = {"lr": 0.003, "max_tokens_per_forward": 64}
        evaluate, resume = more.pop("evaluate", None), more.pop("resume", False)
        return train_preference(
            model,
            language.comparisons(),
            settings=toy.settings(**settings, **more),
            preference=PreferenceSettings(method=name),
            folder=tmp_path / folder,
            evaluate=evaluate,
            resume=resume,
        )

    whole, cut, after = (language.policy() for _ in range(3))
    run("whole", whole)
    run("cut", cut, evaluate=toy.interrupt_at(5), eval_every=1)
    assert run("cut", after, resume=True).resumed_from == 5
    assert toy.equal(toy.weights(whole), toy.weights(after))
    assert toy.figures(tmp_path / "whole") == toy.figures(tmp_path / "cut")


def test_first_losses_are_those_of_no_preference(tmp_path: Path) -> None:
    # Policy and reference are equal, so every log-ratio is 0.
    half = math.log(2)
    expected = {
        "dpo": half, "robust_dpo": half, "ipo": 25.0, "hinge": 1.0, "apo_zero": 1.0, "apo_down": 1.0,
        "discopop": 0.5 * half + 0.5, "nca_pair": 2 * half, "sppo_hard": 5e5,
    }  # fmt: skip
    model, groups = language.policy(), language.comparisons(3)
    for name, value in expected.items():
        settings = PreferenceSettings(method=name)
        pairs = preference_pairs(
            model, groups, preference=settings, ref_model=None, cache=tmp_path, max_tokens_per_forward=200
        )
        found = evaluate_preference(model, pairs, preference=settings, max_tokens_per_forward=200)
        assert found.loss.value == pytest.approx(value, rel=1e-5), name


@METHODS
def test_settings_survive_their_own_dump_and_use_the_defaults(name: str) -> None:
    settings = PreferenceSettings(method=name)
    assert PreferenceSettings(**settings.model_dump()) == settings
    assert settings.options() == dict(PREFERENCE_METHODS[name].options)
    if name == "sft":
        with pytest.raises(ValueError, match="beta is set, but sft does not use it; it uses no option"):
            PreferenceSettings(method="sft", beta=0.1)
        return
    option, default = next(iter(PREFERENCE_METHODS[name].options.items()))
    changed = PreferenceSettings(**{"method": name, option: default / 2})
    assert changed.options()[option] == default / 2
    assert PreferenceObjective(changed).settings != PreferenceObjective(settings).settings


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"method": "dpoo"}, r"unknown method 'dpoo'; did you mean 'dpo'\? known: dpo, robust_dpo, ipo"),
        (
            {"method": "dpo", "gamma": 1.0},
            "gamma is set, but dpo does not use it; it uses beta, label_smoothing",
        ),
        ({"method": "orpo", "beta": 0.1}, "beta is set, but orpo does not use it; it uses weight"),
        ({"method": "ipo", "label_smoothing": 0.0}, "label_smoothing is set, but ipo does not use it"),
        ({"method": "simpo", "displacement_limit": 0.1}, "simpo has no reference to measure from"),
        ({"method": "exo_pair", "label_smoothing": 0.0}, r"label_smoothing must be finite and in \(0, 0.5\)"),
        ({"method": "dpo", "beta": 0.0}, "greater than 0"),
    ],
    ids=["method", "unused", "orpo", "zero is set too", "displacement", "range of a method", "range"],
)
def test_settings_that_do_not_fit_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        PreferenceSettings(**settings)


@pytest.mark.parametrize("name", FREE)
def test_no_reference_where_none_is_used(tmp_path: Path, name: str) -> None:
    model, groups = language.policy(), language.comparisons(3)
    settings = PreferenceSettings(method=name)
    with pytest.raises(ConfigError, match=f"{name} uses no reference model"):
        preference_pairs(
            model, groups, preference=settings, ref_model=model, cache=tmp_path, max_tokens_per_forward=100
        )
    pairs = preference_pairs(
        model, groups, preference=settings, ref_model=None, cache=tmp_path, max_tokens_per_forward=100
    )
    assert not list(tmp_path.iterdir())
    # Pairs without a reference are no pairs for a method with one.
    with pytest.raises(DataError, match="pair c0 has no log-probs of the reference"):
        evaluate_preference(model, pairs, preference=PreferenceSettings(), max_tokens_per_forward=100)
    with pytest.raises(DataError, match="d0 is not two completions"):
        preference_pairs(
            model,
            language.demonstrations(1),
            preference=settings,
            ref_model=None,
            cache=tmp_path,
            max_tokens_per_forward=100,
        )
