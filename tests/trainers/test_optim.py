"""Learning rates by hand, AdamW's groups, clipping."""

import pytest
import torch
from torch import nn

from tests.trainers import toy
from trueward.core.errors import RunError
from trueward.trainers.optim import build_optimizer, learning_rate, trainable, update


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        # 10 steps, 2 of warm-up: 1/2, 2/2, then the shape over x = 0/8, 1/8, ..., 7/8.
        ("constant", [0.5, 1.0, 1.0, 1.0, 1.0]),
        ("linear", [0.5, 1.0, 1.0, 0.5, 0.125]),
        ("cosine", [0.5, 1.0, 1.0, 0.5, 0.03806023374435663]),  # (1 + cos(7 pi / 8)) / 2
    ],
    ids=["constant", "linear", "cosine"],
)
def test_learning_rate_by_hand(schedule: str, expected: list[float]) -> None:
    settings = toy.settings(lr=2.0, schedule=schedule, warmup_ratio=0.2)
    seen = [learning_rate(step, 10, settings) for step in (0, 1, 2, 6, 9)]
    assert seen == pytest.approx([2.0 * e for e in expected], rel=1e-12)


def test_learning_rate_is_never_zero() -> None:
    for schedule in ("linear", "cosine"):
        settings = toy.settings(schedule=schedule, warmup_ratio=0.5)
        assert all(learning_rate(step, 7, settings) > 0 for step in range(7))


def test_norms_and_biases_do_not_decay() -> None:
    optimizer = build_optimizer(toy.network(), toy.settings(weight_decay=0.1))
    assert [(len(g["params"]), g["weight_decay"]) for g in optimizer.param_groups] == [(2, 0.1), (2, 0.0)]


def test_a_part_has_a_learning_rate_of_its_own() -> None:
    parts = nn.ModuleDict({"trunk": nn.Linear(2, 2), "head": nn.Linear(2, 1)})
    settings = toy.settings(weight_decay=0.0, adam_eps=1e-12)
    optimizer = build_optimizer(parts, settings, lr_scales={"head": 10.0})
    before = toy.weights(parts)
    for parameter in parts.parameters():
        parameter.grad = torch.full_like(parameter, 0.3)
    for _ in range(2):  # The scale is of the step's rate, not of the one before.
        update(optimizer, trainable(parts), loss=1.0, lr=0.01, max_norm=0.0)
    # Under a constant gradient AdamW moves by the learning rate.
    for name, parameter in parts.named_parameters():
        expected = 0.02 * (10.0 if name.startswith("head") else 1.0)
        moved = float((before[name] - parameter.detach()).abs().max())
        assert moved == pytest.approx(expected, rel=1e-3), name


def test_a_half_precision_weight_is_not_trained() -> None:
    with pytest.raises(RunError, match=r"trained in torch\.bfloat16.*load the model in float32"):
        build_optimizer(toy.network().bfloat16(), toy.settings())


def test_a_frozen_model_is_refused() -> None:
    with pytest.raises(RunError, match="no trainable parameter"):
        trainable(toy.network().requires_grad_(False))


@pytest.mark.parametrize(("max_norm", "moved"), [(0.0, 5.0), (1.0, 1.0), (10.0, 5.0)])
def test_the_gradient_is_clipped_by_its_norm(max_norm: float, moved: float) -> None:
    # Gradient (3, 4) has norm 5; plain descent at lr 1 moves by the clipped gradient.
    parameter = nn.Parameter(torch.zeros(2))
    parameter.grad = torch.tensor([3.0, 4.0])
    norm = update(torch.optim.SGD([parameter], lr=9.0), {"p": parameter}, loss=1.0, lr=1.0, max_norm=max_norm)
    assert norm == 5.0
    # clip_grads_with_norm_ adds 1e-6 to the norm.
    assert float(parameter.detach().norm()) == pytest.approx(moved, rel=1e-5)
