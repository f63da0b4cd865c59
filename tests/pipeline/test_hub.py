"""Models by hub id through the hub's cache, offline; data sets by hub id are refused with the way out."""

import json
from pathlib import Path

import huggingface_hub
import pytest

from tests.pipeline.toy import call, hh_arguments, refusal, tree, write_model
from trueward.core.run import open_run
from trueward.models.checkpoint import model_hash
from trueward.models.load import load_causal
from trueward.registry import Registry

COMMIT = "0123456789abcdef0123456789abcdef01234567"
NAME = "someone/tiny"


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache of the hub that holds one model, without a network."""
    folder = tmp_path / "hub"
    repository = folder / "models--someone--tiny"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text(COMMIT)
    write_model(repository / "snapshots" / COMMIT)
    # The library reads HF_HUB_CACHE and HF_HUB_OFFLINE once, when it is imported.
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(folder))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.chdir(tmp_path)
    return repository / "snapshots" / COMMIT


def _arguments(tmp_path: Path, name: str = NAME) -> list[str]:
    return [*hh_arguments(tmp_path), f"model.path={name}"]


def test_a_hub_id_trains_and_the_records_say_which_commit(cache: Path, tmp_path: Path) -> None:
    arguments = _arguments(tmp_path)
    assert call("run", *arguments, "stages=[data]") == 0
    assert call("sft", *arguments, "model.lora={r: 2}") == 0
    manifest = open_run(tmp_path / "run" / "sft").manifest
    assert manifest["config"]["hub"] == {"id": NAME, "commit": COMMIT}
    assert manifest["parents"]["model"] == model_hash(cache)
    bases = [r.body for r in Registry(tmp_path / "run" / "records").all("model") if r.body["stage"] == "base"]
    assert bases == [
        {
            "name": f"base: {NAME}",
            "stage": "base",
            "hash": model_hash(cache),
            "hub": {"id": NAME, "commit": COMMIT},
        }
    ]
    # The snapshot, whose name is the commit: the adapters' base is pinned.
    adapter = json.loads((tmp_path / "run" / "sft" / "adapter" / "adapter_config.json").read_text())
    assert adapter["base_model_name_or_path"] == str(cache)
    assert f"base_model: {NAME}" in (tmp_path / "run" / "sft" / "model" / "README.md").read_text()


def test_a_dry_run_reads_the_cached_snapshot(
    cache: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = _arguments(tmp_path)
    before = tree(tmp_path)
    assert call("sft", *arguments, "--dry-run") == 0
    # 263 tokens x 16, twice, and one layer: 0.01M parameters.
    assert "a model of 0.01M parameters" in capsys.readouterr().out
    assert tree(tmp_path) == before


@pytest.mark.parametrize("option", ["--dry-run", "--resume"], ids=["dry run", "run"])
def test_an_id_that_cannot_be_had_is_one_sentence(
    option: str, cache: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    said = refusal(capsys, "run", *_arguments(tmp_path, "someone/other"), option)
    assert said.startswith("someone/other is no folder here, has no whole copy in the hub's cache")
    assert "hf download someone/other" in said
    assert not (tmp_path / "run").exists()


def test_a_folder_of_that_name_comes_first(cache: Path, tmp_path: Path) -> None:
    write_model(tmp_path / "someone" / "tiny", seed=1)
    loaded = load_causal(NAME)
    assert loaded.commit == ""
    assert loaded.hash == model_hash(tmp_path / "someone" / "tiny") != model_hash(cache)


def test_data_by_hub_id_is_refused_with_the_way_out(
    cache: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = [*_arguments(tmp_path), "data.path=someone/talks-hh"]
    for option in ("--dry-run", "--resume"):
        said = refusal(capsys, "run", *arguments, option)
        assert "`hf download someone/talks-hh --repo-type dataset --local-dir FOLDER`" in said
    # A file that is missing is no data set of the hub.
    said = refusal(capsys, "run", *_arguments(tmp_path), "data.path=nowhere/rows.jsonl", "--dry-run")
    assert "hf download" not in said
    assert "does not exist" in said
