"""Bad input through the command line: one sentence, exit code 2, and nothing on disk harmed."""

import gzip
import json
import resource
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.pipeline.toy import call, hh_arguments, hh_rows, refusal, tree, write_rows

Capture = pytest.CaptureFixture[str]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Rows and model of a good run, and a folder of it with something to lose."""
    folder = tmp_path_factory.mktemp("bad")
    assert call("run", *hh_arguments(folder), "stages=[data, sft]") == 0
    return folder


def _lines(rows: list[dict[str, str]]) -> bytes:
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


ROWS = hh_rows(60)
EMPTY_LAST = [{**r, "chosen": r["chosen"].rpartition("\n\nAssistant:")[0] + "\n\nAssistant: "} for r in ROWS]
OTHER_PROMPT = [{**r, "rejected": r["rejected"].replace("How do I", "Why do I")} for r in ROWS]
SAME = [{**r, "rejected": r["chosen"]} for r in ROWS]
DUPLICATES = [{**r, "id": "one"} for r in ROWS]
FILES = {
    "empty file": (b"", "empty"),
    "blank lines": (b"\n\n\n", "empty"),
    "truncated gzip": (gzip.compress(_lines(ROWS))[:-40], "gzip"),
    "wrong columns": (_lines([{"question": "a", "reply": "b"}] * 20), "no known format"),
    "wrong types": (b'{"chosen": 1, "rejected": [2]}\n' * 20, ""),
    "10 MB line": (_lines(ROWS) + b'{"chosen": "' + b"x" * (10 << 20) + b'", "rejected": "y"}\n', "bad"),
    "invalid UTF-8": (_lines(ROWS).replace(b"bread", b"br\xff\xfed"), "bad"),
    "NUL bytes": (_lines(ROWS).replace(b"bread", b"br\\u0000d"), "bad"),
    "binary": (bytes(range(256)) * 64, ""),
    "duplicate ids": (_lines(DUPLICATES), "duplicate id"),
    "chosen is rejected": (_lines(SAME), "bad"),
    "prompts differ": (_lines(OTHER_PROMPT), "the prompts of chosen and rejected differ"),
    "empty last turn": (_lines(EMPTY_LAST), "empty last turn"),
}


@pytest.mark.parametrize(("content", "said"), FILES.values(), ids=FILES.keys())
def test_bad_files(content: bytes, said: str, place: Path, tmp_path: Path, capsys: Capture) -> None:
    bad = tmp_path / "bad.jsonl"
    bad.write_bytes(content)
    before = tree(place)
    arguments = [*hh_arguments(place), f"data.path={bad}"]
    sentence = refusal(capsys, "run", *arguments, f"out={tmp_path / 'run'}")
    assert said in sentence
    assert "bad.jsonl" in sentence
    assert bad.read_bytes() == content
    assert tree(place) == before
    # The same place serves the mended file.
    bad.write_bytes(_lines(ROWS))
    assert call("run", *arguments, f"out={tmp_path / 'run'}", "stages=[data]") == 0


def test_a_few_bad_rows_are_quarantined_and_counted(place: Path, tmp_path: Path, capsys: Capture) -> None:
    rows = [*OTHER_PROMPT[:1], *EMPTY_LAST[:1], *hh_rows(60)]
    write_rows(tmp_path / "some.jsonl", rows)
    arguments = [*hh_arguments(place), f"data.path={tmp_path / 'some.jsonl'}", f"out={tmp_path / 'run'}"]
    assert "3.2%" in refusal(capsys, "run", *arguments, "stages=[data]")
    assert call("run", *arguments, "data.max_bad=0.05", "stages=[data]") == 0
    assert "2 bad rows are in" in capsys.readouterr().err
    kept = (tmp_path / "run" / "data" / "quarantine" / "some.jsonl.jsonl").read_text().splitlines()
    assert [json.loads(line)["row"] for line in kept] == [1, 2]


def test_files_of_one_name_in_two_folders_stay_apart(place: Path, tmp_path: Path) -> None:
    for name, rows in (("a", ROWS[:30]), ("b", ROWS[30:])):
        (tmp_path / name).mkdir()
        write_rows(tmp_path / name / "train.jsonl", rows)
    paths = f"data.path=[{tmp_path / 'a' / 'train.jsonl'}, {tmp_path / 'b' / 'train.jsonl'}]"
    assert call("run", *hh_arguments(place), paths, f"out={tmp_path / 'run'}", "stages=[data]") == 0
    manifest = next((tmp_path / "run" / "data" / "feedback").glob("*/manifest.json"))
    assert json.loads(manifest.read_text())["counts"] == {"comparison": 60}


def _without_tokenizer(folder: Path) -> None:
    for file in folder.glob("tokenizer*"):
        file.unlink()


def _without_template(folder: Path) -> None:
    (folder / "chat_template.jinja").unlink()


def _pad_is_end(folder: Path) -> None:
    file = folder / "tokenizer_config.json"
    config = json.loads(file.read_text())
    file.write_text(json.dumps({**config, "pad_token": config["eos_token"]}))


def _without_weights(folder: Path) -> None:
    (folder / "model.safetensors").unlink()


def _half_weights(folder: Path) -> None:
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


@pytest.mark.parametrize(
    ("harm", "said"),
    [
        (_without_tokenizer, "has no tokenizer"),
        (_without_template, "has no chat template"),
        (_pad_is_end, "needs a pad token of its own"),
        (_without_weights, "holds no weights"),
        (_half_weights, "does not load"),
    ],
    ids=["no tokenizer", "no template", "pad is end", "no weights", "half the weights"],
)
def test_bad_model_folders(
    harm: Callable[[Path], None], said: str, place: Path, tmp_path: Path, capsys: Capture
) -> None:
    model = tmp_path / "model"
    shutil.copytree(place / "model", model)
    harm(model)
    before = tree(place), tree(model)
    assert said in refusal(
        capsys, "run", *hh_arguments(place), f"model.path={model}", f"out={tmp_path / 'run'}"
    )
    assert (tree(place), tree(model)) == before
    # It is found before anything is trained or imported.
    assert not (tmp_path / "run").exists()


def test_missing_paths(place: Path, tmp_path: Path, capsys: Capture) -> None:
    out = f"out={tmp_path / 'run'}"
    assert "does not exist" in refusal(capsys, "run", *hh_arguments(place), out, "data.path=nowhere.jsonl")
    assert "no model folder" in refusal(capsys, "run", *hh_arguments(place), out, "model.path=./nowhere")
    assert "data.path is missing" in refusal(capsys, "run", *hh_arguments(place), out, "data.path=null")
    (tmp_path / "hollow").mkdir()
    said = refusal(capsys, "run", *hh_arguments(place), out, f"data.path={tmp_path / 'hollow'}")
    assert "holds no data file" in said
    (tmp_path / "file").write_text("")
    assert "is a file" in refusal(capsys, "run", *hh_arguments(place), f"out={tmp_path / 'file'}")
    assert not (tmp_path / "run").exists()


def test_a_full_disk_while_saving(place: Path, tmp_path: Path, capsys: Capture) -> None:
    """No file may grow past a size that the records need and the weights exceed."""
    shutil.copytree(place / "run", tmp_path / "run")
    before = tree(tmp_path / "run")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    arguments = [*hh_arguments(place), f"out={tmp_path / 'run'}"]
    weights = (place / "model" / "model.safetensors").stat().st_size
    resource.setrlimit(resource.RLIMIT_FSIZE, (weights // 2, limits[1]))
    try:
        said = refusal(capsys, "dpo", *arguments)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert "cannot write" in said
    after = tree(tmp_path / "run")
    assert {name: after.get(name) for name in before} == before
    assert not any(
        name.endswith(".safetensors") for name in set(after) - set(before) if "ref_logps" not in name
    )
    assert call("dpo", *arguments, "--resume") == 0


def test_prompts_that_are_all_too_long(place: Path, tmp_path: Path, capsys: Capture) -> None:
    arguments = [*hh_arguments(place), f"out={tmp_path / 'run'}", "data.max_tokens=12"]
    assert "none of the" in refusal(capsys, "run", *arguments)
    # Nothing was made, so that a mended recipe can have the place.
    assert call("run", *hh_arguments(place), f"out={tmp_path / 'run'}", "stages=[sft]") == 0


@pytest.mark.parametrize("label", [0.5, 0.2], ids=["ties", "turned"])
def test_soft_labels_in_dpo(label: float, place: Path, tmp_path: Path, capsys: Capture) -> None:
    """DPO takes no soft label: ties are left out and counted, pairs that the label turns are turned."""
    rows = []
    for number, row in enumerate(ROWS):
        asked, _, chosen = row["chosen"].rpartition("\n\nAssistant:")
        rejected = row["rejected"].rpartition("\n\nAssistant:")[2]
        known = {"soft_label": label} if number % 2 else {}
        rows.append({"prompt": f"{asked}", "chosen": chosen, "rejected": rejected, **known})
    write_rows(tmp_path / "soft.jsonl", rows)
    out = tmp_path / "run"
    arguments = [*hh_arguments(place), f"data.path={tmp_path / 'soft.jsonl'}", f"out={out}"]
    assert call("run", *arguments, "stages=[data, sft, reward, dpo]") == 0
    said = " ".join(capsys.readouterr().err.split())
    assert "DPO:" in said
    num_ties, num_turned = (
        int(said.split("DPO: ")[1].split()[0]),
        int(said.split("left out, and ")[1].split()[0]),
    )
    assert (num_ties > 0, num_turned > 0) == (label == 0.5, label == 0.2)


SETTINGS = {
    "dpo.objective.beta=0": "greater than 0, got 0",
    "dpo.objective.beta=-0.1": "greater than 0, got -0.1",
    "dpo.objective.beta=nan": "beta",
    "kto.objective.beta=0": "greater than 0, got 0",
    "kto.objective.desirable_weight=-1": "greater than 0, got -1",
    "dpo.objective.method=dop": "unknown method 'dop'; did you mean 'dpo'? known: dpo, robust_dpo, ipo",
    "dpo.objective.method=zzz": "unknown method 'zzz'; known: dpo, robust_dpo, ipo",
    "kto.objective.method=kot": "unknown method 'kot'; did you mean 'kto'? known: kto, bco",
    "grpo.train.method=grpoo": "did you mean 'grpo'? known: rloo, reinforce_plus_plus, grpo, dr_grpo, dapo",
    "grpo.verifiers=[{name: nope}]": "known: maths, math_verify, exact",
    "grpo.train.completions_per_prompt=1": "in a group of one nothing can be compared",
    "dpo.online.completions=1": "greater than or equal to 2, got 1",
    "ppo.train.clip=0": "greater than 0, got 0",
    # YAML's own word for infinity; every field refuses it, also those without bounds.
    "dpo.train.lr=.inf": "finite number",
    "ppo.train.missing_eos_penalty=.inf": "finite number",
    "ppo.train.constraint={threshold: .nan}": "finite number",
}


@pytest.mark.parametrize(("setting", "said"), SETTINGS.items(), ids=SETTINGS)
def test_settings_that_no_method_can_use(setting: str, said: str, tmp_path: Path, capsys: Capture) -> None:
    arguments = ["hh", f"out={tmp_path / 'run'}", "data.path=rows.jsonl", "model.path=model"]
    assert said in refusal(capsys, "run", *arguments, setting)
    assert not (tmp_path / "run").exists()
