"""Token groups as items of the loop: how they are cut into forwards, counted, described and summed over.

Axes: N completion tokens of a packed row, S sequences of it.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import TypeVar

import torch
from torch import Tensor

from trueward.core.hashing import canonical_json, hash_lines
from trueward.data.chat import Completion, TokenGroup
from trueward.models.packing import Packed, batches_by_tokens
from trueward.rollouts.engine import Rollout

__all__ = [
    "cut",
    "describe_group",
    "groups_hash",
    "num_trained",
    "rollout_groups",
    "sequence_sums",
    "trained_counts",
]

T = TypeVar("T")


def cut(items: Sequence[T], group: Callable[[T], TokenGroup], max_tokens: int) -> list[list[T]]:
    """Items in forwards of at most `max_tokens` real tokens, in order.

    Raises:
        DataError: one item alone is longer.
    """
    batches = batches_by_tokens([group(item) for item in items], max_tokens)
    return [[items[i] for i in batch] for batch in batches]


def describe_group(group: TokenGroup) -> dict[str, object]:
    """A group as JSON values: ids, and which of them are trained as a string of 0 and 1."""
    return {
        "id": group.id,
        "prompt_ids": list(group.prompt_ids),
        "completions": [
            {"ids": list(c.ids), "trained": "".join("1" if on else "0" for on in c.trained)}
            for c in group.completions
        ],
    }


def groups_hash(groups: Iterable[TokenGroup]) -> str:
    """Content hash of token groups, in order."""
    return hash_lines(canonical_json(describe_group(group)) for group in groups)


def num_trained(group: TokenGroup) -> int:
    """Trained tokens of all completions of a group."""
    return sum(sum(completion.trained) for completion in group.completions)


def rollout_groups(prompts: Sequence[TokenGroup], rollouts: Sequence[Rollout]) -> list[TokenGroup]:
    """Prompts with the completions that were drawn for them, all of their tokens trained.

    Args:
        rollouts: ordered prompt by prompt, at least one of each, as engines return them.
    """
    drawn: list[list[Completion]] = [[] for _ in prompts]
    for rollout in rollouts:
        drawn[rollout.prompt].append(Completion(rollout.ids, (True,) * len(rollout.ids)))
    return [TokenGroup(p.prompt_ids, tuple(c), p.id) for p, c in zip(prompts, drawn, strict=True)]


def sequence_sums(values_N: Tensor, packed: Packed) -> Tensor:
    """Sum of the trained tokens of each sequence, sums_S; gradients pass."""
    kept_N = torch.where(packed.trained_N, values_N, 0.0)
    return values_N.new_zeros(packed.num_sequences).index_add(0, packed.sequence_N, kept_N)


def trained_counts(packed: Packed) -> Tensor:
    """Trained tokens of each sequence, counts_S, float32."""
    return sequence_sums(torch.ones_like(packed.labels_N, dtype=torch.float32), packed)
