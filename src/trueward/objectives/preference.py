"""Direct preference objectives on pairs of completions.

Not here: the log-probs (see models.scoring), their reference pass, and the mean over pairs.
Log-probs are SUMS over the completion's tokens, in nats. Axes: B pairs.
"""

from typing import NamedTuple

from torch import Tensor
from torch.nn.functional import logsigmoid

from trueward.objectives import _checks


class PreferenceLoss(NamedTuple):
    """Unreduced loss, with the implicit rewards beta * log(policy / ref), which carry no gradient."""

    loss_B: Tensor
    chosen_rewards_B: Tensor
    rejected_rewards_B: Tensor


def dpo(
    policy_chosen_logps_B: Tensor,
    policy_rejected_logps_B: Tensor,
    ref_chosen_logps_B: Tensor,
    ref_rejected_logps_B: Tensor,
    *,
    beta: float,
    label_smoothing: float = 0.0,
) -> PreferenceLoss:
    """Direct preference optimization: -log sigmoid of the difference of the implicit rewards.

    With label smoothing e (cDPO): -(1 - e) log sigmoid(d) - e log sigmoid(-d), d the difference of rewards;
    the loss is then smallest at sigmoid(d) = 1 - e, not at infinity.

    Args:
        policy_chosen_logps_B: log-prob of the chosen completion under the policy, summed over tokens.
        policy_rejected_logps_B: the same for the rejected completion.
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
        Rafailov et al. 2023, eq. 7; label smoothing: Mitchell 2023, "A note on DPO with noisy preferences".
    """
    _checks.number("beta", beta, low=0.0, above=True)
    _checks.number("label_smoothing", label_smoothing, low=0.0, high=0.5, below=True)
    policy_chosen_B = _checks.full_precision("policy_chosen_logps_B", policy_chosen_logps_B, ndim=1)
    policy_rejected_B = _like("policy_rejected_logps_B", policy_rejected_logps_B, policy_chosen_B)
    ref_chosen_B = _like("ref_chosen_logps_B", ref_chosen_logps_B, policy_chosen_B)
    ref_rejected_B = _like("ref_rejected_logps_B", ref_rejected_logps_B, policy_chosen_B)
    _checks.constant("ref_chosen_logps_B", ref_chosen_B)
    _checks.constant("ref_rejected_logps_B", ref_rejected_B)

    # Policy minus ref first: both are large sums of nearly the same size, their difference is small.
    chosen_rewards_B = beta * (policy_chosen_B - ref_chosen_B)
    rejected_rewards_B = beta * (policy_rejected_B - ref_rejected_B)
    margins_B = chosen_rewards_B - rejected_rewards_B
    loss_B = -(1 - label_smoothing) * logsigmoid(margins_B) - label_smoothing * logsigmoid(-margins_B)
    return PreferenceLoss(loss_B, chosen_rewards_B.detach(), rejected_rewards_B.detach())


def _like(name: str, logps_B: Tensor, policy_chosen_B: Tensor) -> Tensor:
    logps_B = _checks.full_precision(name, logps_B, ndim=1)
    _checks.same_shape(name, logps_B, "policy_chosen_logps_B", policy_chosen_B)
    return logps_B
