"""`trueward doctor`: what looks sick in a run, in words, from its metrics and manifests alone.

Reads, never writes; loads no model and no torch. The rules are those of `core.diagnosis`, which trainers use
too.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from rich.console import Console

from trueward.core.diagnosis import Diagnosis, diagnosis
from trueward.core.errors import DataError, RunError, printable
from trueward.core.files import read_jsonl
from trueward.core.run import open_run
from trueward.core.symptom import ABSENT, Bounds, Finding

__all__ = ["Examined", "doctor", "examine"]

SCHEMA = "trueward.doctor/1"
HEALTHY, SICK = 0, 1


class Examined(NamedTuple):
    """A stage and what its metrics say.

    rows: lines of metrics.jsonl.
    notes: what is worth knowing but no finding, such as that the run never finished.
    """

    name: str
    path: Path
    rows: int
    diagnosis: Diagnosis
    notes: tuple[str, ...]


def examine(path: Path) -> list[Examined]:
    """Every stage below `path` that has metrics, in the order in which they were begun.

    Args:
        path: folder of a stage or round (it holds metrics.jsonl), or any folder above such folders.

    Raises:
        RunError: no such folder, or nothing in it has metrics.
        DataError: metrics that are not what a trainer writes.
    """
    if not path.is_dir():
        raise RunError(f"{printable(str(path))} is no folder", remedy="give the folder of a run")
    below = {file.parent for file in path.rglob("metrics.jsonl") if file.is_file()}
    # A run that died at its first step left a dump alone.
    below |= {folder.parent for folder in path.rglob("bad_batches") if folder.is_dir()}
    if not below:
        raise RunError(
            f"nothing in {path} has metrics",
            expected="a metrics.jsonl in the folder or below it",
            remedy="give the folder of a run, or wait for its first step",
        )
    return [_examine(folder) for folder in sorted(below, key=lambda folder: (_begun(folder), folder))]


def _begun(path: Path) -> str:
    return str(_manifest(path).get("started", ""))


def _manifest(path: Path) -> dict[str, Any]:
    """The manifest of a stage; empty for a trainer's own folder, which has none."""
    return open_run(path).manifest if (path / "manifest.json").is_file() else {}


def _examine(path: Path) -> Examined:
    manifest = _manifest(path)
    file = path / "metrics.jsonl"
    rows = list(read_jsonl(file)) if file.is_file() else []
    _check_rows(rows, file)
    found = diagnosis(rows, Bounds.of(manifest.get("config", {})))
    return Examined(
        name=str(manifest.get("stage", path.name)),
        path=path,
        rows=len(rows),
        diagnosis=found._replace(findings=(*found.findings, *_dumped(path, found))),
        notes=tuple(_notes(manifest, len(rows))),
    )


def _check_rows(rows: Sequence[Any], file: Path) -> None:
    for number, row in enumerate(rows, 1):
        # Not a bool, which is an int to Python.
        if not isinstance(row, dict) or type(row.get("step")) is not int:
            raise DataError(f"{file}:{number} is no line of metrics", value=row)
        odd = [key for key, value in row.items() if not isinstance(value, int | float | None)]
        if odd:
            raise DataError(f"{file}:{number} has no number for {odd[0]}", value=row[odd[0]])


def _dumped(path: Path, found: Diagnosis) -> Iterator[Finding]:
    """Steps that were dumped but stand in no line of metrics: the run ended at them."""
    dumps = sorted((path / "bad_batches").glob("step-*.json"))
    if dumps and not any(finding.rule == "skipped steps" for finding in found.findings):
        step = int(dumps[0].stem.rpartition("-")[2])
        yield Finding(
            "skipped steps",
            step,
            f"{len(dumps)} steps were not finite, the first after step {step}",
            "what they held was not learned, and the run may have ended at them",
            f"look at {dumps[0].parent}; lower lr or max_grad_norm, or use float32",
        )


def _notes(manifest: dict[str, Any], num_rows: int) -> Iterator[str]:
    if num_rows == 0:
        yield "no step has been logged yet"
    status = manifest.get("status", "done")
    if status == "running":
        yield "its manifest says that it runs: it goes on, or it was killed and can be resumed"
    elif status != "done":
        yield f"it ended as {status}"
    if stopped := manifest.get("results", {}).get("stopped"):
        yield f"it stopped early: {stopped}"


def doctor(path: Path, *, as_json: bool) -> int:
    """Print what looks wrong below `path`.

    Returns:
        0 where nothing does, 1 where something does.
    """
    stages = examine(path)
    if as_json:
        print(json.dumps({"schema": SCHEMA, "stages": [_as_json(stage) for stage in stages]}, indent=2))
    else:
        console = Console(soft_wrap=True)
        for line in _lines(stages):
            console.print(printable(line), markup=False, highlight=False)
    return SICK if any(stage.diagnosis.findings for stage in stages) else HEALTHY


def _as_json(stage: Examined) -> dict[str, Any]:
    return {
        "stage": stage.name,
        "folder": str(stage.path),
        "rows": stage.rows,
        "healthy": not stage.diagnosis.findings,
        "findings": [finding._asdict() for finding in stage.diagnosis.findings],
        "checked": list(stage.diagnosis.checked),
        "unchecked": dict(stage.diagnosis.unchecked),
        "notes": list(stage.notes),
    }


def _by_reason(unchecked: Mapping[str, str]) -> Iterator[tuple[str, list[str]]]:
    """Why -> rules. Which metrics are absent stands in the JSON: here the names of the rules are enough."""
    reasons = {
        name: "as their metrics are absent" if why.startswith(ABSENT) else why
        for name, why in unchecked.items()
    }
    for reason in dict.fromkeys(reasons.values()):
        yield reason, [name for name, why in reasons.items() if why == reason]


def _lines(stages: list[Examined]) -> Iterator[str]:
    for stage in stages:
        findings, checked, unchecked, count = *stage.diagnosis, len(stage.diagnosis.findings)
        yield f"{stage.name} ({stage.rows} logged steps, {stage.path})"
        yield from (f"  note: {note}" for note in stage.notes)
        if not count:
            said = f"nothing looks wrong ({len(checked)} rules checked)"
            yield f"  {said if checked else 'nothing could be checked'}"
        for number, finding in enumerate(findings, 1):
            yield f"  {number}. {finding.rule}, step {finding.step}"
            yield f"     seen: {finding.seen}"
            yield f"     why it matters: {finding.why}"
            yield f"     try: {finding.remedy}"
        yield from (f"  not checked, {why}: {', '.join(names)}" for why, names in _by_reason(unchecked))
        yield ""
    sick = [stage.name for stage in stages if stage.diagnosis.findings]
    yield f"something looks wrong in: {', '.join(sick)}" if sick else "nothing looks wrong"
