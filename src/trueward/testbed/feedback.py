"""Simulated feedback: annotators compare two replies of a policy to the same prompt."""

from collections.abc import Iterator, Sequence

from trueward.core.hashing import hash_json
from trueward.core.seed import generator
from trueward.data.records import Comparison, Meta, Prompt
from trueward.testbed.annotators import ANNOTATORS, choose
from trueward.testbed.gold import gold_reward
from trueward.testbed.prompts import task_of

__all__ = ["compare_replies"]


def compare_replies(
    prompts: Sequence[Prompt], replies: Sequence[tuple[str, str]], *, charter: str, seed: int
) -> Iterator[Comparison]:
    """One comparison for each prompt whose two replies differ, by one annotator drawn for it.

    Args:
        prompts: prompts of the testbed.
        replies: two decoded replies to each.
        charter: hash of the charter that the annotators worked under.
        seed: of the annotators.

    Yields:
        Comparisons whose `meta.extra` also holds the true rewards, for checking, never for training.
    """
    rng = generator(seed, "annotators")
    for prompt, (first, second) in zip(prompts, replies, strict=True):
        if first == second:
            continue
        task = task_of(prompt.meta)
        golds = gold_reward(task, first).total, gold_reward(task, second).total
        lengths = len(first.split()), len(second.split())
        annotator = ANNOTATORS[int(rng.integers(len(ANNOTATORS)))]
        preferred = choose(annotator, golds, lengths, rng)
        chosen, rejected = (0, 1) if preferred else (1, 0)
        texts = (first, second)
        extra = {"gold_chosen": golds[chosen], "gold_rejected": golds[rejected], **prompt.meta.extra}
        meta = Meta(
            source="testbed", licence="Apache-2.0", annotator=annotator.name, charter=charter, extra=extra
        )
        identity = hash_json([prompt.id, texts[chosen], texts[rejected]])[:16]
        yield Comparison(
            id=identity,
            prompt=prompt.messages,
            chosen=texts[chosen],
            rejected=texts[rejected],
            margin=None,
            soft_label=None,
            meta=meta,
        )
