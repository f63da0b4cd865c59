"""A strong model from a weak supervisor's answers: fine-tuning on them with the auxiliary confidence loss.

    loss = mean over trained tokens of -(1 - alpha) log p(weak token) - alpha log p(own likeliest token)
With alpha 0 it is supervised fine-tuning. For labels of pairs see weak_to_strong.
Axes: N completion tokens, n tokens of a chunk, V vocabulary.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from trueward.data.chat import TokenGroup
from trueward.models.distributions import Predicting, over_vocabulary, shared_words
from trueward.models.packing import pack
from trueward.models.scoring import head_states
from trueward.objectives.distill import weak_answers
from trueward.trainers.accumulate import LossSum
from trueward.trainers.groups import cut, describe_group, num_trained
from trueward.trainers.loop import Evaluate, Progress, TrainResult, train
from trueward.trainers.optim import device_of
from trueward.trainers.settings import TrainSettings
from trueward.trainers.weak_to_strong import WeakToStrongSettings, alpha_at

__all__ = ["WeakAnswersObjective", "train_weak_answers"]


class WeakAnswersObjective:
    """The confidence loss over answers; every token of the step weighs the same."""

    name = "weak_answers"

    def __init__(self, settings: WeakToStrongSettings) -> None:
        self._settings = settings
        self.settings: Mapping[str, object] = settings.model_dump(mode="json")
        self._alpha: float | None = None

    def describe(self, item: TokenGroup) -> Mapping[str, object]:
        return describe_group(item)

    def count(self, items: Sequence[TokenGroup]) -> float:
        return sum(map(num_trained, items))

    def micro_batches(self, items: Sequence[TokenGroup], max_tokens: int) -> list[list[TokenGroup]]:
        return cut(items, lambda group: group, max_tokens)

    def at(self, step: int, num_steps: int) -> None:
        """Set alpha for `step` of `num_steps`."""
        self._alpha = alpha_at(self._settings, step, num_steps)

    def loss(self, model: nn.Module, items: Sequence[TokenGroup]) -> LossSum:
        assert self._alpha is not None, "the loop says which step it is"
        packed = pack(items, device_of(model))
        inner, hidden_ND = head_states(model, packed)
        weak_N, own_N = over_vocabulary(
            [Predicting.of(inner, hidden_ND)],
            _two_logps,
            num_words=shared_words(inner),
            per_token=[packed.labels_N],
        )
        trained_1N = packed.trained_N.unsqueeze(0)
        out = weak_answers(weak_N.unsqueeze(0), own_N.unsqueeze(0), trained_1N, alpha=self._alpha)
        tokens = self.count(items)
        hits = ((weak_N.detach() == own_N.detach()) & packed.trained_N).sum().float()
        figures = {
            "mean_token_accuracy": (hits, tokens),
            "weak_to_strong/alpha": (hits.new_tensor(self._alpha * tokens), tokens),
        }
        return LossSum(out.loss_BT.sum(), packed.num_tokens, figures)


def _two_logps(logits_nV: Tensor, labels_n: Tensor) -> tuple[Tensor, ...]:
    """Log-prob of the label, and of the likeliest word."""
    logps_nV = torch.log_softmax(logits_nV, dim=-1)
    own_n1 = logps_nV.detach().argmax(-1, keepdim=True)
    return logps_nV.gather(1, labels_n.unsqueeze(1)).squeeze(1), logps_nV.gather(1, own_n1).squeeze(1)


def train_weak_answers(
    model: nn.Module,
    groups: Sequence[TokenGroup],
    *,
    settings: TrainSettings,
    confidence: WeakToStrongSettings,
    folder: Path,
    bar: Progress | None = None,
    evaluate: Evaluate | None = None,
    resume: bool = False,
) -> TrainResult:
    """Train a causal language model on answers that a weak supervisor wrote; see `loop.train`."""
    return train(
        model,
        objective=WeakAnswersObjective(confidence),
        items=groups,
        settings=settings,
        folder=folder,
        bar=bar,
        evaluate=evaluate,
        resume=resume,
    )
