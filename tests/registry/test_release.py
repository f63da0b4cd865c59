"""Releases: only what passed, only the model that was judged, whole or not at all."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.registry.world import DATA, World
from trueward.charter import load_charter
from trueward.core.errors import EvidenceError, StorageError
from trueward.core.hashing import hash_folder
from trueward.registry import Release, Verdict, make_release


def release(world: World, verdict: Verdict, out: Path, **changes: Any) -> Release:
    arguments: dict[str, Any] = {"charter": world.charter, "hash_model": hash_folder, "stage": "dpo"}
    return make_release(world.registry, verdict, world.model_folder, out, **{**arguments, **changes})


def test_a_release_holds_everything(own_world: World, tmp_path: Path) -> None:
    made = release(own_world, own_world.decide(), tmp_path / "releases")
    assert sorted(path.name for path in made.path.iterdir()) == [
        "README.md",
        "charter.yaml",
        "evidence",
        "lineage.json",
        "model",
        "release.json",
        "verdict.json",
    ]
    assert hash_folder(made.path / "model") == own_world.policy
    assert load_charter(made.path / "charter.yaml") == own_world.charter
    assert len(list((made.path / "evidence").iterdir())) == 10
    nodes = json.loads((made.path / "lineage.json").read_text(encoding="utf-8"))["nodes"]
    assert [node["kind"] for node in nodes] == ["charter", "run", *["evidence"] * 10, "verdict"]
    assert own_world.registry.get(made.id).body["data"] == DATA
    header = yaml.safe_load((made.path / "README.md").read_text(encoding="utf-8").split("---")[1])
    assert header["trueward"]["release"] == made.id
    assert header["trueward"]["metrics"]["kl"] == 1.4


def test_making_it_again_changes_nothing(own_world: World, tmp_path: Path) -> None:
    verdict = own_world.decide()
    first = release(own_world, verdict, tmp_path / "releases")
    card = (first.path / "README.md").stat().st_mtime_ns
    assert release(own_world, verdict, tmp_path / "releases") == first
    assert (first.path / "README.md").stat().st_mtime_ns == card


def test_replacing_the_model_later_leaves_the_release(own_world: World, tmp_path: Path) -> None:
    made = release(own_world, own_world.decide(), tmp_path / "releases")
    (own_world.model_folder / "model.safetensors").unlink()
    (own_world.model_folder / "model.safetensors").write_bytes(b"other")
    assert hash_folder(made.path / "model") == own_world.policy


def refused(world: World) -> Verdict:
    return world.decide(world.registry.all("evidence")[1:])


def forged(world: World) -> Verdict:
    verdict = refused(world)
    criteria = tuple(dataclasses.replace(result, passed=True) for result in verdict.criteria)
    return dataclasses.replace(verdict, passed=True, criteria=criteria)


def without_criteria(world: World) -> Verdict:
    return dataclasses.replace(world.decide(), criteria=())


def about_another(world: World) -> Verdict:
    (world.model_folder / "model.safetensors").write_bytes(b"retrained")
    return world.decide()


def after_tampering(world: World) -> Verdict:
    verdict = world.decide()
    path = world.registry.root / "evidence" / f"{verdict.sources[0]}.json"
    path.write_text(
        path.read_text(encoding="utf-8").replace("trueward eval", "a better one"), encoding="utf-8"
    )
    return verdict


@pytest.mark.parametrize(
    ("make", "message"),
    [
        pytest.param(refused, "the gate refused this model", id="refused"),
        pytest.param(forged, "cannot be derived again", id="forged"),
        pytest.param(without_criteria, "cannot be derived again", id="no-criteria"),
        pytest.param(about_another, "is not the model that was judged", id="other-model"),
        pytest.param(after_tampering, "changed after it was written", id="tampered"),
    ],
)
def test_nothing_is_released_that_did_not_pass(
    own_world: World, tmp_path: Path, make: Any, message: str
) -> None:
    verdict = make(own_world)
    with pytest.raises(EvidenceError, match=message):
        release(own_world, verdict, tmp_path / "releases")
    assert not list((tmp_path / "releases").glob("*")) and not own_world.registry.all("release")


def test_a_failing_disk_leaves_nothing(own_world: World, tmp_path: Path) -> None:
    (tmp_path / "releases").write_text("a file where the folder should be", encoding="utf-8")
    with pytest.raises(StorageError):
        release(own_world, own_world.decide(), tmp_path / "releases")
    assert not own_world.registry.all("release")


def test_card_escapes_what_others_wrote(own_world: World, tmp_path: Path) -> None:
    made = release(own_world, own_world.decide(), tmp_path / "releases", stage="<script>|`x`")
    text = (made.path / "README.md").read_text(encoding="utf-8").split("---\n", 2)[2]
    assert "<script>" not in text and "&lt;script>" in text
