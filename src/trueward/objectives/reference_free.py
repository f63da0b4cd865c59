"""Preference objectives on pairs without a reference model.

Import them from `trueward.objectives.preference`. Log-probs are in nats; the names say sum or mean over the
completion's tokens. Axes: B pairs.
"""

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from trueward.objectives import _checks
from trueward.objectives._pairs import PreferenceLoss, like, policy_logps


def simpo(
    chosen_mean_logps_B: Tensor, rejected_mean_logps_B: Tensor, *, beta: float, gamma: float
) -> PreferenceLoss:
    """Simple preference optimization: -log sigmoid(beta (c - r) - gamma), c and r log-probs per token.

    Args:
        chosen_mean_logps_B: log-prob of the chosen completion under the policy, MEAN over its tokens.
        rejected_mean_logps_B: the same for the rejected completion.
        beta: scale of the implied reward, > 0.
        gamma: margin by which the reward of chosen should be greater, >= 0, in the units of beta * log-prob.

    Returns:
        PreferenceLoss, float32 or better; rewards are beta * mean log-prob.

    Raises:
        TypeError: wrong dtype.
        ValueError: shapes disagree or a range is left.

    Source:
        Meng et al. 2024 (arXiv:2405.14734), eq. 6.
    """
    _checks.number("beta", beta, low=0.0, above=True)
    _checks.number("gamma", gamma, low=0.0)
    logps = policy_logps(chosen_mean_logps_B, rejected_mean_logps_B, kind="mean_logps_B")
    return logps.rewards(-logsigmoid(beta * (logps.chosen_B - logps.rejected_B) - gamma), beta)


def cpo(chosen_logps_B: Tensor, rejected_logps_B: Tensor, *, beta: float) -> PreferenceLoss:
    """Contrastive preference optimization: -log sigmoid(beta (c - r)), the preference term alone.

    The paper adds the negative log-likelihood of chosen, which here the caller adds.

    Args:
        chosen_logps_B: log-prob of the chosen completion under the policy, summed over tokens.
        rejected_logps_B: the same for the rejected completion.
        beta: scale of the implied reward, > 0.

    Returns:
        PreferenceLoss, float32 or better; rewards are beta * log-prob.

    Raises:
        TypeError: wrong dtype.
        ValueError: shapes disagree or a range is left.

    Source:
        Xu et al. 2024 (arXiv:2401.08417), the term L_prefer.
    """
    _checks.number("beta", beta, low=0.0, above=True)
    logps = policy_logps(chosen_logps_B, rejected_logps_B)
    return logps.rewards(-logsigmoid(beta * (logps.chosen_B - logps.rejected_B)), beta)


def orpo(
    chosen_mean_logps_B: Tensor, rejected_mean_logps_B: Tensor, chosen_nll_B: Tensor, *, weight: float
) -> PreferenceLoss:
    """Odds ratio preference optimization: nll - weight log sigmoid(log-odds chosen - log-odds rejected).

    log-odds = log p - log(1 - p) with log p the mean log-prob per token.

    Args:
        chosen_mean_logps_B: log-prob of the chosen completion under the policy, MEAN over its tokens, <= 0.
        rejected_mean_logps_B: the same for the rejected completion.
        chosen_nll_B: negative log-prob of chosen under the policy, MEAN over its tokens, with gradient.
        weight: of the odds-ratio term, >= 0 (lambda in the paper).

    Returns:
        PreferenceLoss, float32 or better; rewards are weight * mean log-prob.

    Raises:
        TypeError: wrong dtype.
        ValueError: shapes disagree, a range is left, or a log-prob is above 0 or not finite.

    Source:
        Hong et al. 2024 (arXiv:2403.07691), eq. 4, 6 and 7.
    """
    _checks.number("weight", weight, low=0.0)
    logps = policy_logps(chosen_mean_logps_B, rejected_mean_logps_B, kind="mean_logps_B")
    _checks.all_between("chosen_mean_logps_B", logps.chosen_B, low=-torch.inf, high=0.0)
    _checks.all_between("rejected_mean_logps_B", logps.rejected_B, low=-torch.inf, high=0.0)
    nll_B = like("chosen_nll_B", chosen_nll_B, "chosen_mean_logps_B", logps.chosen_B)
    log_ratio_B = _log_odds(logps.chosen_B) - _log_odds(logps.rejected_B)
    return logps.rewards(nll_B - weight * logsigmoid(log_ratio_B), weight)


def _log_odds(logps_B: Tensor) -> Tensor:
    """log p - log(1 - p), with 1 - p = -expm1(log p), which is exact near p = 1.

    At p = 1 the odds are infinite and the gradient 0 * inf. The smallest normal number is subtracted: it is
    lost in rounding wherever log p is not 0, and at 0 gives the limit of value and gradient.
    """
    below_B = logps_B - torch.finfo(logps_B.dtype).tiny
    return below_B - torch.log(-torch.expm1(below_B))
