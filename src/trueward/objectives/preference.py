"""Direct preference objectives on pairs that compare the two completions by one difference of log-ratios.

Those that anchor each completion by itself are in `anchored`, those without a reference in `reference_free`;
all can be imported from here. Not here: the log-probs (see models.scoring) and the mean over pairs.
Log-probs are in nats, SUMS over the completion's tokens unless a name says mean. Axes: B pairs.
d = beta * (log-ratio of chosen - log-ratio of rejected), log-ratio = log policy - log ref.
"""

import math

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from trueward.objectives import _checks
from trueward.objectives._pairs import PreferenceLoss, like, log_ratios
from trueward.objectives.anchored import D2OLoss, apo_down, apo_zero, d2o, nca_pair, sppo_hard
from trueward.objectives.reference_free import cpo, orpo, simpo

__all__ = [
    "D2OLoss",
    "PreferenceLoss",
    "apo_down",
    "apo_zero",
    "cpo",
    "d2o",
    "discopop",
    "dpo",
    "exo_pair",
    "hinge",
    "ipo",
    "nca_pair",
    "orpo",
    "robust_dpo",
    "rpo",
    "simpo",
    "sppo_hard",
]


def dpo(
    chosen_logps_B: Tensor,
    rejected_logps_B: Tensor,
    ref_chosen_logps_B: Tensor,
    ref_rejected_logps_B: Tensor,
    *,
    beta: float,
    label_smoothing: float = 0.0,
) -> PreferenceLoss:
    """Direct preference optimization: -log sigmoid(d).

    With label smoothing e (cDPO): -(1 - e) log sigmoid(d) - e log sigmoid(-d); the loss is then smallest at
    sigmoid(d) = 1 - e, not at infinity.

    Args:
        chosen_logps_B: log-prob of the chosen completion under the policy, summed over tokens.
        rejected_logps_B: the same for the rejected completion.
        ref_chosen_logps_B: log-prob of the chosen completion under the frozen reference, no gradient.
        ref_rejected_logps_B: the same for the rejected completion.
        beta: strength of the tie to the reference, > 0.
        label_smoothing: probability in [0, 0.5) that a label is flipped.

    Returns:
        PreferenceLoss, float32 or better.

    Raises:
        TypeError: wrong dtype.
        ValueError: shapes disagree, a range is left, or a reference log-prob requires grad.

    Source:
        Rafailov et al. 2023 (arXiv:2305.18290), eq. 7; label smoothing: Mitchell 2023, "A note on DPO with
        noisy preferences".
    """
    _checks.number("beta", beta, low=0.0, above=True)
    _checks.number("label_smoothing", label_smoothing, low=0.0, high=0.5, below=True)
    ratios = log_ratios(chosen_logps_B, rejected_logps_B, ref_chosen_logps_B, ref_rejected_logps_B)
    d_B = beta * ratios.chosen_B - beta * ratios.rejected_B
    loss_B = -(1 - label_smoothing) * logsigmoid(d_B) - label_smoothing * logsigmoid(-d_B)
    return ratios.rewards(loss_B, beta)


def robust_dpo(
    chosen_logps_B: Tensor,
    rejected_logps_B: Tensor,
    ref_chosen_logps_B: Tensor,
    ref_rejected_logps_B: Tensor,
    *,
    beta: float,
    flip_rate: float,
) -> PreferenceLoss:
    """DPO corrected for labels flipped at a known rate e: its mean over flips is the DPO loss of true labels.

    ((1 - e) (-log sigmoid(d)) - e (-log sigmoid(-d))) / (1 - 2 e). Without lower bound: at large d it falls
    as -e d / (1 - 2 e).

    Args:
        chosen_logps_B: as in `dpo`, like the other log-probs.
        beta: strength of the tie to the reference, > 0.
        flip_rate: probability e in [0, 0.5) that a label is flipped.

    Returns:
        PreferenceLoss, float32 or better; the loss can be negative.

    Raises:
        TypeError, ValueError: as `dpo`.

    Source:
        Ray Chowdhury et al. 2024 (arXiv:2403.00409), the robust loss L_epsilon.
    """
    _checks.number("beta", beta, low=0.0, above=True)
    _checks.number("flip_rate", flip_rate, low=0.0, high=0.5, below=True)
    ratios = log_ratios(chosen_logps_B, rejected_logps_B, ref_chosen_logps_B, ref_rejected_logps_B)
    d_B = beta * ratios.chosen_B - beta * ratios.rejected_B
    loss_B = (-(1 - flip_rate) * logsigmoid(d_B) + flip_rate * logsigmoid(-d_B)) / (1 - 2 * flip_rate)
    return ratios.rewards(loss_B, beta)


def ipo(
    chosen_mean_logps_B: Tensor,
    rejected_mean_logps_B: Tensor,
    ref_chosen_mean_logps_B: Tensor,
    ref_rejected_mean_logps_B: Tensor,
    *,
    beta: float,
) -> PreferenceLoss:
    """Identity preference optimization: (log-ratio of chosen - log-ratio of rejected - 1 / (2 beta))^2.

    Departs from the paper, whose log-probs are not divided by length: on means, 1 / (2 beta) is a margin per
    token whatever the length. TRL does the same and reports that the authors did.

    Args:
        chosen_mean_logps_B: log-prob of the chosen completion under the policy, MEAN over its tokens.
        rejected_mean_logps_B: the same for the rejected completion.
        ref_chosen_mean_logps_B: the same for chosen under the reference, no gradient.
        ref_rejected_mean_logps_B: the same for rejected under the reference, no gradient.
        beta: > 0 (tau in the paper); the target margin is 1 / (2 beta) nats per token.

    Returns:
        PreferenceLoss, float32 or better; the loss is in squared nats per token.

    Raises:
        TypeError, ValueError: as `dpo`.

    Source:
        Azar et al. 2023 (arXiv:2310.12036), eq. 17.
    """
    _checks.number("beta", beta, low=0.0, above=True)
    ratios = log_ratios(
        chosen_mean_logps_B,
        rejected_mean_logps_B,
        ref_chosen_mean_logps_B,
        ref_rejected_mean_logps_B,
        kind="mean_logps_B",
    )
    loss_B = (ratios.chosen_B - ratios.rejected_B - 1 / (2 * beta)).square()
    return ratios.rewards(loss_B, beta)


def hinge(
    chosen_logps_B: Tensor,
    rejected_logps_B: Tensor,
    ref_chosen_logps_B: Tensor,
    ref_rejected_logps_B: Tensor,
    *,
    beta: float,
) -> PreferenceLoss:
    """Hinge loss: max(0, 1 - d); a pair apart by more than 1 / beta nats sends no gradient.

    Args:
        chosen_logps_B: as in `dpo`, like the other log-probs.
        beta: strength of the tie to the reference, > 0.

    Returns:
        PreferenceLoss, float32 or better.

    Raises:
        TypeError, ValueError: as `dpo`.

    Source:
        Zhao et al. 2023 (SLiC-HF, arXiv:2305.10425), calibration loss, with the log-probs relative to the
        reference as in Liu et al. 2023 (RSO, arXiv:2309.06657).
    """
    _checks.number("beta", beta, low=0.0, above=True)
    ratios = log_ratios(chosen_logps_B, rejected_logps_B, ref_chosen_logps_B, ref_rejected_logps_B)
    return ratios.rewards(torch.relu(1 - beta * (ratios.chosen_B - ratios.rejected_B)), beta)


def rpo(
    chosen_logps_B: Tensor,
    rejected_logps_B: Tensor,
    ref_chosen_logps_B: Tensor,
    ref_rejected_logps_B: Tensor,
    chosen_nll_B: Tensor,
    *,
    beta: float,
    alpha: float,
) -> PreferenceLoss:
    """DPO plus the likelihood of chosen, which keeps it from falling: -log sigmoid(d) + alpha nll.

    Args:
        chosen_logps_B: as in `dpo`, like the other log-probs.
        chosen_nll_B: negative log-prob of chosen under the policy, MEAN over its tokens, with gradient.
        beta: strength of the tie to the reference, > 0.
        alpha: weight of the likelihood term, >= 0.

    Returns:
        PreferenceLoss, float32 or better.

    Raises:
        TypeError, ValueError: as `dpo`.

    Source:
        Pang et al. 2024 (Iterative RPO, arXiv:2404.19733), eq. 1.
    """
    _checks.number("alpha", alpha, low=0.0)
    out = dpo(chosen_logps_B, rejected_logps_B, ref_chosen_logps_B, ref_rejected_logps_B, beta=beta)
    nll_B = like("chosen_nll_B", chosen_nll_B, "chosen_logps_B", out.loss_B)
    return out._replace(loss_B=out.loss_B + alpha * nll_B)


def discopop(
    chosen_logps_B: Tensor,
    rejected_logps_B: Tensor,
    ref_chosen_logps_B: Tensor,
    ref_rejected_logps_B: Tensor,
    *,
    beta: float,
    tau: float = 0.05,
) -> PreferenceLoss:
    """Log-ratio modulated loss, found by search: (1 - sigmoid(d / tau)) (-log sigmoid(d)) + sigmoid(d / tau)
    exp(-d).

    The exponential part is computed as exp(log sigmoid(d / tau) - d): as written it is 0 * inf at large
    negative d.

    Args:
        chosen_logps_B: as in `dpo`, like the other log-probs.
        beta: strength of the tie to the reference, > 0.
        tau: width in (0, 1] of the change from logistic to exponential; above 1 the loss would grow without
            bound with falling d.

    Returns:
        PreferenceLoss, float32 or better. Not convex: at tau = 0.05 it has a minimum at d = -0.12 and a
        maximum at d = 0.07, so that a pair at d = 0, where policy and reference are equal, falls to the
        minimum.

    Raises:
        TypeError, ValueError: as `dpo`.

    Source:
        Lu et al. 2024 (DiscoPOP, arXiv:2406.08414), eq. 5.
    """
    _checks.number("beta", beta, low=0.0, above=True)
    _checks.number("tau", tau, low=0.0, high=1.0, above=True)
    ratios = log_ratios(chosen_logps_B, rejected_logps_B, ref_chosen_logps_B, ref_rejected_logps_B)
    d_B = beta * (ratios.chosen_B - ratios.rejected_B)
    logistic_B = -torch.sigmoid(-d_B / tau) * logsigmoid(d_B)
    exponential_B = torch.exp(logsigmoid(d_B / tau) - d_B)
    return ratios.rewards(logistic_B + exponential_B, beta)


def exo_pair(
    chosen_logps_B: Tensor,
    rejected_logps_B: Tensor,
    ref_chosen_logps_B: Tensor,
    ref_rejected_logps_B: Tensor,
    *,
    beta: float,
    label_smoothing: float,
) -> PreferenceLoss:
    """Efficient exact optimization: reverse KL from the implied preference q = sigmoid(d) to the label's
    (1 - e, e).

    q (log q - log(1 - e)) + (1 - q) (log(1 - q) - log e). DPO is the forward KL, up to a constant.

    Args:
        chosen_logps_B: as in `dpo`, like the other log-probs.
        beta: strength of the tie to the reference, > 0.
        label_smoothing: probability e in (0, 0.5) that a label is flipped; at 0 the KL would be infinite.

    Returns:
        PreferenceLoss, float32 or better; 0 at q = 1 - e.

    Raises:
        TypeError, ValueError: as `dpo`.

    Source:
        Ji et al. 2024 (EXO, arXiv:2402.00856), the preference form (eq. 16 by the count of TRL).
    """
    _checks.number("beta", beta, low=0.0, above=True)
    _checks.number("label_smoothing", label_smoothing, low=0.0, high=0.5, above=True, below=True)
    ratios = log_ratios(chosen_logps_B, rejected_logps_B, ref_chosen_logps_B, ref_rejected_logps_B)
    d_B = beta * (ratios.chosen_B - ratios.rejected_B)
    chosen_B = torch.sigmoid(d_B) * (logsigmoid(d_B) - math.log1p(-label_smoothing))
    rejected_B = torch.sigmoid(-d_B) * (logsigmoid(-d_B) - math.log(label_smoothing))
    return ratios.rewards(chosen_B + rejected_B, beta)
