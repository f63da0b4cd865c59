"""The errors a user can cause.

Each says what is wrong, the value seen, what was expected and what to do, in one sentence that the command
line prints before it exits with code 2. Every class is also a standard-library type. Broken invariants of our
own are `assert`s.

TruewardError
├── ConfigError     (ValueError)    a recipe, an override or an option
├── DataError       (ValueError)    a file or a record
├── PreflightError  (ValueError)    a dataset and tokenizer that would train on the wrong thing
├── ModelError      (ValueError)    a model or tokenizer folder
├── RunError        (RuntimeError)  a run folder, a checkpoint, a step that went wrong
├── StorageError    (OSError)       the disk
└── EvidenceError   (ValueError)    a registry record that cannot be trusted
"""

import difflib
from collections.abc import Iterable

__all__ = [
    "ConfigError",
    "DataError",
    "EvidenceError",
    "ModelError",
    "PreflightError",
    "RunError",
    "StorageError",
    "TruewardError",
    "nearest",
    "printable",
    "shown",
]

_UNSET = object()
_MAX_SHOWN = 120


def printable(text: str) -> str:
    """`text` on one line that a terminal cannot misread: whatever is not printable becomes its escape."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def shown(value: object) -> str:
    """`value` as one short printable line: control characters escaped, a cut at 120 characters marked."""
    text = printable(repr(value))
    return text if len(text) <= _MAX_SHOWN else text[: _MAX_SHOWN - 1] + "…"


def nearest(word: str, known: Iterable[str]) -> str:
    """A remedy sentence for an unknown name: the nearest known one, or the list of all."""
    names = sorted(known)
    match = difflib.get_close_matches(word, names, n=1, cutoff=0.5)
    return f"did you mean {match[0]!r}?" if match else f"known names: {', '.join(names)}"


def unknown(kind: str, name: str, known: Iterable[str]) -> str:
    """A clause about an unknown name, with the list of the known ones, and the nearest where one is near."""
    names = list(known)
    match = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
    near = f"did you mean {match[0]!r}? " if match else ""
    return f"unknown {kind} {name!r}; {near}known: {', '.join(names)}"


class TruewardError(Exception):
    """Base of all errors a user can cause.

    Args:
        what: what is wrong, as a clause without a full stop.
        value: the value seen; shown shortened and escaped.
        expected: what would have been right.
        remedy: what the user can do next.
    """

    def __init__(
        self, what: str, *, value: object = _UNSET, expected: str | None = None, remedy: str | None = None
    ) -> None:
        self.what = what
        self.expected = expected
        self.remedy = remedy
        parts = [what]
        if value is not _UNSET:
            parts.append(f"got {shown(value)}")
        if expected:
            parts.append(f"expected {expected}")
        message = ", ".join(parts)
        if remedy:
            message += f"; {remedy}"
        # File names and messages of libraries are part of `what`, and may hold anything.
        super().__init__(printable(message))


class ConfigError(TruewardError, ValueError):
    """A recipe, an override or an option is wrong."""


class DataError(TruewardError, ValueError):
    """A data file or a record is wrong."""


class PreflightError(TruewardError, ValueError):
    """The data and the tokenizer together would train on something else than intended."""


class ModelError(TruewardError, ValueError):
    """A model or tokenizer folder is wrong or incomplete."""


class RunError(TruewardError, RuntimeError):
    """A run folder, a checkpoint or a step went wrong."""


class StorageError(TruewardError, OSError):
    """The disk refused a write; what was there before is untouched."""


class EvidenceError(TruewardError, ValueError):
    """A record that a gate or a report would rely on cannot be trusted."""
