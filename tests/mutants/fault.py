"""What a planted fault is, and how it gets into a copy of the sources; never into the sources themselves."""

import shutil
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
SOURCE = ROOT / "src"


@dataclass(frozen=True, kw_only=True, slots=True)
class Fault:
    """One wrong change of one place, and the test files that must notice it."""

    name: str
    """What is wrong, in a few words."""
    file: str
    """Path below src/trueward."""
    old: str
    """Text that occurs exactly once in the file."""
    new: str
    tests: tuple[str, ...]
    """Paths below tests/."""


def planted(fault: Fault) -> str:
    """Text of the file with the fault in it.

    Raises:
        ValueError: the old text does not occur exactly once, or the new text is the old one.
    """
    text = (SOURCE / "trueward" / fault.file).read_text(encoding="utf-8")
    count = text.count(fault.old)
    if count != 1:
        raise ValueError(
            f"fault {fault.name!r}: its text must occur exactly once in {fault.file}, found {count} times:"
            f" {fault.old!r}; adapt the fault to the code"
        )
    if fault.new == fault.old:
        raise ValueError(f"fault {fault.name!r} changes nothing")
    return text.replace(fault.old, fault.new)


def copy_sources(folder: Path, fault: Fault | None) -> Path:
    """A copy of src in `folder`, with the fault in it (None: as it is); returns the copy."""
    copied = folder / "src"
    shutil.copytree(SOURCE, copied, ignore=shutil.ignore_patterns("__pycache__"))
    if fault is not None:
        (copied / "trueward" / fault.file).write_text(planted(fault), encoding="utf-8")
    return copied
