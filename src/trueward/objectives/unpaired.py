"""Preference objectives on single completions, each labelled desirable or not: KTO and BCO.

Both compare a completion's reward with a baseline of the whole optimizer step, which is computed first,
without gradient, and passed in. Log-probs are sums over the completion's tokens, in nats.
Axes: B completions.
"""

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from trueward.objectives import _checks
from trueward.objectives._pairs import like


class UnpairedLoss(NamedTuple):
    """Unreduced loss, with the implied rewards beta * log(policy / ref), which carry no gradient."""

    loss_B: Tensor
    rewards_B: Tensor


def kto(
    policy_logps_B: Tensor,
    ref_logps_B: Tensor,
    desirable_B: Tensor,
    kl: float | Tensor,
    *,
    beta: float,
    desirable_weight: float = 1.0,
    undesirable_weight: float = 1.0,
) -> UnpairedLoss:
    """Kahneman-Tversky optimization: weight (1 - value), value = sigmoid(+-(r - beta kl)), + for desirable.

    r = beta log(policy / ref). The value rises with the reward's distance above (desirable) or below
    (undesirable) the baseline.

    Args:
        policy_logps_B: log-prob of the completion under the policy, summed over tokens.
        ref_logps_B: the same under the frozen reference, no gradient.
        desirable_B: bool, True = desirable.
        kl: baseline in nats >= 0, a number or a 0-d tensor without gradient; see `kto_kl`.
        beta: strength of the tie to the reference, > 0.
        desirable_weight: weight of desirable completions, > 0 (lambda_D).
        undesirable_weight: weight of the others, > 0 (lambda_U); the paper balances weight times count of the
            two sorts.

    Returns:
        UnpairedLoss, float32 or better, loss in [0, weight].

    Raises:
        TypeError: wrong dtype.
        ValueError: shapes disagree, a range is left, or ref_logps_B or kl require grad.

    Source:
        Ethayarajh et al. 2024 (arXiv:2402.01306), eq. 7 and 8, with weight (1 - value) for weight - value.
    """
    if isinstance(kl, Tensor):
        kl = _checked_scalar("kl", kl)
    _checks.number("kl", kl, low=0.0)
    ratios_B = _log_ratios(policy_logps_B, ref_logps_B, desirable_B)
    weight_B = _weights(ratios_B, desirable_B, beta, desirable_weight, undesirable_weight)
    signed_B = torch.where(desirable_B, kl - ratios_B, ratios_B - kl)
    return UnpairedLoss(weight_B * torch.sigmoid(beta * signed_B), beta * ratios_B.detach())


def kto_kl(mismatched_logps_B: Tensor, ref_mismatched_logps_B: Tensor) -> Tensor:
    """The baseline of KTO: max(0, mean of log(policy / ref) over mismatched pairs).

    A mismatched pair is a prompt with the completion of another prompt. Give it those of the whole optimizer
    step: estimated per micro-batch, the objective would change with the size of the micro-batch. The samples
    are from the data, not from the policy, so this is biased as a KL; the paper prefers it for its cost.

    Args:
        mismatched_logps_B: log-prob of the completions under the policy, summed over tokens; B >= 1.
        ref_mismatched_logps_B: the same under the frozen reference.

    Returns:
        0-d tensor, nats, >= 0, no gradient.

    Raises:
        TypeError: wrong dtype.
        ValueError: shapes disagree, or there is no pair.

    Source:
        Ethayarajh et al. 2024 (arXiv:2402.01306), the estimate of z_0 that eq. 8 uses.
    """
    policy_B = _checks.full_precision("mismatched_logps_B", mismatched_logps_B, ndim=1)
    ref_B = like("ref_mismatched_logps_B", ref_mismatched_logps_B, "mismatched_logps_B", policy_B)
    if policy_B.numel() == 0:
        raise ValueError("mismatched_logps_B must hold at least one pair, got shape (0,)")
    return (policy_B - ref_B).detach().mean().clamp(min=0.0)


def bco(
    policy_logps_B: Tensor,
    ref_logps_B: Tensor,
    desirable_B: Tensor,
    delta: float | Tensor,
    *,
    beta: float,
    desirable_weight: float = 1.0,
    undesirable_weight: float = 1.0,
) -> UnpairedLoss:
    """Binary classifier optimization: -weight log sigmoid(+-(r - delta)), + for desirable.

    r = beta log(policy / ref) is the logit of a classifier of desirable completions, shifted by delta.

    Args:
        policy_logps_B: as in `kto`, like ref_logps_B and desirable_B.
        delta: reward shift, finite, a number or a 0-d tensor without gradient, in units of reward; see
            `bco_delta`.
        beta: strength of the tie to the reference, > 0.
        desirable_weight: weight of desirable completions, > 0.
        undesirable_weight: weight of the others, > 0. The paper has both expectations with weight 1, which a
            mean over unequal numbers of them is not.

    Returns:
        UnpairedLoss, float32 or better.

    Raises:
        TypeError, ValueError: as `kto`.

    Source:
        Jung et al. 2024 (BCO, arXiv:2404.04656), the loss with reward shift; without the density ratio of its
        underlying distribution matching.
    """
    if isinstance(delta, Tensor):
        delta = _checked_scalar("delta", delta)
    _checks.number("delta", delta, low=-torch.inf)
    ratios_B = _log_ratios(policy_logps_B, ref_logps_B, desirable_B)
    weight_B = _weights(ratios_B, desirable_B, beta, desirable_weight, undesirable_weight)
    shifted_B = beta * ratios_B - delta
    loss_B = -weight_B * logsigmoid(torch.where(desirable_B, shifted_B, -shifted_B))
    return UnpairedLoss(loss_B, beta * ratios_B.detach())


def bco_delta(rewards_B: Tensor, desirable_B: Tensor) -> Tensor:
    """The reward shift of BCO: the middle between the mean rewards of desirable and undesirable completions.

    Of one sort alone, its mean. A running estimate is the caller's to keep.

    Args:
        rewards_B: beta * log(policy / ref), B >= 1.
        desirable_B: bool, True = desirable.

    Returns:
        0-d tensor, units of reward, no gradient.

    Raises:
        TypeError: wrong dtype.
        ValueError: shapes disagree, or there is no completion.

    Source:
        Jung et al. 2024 (BCO, arXiv:2404.04656), the reward shift delta.
    """
    rewards_B = _checks.full_precision("rewards_B", rewards_B, ndim=1).detach()
    _checks.bool_mask("desirable_B", desirable_B, "rewards_B", rewards_B)
    if rewards_B.numel() == 0:
        raise ValueError("rewards_B must hold at least one completion, got shape (0,)")
    sorts = [rewards_B[chosen_B] for chosen_B in (desirable_B, ~desirable_B)]
    return torch.stack([sort.mean() for sort in sorts if sort.numel()]).mean()


def _checked_scalar(name: str, value: Tensor) -> float:
    if value.ndim != 0:
        raise ValueError(f"{name} must be a number or a 0-d tensor, got shape {tuple(value.shape)}")
    _checks.constant(name, value)
    return float(value)


def _log_ratios(policy_logps_B: Tensor, ref_logps_B: Tensor, desirable_B: Tensor) -> Tensor:
    policy_B = _checks.full_precision("policy_logps_B", policy_logps_B, ndim=1)
    ref_B = like("ref_logps_B", ref_logps_B, "policy_logps_B", policy_B)
    _checks.constant("ref_logps_B", ref_B)
    _checks.bool_mask("desirable_B", desirable_B, "policy_logps_B", policy_B)
    return policy_B - ref_B


def _weights(
    ratios_B: Tensor, desirable_B: Tensor, beta: float, desirable_weight: float, undesirable_weight: float
) -> Tensor:
    _checks.number("beta", beta, low=0.0, above=True)
    _checks.number("desirable_weight", desirable_weight, low=0.0, above=True)
    _checks.number("undesirable_weight", undesirable_weight, low=0.0, above=True)
    weights = ratios_B.new_tensor([undesirable_weight, desirable_weight])
    return weights[desirable_B.long()]
