"""KL divergence per token, in nats: three estimates from drawn tokens, and the exact sum over the vocabulary.

Read them with the name of the module: `kl.k1`, `kl.exact`. All take the distribution the tokens were drawn
from first: KL(sampler || other). Swapping the arguments does not give the reverse KL, it gives a wrong
number. Not here: masks and sums (see reduce).
Axes: B sequences, T tokens, V vocabulary.
"""

from collections.abc import Callable, Mapping
from types import MappingProxyType

import torch
from torch import Tensor

from trueward.objectives import _checks


def _log_ratio(sampler_logps: Tensor, other_logps: Tensor) -> Tensor:
    sampler_logps = _checks.full_precision("sampler_logps", sampler_logps)
    other_logps = _checks.full_precision("other_logps", other_logps)
    _checks.same_shape("other_logps", other_logps, "sampler_logps", sampler_logps)
    return other_logps - sampler_logps


def k1(sampler_logps: Tensor, other_logps: Tensor) -> Tensor:
    """Unbiased, high-variance estimate of KL(sampler || other): -r, with r = other - sampler.

    As a loss it is useless: the expected gradient with respect to the sampler is 0. Use it to report, or as a
    reward.

    Args:
        sampler_logps: log-probs of the drawn tokens under the distribution that drew them, any shape, nats.
        other_logps: log-probs of the same tokens under the other distribution, same shape.

    Returns:
        Estimate per token, same shape, float32 or better; may be negative.

    Raises:
        TypeError: not floating tensors.
        ValueError: shapes disagree.

    Source:
        Schulman 2020, "Approximating KL Divergence", k1.
    """
    return -_log_ratio(sampler_logps, other_logps)


def k2(sampler_logps: Tensor, other_logps: Tensor) -> Tensor:
    """Biased, low-variance estimate of KL(sampler || other): r^2 / 2, with r = other - sampler.

    Its expected gradient with respect to the sampler is the gradient of the KL, so it is the one fit for a
    loss.

    Args:
        sampler_logps: log-probs of the drawn tokens under the distribution that drew them, any shape, nats.
        other_logps: log-probs of the same tokens under the other distribution, same shape.

    Returns:
        Estimate per token, same shape, float32 or better, >= 0.

    Raises:
        TypeError: not floating tensors.
        ValueError: shapes disagree.

    Source:
        Schulman 2020, "Approximating KL Divergence", k2.
    """
    return 0.5 * _log_ratio(sampler_logps, other_logps).square()


def k3(sampler_logps: Tensor, other_logps: Tensor) -> Tensor:
    """Unbiased, low-variance estimate of KL(sampler || other): exp(r) - 1 - r, with r = other - sampler.

    As a loss its expected gradient with respect to the sampler is that of KL(other || sampler), the reverse.
    Written with expm1: exp(r) - 1 rounds to 0 or to a whole unit in the last place where r is small. It is
    not clamped: where the other distribution is far more certain (r > 88 in float32) the value is inf.

    Args:
        sampler_logps: log-probs of the drawn tokens under the distribution that drew them, any shape, nats.
        other_logps: log-probs of the same tokens under the other distribution, same shape.

    Returns:
        Estimate per token, same shape, float32 or better, >= 0 up to rounding of the last place.

    Raises:
        TypeError: not floating tensors.
        ValueError: shapes disagree.

    Source:
        Schulman 2020, "Approximating KL Divergence", k3.
    """
    log_ratio = _log_ratio(sampler_logps, other_logps)
    return torch.expm1(log_ratio) - log_ratio


def exact(logits_BTV: Tensor, other_logits_BTV: Tensor) -> Tensor:
    """Exact KL(softmax(logits) || softmax(other_logits)) of the next token, summed over the vocabulary.

    No token is drawn to compute it. To compare it with k1, k2 and k3, the first argument is the sampler's.

    Args:
        logits_BTV: unnormalised scores of the first distribution; -inf excludes a token (it contributes 0).
        other_logits_BTV: unnormalised scores of the second, same shape. A token it excludes and the first
            does not makes the result inf, as it is.

    Returns:
        kl_BT, float32 or better, nats, >= 0.

    Raises:
        TypeError: not floating tensors.
        ValueError: not three axes, or shapes disagree.

    Source:
        Cover & Thomas 2006, "Elements of Information Theory", eq. 2.26.
    """
    logits_BTV = _checks.full_precision("logits_BTV", logits_BTV, ndim=3)
    other_logits_BTV = _checks.full_precision("other_logits_BTV", other_logits_BTV, ndim=3)
    _checks.same_shape("other_logits_BTV", other_logits_BTV, "logits_BTV", logits_BTV)
    logps_BTV = torch.log_softmax(logits_BTV, dim=-1)
    other_logps_BTV = torch.log_softmax(other_logits_BTV, dim=-1)
    # p (log p - log q) -> 0 as p -> 0; as written it is 0 * -inf, or 0 * nan where both exclude the token.
    log_ratio_BTV = torch.where(torch.isneginf(logps_BTV), 0.0, logps_BTV - other_logps_BTV)
    return (logps_BTV.exp() * log_ratio_BTV).sum(-1)


KL_ESTIMATORS: Mapping[str, Callable[[Tensor, Tensor], Tensor]] = MappingProxyType(
    {"k1": k1, "k2": k2, "k3": k3}
)
"""Estimators of KL(sampler || other) by name; each takes (sampler_logps, other_logps)."""
