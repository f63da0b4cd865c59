"""Releases: a model that passed its gate, with charter, evidence, lineage and card, under one id.

Before anything is written the verdict is derived again from the records, and the model is hashed again.
"""

import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from trueward.charter import Charter
from trueward.core.errors import EvidenceError
from trueward.core.files import new_folder, read_json, write_json, write_text
from trueward.core.hashing import short
from trueward.registry.cards import release_card
from trueward.registry.gates import Verdict, decide
from trueward.registry.store import Record, Registry, record_id

__all__ = ["Release", "make_release"]

SCHEMA = "trueward.release/1"


@dataclass(frozen=True, kw_only=True, slots=True)
class Release:
    """A published release."""

    id: str
    path: Path


def make_release(
    registry: Registry,
    verdict: Verdict,
    model_folder: Path,
    out: Path,
    *,
    charter: Charter,
    hash_model: Callable[[Path], str],
    stage: str,
    parents: tuple[str, ...] = (),
) -> Release:
    """Publish a model that passed. Making the same release again returns the one that is there.

    Args:
        registry: where the evidence lies, and where the verdict and the release are recorded.
        verdict: the gate's decision on this model.
        model_folder: the model; its files are hard-linked, or copied where the file system cannot link.
        out: folder of all releases; the new one becomes `out/<first 16 characters of the id>`.
        charter: the charter the verdict was reached under.
        hash_model: the function that gave `verdict.subject` from the model folder.
        stage: what made the model, such as `dpo`.
        parents: further records the release came from: model, runs, data sets, charter.

    Raises:
        EvidenceError: refused, not to be derived from the records again, or another model.
        StorageError: the disk refuses; no half release is left.
    """
    evidence = _rederived(registry, verdict, charter)
    _same_model(hash_model, model_folder, verdict, "the model folder")
    verdict_id = registry.put("verdict", verdict.body(), [*verdict.sources, *parents])
    body = {
        "schema": SCHEMA,
        "name": f"{charter.name}-{stage}-{short(verdict.subject)}",
        "stage": stage,
        "model": verdict.subject,
        "charter": verdict.charter,
        "data": dict(verdict.data),
        "template": verdict.template,
        "verdict": verdict_id,
        "evidence": [record.id for record in evidence],
    }
    release_id = record_id("release", [verdict_id], body)
    path = out / short(release_id)
    if path.exists():
        _same_release(path, release_id)
    else:
        with new_folder(path) as staging:
            _link_folder(model_folder, staging / "model")
            _same_model(hash_model, staging / "model", verdict, "the copied model")
            _write_records(staging, registry, verdict, evidence, charter, {**body, "id": release_id})
    stored = registry.put("release", body, [verdict_id])
    assert stored == release_id, "the registry and the release disagree on the id of the same content"
    return Release(id=release_id, path=path)


def _rederived(registry: Registry, verdict: Verdict, charter: Charter) -> list[Record]:
    if not verdict.passed:
        failed = [result for result in verdict.criteria if not result.passed]
        raise EvidenceError(
            f"the gate refused this model: {failed[0].id}: {failed[0].reason}"
            if failed
            else "the gate refused this model",
            remedy="mend what failed and measure again; a refused model cannot be released",
        )
    evidence = [registry.get(source) for source in verdict.sources]
    again = decide(
        charter,
        verdict.profile,
        evidence,
        subject=verdict.subject,
        data=verdict.data,
        template=verdict.template,
        reward_model=verdict.reward_model,
        operating_point=verdict.operating_point,
    )
    if again != verdict:
        reasons = [f"{result.id}: {result.reason}" for result in again.criteria if not result.passed]
        raise EvidenceError(
            "the verdict cannot be derived again from the records" + (f": {reasons[0]}" if reasons else ""),
            remedy="run the gate again",
        )
    return evidence


def _same_model(hash_model: Callable[[Path], str], folder: Path, verdict: Verdict, what: str) -> None:
    seen = hash_model(folder)
    if seen != verdict.subject:
        raise EvidenceError(
            f"{what} {folder} is not the model that was judged",
            value=short(seen),
            expected=short(verdict.subject),
            remedy="measure this model and run the gate on it",
        )


def _same_release(path: Path, release_id: str) -> None:
    there = read_json(path / "release.json")
    if not isinstance(there, dict) or there.get("id") != release_id:
        raise EvidenceError(f"{path} holds another release", remedy="move it away")


def _link_folder(source: Path, target: Path) -> None:
    target.mkdir()
    for item in sorted(source.iterdir()):
        if item.is_dir():
            _link_folder(item, target / item.name)
        else:
            _link_file(item.resolve(), target / item.name)


def _link_file(source: Path, target: Path) -> None:
    # Our writers replace files and never edit them in place, so a shared inode stays as it was.
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)


def _write_records(
    folder: Path,
    registry: Registry,
    verdict: Verdict,
    evidence: list[Record],
    charter: Charter,
    release: dict[str, Any],
) -> None:
    write_text(
        folder / "charter.yaml",
        yaml.safe_dump(charter.body(), sort_keys=False, allow_unicode=True, width=110),
    )
    for record in evidence:
        write_json(folder / "evidence" / f"{record.id}.json", record.to_json())
    write_json(folder / "verdict.json", verdict.body())
    write_json(folder / "lineage.json", registry.lineage(release["verdict"]).to_json())
    write_json(folder / "release.json", release)
    write_text(folder / "README.md", release_card(release, verdict, charter))
