"""From scores to advantages: token rewards, GAE, whitening, and baselines from the group of a prompt.

Not here: the reward model, and the KL itself (see kl). Nothing here carries gradient.
Axes: B sequences, T tokens, P prompts, G completions of each prompt. Columns of BT are completion tokens in
order, then padding.
"""

import math
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from trueward.objectives import _checks
from trueward.objectives.reduce import zero_masked


class Advantages(NamedTuple):
    """Advantages, and returns = advantages + values (the value function's targets); 0 where uncounted."""

    advantages_BT: Tensor
    returns_BT: Tensor


def token_rewards(scores_B: Tensor, kl_BT: Tensor, mask_BT: Tensor, *, beta: float) -> Tensor:
    """Reward of each token: -beta * KL at every counted token, plus the score at the LAST counted one.

    The last counted token is found by its position in the mask, never by searching for an end-of-sequence id.

    Args:
        scores_B: reward of each whole completion.
        kl_BT: estimate of KL(policy || ref) per token, drawn from the policy, nats; garbage allowed where
            uncounted.
        mask_BT: bool, True = completion token; every sequence needs at least one.
        beta: price of a nat of KL, >= 0, in reward units.

    Returns:
        rewards_BT, float32 or better, 0 where uncounted.

    Raises:
        TypeError: wrong dtype.
        ValueError: shapes disagree, beta < 0, a sequence has no counted token, or an input requires grad.

    Source:
        Stiennon et al. 2020, section 3.4, R(x, y), spread over tokens; Ouyang et al. 2022, eq. 2 without
        its pretraining term.
    """
    _checks.number("beta", beta, low=0.0)
    scores_B = _checks.full_precision("scores_B", scores_B, ndim=1)
    kl_BT = _checks.full_precision("kl_BT", kl_BT, ndim=2)
    _checks.bool_mask("mask_BT", mask_BT, "kl_BT", kl_BT)
    if scores_B.shape[0] != kl_BT.shape[0]:
        raise ValueError(
            f"scores_B must have {kl_BT.shape[0]} elements (B of kl_BT), got {scores_B.shape[0]}"
        )
    _checks.constant("scores_B", scores_B)
    _checks.constant("kl_BT", kl_BT)
    empty_B = ~mask_BT.any(dim=1)
    if bool(empty_B.any()):
        row = int(empty_B.nonzero()[0])
        raise ValueError(f"every row of mask_BT needs a True to carry its score, row {row} has none")

    positions_T = torch.arange(mask_BT.shape[1], device=mask_BT.device)
    last_B1 = torch.where(mask_BT, positions_T, -1).max(dim=1, keepdim=True).values
    score_BT = torch.where(positions_T == last_B1, scores_B.unsqueeze(1), 0.0)
    return score_BT - beta * zero_masked(kl_BT, mask_BT)


def gae(
    rewards_BT: Tensor, values_BT: Tensor, *, mask_BT: Tensor | None = None, gamma: float, lam: float
) -> Advantages:
    """Generalized advantage estimation; after the last counted token the value is 0.

    A_t = sum_l (gamma lam)^l delta_{t+l} with delta_t = r_t + gamma V_{t+1} - V_t, computed from the end.

    Args:
        rewards_BT: reward of each token; garbage allowed where uncounted.
        values_BT: value predicted before each token, when the completions were drawn, no gradient.
        mask_BT: bool prefix mask: True for completion tokens, then False for padding; None counts every
            token.
        gamma: discount in [0, 1]; 1 for language, whose reward comes at the end.
        lam: weight in [0, 1] of longer returns; 0 is one step, 1 is the whole return; usual is 0.95.

    Returns:
        Advantages, float32 or better.

    Raises:
        TypeError: wrong dtype.
        ValueError: shapes disagree, a range is left, the mask is no prefix, or an input requires grad.

    Source:
        Schulman et al. 2016 (GAE), eq. 16, with the first term split off to make it a recursion.
    """
    _checks.number("gamma", gamma, low=0.0, high=1.0)
    _checks.number("lam", lam, low=0.0, high=1.0)
    rewards_BT = _checks.full_precision("rewards_BT", rewards_BT, ndim=2)
    values_BT = _checks.full_precision("values_BT", values_BT, ndim=2)
    _checks.same_shape("values_BT", values_BT, "rewards_BT", rewards_BT)
    mask_BT = _checks.mask_or_all(mask_BT, "rewards_BT", rewards_BT)
    _checks.constant("rewards_BT", rewards_BT)
    _checks.constant("values_BT", values_BT)
    gap_B = (mask_BT[:, 1:] & ~mask_BT[:, :-1]).any(dim=1)
    if bool(gap_B.any()):
        row = int(gap_B.nonzero()[0])
        raise ValueError(
            f"mask_BT must be True for completion tokens, then False; row {row} turns True again"
        )

    rewards_BT = zero_masked(rewards_BT, mask_BT)
    values_BT = zero_masked(values_BT, mask_BT)
    # Zeros after the last counted token are the terminal value, and make padding neutral in the recursion.
    next_values_BT = torch.cat([values_BT[:, 1:], torch.zeros_like(values_BT[:, :1])], dim=1)
    deltas_BT = rewards_BT + gamma * next_values_BT - values_BT
    advantages_BT = torch.zeros_like(deltas_BT)
    running_B = deltas_BT.new_zeros(deltas_BT.shape[0])
    for t in reversed(range(deltas_BT.shape[1])):
        running_B = deltas_BT[:, t] + gamma * lam * running_B
        advantages_BT[:, t] = running_B
    return Advantages(advantages_BT, advantages_BT + values_BT)


def whiten(values_BT: Tensor, mask_BT: Tensor, *, shift_mean: bool = True) -> Tensor:
    """Scale counted values to standard deviation 1, and to mean 0 unless `shift_mean` is False.

    Give it the values of the whole optimizer step: whitening each micro-batch by itself changes the objective
    with the size of the micro-batch.

    Args:
        values_BT: finite values, no gradient; garbage allowed where uncounted.
        mask_BT: bool, True = counts; at least two positions.
        shift_mean: False keeps the mean, as rewards (unlike advantages) have a meaning at 0.

    Returns:
        Whitened values, float32 or better, 0 where uncounted.

    Raises:
        TypeError: wrong dtype.
        ValueError: shapes disagree, fewer than two counted positions, or the input requires grad.

    Source:
        Ziegler et al. 2019, released code (openai/lm-human-preferences, `whiten`): population
        variance, plus 1e-8.
    """
    values_BT = _checks.full_precision("values_BT", values_BT, ndim=2)
    _checks.constant("values_BT", values_BT)
    kept_BT = zero_masked(values_BT, mask_BT)
    num_counted = int(mask_BT.sum())
    if num_counted < 2:
        raise ValueError(f"whiten needs at least 2 counted positions to have a spread, got {num_counted}")
    mean = kept_BT.sum() / num_counted
    centred_BT = zero_masked(kept_BT - mean, mask_BT)
    variance = centred_BT.square().sum() / num_counted
    whitened_BT = centred_BT * torch.rsqrt(variance + 1e-8)
    return whitened_BT if shift_mean else zero_masked(whitened_BT + mean, mask_BT)


def group_relative(rewards_PG: Tensor, *, scale: Literal["none", "std"]) -> Tensor:
    """Reward minus the mean of its group, (r - mean) or (r - mean) / (std + 1e-4).

    A group whose rewards are all equal has advantage exactly 0: nothing distinguishes its completions.

    Args:
        rewards_PG: finite rewards of the G >= 2 completions of each prompt, no gradient.
        scale: "std" divides by the standard deviation (n - 1) of the group, which weighs prompts by how much
            their completions agree; "none" does not.

    Returns:
        advantages_PG, float32 or better.

    Raises:
        TypeError: wrong dtype.
        ValueError: not two axes, a group of one, a reward is not finite or requires grad, or an unknown
            scale.

    Source:
        Shao et al. 2024 (GRPO, 2402.03300), section 4.1.2; scale "none": Liu et al. 2025 (Dr. GRPO,
        2503.20783), section 3.2. The papers leave open which deviation is meant and what happens at 0; n - 1
        and 1e-4 are TRL's.
    """
    if scale not in ("none", "std"):
        raise ValueError(f"scale must be 'none' or 'std', got {scale!r}")
    centred_PG = _centred(rewards_PG)
    if scale == "none":
        return centred_PG
    spread_P1 = centred_PG.square().sum(dim=1, keepdim=True).div(centred_PG.shape[1] - 1).sqrt()
    return centred_PG / (spread_P1 + 1e-4)


def leave_one_out(rewards_PG: Tensor) -> Tensor:
    """Reward minus the mean reward of the OTHER completions of the prompt: G / (G - 1) (r - mean).

    A completion is not in its own baseline, so the baseline leaves the policy gradient unbiased.

    Args:
        rewards_PG: finite rewards of the G >= 2 completions of each prompt, no gradient.

    Returns:
        advantages_PG, float32 or better; exactly 0 in a group whose rewards are all equal.

    Raises:
        TypeError: wrong dtype.
        ValueError: not two axes, a group of one, or a reward is not finite or requires grad.

    Source:
        Kool et al. 2019, "Buy 4 REINFORCE samples, get a baseline for free!"; Ahmadian et al. 2024 (RLOO,
        2402.14740), section 3.
    """
    centred_PG = _centred(rewards_PG)
    num_completions = centred_PG.shape[1]
    return centred_PG * (num_completions / (num_completions - 1))


def reinforce_plus_plus(
    scores_B: Tensor, kl_BT: Tensor, *, mask_BT: Tensor | None = None, beta: float
) -> Tensor:
    """Score minus the KL still to be paid, whitened over all tokens of the step.

    A_t = R - beta sum_{i >= t} kl_i, then (A - mean) / std over every counted token of every sequence. Give
    it the completions of the whole optimizer step. With several completions per prompt, the variant "with
    baseline" has scores minus the mean of their group: group_relative(rewards_PG, scale="none").flatten().

    Args:
        scores_B: finite reward of each whole completion, no gradient.
        kl_BT: estimate (k1 in the paper) of KL(policy || ref) per token, drawn from the policy, nats.
        mask_BT: bool prefix mask, True = completion token, at least one per row; None counts every token.
        beta: price of a nat of KL, >= 0, in reward units.

    Returns:
        advantages_BT, float32 or better, 0 where uncounted; 0 up to rounding if no return differs from
        another.

    Raises:
        TypeError: wrong dtype.
        ValueError: shapes disagree, beta < 0, a sequence has no counted token, fewer than two tokens are
            counted, a score is not finite, or an input requires grad.

    Source:
        Hu et al. 2025 (REINFORCE++, 2501.03262v9), section 3; the standard deviation is that of `whiten`.
    """
    kl_BT = _checks.full_precision("kl_BT", kl_BT, ndim=2)
    mask_BT = _checks.mask_or_all(mask_BT, "kl_BT", kl_BT)
    scores_B = _checks.full_precision("scores_B", scores_B, ndim=1)
    _checks.all_between("scores_B", scores_B, low=-math.inf)
    rewards_BT = token_rewards(scores_B, kl_BT, mask_BT, beta=beta)
    # Without values, GAE at gamma = lambda = 1 is the plain sum of the rewards to come.
    returns_BT = gae(rewards_BT, torch.zeros_like(rewards_BT), mask_BT=mask_BT, gamma=1.0, lam=1.0).returns_BT
    return whiten(returns_BT, mask_BT)


def _centred(rewards_PG: Tensor) -> Tensor:
    rewards_PG = _checks.full_precision("rewards_PG", rewards_PG, ndim=2)
    _checks.constant("rewards_PG", rewards_PG)
    if rewards_PG.shape[1] < 2:
        raise ValueError(
            f"rewards_PG needs at least 2 completions per prompt to compare, got {rewards_PG.shape[1]};"
            " draw more of each prompt"
        )
    _checks.all_between("rewards_PG", rewards_PG, low=-math.inf)
    centred_PG = rewards_PG - rewards_PG.mean(dim=1, keepdim=True)
    # The mean of equal numbers may be off by its rounding, which a division by the spread would blow up.
    equal_P1 = (rewards_PG == rewards_PG[:, :1]).all(dim=1, keepdim=True)
    return torch.where(equal_P1, 0.0, centred_PG)
