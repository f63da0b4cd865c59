"""A folder of immutable records, each named by the hash of its content and naming its parents.

`<root>/<kind>/<id>.json` holds {"schema", "id", "kind", "parents", "body"}; the id is the SHA-256 of kind,
parents and body. A parent exists before its child, so there are no cycles. Nothing is ever overwritten.
"""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trueward.core.errors import EvidenceError, nearest
from trueward.core.files import read_json, write_json
from trueward.core.hashing import hash_json, short

__all__ = ["KINDS", "Lineage", "Node", "Record", "Registry", "record_id", "verified"]

SCHEMA = "trueward.record/1"
KINDS = ("charter", "dataset", "model", "run", "evidence", "verdict", "release")
_ID = re.compile(r"[0-9a-f]{64}")
_LABELS = ("name", "label", "stage", "kind")


@dataclass(frozen=True, kw_only=True, slots=True)
class Record:
    """One stored fact."""

    id: str
    kind: str
    parents: tuple[str, ...]
    body: Mapping[str, Any]

    def to_json(self) -> dict[str, Any]:
        """The record as it lies on disk."""
        return {
            "schema": SCHEMA,
            "id": self.id,
            "kind": self.kind,
            "parents": list(self.parents),
            "body": dict(self.body),
        }


@dataclass(frozen=True, kw_only=True, slots=True)
class Node:
    """A record in a lineage: enough to draw it."""

    id: str
    kind: str
    label: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Lineage:
    """A record and everything it came from. Edges go from parent to child."""

    nodes: tuple[Node, ...]
    edges: tuple[tuple[str, str], ...]

    def to_json(self) -> dict[str, Any]:
        """The `lineage` part of a summary."""
        nodes = [{"id": node.id, "kind": node.kind, "label": node.label} for node in self.nodes]
        return {"nodes": nodes, "edges": [list(edge) for edge in self.edges]}


def record_id(kind: str, parents: Sequence[str], body: Mapping[str, Any]) -> str:
    """The id that content has: 64 hexadecimal characters.

    Raises:
        EvidenceError: the body is not JSON, or holds a number that is not finite.
    """
    try:
        return hash_json([kind, list(parents), dict(body)])
    except (TypeError, ValueError) as error:
        raise EvidenceError(f"the body of a {kind} record is not JSON: {error}") from error


def verified(record: Record) -> Record:
    """`record` itself, if its content has the hash that its id says.

    Raises:
        EvidenceError: it has not.
    """
    if record_id(record.kind, record.parents, record.body) != record.id:
        raise EvidenceError(
            f"{record.kind} record {short(record.id)} was changed after it was written",
            expected="content that has the hash its id says",
            remedy="restore the file, or measure again",
        )
    return record


class Registry:
    """The records under one folder.

    Args:
        root: the folder; made when the first record is put.
    """

    def __init__(self, root: Path) -> None:
        self.root = root

    def put(self, kind: str, body: Mapping[str, Any], parents: Sequence[str] = ()) -> str:
        """Store a record and return its id. Putting the same content again changes nothing.

        Args:
            kind: one of KINDS.
            body: JSON values.
            parents: ids of the records this one came from; order and repeats do not matter.

        Raises:
            EvidenceError: unknown kind, a body that is not JSON, a parent that is missing or was changed.
        """
        if kind not in KINDS:
            raise EvidenceError(f"unknown kind of record {kind!r}", remedy=nearest(kind, KINDS))
        ordered = tuple(sorted(set(parents)))
        identifier = record_id(kind, ordered, body)
        path = self._path(kind, identifier)
        if path.exists():
            return self._read(path).id
        for parent in ordered:
            self.get(parent)
        # Through JSON once, so that what is stored is what is hashed (tuples become lists).
        stored = Record(id=identifier, kind=kind, parents=ordered, body=json.loads(json.dumps(dict(body))))
        write_json(path, verified(stored).to_json())
        return identifier

    def get(self, identifier: str) -> Record:
        """Read one record and check its hash.

        Raises:
            EvidenceError: not an id, missing, or changed after it was written.
        """
        path = self._find(identifier)
        if path is None:
            raise EvidenceError(
                f"record {short(identifier)} is not in {self.root}", remedy="check the id and the folder"
            )
        return self._read(path)

    def __contains__(self, identifier: str) -> bool:
        return self._find(identifier) is not None

    def all(self, kind: str) -> list[Record]:
        """Every record of one kind, ordered by id, each checked.

        Raises:
            EvidenceError: unknown kind, or any of them was changed.
        """
        if kind not in KINDS:
            raise EvidenceError(f"unknown kind of record {kind!r}", remedy=nearest(kind, KINDS))
        return [self._read(path) for path in sorted((self.root / kind).glob("*.json"))]

    def children(self, identifier: str) -> list[Record]:
        """The records that name `identifier` as a parent, ordered by kind and id."""
        return [record for kind in KINDS for record in self.all(kind) if identifier in record.parents]

    def lineage(self, identifier: str) -> Lineage:
        """The record and all its ancestors up to the roots, parents before children.

        Raises:
            EvidenceError: any of them is missing or was changed.
        """
        found: dict[str, Record] = {}
        waiting = [identifier]
        while waiting:
            current = waiting.pop()
            if current not in found:
                found[current] = self.get(current)
                waiting.extend(found[current].parents)
        ordered: dict[str, Record] = {}
        while len(ordered) < len(found):
            ready = [
                r for r in found.values() if r.id not in ordered and all(p in ordered for p in r.parents)
            ]
            assert ready, "a record cannot name a parent that was hashed after it"
            ordered.update({r.id: r for r in sorted(ready, key=lambda r: (KINDS.index(r.kind), r.id))})
        return Lineage(
            nodes=tuple(Node(id=r.id, kind=r.kind, label=_label(r)) for r in ordered.values()),
            edges=tuple((parent, r.id) for r in ordered.values() for parent in r.parents),
        )

    def _path(self, kind: str, identifier: str) -> Path:
        return self.root / kind / f"{identifier}.json"

    def _find(self, identifier: str) -> Path | None:
        # The pattern also keeps `../` and the like out of file names.
        if not _ID.fullmatch(identifier):
            raise EvidenceError("a record id is 64 hexadecimal characters", value=identifier)
        return next((path for kind in KINDS if (path := self._path(kind, identifier)).is_file()), None)

    def _read(self, path: Path) -> Record:
        value = read_json(path)
        keys = {"schema", "id", "kind", "parents", "body"}
        if not isinstance(value, dict) or set(value) != keys or value["schema"] != SCHEMA:
            raise EvidenceError(f"{path} is no record of schema {SCHEMA}", remedy="restore the file")
        if (
            value["id"] != path.stem
            or value["kind"] != path.parent.name
            or not isinstance(value["body"], dict)
        ):
            raise EvidenceError(f"{path} holds another record than its name says", remedy="restore the file")
        return verified(
            Record(id=value["id"], kind=value["kind"], parents=tuple(value["parents"]), body=value["body"])
        )


def _label(record: Record) -> str:
    subject = record.body.get("subject")
    stage = subject.get("stage") if isinstance(subject, dict) else None
    named = (record.body.get(key) for key in _LABELS)
    name = next((value for value in named if isinstance(value, str) and value), short(record.id))
    return f"{name} of {stage}" if isinstance(stage, str) else name
