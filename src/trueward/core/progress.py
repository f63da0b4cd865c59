"""Progress on the terminal: one bar a stage with what, how far, how long yet, and the one number that
matters.

On something that is no terminal a plain line appears every few seconds instead, so that logs stay readable.
"""

import time
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from trueward.core.errors import printable

__all__ = ["Bar", "stage_bar"]

_PLAIN_EVERY_S = 10.0


class Bar:
    """Handle of a running bar."""

    def __init__(self, name: str, total: int, console: Console, progress: Progress | None) -> None:
        self._name, self._total, self._console, self._progress = printable(name), total, console, progress
        self._task = progress.add_task(self._name, total=total, figure="") if progress else None
        self._start_s = self._last_s = time.monotonic()
        self.done = 0
        self.figure = ""

    def update(self, done: int, figure: str = "") -> None:
        """Set how far the stage is (0..total) and the figure shown beside it, for example `loss 0.52`."""
        self.done, self.figure = done, printable(figure) or self.figure
        if self._progress is not None and self._task is not None:
            self._progress.update(self._task, completed=done, figure=self.figure)
        elif time.monotonic() - self._last_s > _PLAIN_EVERY_S:
            self._last_s = time.monotonic()
            self._plain()

    def advance(self, count: int = 1, figure: str = "") -> None:
        """Move on by `count`."""
        self.update(self.done + count, figure)

    def _plain(self) -> None:
        spent_s = time.monotonic() - self._start_s
        left = (
            f", {spent_s * (self._total - self.done) / self.done:.0f} s left"
            if 0 < self.done < self._total
            else ""
        )
        text = f"{self._name}: {self.done}/{self._total}, {spent_s:.0f} s{left}, {self.figure}".rstrip(", ")
        self._console.print(text, markup=False, highlight=False, emoji=False, soft_wrap=True)

    def close(self) -> None:
        """Print the closing line where there is no live bar."""
        if self._progress is None:
            self._plain()


@contextmanager
def stage_bar(name: str, total: int, console: Console | None = None) -> Iterator[Bar]:
    """A bar for one stage of `total` units of work."""
    console = console or Console(stderr=True)
    if not console.is_terminal:
        bar = Bar(name, total, console, None)
        yield bar
        bar.close()
        return
    columns = (
        TextColumn("{task.description:<14}", style="bold", markup=False),
        BarColumn(bar_width=28),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[figure]}", markup=False),
    )
    with Progress(*columns, console=console) as progress:
        yield Bar(name, total, console, progress)
