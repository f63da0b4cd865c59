"""KTO and BCO in the trainer: baseline of the whole step, learning, resume, what is refused."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.trainers import language, toy
from trueward.core.errors import DataError
from trueward.core.files import read_jsonl
from trueward.data.chat import TokenGroup
from trueward.models.packing import count_tokens
from trueward.objectives.unpaired import bco, kto
from trueward.trainers import reference, unpaired
from trueward.trainers.accumulate import accumulate
from trueward.trainers.loop import TrainResult
from trueward.trainers.unpaired import (
    UNPAIRED_METHODS,
    LabelledCompletion,
    UnpairedExample,
    UnpairedObjective,
    UnpairedSettings,
    evaluate_unpaired,
    train_unpaired,
    unpaired_examples,
)

METHODS = pytest.mark.parametrize("name", UNPAIRED_METHODS)


def labelled(n: int = 24, seed: int = 0) -> list[LabelledCompletion]:
    """Low words are desirable, high ones are not; one prompt has both."""
    found = []
    for i, group in enumerate(language.comparisons(n, seed)):
        for completion, desirable in zip(group.completions, (True, False), strict=True):
            if i % 3 or desirable:
                group_of_one = TokenGroup(group.prompt_ids, (completion,), f"{group.id}{desirable}")
                found.append(LabelledCompletion(group_of_one, desirable))
    return found


def examples(
    model: Any, folder: Path, name: str, n: int = 4, *, seed: int = 0, other_ref: bool = True
) -> list[UnpairedExample]:
    return unpaired_examples(
        model,
        labelled(n, seed),
        unpaired=UnpairedSettings(method=name),
        ref_model=language.policy(1) if other_ref else None,
        cache=folder,
        max_tokens_per_forward=100,
    )


def run(
    folder: Path, model: Any, name: str, *, resume: bool = False, evaluate: Any = None, **s: Any
) -> TrainResult:
    settings = {"lr": 0.005, "max_tokens_per_forward": 64, **s}
    return train_unpaired(
        model,
        labelled(),
        settings=toy.settings(**settings),
        unpaired=UnpairedSettings(method=name, desirable_weight=1.2),
        folder=folder,
        evaluate=evaluate,
        resume=resume,
    )


def lowered(items: list[UnpairedExample]) -> list[UnpairedExample]:
    """The reference finds mismatched completions a nat less likely: a KL above 0, where no clamp hides it."""
    return [
        item if item.ref_mismatched is None else replace(item, ref_mismatched=item.ref_mismatched - 1)
        for item in items
    ]


@torch.no_grad()
def plain_logp(model: Any, group: TokenGroup) -> float:
    ids = torch.tensor([[*group.prompt_ids, *group.completions[0].ids]])
    logps = model(ids).logits[0].log_softmax(-1)[len(group.prompt_ids) - 1 : -1]
    at = list(group.completions[0].ids)
    return float(logps[range(len(at)), at].sum())


@METHODS
def test_loss_and_baseline_are_those_of_plain_formulas(tmp_path: Path, name: str) -> None:
    model, ref = language.policy(), language.policy(1)
    items = lowered(examples(model, tmp_path, name))
    settings = UnpairedSettings(method=name, beta=0.5, desirable_weight=2.0, undesirable_weight=0.5)
    objective = UnpairedObjective(settings)
    objective.prepare(model, items, 30)
    got = objective.loss(model, items)
    policy = [plain_logp(model, item.group) for item in items]
    refs = [plain_logp(ref, item.group) for item in items]
    assert [item.ref for item in items] == pytest.approx(refs, rel=1e-4)
    ratios = [p - r for p, r in zip(policy, refs, strict=True)]
    if name == "kto":
        groups = [item.mismatched for item in items]
        assert all(
            g is not None and g.prompt_ids == i.group.prompt_ids for g, i in zip(groups, items, strict=True)
        )
        differences = [plain_logp(model, g) - plain_logp(ref, g) + 1 for g in groups if g is not None]
        baseline = sum(differences) / len(differences)
        assert baseline > 0.1
    else:
        sides = [
            [0.5 * x for x, i in zip(ratios, items, strict=True) if i.desirable is d] for d in (True, False)
        ]
        baseline = sum(sum(side) / len(side) for side in sides) / 2
    shown, number = got.sums["objective/baseline"]
    assert float(shown) / number == pytest.approx(baseline, rel=1e-3, abs=1e-5)
    labels = torch.tensor([item.desirable for item in items])
    judge = {"kto": kto, "bco": bco}[name](
        torch.tensor(policy), torch.tensor(refs), labels, baseline, beta=0.5, desirable_weight=2.0,
        undesirable_weight=0.5,
    )  # fmt: skip
    assert got.loss_sum.item() == pytest.approx(float(judge.loss_B.sum()), rel=1e-4)


def test_a_mismatched_completion_belongs_to_another_prompt_and_fits(tmp_path: Path) -> None:
    items = examples(language.policy(), tmp_path, "kto", n=12)
    longest = max(len(i.group.prompt_ids) + len(i.group.completions[0].ids) for i in items)
    own = {(i.group.prompt_ids, i.group.completions[0].ids) for i in items}
    for item in items:
        assert item.mismatched is not None
        pair = (item.mismatched.prompt_ids, item.mismatched.completions[0].ids)
        assert pair not in own and len(pair[0]) + len(pair[1]) <= longest
    assert all(item.mismatched is None for item in examples(language.policy(), tmp_path, "bco"))


@METHODS
def test_four_forwards_of_one_equal_one_of_four(tmp_path: Path, name: str) -> None:
    objective = UnpairedObjective(UnpairedSettings(method=name, desirable_weight=2.0))
    items = lowered(examples(language.policy(), tmp_path, name))

    def gradients(max_tokens: int) -> tuple[int, float, dict[str, float], dict[str, Tensor]]:
        model = language.policy()
        model.train()
        calls = len(objective.micro_batches(items, max_tokens))
        got = accumulate(model, objective, items, max_tokens=max_tokens, precision="float32", seed=0)
        assert model.training
        grads = {n: p.grad for n, p in model.named_parameters() if p.grad is not None}
        return calls, got.loss, got.means, grads

    calls, loss, means, grads = gradients(12)
    calls_whole, loss_whole, means_whole, grads_whole = gradients(1000)
    assert calls >= 3 and calls_whole == 1
    assert loss == pytest.approx(loss_whole, rel=1e-5)
    assert means == pytest.approx(means_whole, rel=1e-4, abs=1e-6)
    # The baseline is that of all items together, not of the first micro-batch.
    objective.prepare(language.policy(), items, 1000)
    together, number = objective.loss(language.policy(), items).sums["objective/baseline"]
    assert means["objective/baseline"] == pytest.approx(float(together) / number, rel=1e-4)
    assert means["objective/baseline"] != 0
    for key, grad in grads.items():
        torch.testing.assert_close(grad, grads_whole[key], rtol=1e-4, atol=1e-6)


@METHODS
def test_it_learns_from_single_labels(tmp_path: Path, name: str) -> None:
    model = language.policy()
    held_out = examples(model, tmp_path, name, n=20, seed=1, other_ref=False)
    settings = UnpairedSettings(method=name)
    before = evaluate_unpaired(model, held_out, unpaired=settings, max_tokens_per_forward=200)
    run(tmp_path / "run", model, name, steps=30, lr=0.01, max_tokens_per_forward=400)
    after = evaluate_unpaired(model, held_out, unpaired=settings, max_tokens_per_forward=200)
    assert after.loss.value < before.loss.value
    # The KL of KTO rises with what other prompts call for too: it divides less well than BCO and its middle.
    assert after.accuracy.value > {"kto": 0.6, "bco": 0.85}[name] > before.accuracy.value
    assert after.metrics()["eval/accuracy"] == after.accuracy.value
    rows = list(read_jsonl(tmp_path / "run" / "metrics.jsonl"))
    # Policy and reference are equal at first: rewards 0, baseline 0, half a sigmoid.
    assert rows[0]["objective/baseline"] == pytest.approx(0, abs=1e-5)
    assert rows[-1]["rewards/chosen"] > rows[-1]["rewards/rejected"] + 0.3
    assert rows[-1]["logps/rejected_per_token_change"] < 0


@METHODS
def test_ten_steps_equal_five_and_five(tmp_path: Path, name: str) -> None:
    whole, cut, after = (language.policy() for _ in range(3))
    run(tmp_path / "whole", whole, name)
    first = run(tmp_path / "cut", cut, name, evaluate=toy.interrupt_at(5), eval_every=1)
    assert (first.step, first.interrupted) == (5, True)
    assert run(tmp_path / "cut", after, name, resume=True).resumed_from == 5
    assert toy.equal(toy.weights(whole), toy.weights(after))
    assert toy.figures(tmp_path / "whole") == toy.figures(tmp_path / "cut")


def test_wrong_data_is_refused(tmp_path: Path) -> None:
    model = language.policy()

    def train(data: list[LabelledCompletion]) -> None:
        train_unpaired(
            model, data, settings=toy.settings(), unpaired=UnpairedSettings(), folder=tmp_path / "run"
        )

    desirable = [item for item in labelled() if item.desirable]
    with pytest.raises(DataError, match="all 24 completions are labelled desirable"):
        train(desirable)
    one_prompt = [LabelledCompletion(desirable[0].group, label) for label in (True, False)]
    with pytest.raises(
        DataError, match=r"no completion of another prompt fits the prompt of c0True.*or use bco"
    ):
        train(one_prompt)
    with pytest.raises(DataError, match="c0 is not one completion with trained tokens"):
        train([LabelledCompletion(g, bool(i)) for i, g in enumerate(language.comparisons(2))])
    with pytest.raises(ValueError, match="unknown method 'ktoo'; did you mean 'kto'"):
        UnpairedSettings(method="ktoo")
    with pytest.raises(DataError, match="there is no held-out completion"):
        evaluate_unpaired(model, [], unpaired=UnpairedSettings(), max_tokens_per_forward=100)
    bare = examples(model, tmp_path, "bco")
    with pytest.raises(DataError, match="an example has no mismatched completion, which kto needs"):
        evaluate_unpaired(model, bare, unpaired=UnpairedSettings(), max_tokens_per_forward=100)


def test_a_mismatch_may_be_longer_than_every_item_where_none_else_fits(tmp_path: Path) -> None:
    short = [TokenGroup((1, 2, 3, 4), (language.completion((5, 6)),), "long prompt")]
    other = [TokenGroup((1, 3), (language.completion((5, 6, 7, 6)),), "long answer")]
    items = [
        LabelledCompletion(group, good) for group, good in zip(short + other, (True, False), strict=True)
    ]
    arguments: dict[str, Any] = {"ref_model": None, "cache": tmp_path, "max_tokens_per_forward": 100}
    with pytest.raises(DataError, match="no completion of another prompt fits the prompt of long prompt"):
        unpaired_examples(language.policy(), items, unpaired=UnpairedSettings(), **arguments)
    found = unpaired_examples(
        language.policy(), items, unpaired=UnpairedSettings(), **arguments, max_tokens=16
    )
    assert found[0].mismatched is not None
    assert found[0].mismatched.completions == other[0].completions


@METHODS
def test_a_prompt_is_computed_once_for_both_completions_where_they_fit(
    tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, ref = language.policy(), language.policy(1)
    items = labelled(6)
    settings = UnpairedSettings(method=name)
    seen: list[TokenGroup] = []
    scores = reference.sequence_scores

    def watched(model: Any, groups: Sequence[TokenGroup]) -> reference.SequenceScores:
        seen.extend(groups)
        return scores(model, groups)

    for module in (reference, unpaired):
        monkeypatch.setattr(module, "sequence_scores", watched)
    found = {}
    # Either completion fits behind its prompt, and both together only in the larger forward.
    longest = max(count_tokens(item.group) for item in items)
    for budget in (longest, 10 * longest):
        made = unpaired_examples(
            model,
            items,
            unpaired=settings,
            ref_model=ref,
            cache=tmp_path / str(budget),
            max_tokens_per_forward=budget,
        )
        held = evaluate_unpaired(model, made, unpaired=settings, max_tokens_per_forward=budget)
        found[budget] = made, held, {len(group.completions) for group in seen}, len(seen)
        seen.clear()
    (few, held_few, alone, number), (many, held_many, together, fewer) = found.values()
    paired = UNPAIRED_METHODS[name].mismatched
    assert 1 in alone and together == ({2} if paired else {1})
    assert (fewer == 2 * len(items) and number > fewer) or not paired
    for a, b in zip(few, many, strict=True):
        assert (a.group, a.mismatched) == (b.group, b.mismatched)
        assert a.ref == pytest.approx(b.ref, abs=1e-4)
        assert a.ref == pytest.approx(plain_logp(ref, a.group), abs=1e-4)
        if paired:
            assert a.mismatched is not None
            assert a.ref_mismatched == pytest.approx(plain_logp(ref, a.mismatched), abs=1e-4)
            assert b.ref_mismatched == pytest.approx(a.ref_mismatched, abs=1e-4)
    assert held_few.loss.value == pytest.approx(held_many.loss.value, abs=1e-5)
    assert held_few.baseline == pytest.approx(held_many.baseline, abs=1e-4)
    assert held_few.accuracy == held_many.accuracy


@METHODS
def test_a_run_goes_on_with_forwards_of_another_size(tmp_path: Path, name: str) -> None:
    """The reference's log-probs are part of a run's identity: they are those of before, bit by bit."""
    # In the first, no two completions fit behind one prompt.
    least = max(count_tokens(item.group) for item in labelled())
    first = run(tmp_path, language.policy(), name, steps=2, max_tokens_per_forward=least)
    again = run(tmp_path, language.policy(), name, steps=2, max_tokens_per_forward=640, resume=True)
    assert (first.step, again.resumed_from) == (2, 2)
    assert len(list(tmp_path.glob("ref_logps-*.safetensors"))) == 1
