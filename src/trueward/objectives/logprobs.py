"""Log-probabilities and entropy of tokens from logits, in nats and in float32 or better.

Not here: shifting labels, chunking over the vocabulary head, masks. The caller aligns logits with labels.
Axes: B sequences, T tokens, V vocabulary.
"""

import torch
from torch import Tensor

from trueward.objectives import _checks


def token_logps(logits_BTV: Tensor, labels_BT: Tensor) -> Tensor:
    """Log-probability of each label under the softmax of its logits.

    Precision changes here: half-precision logits are cast to float32 before the softmax, float64 is kept.
    A non-finite row of logits gives a non-finite log-prob and gradient, also where the loss is masked later:
    drop masked positions before the head, or apply `zero_masked` to the logits' inputs.

    Args:
        logits_BTV: unnormalised scores, any float dtype; -inf excludes a token.
        labels_BT: int64 token ids in [0, V). There is no ignore index: pad with any valid id and mask the
            result.

    Returns:
        logps_BT, float32 or float64, nats, <= 0.

    Raises:
        TypeError: logits are not floating, or labels are not int64.
        ValueError: shapes disagree, or a label lies outside the vocabulary.
    """
    logits_BTV = _checks.full_precision("logits_BTV", logits_BTV, ndim=3)
    if not isinstance(labels_BT, Tensor) or labels_BT.dtype != torch.int64:
        raise TypeError(
            f"labels_BT must be an int64 tensor, got {getattr(labels_BT, 'dtype', type(labels_BT))}"
        )
    if labels_BT.shape != logits_BTV.shape[:2]:
        raise ValueError(
            f"labels_BT must have shape {tuple(logits_BTV.shape[:2])} (B, T of logits_BTV), "
            f"got {tuple(labels_BT.shape)}"
        )
    num_tokens_V = logits_BTV.shape[2]
    outside = (labels_BT < 0) | (labels_BT >= num_tokens_V)
    if bool(outside.any()):
        raise ValueError(
            f"labels_BT must be in [0, {num_tokens_V}), got {int(labels_BT[outside][0])}; "
            "replace padding labels by a valid id and mask the result"
        )
    # log_softmax subtracts the maximum first, so a common offset of the logits costs no precision;
    # `logit - logsumexp` would cancel two large numbers.
    return torch.log_softmax(logits_BTV, dim=-1).gather(-1, labels_BT.unsqueeze(-1)).squeeze(-1)


def token_entropy(logits_BTV: Tensor) -> Tensor:
    """Entropy of the next-token distribution at each position, over the full vocabulary.

    Args:
        logits_BTV: unnormalised scores, any float dtype; -inf excludes a token (it contributes 0).

    Returns:
        entropy_BT, float32 or float64, nats, in [0, log V].

    Raises:
        TypeError: logits are not floating.
        ValueError: logits do not have three axes.
    """
    logits_BTV = _checks.full_precision("logits_BTV", logits_BTV, ndim=3)
    logps_BTV = torch.log_softmax(logits_BTV, dim=-1)
    # p log p -> 0 as p -> 0; as written 0 * -inf is nan, in value and gradient.
    finite_logps_BTV = torch.where(torch.isneginf(logps_BTV), 0.0, logps_BTV)
    return -(logps_BTV.exp() * finite_logps_BTV).sum(-1)
