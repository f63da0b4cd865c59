"""The registry: content decides the id, nothing changes unseen, lineage reaches the roots."""

import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trueward.core.errors import EvidenceError
from trueward.registry import Registry, record_id

JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**53), 2**53)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@settings(max_examples=40, deadline=None)
@given(body=st.dictionaries(st.text(), JSON, max_size=4))
def test_what_is_put_is_got(body: dict[str, object], tmp_path_factory: pytest.TempPathFactory) -> None:
    registry = Registry(tmp_path_factory.mktemp("r"))
    identifier = registry.put("run", body)
    assert registry.get(identifier).body == body
    assert registry.put("run", body) == identifier
    assert [record.id for record in registry.all("run")] == [identifier]
    assert registry.put("model", body) != identifier


def test_lineage_reaches_the_roots(tmp_path: Path) -> None:
    registry = Registry(tmp_path)
    charter = registry.put("charter", {"name": "c"})
    data = registry.put("dataset", {"name": "d"}, [charter])
    run = registry.put("run", {"stage": "sft"}, [data, charter])
    model = registry.put("model", {"name": "m"}, [run])
    registry.put("run", {"stage": "unrelated"}, [charter])
    lineage = registry.lineage(model)
    assert [node.id for node in lineage.nodes] == [charter, data, run, model]
    assert [node.label for node in lineage.nodes] == ["c", "d", "sft", "m"]
    assert set(lineage.edges) == {(charter, data), (data, run), (charter, run), (run, model)}
    assert [record.id for record in registry.children(data)] == [run]
    assert lineage.to_json()["edges"][0] == [charter, data]


def test_every_changed_character_is_seen(tmp_path: Path) -> None:
    registry = Registry(tmp_path)
    parent = registry.put("charter", {"name": "c"})
    identifier = registry.put("run", {"stage": "dpo", "seed": 1}, [parent])
    path = tmp_path / "run" / f"{identifier}.json"
    text = path.read_text(encoding="utf-8")
    changes = [
        ('"seed": 1', '"seed": 2'),
        (parent, "0" * 64),
        (f'"id": "{identifier}', f'"id": "{parent}'),
        ("record/1", "record/2"),
    ]
    for old, new in changes:
        assert old in text
        path.write_text(text.replace(old, new), encoding="utf-8")
        with pytest.raises(EvidenceError):
            registry.get(identifier)
        with pytest.raises(EvidenceError):
            registry.put("run", {"stage": "dpo", "seed": 1}, [parent])
    path.write_text(text, encoding="utf-8")
    assert registry.get(identifier).parents == (parent,)


def test_order_of_parents_and_keys_does_not_matter(tmp_path: Path) -> None:
    registry = Registry(tmp_path)
    a, b = registry.put("charter", {"name": "a"}), registry.put("charter", {"name": "b"})
    assert registry.put("run", {"x": 1, "y": 2}, [a, b]) == registry.put("run", {"y": 2, "x": 1}, [b, a, a])


@pytest.mark.parametrize(
    ("kind", "body", "parents", "message"),
    [
        pytest.param("modle", {}, [], "did you mean 'model'", id="kind"),
        pytest.param("run", {"x": float("nan")}, [], "not JSON", id="nan"),
        pytest.param("run", {"x": object()}, [], "not JSON", id="object"),
        pytest.param("run", {}, ["f" * 64], "is not in", id="missing-parent"),
        pytest.param("run", {}, ["../../etc/passwd"], "64 hexadecimal", id="path"),
    ],
)
def test_wrong_records_are_refused(
    kind: str, body: dict[str, object], parents: list[str], message: str, tmp_path: Path
) -> None:
    with pytest.raises(EvidenceError, match=message):
        Registry(tmp_path).put(kind, body, parents)
    assert not list(tmp_path.rglob("*.json"))


def test_record_on_disk_is_plain_json(tmp_path: Path) -> None:
    registry = Registry(tmp_path)
    identifier = registry.put("dataset", {"name": "chats"})
    stored = json.loads((tmp_path / "dataset" / f"{identifier}.json").read_text(encoding="utf-8"))
    assert stored == {
        "schema": "trueward.record/1",
        "id": record_id("dataset", [], {"name": "chats"}),
        "kind": "dataset",
        "parents": [],
        "body": {"name": "chats"},
    }
