"""The confidence loss on answers: the oracle, imitation is SFT, own words, resume."""

from pathlib import Path
from typing import Any

import pytest
import torch

from tests.oracles import distill as oracle
from tests.trainers import language, toy
from trueward.models.packing import pack
from trueward.models.plain import plain_logits
from trueward.trainers.sft import SFTObjective
from trueward.trainers.weak_answers import WeakAnswersObjective, train_weak_answers
from trueward.trainers.weak_to_strong import WeakToStrongSettings


def objective(alpha: float, *, step: int = 9) -> WeakAnswersObjective:
    made = WeakAnswersObjective(WeakToStrongSettings(alpha=alpha))
    made.at(step, 10)
    return made


def run(folder: Path, model: Any, *, alpha: float = 0.5, **changes: Any) -> Any:
    own = {key: changes.pop(key) for key in ("resume", "evaluate") if key in changes}
    return train_weak_answers(
        model,
        language.demonstrations(),
        settings=toy.settings(**{"lr": 0.005, "max_tokens_per_forward": 64, **changes}),
        confidence=WeakToStrongSettings(alpha=alpha),
        folder=folder,
        **own,
    )


def test_imitation_is_sft() -> None:
    model, items = language.policy(), language.demonstrations(5)
    ours, theirs = (one.loss(model, items) for one in (objective(0.0), SFTObjective()))
    assert float(ours.loss_sum.detach()) == pytest.approx(float(theirs.loss_sum.detach()), rel=1e-6)
    name = "mean_token_accuracy"
    assert float(ours.sums[name][0]) == float(theirs.sums[name][0])


def test_the_loss_is_the_oracles() -> None:
    model, items = language.policy(), language.demonstrations(5)
    packed = pack(items)
    logits_NV = plain_logits(model, packed).detach().double()
    expected = sum(
        oracle.weak_answer(row.tolist(), int(label), 0.3)
        for row, label in zip(logits_NV, packed.labels_N, strict=True)
    )
    assert float(objective(0.3).loss(model, items).loss_sum.detach()) == pytest.approx(expected, rel=1e-5)


def test_alpha_rises_from_nothing() -> None:
    model, items = language.policy(), language.demonstrations(5)
    first, imitated = (objective(a, step=0).loss(model, items).loss_sum for a in (0.9, 0.0))
    assert torch.equal(first, imitated)


def test_it_learns_and_a_stopped_run_goes_on_bit_equal(tmp_path: Path) -> None:
    whole, stopped, resumed = language.policy(), language.policy(), language.policy()
    run(tmp_path / "whole", whole, eval_every=1)
    assert run(tmp_path / "cut", stopped, eval_every=1, evaluate=toy.interrupt_at(1)).interrupted
    assert run(tmp_path / "cut", resumed, eval_every=1, resume=True).resumed_from == 1
    assert toy.equal(toy.weights(whole), toy.weights(resumed))
    rows = toy.figures(tmp_path / "whole")
    assert rows == toy.figures(tmp_path / "cut")
    assert rows[-1]["loss"] < rows[0]["loss"]
    assert rows[0]["weak_to_strong/alpha"] == 0 and rows[-1]["weak_to_strong/alpha"] == pytest.approx(0.5)
