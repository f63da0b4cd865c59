"""Drawing tokens by inverting the cumulative distribution, each row with random numbers of its own.

Axes: R rows being decoded, V vocabulary, T steps.
"""

import numpy as np
import torch
from torch import Tensor

from trueward.core.seed import derive_seed

__all__ = ["draw", "uniforms_T"]


def uniforms_T(
    seed: int, prompt: int, completion: int, num_steps: int
) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
    """Random numbers in [0, 1) of one completion; they depend on nothing but the seed and the two indices.

    Counter-based (Philox), so neither the batch, nor the other rows, nor the number of steps moves a draw.
    """
    bits = np.random.Philox(key=derive_seed(seed, "rollouts"), counter=[0, 0, completion, prompt])
    return np.random.Generator(bits).random(num_steps)


def draw(logits_RV: Tensor, uniforms_R: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """One token a row.

    Args:
        logits_RV: any float dtype; the softmax is in float32, its cumulative sum in float64.
        uniforms_R: float64 in [0, 1).
        temperature: > 0, or 0 for the most likely token.

    Returns:
        ids_R int64 and logps_R float32, the log-probability of each at the temperature (at 1 where that is
        0).
    """
    logits_RV = logits_RV.float()
    if temperature not in (0.0, 1.0):
        logits_RV = logits_RV / temperature
    logps_RV = torch.log_softmax(logits_RV, dim=-1)
    if temperature == 0:
        ids_R1 = logps_RV.argmax(-1, keepdim=True)
    else:
        cumulative_RV = logps_RV.exp().cumsum(-1, dtype=torch.float64)
        total_R = cumulative_RV[:, -1]
        # Below the total also after rounding, so that a token of probability 0 is never drawn.
        at_R = torch.minimum(uniforms_R * total_R, torch.nextafter(total_R, torch.zeros_like(total_R)))
        ids_R1 = torch.searchsorted(cumulative_RV, at_R.unsqueeze(1), right=True)
    return ids_R1.squeeze(1), logps_RV.gather(1, ids_R1).squeeze(1)
