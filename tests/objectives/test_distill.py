"""Distillation and weak-to-strong: values, masks, limits. Axes: B sequences, T tokens, V vocabulary."""

import math
from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch import Tensor

from tests.oracles import distill as oracle
from trueward.objectives.distill import (
    DistillLoss,
    confidence_threshold,
    forward_kl,
    generalized_jsd,
    reverse_kl,
    weak_answers,
    weak_to_strong,
)

F64 = torch.float64
LOG3 = math.log(3)
Divergence = Callable[[Tensor, Tensor, Tensor], DistillLoss]
DIVERGENCES: dict[str, Divergence] = {
    "forward": forward_kl,
    "reverse": reverse_kl,
    "jsd": partial(generalized_jsd, beta=0.3),
}
EACH = pytest.mark.parametrize("name", DIVERGENCES)


def _logits() -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    student, teacher = torch.randn(2, 2, 3, 5, generator=generator, dtype=F64)
    return student, teacher, torch.tensor([[True, True, False], [False, True, True]])


def test_hand_values() -> None:
    # Teacher (3/4, 1/4), student (1/2, 1/2).
    teacher, student = torch.tensor([[[LOG3, 0.0]]], dtype=F64), torch.zeros(1, 1, 2, dtype=F64)
    on = torch.ones(1, 1, dtype=torch.bool)
    forward = 0.75 * math.log(3 / 2) + 0.25 * math.log(1 / 2)
    reverse = 0.5 * math.log(2 / 3) + 0.5 * math.log(2)
    assert forward_kl(student, teacher, on).loss_BT.item() == pytest.approx(forward)
    assert reverse_kl(student, teacher, on).loss_BT.item() == pytest.approx(reverse)
    # beta 1/2: the mixture is (5/8, 3/8).
    half = 0.5 * (0.75 * math.log(6 / 5) + 0.25 * math.log(2 / 3) + 0.5 * math.log(4 / 5 * 4 / 3))
    assert generalized_jsd(student, teacher, on, beta=0.5).loss_BT.item() == pytest.approx(half)


@EACH
def test_oracle_and_mask(name: str) -> None:
    student, teacher, mask = _logits()
    out = DIVERGENCES[name](student, teacher, mask).loss_BT
    p, q = (torch.softmax(x, -1).tolist() for x in (teacher, student))
    judges = {
        "forward": lambda b, t: oracle.kl(p[b][t], q[b][t]),
        "reverse": lambda b, t: oracle.kl(q[b][t], p[b][t]),
        "jsd": lambda b, t: oracle.generalized_jsd(student[b][t].tolist(), teacher[b][t].tolist(), 0.3),
    }
    expected = [[judges[name](b, t) if mask[b, t] else 0.0 for t in range(3)] for b in range(2)]
    torch.testing.assert_close(out, torch.tensor(expected, dtype=F64))


@EACH
def test_garbage_where_uncounted_changes_nothing(name: str) -> None:
    student, teacher, mask = _logits()
    dirty = [
        torch.where(mask.unsqueeze(-1), x, torch.nan).requires_grad_(x is student) for x in (student, teacher)
    ]
    out = DIVERGENCES[name](dirty[0], dirty[1], mask).loss_BT
    assert torch.equal(out, DIVERGENCES[name](student, teacher, mask).loss_BT)
    (gradient,) = torch.autograd.grad(out.sum(), dirty[0])
    assert bool(torch.isfinite(gradient).all()) and bool((gradient[~mask] == 0).all())
    # An empty completion and padding count nothing.
    nothing = DIVERGENCES[name](student, teacher, torch.zeros_like(mask)).loss_BT
    assert nothing.abs().sum().item() == 0.0


@EACH
def test_gradcheck_permutation_and_equality(name: str) -> None:
    student, teacher, mask = _logits()
    divergence = DIVERGENCES[name]
    whole = divergence(student, teacher, mask).loss_BT
    order = torch.tensor([4, 1, 0, 3, 2])
    torch.testing.assert_close(divergence(student[..., order], teacher[..., order], mask).loss_BT, whole)
    torch.testing.assert_close(
        divergence(student.flip(0), teacher.flip(0), mask.flip(0)).loss_BT, whole.flip(0)
    )
    torch.testing.assert_close(divergence(student + 3, teacher - 2, mask).loss_BT, whole)
    assert divergence(teacher, teacher, mask).loss_BT.abs().max().item() < 1e-15
    assert torch.autograd.gradcheck(
        lambda s: divergence(s, teacher, mask).loss_BT, student.clone().requires_grad_()
    )


@EACH
def test_extremes(name: str) -> None:
    student = torch.tensor([[[1e4, 0.0], [0.0, 0.0]]], requires_grad=True)
    teacher = torch.tensor([[[0.0, 1e4], [0.0, 0.0]]])
    out = DIVERGENCES[name](student, teacher, torch.ones(1, 2, dtype=torch.bool)).loss_BT
    (gradient,) = torch.autograd.grad(out.sum(), student)
    # Disjoint: the KLs are the margin; the JSD is the entropy of (0.3, 0.7).
    entropy = -0.3 * math.log(0.3) - 0.7 * math.log(0.7)
    assert out.tolist()[0] == pytest.approx([entropy if name == "jsd" else 1e4, 0.0])
    assert bool(torch.isfinite(gradient).all())


def test_jsd_tends_to_both_kls() -> None:
    student, teacher, mask = _logits()
    near = generalized_jsd(student, teacher, mask, beta=1e-6).loss_BT / 1e-6
    torch.testing.assert_close(near, forward_kl(student, teacher, mask).loss_BT, rtol=1e-4, atol=1e-6)
    far = generalized_jsd(student, teacher, mask, beta=1 - 1e-6).loss_BT / 1e-6
    torch.testing.assert_close(far, reverse_kl(student, teacher, mask).loss_BT, rtol=1e-4, atol=1e-6)
    middle = generalized_jsd(student, teacher, mask, beta=0.5).loss_BT
    torch.testing.assert_close(middle, generalized_jsd(teacher, student, mask, beta=0.5).loss_BT)


def test_wrong_distillation_input_raises() -> None:
    student, teacher, mask = _logits()
    with pytest.raises(ValueError, match="teacher_logits_BTV must have the shape of student_logits_BTV"):
        forward_kl(student, teacher[..., :4], mask)
    with pytest.raises(ValueError, match="teacher_logits_BTV must not require grad"):
        reverse_kl(student, teacher.clone().requires_grad_(), mask)
    with pytest.raises(ValueError, match="mask_BT must have the shape of the first axes"):
        forward_kl(student, teacher, mask[:, :2])
    with pytest.raises(ValueError, match="student_logits_BTV must have 3 axes, got 2"):
        forward_kl(student[0], teacher[0], mask)
    for beta in (0.0, 1.0, math.nan):
        with pytest.raises(ValueError, match=r"beta must be finite and in \(0, 1\), got"):
            generalized_jsd(student, teacher, mask, beta=beta)


def test_weak_to_strong_by_hand_and_oracle() -> None:
    # Strong 3/4, weak 1/4, alpha 1/2, threshold 1/2: own label 1, mixed label 5/8.
    logits, weak = torch.tensor([LOG3], dtype=F64), torch.tensor([0.25], dtype=F64)
    out = weak_to_strong(logits, weak, alpha=0.5, threshold=0.5)
    assert out.loss_B.item() == pytest.approx(5 / 8 * math.log(4 / 3) + 3 / 8 * math.log(4))
    assert out.hardened_B.tolist() == [True]
    assert weak_to_strong(logits, weak, alpha=0.5, threshold=0.75).hardened_B.tolist() == [False]
    generator = torch.Generator().manual_seed(0)
    logits, weak = (
        torch.randn(7, generator=generator, dtype=F64),
        torch.rand(7, generator=generator, dtype=F64),
    )
    for alpha in (0.0, 0.3, 1.0):
        got = weak_to_strong(logits, weak, alpha=alpha, threshold=0.4).loss_B
        rows = zip(logits.tolist(), weak.tolist(), strict=True)
        expected = [oracle.weak_to_strong(logit, label, alpha, 0.4) for logit, label in rows]
        torch.testing.assert_close(got, torch.tensor(expected, dtype=F64))
    assert torch.autograd.gradcheck(
        lambda x: weak_to_strong(x, weak, alpha=0.3, threshold=0.4).loss_B, logits.requires_grad_()
    )


def test_threshold_halves_the_step() -> None:
    logits = torch.tensor([3.0, -2.0, 1.0, 0.5])
    threshold = confidence_threshold(logits)
    # The lower median is 0.5, so 3 and 1 are above.
    assert threshold == pytest.approx(1 / (1 + math.exp(-0.5)))
    hardened = weak_to_strong(logits, torch.zeros(4), alpha=0.5, threshold=threshold).hardened_B
    assert hardened.tolist() == [True, False, True, False]
    parts = [
        weak_to_strong(logits[i : i + 1], torch.zeros(1), alpha=0.5, threshold=threshold) for i in range(4)
    ]
    assert torch.cat([part.hardened_B for part in parts]).tolist() == hardened.tolist()
    with pytest.raises(ValueError, match="strong_logits_B must hold at least one example"):
        confidence_threshold(torch.zeros(0))


def test_weak_to_strong_extremes_and_wrong_input() -> None:
    logits = torch.tensor([1e4, -1e4], requires_grad=True)
    out = weak_to_strong(logits, torch.tensor([0.0, 1.0]), alpha=0.25, threshold=0.5).loss_B
    (gradient,) = torch.autograd.grad(out.sum(), logits)
    # The weak label, 3/4 of the weight, is wrong by 1e4 nats.
    assert out.tolist() == [7500.0, 7500.0] and gradient.tolist() == [0.75, -0.75]
    with pytest.raises(ValueError, match=r"weak_probs_B must be finite and in \[0, 1\], got an element 1.5"):
        weak_to_strong(logits, torch.tensor([0.0, 1.5]), alpha=0.1, threshold=0.5)
    with pytest.raises(ValueError, match="weak_probs_B must not require grad"):
        weak_to_strong(logits, torch.zeros(2, requires_grad=True), alpha=0.1, threshold=0.5)
    for option in ("alpha", "threshold"):
        options = {"alpha": 0.1, "threshold": 0.5, option: 1.1}
        with pytest.raises(ValueError, match=rf"{option} must be finite and in \[0, 1\], got 1.1"):
            weak_to_strong(logits, torch.zeros(2), **options)


def test_weak_answers_by_hand_and_masked() -> None:
    # Probabilities (3/4, 1/4); the supervisor says the second word, the student finds the first likelier:
    # -(1/2) log(1/4) - (1/2) log(3/4) = (1/2) log(16/3).
    weak, own = torch.tensor([[math.log(1 / 4)]], dtype=F64), torch.tensor([[math.log(3 / 4)]], dtype=F64)
    counted = torch.tensor([[True]])
    out = weak_answers(weak, own, counted, alpha=0.5)
    assert float(out.loss_BT) == pytest.approx(0.5 * math.log(16 / 3), rel=1e-12)
    assert float(weak_answers(weak, own, counted, alpha=0.0).loss_BT) == pytest.approx(math.log(4))
    garbage = torch.tensor([[math.nan]], dtype=F64, requires_grad=True)
    masked = weak_answers(garbage, garbage, torch.tensor([[False]]), alpha=0.5).loss_BT
    masked.sum().backward()  # type: ignore[no-untyped-call]
    assert float(masked.detach()) == 0
    assert garbage.grad is not None and float(garbage.grad) == 0


@pytest.mark.parametrize("alpha", [-0.1, 1.1, math.nan])
def test_weak_answers_refuse_alpha_out_of_range(alpha: float) -> None:
    logps = torch.zeros(1, 1)
    with pytest.raises(ValueError, match="alpha"):
        weak_answers(logps, logps, torch.tensor([[True]]), alpha=alpha)
