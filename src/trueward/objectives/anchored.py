"""Preference objectives that push each completion against the reference by itself, not only apart.

Import them from `trueward.objectives.preference`. Log-probs are sums over tokens, in nats.
Axes: B pairs (or dispreferred completions), K samples of one prompt.
r_w, r_l = beta * log(policy / ref) of chosen and rejected.
"""

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from trueward.objectives import _checks
from trueward.objectives._pairs import PreferenceLoss, log_ratios


class D2OLoss(NamedTuple):
    """Unreduced loss, with the mean reward of the samples and the reward of the dispreferred completion, no
    gradient."""

    loss_B: Tensor
    sampled_rewards_B: Tensor
    rejected_rewards_B: Tensor


def apo_zero(
    chosen_logps_B: Tensor,
    rejected_logps_B: Tensor,
    ref_chosen_logps_B: Tensor,
    ref_rejected_logps_B: Tensor,
    *,
    beta: float,
) -> PreferenceLoss:
    """Anchored preference optimization, chosen up and rejected down: 1 - sigmoid(r_w) + sigmoid(r_l).

    For chosen completions better than what the policy writes. The paper has no 1; with it the loss is >= 0.

    Args:
        chosen_logps_B: log-prob of the chosen completion under the policy, summed over tokens.
        rejected_logps_B: the same for the rejected completion.
        ref_chosen_logps_B: log-prob of the chosen completion under the frozen reference, no gradient.
        ref_rejected_logps_B: the same for the rejected completion.
        beta: strength of the tie to the reference, > 0.

    Returns:
        PreferenceLoss, float32 or better, in [0, 2]; far from 0 its gradient vanishes.

    Raises:
        TypeError: wrong dtype.
        ValueError: shapes disagree, a range is left, or a reference log-prob requires grad.

    Source:
        D'Oosterlinck et al. 2024 (arXiv:2408.06266), eq. 7.
    """
    _checks.number("beta", beta, low=0.0, above=True)
    ratios = log_ratios(chosen_logps_B, rejected_logps_B, ref_chosen_logps_B, ref_rejected_logps_B)
    loss_B = torch.sigmoid(-beta * ratios.chosen_B) + torch.sigmoid(beta * ratios.rejected_B)
    return ratios.rewards(loss_B, beta)


def apo_down(
    chosen_logps_B: Tensor,
    rejected_logps_B: Tensor,
    ref_chosen_logps_B: Tensor,
    ref_rejected_logps_B: Tensor,
    *,
    beta: float,
) -> PreferenceLoss:
    """Anchored preference optimization, both down, rejected further: sigmoid(r_w) + 1 - sigmoid(r_w - r_l).

    For chosen completions worse than what the policy writes. The paper has no 1.

    Args:
        chosen_logps_B: as in `apo_zero`, like the other log-probs.
        beta: strength of the tie to the reference, > 0.

    Returns:
        PreferenceLoss, float32 or better, in [0, 2].

    Raises:
        TypeError, ValueError: as `apo_zero`.

    Source:
        D'Oosterlinck et al. 2024 (arXiv:2408.06266), eq. 8.
    """
    _checks.number("beta", beta, low=0.0, above=True)
    ratios = log_ratios(chosen_logps_B, rejected_logps_B, ref_chosen_logps_B, ref_rejected_logps_B)
    apart_B = torch.sigmoid(-beta * (ratios.chosen_B - ratios.rejected_B))
    return ratios.rewards(torch.sigmoid(beta * ratios.chosen_B) + apart_B, beta)


def nca_pair(
    chosen_logps_B: Tensor,
    rejected_logps_B: Tensor,
    ref_chosen_logps_B: Tensor,
    ref_rejected_logps_B: Tensor,
    *,
    beta: float,
) -> PreferenceLoss:
    """Noise contrastive alignment of a pair: -log sigmoid(r_w) - (log sigmoid(-r_w) + log sigmoid(-r_l)) / 2.

    Rewards are learned in absolute terms: the loss holds the likelihood of chosen up.

    Args:
        chosen_logps_B: as in `apo_zero`, like the other log-probs.
        beta: strength of the tie to the reference, > 0.

    Returns:
        PreferenceLoss, float32 or better.

    Raises:
        TypeError, ValueError: as `apo_zero`.

    Source:
        Chen et al. 2024 (NCA, arXiv:2402.05369), the preference form of NCA with K = 2.
    """
    _checks.number("beta", beta, low=0.0, above=True)
    ratios = log_ratios(chosen_logps_B, rejected_logps_B, ref_chosen_logps_B, ref_rejected_logps_B)
    chosen_B, rejected_B = beta * ratios.chosen_B, beta * ratios.rejected_B
    loss_B = -logsigmoid(chosen_B) - 0.5 * (logsigmoid(-chosen_B) + logsigmoid(-rejected_B))
    return ratios.rewards(loss_B, beta)


def sppo_hard(
    chosen_logps_B: Tensor,
    rejected_logps_B: Tensor,
    ref_chosen_logps_B: Tensor,
    ref_rejected_logps_B: Tensor,
    *,
    beta: float,
) -> PreferenceLoss:
    """Self-play preference optimization with hard labels: (r_w / beta - 1 / (2 beta))^2 + (r_l / beta +
    1 / (2 beta))^2.

    The paper's probability of a win, estimated by a judge, is 1 for chosen and 0 for rejected here.

    Args:
        chosen_logps_B: as in `apo_zero`, like the other log-probs.
        beta: > 0, 1 / eta of the paper; the log-ratios are drawn to +-1 / (2 beta) nats.

    Returns:
        PreferenceLoss, float32 or better, in squared nats.

    Raises:
        TypeError, ValueError: as `apo_zero`.

    Source:
        Wu et al. 2024 (SPPO, arXiv:2405.00675), eq. 4.7.
    """
    _checks.number("beta", beta, low=0.0, above=True)
    ratios = log_ratios(chosen_logps_B, rejected_logps_B, ref_chosen_logps_B, ref_rejected_logps_B)
    target = 1 / (2 * beta)
    return ratios.rewards((ratios.chosen_B - target).square() + (ratios.rejected_B + target).square(), beta)


def d2o(
    rejected_logps_B: Tensor,
    ref_rejected_logps_B: Tensor,
    sampled_logps_BK: Tensor,
    ref_sampled_logps_BK: Tensor,
    *,
    beta: float,
    alpha: float,
) -> D2OLoss:
    """Distributional dispreference optimization: a dispreferred completion against K samples, no positive.

    -log sigmoid(beta / K sum_i log(policy / ref)(y_i) - alpha log(policy / ref)(y_l)), y_i drawn from a
    frozen policy for the prompt of y_l. A prompt with several dispreferred completions is as many rows, which
    may share their samples.

    Args:
        rejected_logps_B: log-prob of the dispreferred completion under the policy, summed over tokens.
        ref_rejected_logps_B: the same under its reference, no gradient.
        sampled_logps_BK: the same for the samples under the policy, K >= 1.
        ref_sampled_logps_BK: the same for the samples under their reference, no gradient.
        beta: weight of the samples, > 0.
        alpha: weight of the dispreferred completion, > 0.

    Returns:
        D2OLoss, float32 or better.

    Raises:
        TypeError: wrong dtype.
        ValueError: shapes disagree, K is 0, a range is left, or a reference log-prob requires grad.

    Source:
        Duan et al. 2024 (arXiv:2403.03419), loss L_D2O. The two references may differ there (a helpful and a
        harmful one); here whoever scores the completions decides.
    """
    _checks.number("beta", beta, low=0.0, above=True)
    _checks.number("alpha", alpha, low=0.0, above=True)
    rejected_B = _checks.full_precision("rejected_logps_B", rejected_logps_B, ndim=1)
    ref_rejected_B = _checks.full_precision("ref_rejected_logps_B", ref_rejected_logps_B, ndim=1)
    _checks.same_shape("ref_rejected_logps_B", ref_rejected_B, "rejected_logps_B", rejected_B)
    sampled_BK = _checks.full_precision("sampled_logps_BK", sampled_logps_BK, ndim=2)
    ref_sampled_BK = _checks.full_precision("ref_sampled_logps_BK", ref_sampled_logps_BK, ndim=2)
    _checks.same_shape("ref_sampled_logps_BK", ref_sampled_BK, "sampled_logps_BK", sampled_BK)
    if sampled_BK.shape[0] != rejected_B.shape[0] or sampled_BK.shape[1] == 0:
        raise ValueError(
            f"sampled_logps_BK must have {rejected_B.shape[0]} rows (B of rejected_logps_B) of at least one "
            f"sample, got shape {tuple(sampled_BK.shape)}"
        )
    _checks.constant("ref_rejected_logps_B", ref_rejected_B)
    _checks.constant("ref_sampled_logps_BK", ref_sampled_BK)
    sampled_rewards_B = beta * (sampled_BK - ref_sampled_BK).mean(dim=1)
    rejected_rewards_B = alpha * (rejected_B - ref_rejected_B)
    loss_B = -logsigmoid(sampled_rewards_B - rejected_rewards_B)
    return D2OLoss(loss_B, sampled_rewards_B.detach(), rejected_rewards_B.detach())
