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
