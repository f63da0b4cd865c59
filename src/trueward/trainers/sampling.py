"""Which items a step trains on: a function of (seed, step) alone, so that resuming needs no state.

The items are walked in a new random order each epoch. A batch may straddle two epochs: no item is dropped or
seen twice in one pass.
"""

import math
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from trueward.core.seed import generator
from trueward.trainers.settings import TrainSettings

__all__ = ["Sampler", "num_steps", "sampler_of"]


def num_steps(settings: TrainSettings, num_items: int) -> int:
    """Optimizer steps of a run over `num_items` items; the last one may be smaller than the batch size."""
    if settings.steps is not None:
        return settings.steps
    return math.ceil(_num_drawn(settings, num_items) / settings.batch_size)


def _num_drawn(settings: TrainSettings, num_items: int) -> int:
    if settings.steps is not None:
        return settings.steps * settings.batch_size
    return max(1, round((1.0 if settings.epochs is None else settings.epochs) * num_items))


def sampler_of(settings: TrainSettings, num_items: int) -> "Sampler":
    """The sampler of a run over `num_items` items."""
    drawn = _num_drawn(settings, num_items)
    return Sampler(num_items, batch_size=settings.batch_size, num_drawn=drawn, seed=settings.seed)


class Sampler:
    """Indices of the items of each step.

    Args:
        num_items: items to draw from, > 0.
        batch_size: items of a step.
        num_drawn: items of the whole run; the last batch is cut to it.
        seed: decides the order.
    """

    def __init__(self, num_items: int, *, batch_size: int, num_drawn: int, seed: int) -> None:
        self._num_items, self._batch_size, self._num_drawn, self._seed = (
            num_items,
            batch_size,
            num_drawn,
            seed,
        )
        # Two epochs can meet in one batch.
        self._order = lru_cache(maxsize=2)(self._new_order)

    def _new_order(self, epoch: int) -> NDArray[np.int64]:
        return generator(self._seed, "order", epoch).permutation(self._num_items)

    def batch(self, step: int) -> list[int]:
        """Indices of the items of `step` (counted from 0)."""
        first = step * self._batch_size
        positions = range(first, min(first + self._batch_size, self._num_drawn))
        return [int(self._order(p // self._num_items)[p % self._num_items]) for p in positions]

    def epoch(self, step: int) -> float:
        """Passes over the items after `step` steps."""
        return min(step * self._batch_size, self._num_drawn) / self._num_items
