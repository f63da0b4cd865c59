"""Oracle: Schulman et al. 2017, eq. 7, min(r A, clip(r, 1 - eps, 1 + eps) A), negated to be a loss."""

import math


def ppo_policy(
    logps_BT: list[list[float]],
    old_logps_BT: list[list[float]],
    advantages_BT: list[list[float]],
    mask_BT: list[list[bool]],
    clip_low: float,
    clip_high: float,
) -> list[list[float]]:
    """Loss of each token, 0 where uncounted."""
    loss_BT = [[0.0] * len(row) for row in logps_BT]
    for b, row in enumerate(logps_BT):
        for t, logp in enumerate(row):
            if not mask_BT[b][t]:
                continue
            ratio = math.exp(logp) / math.exp(old_logps_BT[b][t])
            clipped = min(max(ratio, 1 - clip_low), 1 + clip_high)
            loss_BT[b][t] = -min(ratio * advantages_BT[b][t], clipped * advantages_BT[b][t])
    return loss_BT
