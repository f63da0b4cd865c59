"""Objectives of reward models for reasoning: one label per step (PRM), or one per completion (ORM).

Steps are marked by the position of their last token. Not here: where steps end, the model, and the mean over
steps. Axes: B sequences, T tokens, C classes. `ends_BT` is bool, True at the last token of a labelled step.
"""

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, logsigmoid

from trueward.objectives import _checks
from trueward.objectives.reduce import zero_masked

STEP_CLASSES = ("negative", "neutral", "positive")
"""Classes of step_classes, in the order of its last axis."""


class ProcessLoss(NamedTuple):
    """Unreduced loss and the log-probability that the step is right, without gradient; 0 away from ends."""

    loss_BT: Tensor
    correct_logps_BT: Tensor


class OutcomeLoss(NamedTuple):
    """Unreduced loss, and the log-probability that the completion is right, without gradient."""

    loss_B: Tensor
    correct_logps_B: Tensor


def step_binary(logits_BT: Tensor, labels_BT: Tensor, ends_BT: Tensor) -> ProcessLoss:
    """Binary cross-entropy at each step's last token: -y log sigmoid(z) - (1 - y) log sigmoid(-z).

    Args:
        logits_BT: the model's score at each token; garbage allowed away from step ends.
        labels_BT: probability in [0, 1] that the step is right (1 right, 0 wrong, between: a share of
            rollouts that succeed), any float dtype, no gradient.
        ends_BT: bool, True at the last token of each labelled step.

    Returns:
        ProcessLoss, float32 or better.

    Raises:
        TypeError: wrong dtype.
        ValueError: shapes disagree, or a label at a step end is outside [0, 1] or requires grad.

    Source:
        Lightman et al. 2023 (2305.20050), section 2.6; soft labels: Wang et al. 2024 (Math-Shepherd,
        2312.08935), eq. 2 and 4.
    """
    logits_BT = _checks.full_precision("logits_BT", logits_BT, ndim=2)
    labels_BT = _checks.full_precision("labels_BT", labels_BT, ndim=2)
    _checks.same_shape("labels_BT", labels_BT, "logits_BT", logits_BT)
    _checks.bool_mask("ends_BT", ends_BT, "logits_BT", logits_BT)
    _checks.constant("labels_BT", labels_BT)
    labels_BT = zero_masked(labels_BT, ends_BT)
    _checks.all_between("labels_BT", labels_BT, low=0.0, high=1.0)
    logits_BT = zero_masked(logits_BT, ends_BT)
    loss_BT = _binary(logits_BT, labels_BT)
    return ProcessLoss(zero_masked(loss_BT, ends_BT), _correct(logsigmoid(logits_BT), ends_BT))


def step_classes(
    logits_BTC: Tensor, labels_BT: Tensor, ends_BT: Tensor, *, neutral_is_correct: bool
) -> ProcessLoss:
    """Cross-entropy of negative, neutral and positive at each step's last token: -log softmax(z)[label].

    Args:
        logits_BTC: the model's scores of STEP_CLASSES, C = 3; garbage allowed away from step ends.
        labels_BT: int64 index into STEP_CLASSES; anything away from step ends.
        ends_BT: bool, True at the last token of each labelled step.
        neutral_is_correct: whether the probability of neutral counts to that of a right step, in
            correct_logps_BT only.

    Returns:
        ProcessLoss, float32 or better.

    Raises:
        TypeError: wrong dtype.
        ValueError: shapes disagree, C is not 3, or a label at a step end is not 0, 1 or 2.

    Source:
        Lightman et al. 2023 (2305.20050), sections 2.4 and 2.6.
    """
    logits_BTC = _checks.full_precision("logits_BTC", logits_BTC, ndim=3)
    if logits_BTC.shape[2] != len(STEP_CLASSES):
        raise ValueError(f"logits_BTC must have 3 classes {STEP_CLASSES}, got {logits_BTC.shape[2]}")
    if not isinstance(labels_BT, Tensor) or labels_BT.dtype != torch.int64:
        seen = labels_BT.dtype if isinstance(labels_BT, Tensor) else type(labels_BT).__name__
        raise TypeError(f"labels_BT must be int64, got {seen}")
    _checks.same_shape("labels_BT", labels_BT, "logits_BTC without its last axis", logits_BTC[..., 0])
    _checks.bool_mask("ends_BT", ends_BT, "labels_BT", labels_BT)
    labels_BT = torch.where(ends_BT, labels_BT, 0)
    unknown_BT = (labels_BT < 0) | (labels_BT >= len(STEP_CLASSES))
    if bool(unknown_BT.any()):
        label = int(labels_BT[unknown_BT][0])
        raise ValueError(f"labels_BT must be 0, 1 or 2 ({', '.join(STEP_CLASSES)}) at step ends, got {label}")
    logits_BTC = torch.where(ends_BT.unsqueeze(2), logits_BTC, 0.0)
    loss_BT = cross_entropy(logits_BTC.transpose(1, 2), labels_BT, reduction="none")
    first_correct = STEP_CLASSES.index("neutral" if neutral_is_correct else "positive")
    correct_BT = logits_BTC.log_softmax(-1)[..., first_correct:].logsumexp(-1)
    return ProcessLoss(zero_masked(loss_BT, ends_BT), _correct(correct_BT, ends_BT))


def outcome(logits_B: Tensor, labels_B: Tensor) -> OutcomeLoss:
    """Outcome reward model (ORM): binary cross-entropy of whether the whole completion is right.

    Args:
        logits_B: the model's score at the last token of each completion.
        labels_B: probability in [0, 1] that the completion is right, any float dtype, no gradient.

    Returns:
        OutcomeLoss, float32 or better.

    Raises:
        TypeError: wrong dtype.
        ValueError: shapes disagree, or a label is outside [0, 1] or requires grad.

    Source:
        Cobbe et al. 2021 (2110.14168), section 4.2, at the last token only, as the score is read in Lightman
        et al. 2023 (2305.20050), section 2.5.
    """
    logits_B = _checks.full_precision("logits_B", logits_B, ndim=1)
    labels_B = _checks.full_precision("labels_B", labels_B, ndim=1)
    _checks.same_shape("labels_B", labels_B, "logits_B", logits_B)
    _checks.constant("labels_B", labels_B)
    _checks.all_between("labels_B", labels_B, low=0.0, high=1.0)
    return OutcomeLoss(_binary(logits_B, labels_B), logsigmoid(logits_B).detach())


def product_of_steps(correct_logps_BT: Tensor, ends_BT: Tensor) -> Tensor:
    """Log-probability that every step is right: the sum of the steps' log-probabilities.

    Args:
        correct_logps_BT: log-probability <= 0 at each step end that the step is right; garbage allowed
            elsewhere.
        ends_BT: bool, True at the last token of each step; at least one per row.

    Returns:
        scores_B, float32 or better, nats; its exp is the product of the probabilities.

    Raises:
        TypeError: wrong dtype.
        ValueError: shapes disagree, a completion has no step, or a value at a step end is nan or above 0.

    Source:
        Lightman et al. 2023 (2305.20050), section 2.6.
    """
    return _steps(correct_logps_BT, ends_BT).sum(dim=1)


def min_of_steps(correct_logps_BT: Tensor, ends_BT: Tensor) -> Tensor:
    """Log-probability that the most doubtful step is right.

    Unlike the product, it does not fall with every further step.

    Args:
        correct_logps_BT: log-probability <= 0 at each step end that the step is right; garbage allowed
            elsewhere.
        ends_BT: bool, True at the last token of each step; at least one per row.

    Returns:
        scores_B, float32 or better, nats; its exp is the smallest of the probabilities.

    Raises:
        TypeError: wrong dtype.
        ValueError: shapes disagree, a completion has no step, or a value at a step end is nan or above 0.

    Source:
        Lightman et al. 2023 (2305.20050), appendix F.
    """
    return _steps(correct_logps_BT, ends_BT).amin(dim=1)


STEP_AGGREGATIONS: Mapping[str, Callable[[Tensor, Tensor], Tensor]] = MappingProxyType(
    {"min": min_of_steps, "product": product_of_steps}
)
"""Score of a completion from its steps by name; each takes (correct_logps_BT, ends_BT) and returns nats."""


def _binary(logits: Tensor, labels: Tensor) -> Tensor:
    # A label of 0 or 1 must not meet 0 * inf, so the term without weight is left out, not multiplied by 0.
    right = torch.where(labels > 0, labels * logsigmoid(logits), 0.0)
    wrong = torch.where(labels < 1, (1 - labels) * logsigmoid(-logits), 0.0)
    return -(right + wrong)


def _correct(logps_BT: Tensor, ends_BT: Tensor) -> Tensor:
    return zero_masked(logps_BT.detach(), ends_BT)


def _steps(correct_logps_BT: Tensor, ends_BT: Tensor) -> Tensor:
    """Checked log-probabilities at step ends; 0 elsewhere, which changes no sum or minimum of values <= 0."""
    steps_BT = zero_masked(correct_logps_BT, ends_BT)
    empty_B = ~ends_BT.any(dim=1)
    if bool(empty_B.any()):
        row = int(empty_B.nonzero()[0])
        raise ValueError(f"every row of ends_BT needs a step to score, row {row} has none")
    wrong_BT = ~(steps_BT <= 0)
    if bool(wrong_BT.any()):
        seen = steps_BT[wrong_BT][0].item()
        raise ValueError(f"correct_logps_BT must be log-probabilities <= 0 at step ends, got {seen:g}")
    return steps_BT
