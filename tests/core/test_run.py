"""A run folder is made once, and its manifest says what the run was."""

import subprocess
from pathlib import Path

import pytest

import trueward
from trueward.core import run
from trueward.core.errors import DataError, RunError
from trueward.core.files import read_json
from trueward.core.run import RunFolder, code_version, create_run, open_run, versions


def make(path: Path, *, seed: int = 3) -> RunFolder:
    return create_run(path, stage="sft", config={"lr": 0.1}, parents={"model": "abc"}, seed=seed)


def test_the_manifest_holds_what_the_result_depends_on(tmp_path: Path) -> None:
    make(tmp_path / "run")
    manifest = read_json(tmp_path / "run" / "manifest.json")
    assert manifest["schema"] == "trueward.run/1"
    assert manifest["status"] == "running"
    assert (manifest["stage"], manifest["seed"], manifest["config"], manifest["parents"]) == (
        "sft",
        3,
        {"lr": 0.1},
        {"model": "abc"},
    )
    assert manifest["versions"]["trueward"] == trueward.__version__
    assert {"python", "numpy"} <= manifest["versions"].keys()
    assert len(manifest["code"]["source"]) == 64
    assert manifest["started"].endswith("+00:00")


def test_the_id_follows_from_what_was_asked(tmp_path: Path) -> None:
    ids = [make(tmp_path / name, seed=seed).manifest["id"] for name, seed in (("a", 1), ("b", 1), ("c", 2))]
    assert ids[0] == ids[1] != ids[2]


def test_finishing_keeps_the_rest(tmp_path: Path) -> None:
    folder = make(tmp_path / "run")
    folder.finish(results={"loss": 1.5})
    again = open_run(tmp_path / "run")
    assert again.manifest == folder.manifest
    assert (again.manifest["status"], again.manifest["results"]) == ("done", {"loss": 1.5})
    assert again.manifest["config"] == {"lr": 0.1}
    assert (again.model, again.checkpoints) == (tmp_path / "run" / "model", tmp_path / "run" / "checkpoints")


def test_a_folder_that_holds_something_is_refused_and_kept(tmp_path: Path) -> None:
    (tmp_path / "mine").write_text("keep")
    with pytest.raises(
        RunError, match=r"run folder .* exists already; choose another `out`, remove it, or pass"
    ):
        make(tmp_path)
    with pytest.raises(RunError, match="exists already"):
        make(tmp_path / "mine")
    assert (tmp_path / "mine").read_text() == "keep"
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]


def test_an_empty_folder_is_taken(tmp_path: Path) -> None:
    assert make(tmp_path).path == tmp_path


def test_opening_what_is_no_run_folder(tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"is no run folder: manifest\.json is missing; check the path"):
        open_run(tmp_path)
    manifest = tmp_path / "manifest.json"
    manifest.write_text('{"schema": "other/1"}')
    with pytest.raises(
        RunError, match=r"another schema, got \{'schema': 'other/1'\}, expected trueward.run/1"
    ):
        open_run(tmp_path)
    manifest.write_text("[1]")
    with pytest.raises(RunError, match="another schema"):
        open_run(tmp_path)
    manifest.write_text("{")
    with pytest.raises(DataError, match="is not JSON"):
        open_run(tmp_path)


def test_versions_leave_out_what_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run, "_PACKAGES", ("numpy", "no-such-package-as-this"))
    assert versions().keys() == {"python", "trueward", "numpy"}


def package(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    source = folder / "package" / "__init__.py"
    source.parent.mkdir(parents=True)
    source.write_text("x = 1\n")
    monkeypatch.setattr(run.trueward, "__file__", str(source))
    return source


def git(folder: Path, *arguments: str) -> str:
    identity = ["-c", "user.name=t", "-c", "user.email=t@example.org"]
    command = ["git", "-C", str(folder), *identity, *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


def test_the_code_version_follows_the_source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = package(tmp_path, monkeypatch)
    before = code_version()
    assert before.keys() == {"source"}
    source.write_text("x = 2\n")
    assert code_version()["source"] != before["source"]


def test_the_commit_is_named_only_where_it_holds_the_source(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package(tmp_path, monkeypatch)
    git(tmp_path, "init", "-q")
    git(tmp_path, "commit", "-q", "--allow-empty", "-m", "of somebody else")
    assert "commit" not in code_version()
    git(tmp_path, "add", "package")
    git(tmp_path, "commit", "-q", "-m", "the package")
    assert code_version()["commit"] == git(tmp_path, "rev-parse", "HEAD")
