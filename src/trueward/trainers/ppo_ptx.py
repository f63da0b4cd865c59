"""PPO-ptx: demonstrations, or pretraining text, beside the completions of each optimizer step.

    loss = (PPO's loss, a mean over completion tokens) + ptx_coef * (mean of -log p over demonstration tokens)
Each mean has the denominator of its own tokens over the whole step. Not here: PPO's own loss (ppo_update).
"""

from collections.abc import Callable, Mapping, Sequence

from torch import nn

from trueward.core.seed import derive_seed
from trueward.data.chat import TokenGroup
from trueward.trainers.accumulate import LossSum
from trueward.trainers.groups import describe_group
from trueward.trainers.ppo_settings import PPOSettings
from trueward.trainers.ppo_update import PPOObjective
from trueward.trainers.sampling import Sampler
from trueward.trainers.sft import SFTObjective

__all__ = ["MixedItem", "PtxObjective", "demonstrations_of_step"]

MixedItem = int | TokenGroup
"""A prompt with its completions, by its index in the iteration, or a demonstration."""


class PtxObjective:
    """PPO's loss plus that of supervised fine-tuning; without demonstrations among the items, PPO's alone.

    Args:
        ppo: objective of the completions.
        policy: what imitates the demonstrations, at temperature 1.
        coef: weight of the demonstrations.

    Source:
        Ouyang et al. 2022 (2203.02155), eq. 2, whose gamma is `coef`. The paper adds a sum over an example's
        tokens to a reward per completion; here both terms are means over tokens, so that `coef` does not
        depend on lengths.
    """

    name = "ppo"

    def __init__(self, ppo: PPOObjective, policy: nn.Module, *, coef: float) -> None:
        self._ppo, self._policy, self._coef, self._sft = ppo, policy, coef, SFTObjective()
        self.settings: Mapping[str, object] = ppo.settings
        self._scale = 0.0

    def describe(self, item: MixedItem) -> Mapping[str, object]:
        return self._ppo.describe(item) if isinstance(item, int) else describe_group(item)

    def count(self, items: Sequence[MixedItem]) -> float:
        return self._ppo.count(_completions(items))

    def prepare(self, model: nn.Module, items: Sequence[MixedItem], max_tokens: int) -> None:
        """What a summed nat of the demonstrations weighs, so that the step's one denominator makes a mean."""
        num_tokens = self._sft.count(_demonstrations(items))
        self._scale = self._coef * self.count(items) / num_tokens if num_tokens else 0.0

    def micro_batches(self, items: Sequence[MixedItem], max_tokens: int) -> list[list[MixedItem]]:
        parts: list[list[MixedItem]] = [
            [*part] for part in self._ppo.micro_batches(_completions(items), max_tokens)
        ]
        return parts + [[*part] for part in self._sft.micro_batches(_demonstrations(items), max_tokens)]

    def loss(self, model: nn.Module, items: Sequence[MixedItem]) -> LossSum:
        demonstrations = _demonstrations(items)
        if not demonstrations:
            return self._ppo.loss(model, _completions(items))
        out = self._sft.loss(self._policy, demonstrations)
        nll = (out.loss_sum.detach(), self._sft.count(demonstrations))
        return LossSum(self._scale * out.loss_sum, out.tokens, {"ptx_loss": nll})


def _completions(items: Sequence[MixedItem]) -> list[int]:
    return [item for item in items if isinstance(item, int)]


def _demonstrations(items: Sequence[MixedItem]) -> list[TokenGroup]:
    return [item for item in items if isinstance(item, TokenGroup)]


def demonstrations_of_step(
    demonstrations: Sequence[TokenGroup], settings: PPOSettings
) -> Callable[[int], list[TokenGroup]]:
    """The demonstrations of each optimizer step: a function of (seed, step) alone, in a new order each pass.

    Args:
        demonstrations: none where the run has no ptx.
    """
    if not demonstrations:
        return lambda step: []
    size = settings.ptx_batch_size
    sampler = Sampler(
        len(demonstrations),
        batch_size=size,
        num_drawn=size * settings.num_updates,
        seed=derive_seed(settings.seed, "ptx"),
    )
    return lambda step: [demonstrations[i] for i in sampler.batch(step)]
