"""Exports are read back by our own importers as the same records, and refuse what they cannot hold."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.data.test_records import EXAMPLES
from trueward.core.errors import ConfigError, DataError
from trueward.data.export import export_file
from trueward.data.importers import import_file
from trueward.data.records import Comparison, Message, Meta, Record, kind_of

USER = (Message("user", "Why?"),)
BY_KIND = {kind_of(record): record for record in EXAMPLES}
STRICT = replace(BY_KIND["comparison"], margin=None, soft_label=None)


def variants(record: Record, **changes: Any) -> list[Record]:
    """Three records of one kind, without meta, which no export holds."""
    return [replace(record, id=f"{record.id}{n}", meta=Meta(), **changes) for n in range(3)]


CASES = [
    *(("trl-conversational", variants(record)) for name, record in BY_KIND.items() if name != "ranking"),
    ("trl-standard", variants(BY_KIND["text"])),
    ("trl-standard", variants(BY_KIND["prompt"], messages=USER)),
    ("trl-standard", variants(BY_KIND["demonstration"], messages=(*USER, Message("assistant", "So.")))),
    *(("trl-standard", variants(BY_KIND[name], prompt=USER)) for name in ("comparison", "label", "steps")),
    ("openai", variants(BY_KIND["demonstration"])),
    ("openai", variants(STRICT)),
]


@pytest.mark.parametrize(
    ("form", "records"), CASES, ids=[f"{form}-{kind_of(rows[0])}" for form, rows in CASES]
)
def test_round_trip(tmp_path: Path, form: str, records: list[Record]) -> None:
    file = tmp_path / "out.jsonl"
    assert export_file(records, file, form=form) == 3
    back = list(import_file(file, quarantine=tmp_path / "bad.jsonl", meta=Meta()))
    assert back == records


@pytest.mark.parametrize(
    ("form", "record"),
    [
        ("trl-conversational", BY_KIND["ranking"]),
        ("trl-standard", BY_KIND["comparison"]),
        ("openai", BY_KIND["comparison"]),
        ("openai", BY_KIND["label"]),
    ],
    ids=["ranking", "system prompt", "margin", "label"],
)
def test_what_a_form_cannot_hold(tmp_path: Path, form: str, record: Record) -> None:
    with pytest.raises(DataError, match=f"record {record.id}: "):
        export_file([record], tmp_path / "out.jsonl", form=form)
    assert list(tmp_path.iterdir()) == []


def test_mixed_kinds_and_unknown_forms(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="is a prompt among text records"):
        export_file(EXAMPLES, tmp_path / "out.jsonl")
    with pytest.raises(ConfigError, match="did you mean 'openai'"):
        export_file(
            [Comparison(id="c", prompt=USER, chosen="a", rejected="b")], tmp_path / "x", form="open-ai"
        )
