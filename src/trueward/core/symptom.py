"""The vocabulary of a diagnosis: the series of a run's metrics, a rule over them, and what a rule found.

Reads lines of metrics.jsonl and nothing else; no torch. The rules stand in symptoms_training and
symptoms_policy.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Self

__all__ = ["ABSENT", "Bounds", "Finding", "History", "Row", "Rule", "Series"]

Row = Mapping[str, Any]
_LARGEST_WINDOW = 20
ABSENT = "no metric "


class Series(NamedTuple):
    """Finite values of a metric in order, and the steps they were logged at."""

    steps: tuple[int, ...]
    values: tuple[float, ...]


class Finding(NamedTuple):
    """What a rule saw.

    rule: its name.
    step: where it was seen.
    seen: the figures, as a clause.
    why: why they matter, as a clause.
    remedy: what to try, as a clause.
    """

    rule: str
    step: int
    seen: str
    why: str
    remedy: str

    def sentence(self) -> str:
        return f"{self.seen}: {self.why}; {self.remedy}"


@dataclass(frozen=True, kw_only=True, slots=True)
class Bounds:
    """What a run was asked to keep to, where a rule's bound is the run's own setting.

    kl_budget: nats per completion; None where the run has none.
    max_new_tokens: tokens; None where it is not known.
    max_sampler_gap: nats.
    displacement_limit: nats per token.
    max_lambda: largest price of a constraint's cost; None where it has none.
    """

    kl_budget: float | None = None
    max_new_tokens: int | None = None
    max_sampler_gap: float = 0.02
    displacement_limit: float = 0.1
    max_lambda: float | None = None

    @classmethod
    def of(cls, config: Mapping[str, Any]) -> Self:
        """The bounds that stand anywhere in a configuration; the rest keep their defaults."""
        found = dict(_leaves(config))
        given = {name: found[name] for name in cls.__slots__ if isinstance(found.get(name), int | float)}
        return cls(**given)


def _leaves(config: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    for key, value in config.items():
        if isinstance(value, Mapping):
            yield from _leaves(value)
        else:
            yield key, value


class History:
    """The metrics of one run, and means of them over windows.

    A window is a quarter of the values of the metric, 20 at most: one step alone is noise.
    """

    def __init__(self, rows: Sequence[Row], bounds: Bounds) -> None:
        self._rows, self.bounds = rows, bounds
        self.names = {name for row in rows for name in row}

    def series(self, name: str) -> Series:
        """Finite values of a metric; one that was not finite is null on disk and left out."""
        known = [
            (int(row["step"]), float(value))
            for row in self._rows
            if (value := row.get(name)) is not None and math.isfinite(value)
        ]
        return Series(tuple(step for step, _ in known), tuple(value for _, value in known))

    def first(self, name: str) -> float:
        """Mean of the first window."""
        values = self.series(name).values
        return _mean(values[: _window(values)])

    def last(self, name: str) -> float:
        """Mean of the last window."""
        values = self.series(name).values
        return _mean(values[-_window(values) :])

    def best(self, name: str) -> float:
        """Largest mean of a window."""
        values = self.series(name).values
        size = _window(values)
        return max(_mean(values[i : i + size]) for i in range(len(values) - size + 1))

    def noise(self, name: str) -> float:
        """Standard error of the mean of the last window; 0 for a window of one."""
        values = self.series(name).values
        window = values[-_window(values) :]
        centre, size = _mean(window), len(window)
        if size < 2:
            return 0.0
        return math.sqrt(sum((value - centre) ** 2 for value in window) / (size - 1) / size)

    def step(self, name: str) -> int:
        """The last step at which the metric is known."""
        return self.series(name).steps[-1]


def _window(values: Sequence[float]) -> int:
    return max(1, min(_LARGEST_WINDOW, len(values) // 4))


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


class Rule(NamedTuple):
    """One thing that can be wrong.

    name: as in the list of what was checked.
    needs: metrics without which it says nothing.
    check: the finding, or None; called with every needed metric known at least `rows` times.
    rows: values it needs of each.
    unless: a metric whose presence means that the rule says nothing here, and why.
    """

    name: str
    needs: tuple[str, ...]
    check: Callable[[History], Finding | None]
    rows: int = 1
    unless: tuple[str, str] | None = None

    def obstacle(self, history: History) -> str:
        """Why the rule cannot be held against this run; empty if it can."""
        if self.unless is not None and self.unless[0] in history.names:
            return self.unless[1]
        absent = [name for name in self.needs if name not in history.names]
        if absent:
            return ABSENT + ", ".join(absent)
        fewest = min(len(history.series(name).values) for name in self.needs)
        return f"as {fewest} values are too few (they need {self.rows})" if fewest < self.rows else ""
