"""What objectives on pairs share: their result, and the checked log-probs and log-ratios they start from.

Not here: any objective. Axes: B pairs.
"""

from typing import NamedTuple

from torch import Tensor

from trueward.objectives import _checks


class PreferenceLoss(NamedTuple):
    """Unreduced loss, with the rewards that the objective implies of each completion; those carry no
    gradient.

    With a reference they are beta * log(policy / ref), without one beta (or weight) * log policy.
    """

    loss_B: Tensor
    chosen_rewards_B: Tensor
    rejected_rewards_B: Tensor


class PairLogps(NamedTuple):
    """Two values per pair in nats: log-probs, or log-ratios policy - ref."""

    chosen_B: Tensor
    rejected_B: Tensor

    def rewards(self, loss_B: Tensor, scale: float) -> PreferenceLoss:
        """The loss with scale * value as implied rewards."""
        return PreferenceLoss(loss_B, scale * self.chosen_B.detach(), scale * self.rejected_B.detach())


def policy_logps(chosen_B: Tensor, rejected_B: Tensor, *, kind: str = "logps_B") -> PairLogps:
    """The policy's log-probs, checked, in float32 or better.

    Args:
        kind: end of the arguments' names, for errors: `logps_B` or `mean_logps_B`.
    """
    chosen_B = _checks.full_precision(f"chosen_{kind}", chosen_B, ndim=1)
    return PairLogps(chosen_B, like(f"rejected_{kind}", rejected_B, f"chosen_{kind}", chosen_B))


def log_ratios(
    chosen_B: Tensor,
    rejected_B: Tensor,
    ref_chosen_B: Tensor,
    ref_rejected_B: Tensor,
    *,
    kind: str = "logps_B",
) -> PairLogps:
    """log(policy / ref) of both completions, checked, in float32 or better.

    Policy minus ref comes first: both are large sums of nearly the same size, their difference is small.
    """
    policy = policy_logps(chosen_B, rejected_B, kind=kind)
    refs = []
    for name, ref_B in (("chosen", ref_chosen_B), ("rejected", ref_rejected_B)):
        refs.append(like(f"ref_{name}_{kind}", ref_B, f"chosen_{kind}", policy.chosen_B))
        _checks.constant(f"ref_{name}_{kind}", refs[-1])
    return PairLogps(policy.chosen_B - refs[0], policy.rejected_B - refs[1])


def like(name: str, values_B: Tensor, like_name: str, like_B: Tensor) -> Tensor:
    """`values_B` in float32 or better, of the same shape as `like_B`."""
    values_B = _checks.full_precision(name, values_B, ndim=1)
    _checks.same_shape(name, values_B, like_name, like_B)
    return values_B
