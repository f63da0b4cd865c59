"""Measured lines in one JSON file: each says what it is, when and where it was measured, by which command.

Parts can be measured at different times: a line that is measured again takes the place of the older one of
its name, the others stay. Not here: what the figures mean.
"""

import os
import platform
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from trueward.core.errors import DataError
from trueward.core.files import read_json, write_json
from trueward.core.run import code_version, now, versions

__all__ = ["SCHEMA", "Line", "machine", "measured", "read_lines", "record", "select"]

SCHEMA = "trueward.performance/1"
_VECTORS = {
    "amx_bf16": "AMX",
    "avx512_bf16": "AVX-512 with bfloat16",
    "avx512f": "AVX-512",
    "avx2": "AVX2, no bfloat16",
}
_PEERS = ("trl", "datasets", "accelerate")


@dataclass(frozen=True, kw_only=True, slots=True)
class Line:
    """One measured line.

    name: words with slashes, the part first: `trl/135M/dpo/float32/1 thread/default`.
    values: figures, with their units in their names.
    """

    name: str
    date: str
    command: str
    machine: str
    versions: Mapping[str, str]
    commit: str
    values: Mapping[str, Any]

    @property
    def part(self) -> str:
        return self.name.split("/")[0]


def machine() -> str:
    """Processor, cores and memory of this machine, in words."""
    model, vectors = platform.processor() or platform.machine(), ""
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        lines = [line.partition(":") for line in cpuinfo.read_text(encoding="utf-8").splitlines()]
        stated = {name.strip(): value.strip() for name, _, value in reversed(lines)}
        model = stated.get("model name", model)
        flags = set(stated.get("flags", "").split())
        # Processors of one name differ by the machine they are lent through.
        vectors = next((f" ({words})" for flag, words in _VECTORS.items() if flag in flags), "")
    gib = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return f"{os.cpu_count()} cores of {model}{vectors}, {gib:.0f} GiB"


def _versions() -> dict[str, str]:
    found = versions()
    for name in _PEERS:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def read_lines(file: Path) -> list[Line]:
    """The lines of a results file; none where there is no file.

    Raises:
        DataError: the file is something else.
    """
    if not file.exists():
        return []
    found = read_json(file)
    if not isinstance(found, dict) or found.get("schema") != SCHEMA:
        raise DataError(f"{file} holds no measured lines", expected=SCHEMA, remedy="name another --results")
    return [Line(**line) for line in found["lines"]]


def measured(name: str, values: Mapping[str, Any], *, command: str, on: str = "") -> Line:
    """A line measured here and now; `on`: the device it ran on, where that is not the processor."""
    return Line(
        name=name,
        date=now(),
        command=command,
        machine=on or machine(),
        versions=_versions(),
        commit=str(code_version().get("commit", "")),
        values=dict(values),
    )


def record(file: Path, name: str, values: Mapping[str, Any], *, command: str, on: str = "") -> Line:
    """Add a line to the file, in place of an older one of its name; see `measured`."""
    line = measured(name, values, command=command, on=on)
    others = [other for other in read_lines(file) if other.name != name]
    lines = sorted([*others, line], key=lambda each: each.name)
    write_json(file, {"schema": SCHEMA, "lines": [asdict(each) for each in lines]})
    return line


def select(lines: Iterable[Line], parts: Sequence[str]) -> list[Line]:
    """The lines of some parts, in order."""
    return [line for line in lines if line.part in parts]
