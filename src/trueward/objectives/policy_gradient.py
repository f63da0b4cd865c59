"""Policy gradients, one loss per token: REINFORCE, PPO's clipped surrogate, and the family around GRPO.

The members of the family differ in four choices, which POLICY_GRADIENT_METHODS lists: level of the ratio,
form of the clip, reduction (reduce.REDUCTIONS), advantage. Not here: advantages, KL penalty, entropy bonus,
mean over tokens, correction for another sampler (see advantages, kl, logprobs, reduce, importance).
Axes: B sequences, T tokens.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from trueward.objectives import _checks
from trueward.objectives.reduce import Reduction, masked_mean_B, zero_masked


class ReinforceLoss(NamedTuple):
    """Unreduced loss, 0 where uncounted."""

    loss_BT: Tensor


class PolicyLoss(NamedTuple):
    """Unreduced loss, with two quantities for reporting that carry no gradient.

    loss_BT: 0 where uncounted.
    ratio_BT: policy / old probability, of the token or of its sequence; 1 where uncounted.
    clipped_BT: bool, True where the clip is active; False where uncounted. A surrogate sends no gradient
        there; a clipped weight still sends one, of bounded size.
    """

    loss_BT: Tensor
    ratio_BT: Tensor
    clipped_BT: Tensor


@dataclass(frozen=True, kw_only=True, slots=True)
class PolicyGradientMethod:
    """What distinguishes one policy-gradient method from the next; hyper-parameters are the recipe's."""

    ratio_level: Literal["token", "sequence"]
    """Ratio of each token, or the geometric mean of the sequence's token ratios for all of its tokens."""
    clip: Literal["none", "surrogate", "weight"]
    """none: no ratio enters the loss (REINFORCE). surrogate: min(ratio A, clip(ratio) A), without gradient
    beyond the clip. weight: the clipped ratio, as a constant, times A log-prob."""
    reduction: Reduction
    """Name in reduce.REDUCTIONS."""
    advantage: Literal["group_mean", "group_std", "leave_one_out", "reinforce_plus_plus"]
    """group_mean and group_std are advantages.group_relative with scale "none" and "std"."""


POLICY_GRADIENT_METHODS: Mapping[str, PolicyGradientMethod] = MappingProxyType(
    {
        # Ahmadian et al. 2024, 2402.14740, section 3: the completion is one action, its log-probs are summed.
        "rloo": PolicyGradientMethod(
            ratio_level="token", clip="none", reduction="sequence_sum", advantage="leave_one_out"
        ),
        # Hu et al. 2025, 2501.03262, section 3.
        "reinforce_plus_plus": PolicyGradientMethod(
            ratio_level="token", clip="surrogate", reduction="token_mean", advantage="reinforce_plus_plus"
        ),
        # Shao et al. 2024, 2402.03300, eq. 3.
        "grpo": PolicyGradientMethod(
            ratio_level="token", clip="surrogate", reduction="sequence_token_mean", advantage="group_std"
        ),
        # Liu et al. 2025, 2503.20783, section 3.2: neither division by length nor by deviation.
        "dr_grpo": PolicyGradientMethod(
            ratio_level="token", clip="surrogate", reduction="constant_length", advantage="group_mean"
        ),
        # Yu et al. 2025, 2503.14476, eq. 8; the paper averages over the tokens of a group, then over groups;
        # here, as in its code, over the tokens of the step.
        "dapo": PolicyGradientMethod(
            ratio_level="token", clip="surrogate", reduction="token_mean", advantage="group_std"
        ),
        # The reduction that TRL calls "bnpo". The beta-normalized advantage of 2506.02864 is not meant.
        "bnpo": PolicyGradientMethod(
            ratio_level="token", clip="surrogate", reduction="micro_batch_token_mean", advantage="group_std"
        ),
        # Zheng et al. 2025, 2507.18071, eq. 5 and 7.
        "gspo": PolicyGradientMethod(
            ratio_level="sequence", clip="surrogate", reduction="sequence_token_mean", advantage="group_std"
        ),
        # MiniMax 2025, 2506.13585, eq. 4 and 5.
        "cispo": PolicyGradientMethod(
            ratio_level="token", clip="weight", reduction="token_mean", advantage="group_std"
        ),
    }
)
"""Policy-gradient methods by name."""


def reinforce(logps_BT: Tensor, advantages_BT: Tensor, *, mask_BT: Tensor | None = None) -> ReinforceLoss:
    """REINFORCE: -A log pi, whose gradient is the policy gradient on the policy's own samples.

    Args:
        logps_BT: log-probs of the drawn tokens under the policy that drew them, nats; garbage allowed where
            uncounted.
        advantages_BT: advantage (or return) of each token, no gradient.
        mask_BT: bool, True = completion token; None counts every token.

    Returns:
        ReinforceLoss, float32 or better. Its value means nothing, only its gradient does.

    Raises:
        TypeError: wrong dtype.
        ValueError: shapes disagree, or advantages require grad.

    Source:
        Williams 1992, "Simple statistical gradient-following algorithms for connectionist reinforcement
        learning".
    """
    mask_BT, logps_BT, advantages_BT = _counted(mask_BT, logps_BT, advantages_BT=advantages_BT)
    return ReinforceLoss(-advantages_BT * logps_BT)


def ppo_policy(
    logps_BT: Tensor,
    old_logps_BT: Tensor,
    advantages_BT: Tensor,
    *,
    mask_BT: Tensor | None = None,
    clip_low: float,
    clip_high: float,
    dual_clip: float | None = None,
) -> PolicyLoss:
    """Negative clipped surrogate: -min(ratio * A, clip(ratio, 1 - clip_low, 1 + clip_high) * A).

    With dual clip c, a token with A < 0 adds at most c |A|: -max(the minimum above, c A).

    Args:
        logps_BT: log-probs of the drawn tokens under the policy, nats; garbage allowed where uncounted.
        old_logps_BT: the trainer's own log-probs of them before the update, no gradient.
        advantages_BT: advantage of each token, no gradient.
        mask_BT: bool, True = completion token; None counts every token.
        clip_low: lower clip range in [0, 1]; the paper's epsilon.
        clip_high: upper clip range, >= 0; the paper has clip_high = clip_low, DAPO's clip-higher has more.
        dual_clip: largest ratio, > 1, that counts where A < 0; None has no bound there.

    Returns:
        PolicyLoss, float32 or better.

    Raises:
        TypeError: wrong dtype.
        ValueError: shapes disagree, a range is left, or old log-probs or advantages require grad.

    Source:
        Schulman et al. 2017 (PPO), eq. 7, negated. Separate ranges: Yu et al. 2025 (DAPO), eq. 8. Dual clip:
        Ye et al. 2020, "Mastering complex control in MOBA games" (1912.09729).
    """
    return policy_surrogate(
        logps_BT,
        old_logps_BT,
        advantages_BT,
        method=_PPO,
        mask_BT=mask_BT,
        clip_low=clip_low,
        clip_high=clip_high,
        dual_clip=dual_clip,
    )


def policy_surrogate(
    logps_BT: Tensor,
    old_logps_BT: Tensor,
    advantages_BT: Tensor,
    *,
    method: PolicyGradientMethod,
    mask_BT: Tensor | None = None,
    clip_low: float | None = None,
    clip_high: float | None = None,
    dual_clip: float | None = None,
) -> PolicyLoss:
    """Loss of a method of the family, from its level of the ratio and its form of the clip.

    With r = exp(log pi - log pi_old) of a token, or exp of the mean of that difference over the sequence:
    clip "none": -A log pi; "surrogate": as ppo_policy; "weight": -sg(clip(r, 1 - clip_low, 1 + clip_high)) A
    log pi, where sg stops the gradient. The reduction that belongs to it is
    reduce.REDUCTIONS[method.reduction].

    Args:
        logps_BT: log-probs of the drawn tokens under the policy, nats; garbage allowed where uncounted.
        old_logps_BT: the trainer's own log-probs of them before the update, no gradient.
        advantages_BT: advantage of each token, no gradient.
        method: a value of POLICY_GRADIENT_METHODS, or one's own.
        mask_BT: bool, True = completion token; None counts every token.
        clip_low: lower clip range in [0, 1]; 1 leaves no lower bound. None only for clip "none".
        clip_high: upper clip range, >= 0. None only for clip "none".
        dual_clip: as in ppo_policy, for clip "surrogate" only.

    Returns:
        PolicyLoss, float32 or better. With clip "none" the ratio is reported, and nothing is clipped.

    Raises:
        TypeError: wrong dtype, or a clip range that the method needs is None.
        ValueError: shapes disagree, a range is left, the method has no use for a given clip, or old log-probs
            or advantages require grad.

    Source:
        Beside each method in POLICY_GRADIENT_METHODS.
    """
    _check_clips(method, clip_low, clip_high, dual_clip)
    mask_BT, logps_BT, old_logps_BT, advantages_BT = _counted(
        mask_BT, logps_BT, old_logps_BT=old_logps_BT, advantages_BT=advantages_BT
    )
    log_ratio_BT = logps_BT - old_logps_BT
    if method.ratio_level == "sequence":
        mean_B1 = masked_mean_B(log_ratio_BT, mask_BT).unsqueeze(1)
        log_ratio_BT = torch.where(mask_BT, mean_B1, 0.0)
    ratio_BT = log_ratio_BT.detach().exp()
    if clip_low is None or clip_high is None:
        return PolicyLoss(-advantages_BT * logps_BT, ratio_BT, torch.zeros_like(mask_BT))
    if method.clip == "surrogate":
        return _surrogate(log_ratio_BT, advantages_BT, 1 - clip_low, 1 + clip_high, dual_clip)
    weight_BT = ratio_BT.clamp(1 - clip_low, 1 + clip_high)
    clipped_BT = (ratio_BT < 1 - clip_low) | (ratio_BT > 1 + clip_high)
    return PolicyLoss(-weight_BT * advantages_BT * logps_BT, ratio_BT, clipped_BT)


_PPO = PolicyGradientMethod(
    ratio_level="token", clip="surrogate", reduction="token_mean", advantage="group_mean"
)


def _surrogate(
    log_ratio_BT: Tensor, advantages_BT: Tensor, low: float, high: float, dual_clip: float | None
) -> PolicyLoss:
    ratio_BT = log_ratio_BT.detach().exp()
    over_BT = (ratio_BT > high) & (advantages_BT > 0)
    under_BT = (ratio_BT < low) & (advantages_BT < 0)
    clipped_BT = over_BT | under_BT
    held_BT = torch.where(over_BT, high, torch.full_like(ratio_BT, low))
    if dual_clip is not None:
        beyond_BT = (ratio_BT > dual_clip) & (advantages_BT < 0)
        held_BT = torch.where(beyond_BT, dual_clip, held_BT)
        clipped_BT = clipped_BT | beyond_BT
    # The minimum, written as a choice: in max(a, b) the branch not taken still gets gradient 0 *
    # exp(log_ratio), which is nan once the ratio overflows. A token that sends no gradient must send none at
    # any ratio.
    no_gradient_BT = clipped_BT | (advantages_BT == 0)
    live_ratio_BT = torch.where(no_gradient_BT, 0.0, log_ratio_BT).exp()
    used_ratio_BT = torch.where(clipped_BT, held_BT, live_ratio_BT)
    return PolicyLoss(-used_ratio_BT * advantages_BT, ratio_BT, clipped_BT)


def _counted(mask_BT: Tensor | None, logps_BT: Tensor, **constants_BT: Tensor) -> tuple[Tensor, ...]:
    """The mask, log-probs and constants, checked, in float32 or better, 0 where uncounted."""
    logps_BT = _checks.full_precision("logps_BT", logps_BT, ndim=2)
    mask_BT = _checks.mask_or_all(mask_BT, "logps_BT", logps_BT)
    counted = [mask_BT, zero_masked(logps_BT, mask_BT)]
    for name, table_BT in constants_BT.items():
        full_BT = _checks.full_precision(name, table_BT, ndim=2)
        _checks.same_shape(name, full_BT, "logps_BT", logps_BT)
        _checks.constant(name, full_BT)
        counted.append(zero_masked(full_BT, mask_BT))
    return tuple(counted)


def _check_clips(
    method: PolicyGradientMethod, clip_low: float | None, clip_high: float | None, dual_clip: float | None
) -> None:
    if dual_clip is not None:
        if method.clip != "surrogate":
            raise ValueError(f"dual_clip belongs to clip 'surrogate', not to {method.clip!r}; leave it out")
        _checks.number("dual_clip", dual_clip, low=1.0, above=True)
    if method.clip == "none":
        if clip_low is not None or clip_high is not None:
            raise ValueError("a method with clip 'none' has no clip range; leave clip_low and clip_high out")
        return
    if clip_low is None or clip_high is None:
        raise TypeError(f"clip_low and clip_high must be numbers for clip {method.clip!r}, got None")
    _checks.number("clip_low", clip_low, low=0.0, high=1.0)
    _checks.number("clip_high", clip_high, low=0.0)
