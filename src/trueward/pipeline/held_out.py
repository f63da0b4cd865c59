"""What a model does with held-out data, in the one way that training stages and evaluation share."""

from collections.abc import Sequence

from torch import nn

from trueward.evals import RewardModelReport, evaluate_reward_model
from trueward.trainers.reward import RewardPair, score_pairs
from trueward.trainers.settings import Precision

__all__ = ["judge_pairs"]


def judge_pairs(
    model: nn.Module,
    pairs: Sequence[RewardPair],
    *,
    max_tokens_per_forward: int,
    precision: Precision = "float32",
    gold_differences: Sequence[float] | None = None,
) -> RewardModelReport:
    """How right a reward model is on held-out pairs.

    Args:
        gold_differences: true reward of chosen minus that of rejected, where it is known.

    Raises:
        EvidenceError: no pair, or none with a preference.
    """
    chosen, rejected = score_pairs(
        model, pairs, max_tokens_per_forward=max_tokens_per_forward, precision=precision
    )
    labels = [1.0 if pair.soft_label is None else pair.soft_label for pair in pairs]
    return evaluate_reward_model(chosen, rejected, soft_labels=labels, gold_differences=gold_differences)
