"""Labelled answers to one prompt as comparisons: each good answer over a bad one, every answer at most once.

Not all pairs: an answer that stands in many of them would count as often as it is repeated, and no interval
over pairs would be right. Memory holds all labelled answers.
"""

from collections.abc import Iterable, Iterator
from dataclasses import replace

from trueward.data.records import Comparison, Label, Message, Record

__all__ = ["PairedLabels"]


class PairedLabels:
    """Records with the labels among them paired: iterate over it once; the counts are final at its end.

    All other records pass as they are, in their order; comparisons follow, in the order of their prompts. The
    first good answer to a prompt goes with its first bad one of another text, and so on. `meta.extra` of a
    comparison holds what came with each side under `chosen` and `rejected`.

    Attributes:
        num_labels: labelled answers seen.
        num_pairs: comparisons made.
        num_left: labelled answers without a counterpart, left out.
    """

    def __init__(self, records: Iterable[Record]) -> None:
        self.num_labels = self.num_pairs = 0
        self._records = records

    @property
    def num_left(self) -> int:
        return self.num_labels - 2 * self.num_pairs

    def __iter__(self) -> Iterator[Record]:
        asked: dict[tuple[Message, ...], tuple[list[Label], list[Label]]] = {}
        for record in self._records:
            if not isinstance(record, Label):
                yield record
                continue
            self.num_labels += 1
            good, bad = asked.setdefault(record.prompt, ([], []))
            (good if record.label else bad).append(record)
        for good, bad in asked.values():
            for pair in _pairs(good, bad):
                self.num_pairs += 1
                yield pair

    def summary(self) -> str:
        """The counts in a sentence, once the iteration has ended."""
        return (
            f"{self.num_pairs:,} comparisons from {self.num_labels:,} labelled answers, a good one over a "
            f"bad one to the same prompt; {self.num_left:,} have no counterpart and are left out"
        )


def _pairs(good: list[Label], bad: list[Label]) -> Iterator[Comparison]:
    free = list(bad)
    for better in good:
        worse = next((label for label in free if label.completion != better.completion), None)
        if worse is None:
            continue
        free.remove(worse)
        yield Comparison(
            id=f"{better.id}>{worse.id}",
            prompt=better.prompt,
            chosen=better.completion,
            rejected=worse.completion,
            meta=replace(better.meta, extra={"chosen": _side(better), "rejected": _side(worse)}),
        )


def _side(label: Label) -> dict[str, object]:
    return {"id": label.id, "source": label.meta.source, **label.meta.extra}
