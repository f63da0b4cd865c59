"""Records, lineage, gates and releases. Reads and writes JSON; never runs a model. No torch."""

from trueward.registry.cards import release_card
from trueward.registry.evidence import Evidence, Metric, Subject, evidence_body, read_evidence
from trueward.registry.gates import CriterionResult, Verdict, decide
from trueward.registry.release import Release, make_release
from trueward.registry.store import KINDS, Lineage, Node, Record, Registry, record_id

__all__ = [
    "KINDS",
    "CriterionResult",
    "Evidence",
    "Lineage",
    "Metric",
    "Node",
    "Record",
    "Registry",
    "Release",
    "Subject",
    "Verdict",
    "decide",
    "evidence_body",
    "make_release",
    "read_evidence",
    "record_id",
    "release_card",
]
