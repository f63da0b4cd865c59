"""Learning from another model's distributions or labels: distillation, and weak-to-strong supervision.

Whether distillation is on-policy is decided by who wrote the tokens: run these on completions that the
student drew (GKD with lambda = 1), on the teacher's, or on given ones. No gradient flows through the drawing.
Not here: drawing, and the mean over tokens. Axes: B sequences (or examples), T tokens, V vocabulary.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from trueward.objectives import _checks
from trueward.objectives.kl import exact
from trueward.objectives.reduce import zero_masked


class DistillLoss(NamedTuple):
    """Unreduced loss, nats per token, 0 where uncounted."""

    loss_BT: Tensor


class WeakToStrongLoss(NamedTuple):
    """Unreduced loss in nats, with the student's own hardened labels; those are bool."""

    loss_B: Tensor
    hardened_B: Tensor


def forward_kl(student_logits_BTV: Tensor, teacher_logits_BTV: Tensor, mask_BT: Tensor) -> DistillLoss:
    """KL(teacher || student) of the next token: the student covers all that the teacher may say.

    Args:
        student_logits_BTV: unnormalised scores, with gradient; garbage allowed where uncounted.
        teacher_logits_BTV: the same of the teacher for the same tokens, no gradient.
        mask_BT: bool, True = counts.

    Returns:
        DistillLoss, float32 or better.

    Raises:
        TypeError: wrong dtype.
        ValueError: shapes disagree, or the teacher's logits require grad.

    Source:
        Hinton et al. 2015, "Distilling the Knowledge in a Neural Network", up to the teacher's entropy.
    """
    student_BTV, teacher_BTV = _counted(student_logits_BTV, teacher_logits_BTV, mask_BT)
    return DistillLoss(exact(teacher_BTV, student_BTV))


def reverse_kl(student_logits_BTV: Tensor, teacher_logits_BTV: Tensor, mask_BT: Tensor) -> DistillLoss:
    """KL(student || teacher) of the next token: the student says only what the teacher may say.

    On tokens that the student drew, its sum over a completion has the completion's KL as its mean.

    Args:
        student_logits_BTV: as in `forward_kl`, like the other arguments.

    Returns:
        DistillLoss, float32 or better.

    Raises:
        TypeError, ValueError: as `forward_kl`.

    Source:
        Gu et al. 2023 (MiniLLM, arXiv:2306.08543), section 2.1; per token as in Agarwal et al. 2023
        (arXiv:2306.13649).
    """
    student_BTV, teacher_BTV = _counted(student_logits_BTV, teacher_logits_BTV, mask_BT)
    return DistillLoss(exact(student_BTV, teacher_BTV))


def generalized_jsd(
    student_logits_BTV: Tensor, teacher_logits_BTV: Tensor, mask_BT: Tensor, *, beta: float
) -> DistillLoss:
    """Generalized Jensen-Shannon divergence: beta KL(teacher || m) + (1 - beta) KL(student || m).

    m = beta teacher + (1 - beta) student. Bounded by log 2. Divided by beta it tends to the forward KL as
    beta tends to 0, and by 1 - beta to the reverse KL as beta tends to 1.

    Args:
        student_logits_BTV: as in `forward_kl`, like the other tensors.
        beta: weight of the teacher in (0, 1); the ends are `forward_kl` and `reverse_kl`.

    Returns:
        DistillLoss, float32 or better.

    Raises:
        TypeError, ValueError: as `forward_kl`.

    Source:
        Agarwal et al. 2023 (GKD, arXiv:2306.13649), eq. 1.
    """
    _checks.number("beta", beta, low=0.0, high=1.0, above=True, below=True)
    student_BTV, teacher_BTV = _counted(student_logits_BTV, teacher_logits_BTV, mask_BT)
    student_BTV, teacher_BTV = student_BTV.log_softmax(-1), teacher_BTV.log_softmax(-1)
    mixture_BTV = torch.logaddexp(teacher_BTV + math.log(beta), student_BTV + math.log1p(-beta))
    teacher_BT, student_BT = exact(teacher_BTV, mixture_BTV), exact(student_BTV, mixture_BTV)
    return DistillLoss(beta * teacher_BT + (1 - beta) * student_BT)


def weak_to_strong(
    strong_logits_B: Tensor, weak_probs_B: Tensor, *, alpha: float, threshold: float
) -> WeakToStrongLoss:
    """Auxiliary confidence loss: (1 - alpha) CE(strong, weak label) + alpha CE(strong, its own hard label).

    The own label is 1 where the strong model's probability is above the threshold. It lets a strong student
    keep an opinion that its weak supervisor does not share.

    Args:
        strong_logits_B: log-odds of class 1 under the strong student, with gradient.
        weak_probs_B: probability of class 1 by the weak supervisor, in [0, 1], no gradient.
        alpha: weight in [0, 1] of the own label; the paper raises it from 0 over the first fifth of training,
            to 0.75 for the largest students and 0.5 for others.
        threshold: probability in [0, 1]; see `confidence_threshold`.

    Returns:
        WeakToStrongLoss, float32 or better.

    Raises:
        TypeError: wrong dtype.
        ValueError: shapes disagree, a range is left, or weak_probs_B requires grad.

    Source:
        Burns et al. 2023 (arXiv:2312.09390), eq. 1, for two classes.
    """
    _checks.number("alpha", alpha, low=0.0, high=1.0)
    _checks.number("threshold", threshold, low=0.0, high=1.0)
    logits_B = _checks.full_precision("strong_logits_B", strong_logits_B, ndim=1)
    weak_B = _checks.full_precision("weak_probs_B", weak_probs_B, ndim=1)
    _checks.same_shape("weak_probs_B", weak_B, "strong_logits_B", logits_B)
    _checks.constant("weak_probs_B", weak_B)
    _checks.all_between("weak_probs_B", weak_B, low=0.0, high=1.0)
    hardened_B = torch.sigmoid(logits_B.detach()) > threshold
    label_B = (1 - alpha) * weak_B + alpha * hardened_B
    # Cross-entropy is linear in the label, so the two terms are one with the mixed label.
    loss_B = -label_B * logsigmoid(logits_B) - (1 - label_B) * logsigmoid(-logits_B)
    return WeakToStrongLoss(loss_B, hardened_B)


class WeakAnswerLoss(NamedTuple):
    """Unreduced loss, nats per token, 0 where uncounted."""

    loss_BT: Tensor


def weak_answers(
    weak_logps_BT: Tensor, own_logps_BT: Tensor, mask_BT: Tensor, *, alpha: float
) -> WeakAnswerLoss:
    """Confidence loss for answers: -(1 - alpha) log p(weak token) - alpha log p(own likeliest token).

    The form of `weak_to_strong` with one class for each word: the hardened label is the word that the student
    itself finds most likely, so there is no threshold. The paper has two classes; this is our extension.

    Args:
        weak_logps_BT: log-probs, under the student, of the tokens that the weak supervisor wrote, nats.
        own_logps_BT: log-probs of the student's most likely token at the same places; gradient passes through
            the probability, the choice is constant.
        mask_BT: bool, True = counts.
        alpha: weight in [0, 1] of the own label; 0 is supervised fine-tuning.

    Returns:
        WeakAnswerLoss, float32 or better.

    Raises:
        TypeError: wrong dtype.
        ValueError: shapes disagree, or alpha is out of range.

    Source:
        Burns et al. 2023 (arXiv:2312.09390), eq. 1, with the vocabulary as classes.
    """
    _checks.number("alpha", alpha, low=0.0, high=1.0)
    weak_BT = zero_masked(weak_logps_BT, mask_BT)
    own_BT = zero_masked(own_logps_BT, mask_BT)
    _checks.same_shape("own_logps_BT", own_BT, "weak_logps_BT", weak_BT)
    return WeakAnswerLoss(-(1 - alpha) * weak_BT - alpha * own_BT)


def confidence_threshold(strong_logits_B: Tensor) -> float:
    """The probability that exactly half of the step's examples are above: the (lower) median.

    Give it the whole optimizer step. Ties at the median, and odd numbers, leave fewer above.

    Args:
        strong_logits_B: log-odds of class 1, B >= 1.

    Returns:
        Threshold in [0, 1].

    Raises:
        TypeError: wrong dtype.
        ValueError: not one axis, or empty.

    Source:
        Burns et al. 2023 (arXiv:2312.09390), appendix A.4: balanced classes, t set so that half are above.
    """
    logits_B = _checks.full_precision("strong_logits_B", strong_logits_B, ndim=1)
    if logits_B.numel() == 0:
        raise ValueError("strong_logits_B must hold at least one example, got shape (0,)")
    return float(torch.sigmoid(logits_B.detach()).median())


def _counted(student_BTV: Tensor, teacher_BTV: Tensor, mask_BT: Tensor) -> tuple[Tensor, Tensor]:
    """Both logits in full precision, 0 where uncounted, so that their divergence is 0 there."""
    student_BTV = _checks.full_precision("student_logits_BTV", student_BTV, ndim=3)
    teacher_BTV = _checks.full_precision("teacher_logits_BTV", teacher_BTV, ndim=3)
    _checks.same_shape("teacher_logits_BTV", teacher_BTV, "student_logits_BTV", student_BTV)
    _checks.constant("teacher_logits_BTV", teacher_BTV)
    _checks.bool_mask("mask_BT", mask_BT, "the first axes of student_logits_BTV", student_BTV[..., 0])
    mask_BT1 = mask_BT.unsqueeze(-1)
    return torch.where(mask_BT1, student_BTV, 0.0), torch.where(mask_BT1, teacher_BTV, 0.0)
