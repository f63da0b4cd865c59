"""The clipped surrogate of PPO, one value per token.

Not here: advantages, entropy bonus, KL penalty, mean over tokens (see advantages, logprobs, kl, reduce).
Axes: B sequences, T tokens.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from trueward.objectives import _checks
from trueward.objectives.reduce import zero_masked


class PolicyLoss(NamedTuple):
    """Unreduced loss, with two quantities for reporting that carry no gradient.

    loss_BT: 0 where uncounted.
    ratio_BT: policy / old probability of the token; 1 where uncounted.
    clipped_BT: bool, True where the clip is active and the token sends no gradient; False where uncounted.
    """

    loss_BT: Tensor
    ratio_BT: Tensor
    clipped_BT: Tensor


def ppo_policy(
    logps_BT: Tensor,
    old_logps_BT: Tensor,
    advantages_BT: Tensor,
    mask_BT: Tensor,
    *,
    clip_low: float = 0.2,
    clip_high: float = 0.2,
) -> PolicyLoss:
    """Negative clipped surrogate: -min(ratio * A, clip(ratio, 1 - clip_low, 1 + clip_high) * A).

    Args:
        logps_BT: log-probs of the drawn tokens under the policy, nats; garbage allowed where uncounted.
        old_logps_BT: the trainer's own log-probs of them before the update, no gradient.
        advantages_BT: advantage of each token, no gradient.
        mask_BT: bool, True = completion token.
        clip_low: lower clip range in [0, 1]; the paper's epsilon.
        clip_high: upper clip range, >= 0; the paper has clip_high = clip_low.

    Returns:
        PolicyLoss, float32 or better.

    Raises:
        TypeError: wrong dtype.
        ValueError: shapes disagree, a range is left, or old log-probs or advantages require grad.

    Source:
        Schulman et al. 2017 (PPO), eq. 7, negated. Separate ranges: Yu et al. 2025 (DAPO), section 3.1.
    """
    _checks.number("clip_low", clip_low, low=0.0, high=1.0)
    _checks.number("clip_high", clip_high, low=0.0)
    logps_BT = _checks.full_precision("logps_BT", logps_BT, ndim=2)
    old_logps_BT = _checks.full_precision("old_logps_BT", old_logps_BT, ndim=2)
    advantages_BT = _checks.full_precision("advantages_BT", advantages_BT, ndim=2)
    _checks.same_shape("old_logps_BT", old_logps_BT, "logps_BT", logps_BT)
    _checks.same_shape("advantages_BT", advantages_BT, "logps_BT", logps_BT)
    _checks.bool_mask("mask_BT", mask_BT, "logps_BT", logps_BT)
    _checks.constant("old_logps_BT", old_logps_BT)
    _checks.constant("advantages_BT", advantages_BT)

    advantages_BT = zero_masked(advantages_BT, mask_BT)
    log_ratio_BT = zero_masked(logps_BT, mask_BT) - zero_masked(old_logps_BT, mask_BT)
    ratio_BT = log_ratio_BT.detach().exp()
    over_BT = (ratio_BT > 1 + clip_high) & (advantages_BT > 0)
    under_BT = (ratio_BT < 1 - clip_low) & (advantages_BT < 0)
    clipped_BT = over_BT | under_BT
    # The minimum, written as a choice: in max(a, b) the branch not taken still gets gradient 0 *
    # exp(log_ratio), which is nan once the ratio overflows. A token that sends no gradient must send none at
    # any ratio.
    no_gradient_BT = clipped_BT | (advantages_BT == 0)
    live_ratio_BT = torch.where(no_gradient_BT, 0.0, log_ratio_BT).exp()
    used_ratio_BT = torch.where(over_BT, 1 + clip_high, torch.where(under_BT, 1 - clip_low, live_ratio_BT))
    return PolicyLoss(-used_ratio_BT * advantages_BT, ratio_BT, clipped_BT)
