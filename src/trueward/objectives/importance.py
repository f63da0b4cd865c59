"""Weights for completions that another program drew: trainer / sampler probability, truncated or masked.

The sampler's log-probs of the very same weights differ from the trainer's by precision and kernels, and by
more once weights are stale. Multiply the unreduced policy loss with these weights. Not here: the ratio policy
/ old within the trainer (see policy_gradient).
Axes: B sequences, T tokens.
"""

import math
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from trueward.objectives import _checks
from trueward.objectives.reduce import masked_sum_B, zero_masked


class ImportanceWeights(NamedTuple):
    """Weights without gradient; uncounted tokens have weight 0 and ratio 1.

    weights_BT: what the loss of each token is multiplied with.
    ratio_BT: trainer / sampler probability, of the token or of its whole sequence.
    corrected_BT: bool, True where the weight is not the ratio: truncated, or masked.
    """

    weights_BT: Tensor
    ratio_BT: Tensor
    corrected_BT: Tensor


def truncated_importance(
    trainer_logps_BT: Tensor,
    sampler_logps_BT: Tensor,
    *,
    mask_BT: Tensor | None = None,
    cap: float,
    level: Literal["token", "sequence"],
) -> ImportanceWeights:
    """Truncated importance sampling (TIS): w = min(pi_trainer / pi_sampler, cap).

    Args:
        trainer_logps_BT: the trainer's log-probs of the drawn tokens before the update, nats, no gradient.
        sampler_logps_BT: the sampler's, which drew them, no gradient; garbage allowed where uncounted.
        mask_BT: bool, True = completion token; None counts every token.
        cap: largest weight, > 0; 1 or 2 are usual.
        level: "token", or "sequence" for the ratio of the whole completion, the product of its tokens'
            ratios.

    Returns:
        ImportanceWeights, float32 or better.

    Raises:
        TypeError: wrong dtype.
        ValueError: shapes disagree, cap is not > 0, unknown level, a counted log-prob is not finite or
            requires grad.

    Source:
        Ionides 2008, "Truncated importance sampling"; for language models Yao et al. 2025, "Your
        efficient RL framework secretly brings you off-policy RL training".
    """
    _checks.number("cap", cap, low=0.0, above=True)
    mask_BT, ratio_BT = _ratio(trainer_logps_BT, sampler_logps_BT, mask_BT, level)
    return ImportanceWeights(
        zero_masked(ratio_BT.clamp(max=cap), mask_BT), ratio_BT, (ratio_BT > cap) & mask_BT
    )


def masked_importance(
    trainer_logps_BT: Tensor,
    sampler_logps_BT: Tensor,
    *,
    mask_BT: Tensor | None = None,
    low: float,
    high: float,
    level: Literal["token", "sequence"],
) -> ImportanceWeights:
    """Masked importance sampling (MIS): w = pi_trainer / pi_sampler within [low, high], and 0 outside.

    Args:
        trainer_logps_BT: the trainer's log-probs of the drawn tokens before the update, nats, no gradient.
        sampler_logps_BT: the sampler's, which drew them, no gradient; garbage allowed where uncounted.
        mask_BT: bool, True = completion token; None counts every token.
        low: smallest ratio that counts, in [0, 1].
        high: largest ratio that counts, >= 1.
        level: "token", or "sequence" for the ratio of the whole completion, the product of its tokens'
            ratios.

    Returns:
        ImportanceWeights, float32 or better.

    Raises:
        TypeError: wrong dtype.
        ValueError: shapes disagree, a range is left, unknown level, a counted log-prob is not finite or
            requires grad.

    Source:
        Liu et al. 2025, "When speed kills stability", masked importance sampling (sequence); Ling Team 2025
        (Ring-1T, 2510.18855), IcePop (token).
    """
    _checks.number("low", low, low=0.0, high=1.0)
    _checks.number("high", high, low=1.0)
    mask_BT, ratio_BT = _ratio(trainer_logps_BT, sampler_logps_BT, mask_BT, level)
    outside_BT = ((ratio_BT < low) | (ratio_BT > high)) & mask_BT
    return ImportanceWeights(torch.where(outside_BT | ~mask_BT, 0.0, ratio_BT), ratio_BT, outside_BT)


def _ratio(
    trainer_logps_BT: Tensor, sampler_logps_BT: Tensor, mask_BT: Tensor | None, level: str
) -> tuple[Tensor, Tensor]:
    if level not in ("token", "sequence"):
        raise ValueError(f"level must be 'token' or 'sequence', got {level!r}")
    trainer_logps_BT = _checks.full_precision("trainer_logps_BT", trainer_logps_BT, ndim=2)
    sampler_logps_BT = _checks.full_precision("sampler_logps_BT", sampler_logps_BT, ndim=2)
    _checks.same_shape("sampler_logps_BT", sampler_logps_BT, "trainer_logps_BT", trainer_logps_BT)
    mask_BT = _checks.mask_or_all(mask_BT, "trainer_logps_BT", trainer_logps_BT)
    counted = []
    for name, logps_BT in (("trainer_logps_BT", trainer_logps_BT), ("sampler_logps_BT", sampler_logps_BT)):
        _checks.constant(name, logps_BT)
        counted.append(zero_masked(logps_BT, mask_BT))
        _checks.all_between(name, counted[-1], low=-math.inf)
    log_ratio_BT = counted[0] - counted[1]
    if level == "sequence":
        log_ratio_BT = torch.where(mask_BT, masked_sum_B(log_ratio_BT, mask_BT).unsqueeze(1), 0.0)
    return mask_BT, log_ratio_BT.exp()
