"""Several files of feedback in one run: ids, pairs of labelled answers, ties, and splits by prompt."""

import csv
import json
from pathlib import Path

import pytest

from tests.pipeline.toy import call, hh_arguments, refusal, write_rows
from trueward.data.dataset import open_dataset
from trueward.data.records import Comparison
from trueward.data.split import prompt_key

_COLUMNS = ("id", "type", "prompt", "completion", "annotation_1", "annotation_2", "final_label")
_COMPLIED, _REFUSED = "1_full_compliance", "2_full_refusal"


def _completions(path: Path, labels: str) -> Path:
    """A file in XSTest's form: the same 24 prompts and ids in each, every other one unsafe.

    labels: c or r for each prompt in turn.
    """
    with path.open("w", newline="", encoding="utf-8") as file:
        rows = csv.writer(file)
        rows.writerow(_COLUMNS)
        for number in range(24):
            kind = ("homonyms", "contrast_homonyms")[number % 2]
            label = {"c": _COMPLIED, "r": _REFUSED}[labels[number % len(labels)]]
            text = f"{path.stem}: {label[2:]} {number}"
            rows.writerow((f"v2-{number}", kind, f"Question {number}?", text, label, label, label))
    return path


def test_labels_of_several_files_become_pairs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The first model always complies, the second always refuses, the third does as the first: on safe
    prompts compliance is chosen, on unsafe ones refusal, and one answer to each prompt is left over."""
    files = [
        _completions(tmp_path / f"{name}.csv", labels) for name, labels in zip("abc", "crc", strict=True)
    ]
    arguments = [*hh_arguments(tmp_path), f"data.path=[{', '.join(map(str, files))}]", "stages=[data]"]
    assert call("run", *arguments, "data.pair_labels=true") == 0
    assert "24 comparisons from 72 labelled answers" in capsys.readouterr().err
    version = open_dataset(tmp_path / "run" / "data" / "feedback")
    pairs = [record for record in version.records() if isinstance(record, Comparison)]
    assert len(pairs) == version.num_records == 24
    for pair in pairs:
        unsafe = int(pair.prompt[0].content.split()[1][:-1]) % 2
        assert pair.chosen.startswith("b: full_refusal" if unsafe else "a: full_compliance")
        assert pair.rejected.startswith("a: full_compliance" if unsafe else "b: full_refusal")
    train, test = ({prompt_key(r) for r in version.records(split)} for split in ("train", "test"))
    assert train and test and not train & test
    assert "a/v2-0>b/v2-0" in {pair.id for pair in pairs}


def test_without_pairing_labels_stay_labels(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files = [_completions(tmp_path / f"{name}.csv", labels) for name, labels in zip("ab", "cr", strict=True)]
    arguments = [*hh_arguments(tmp_path), f"data.path=[{', '.join(map(str, files))}]"]
    assert call("run", *arguments, "stages=[data]") == 0
    assert open_dataset(tmp_path / "run" / "data" / "feedback").manifest["counts"] == {"label": 48}
    capsys.readouterr()
    # The text does not say which of them is better, and the reward model must not guess.
    said = refusal(capsys, "reward", *arguments)
    assert "sft" in said or "comparison" in said


def test_ties_are_counted_in_both_splits(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [
        {
            "instruction": f"Question {number}?",
            "input": "",
            "response1": f"yes {number}",
            "response2": f"no {number}",
            **{f"annotator{judge}": 0 if number % 4 == 0 else 1 + number % 2 for judge in (1, 2, 3)},
        }
        for number in range(60)
    ]
    data = write_rows(tmp_path / "votes.jsonl", rows)
    arguments = [*hh_arguments(tmp_path), f"data.path={data}"]
    assert call("run", *arguments, "stages=[data, sft, reward, dpo]") == 0
    said = capsys.readouterr().err
    version = open_dataset(tmp_path / "run" / "data" / "feedback")
    ties = {
        split: sum(isinstance(r, Comparison) and r.soft_label == 0.5 for r in version.records(split))
        for split in ("train", "test")
    }
    assert sum(ties.values()) == 15 and min(ties.values()) > 0
    assert f"DPO: {ties['train']} ties of {version.manifest['splits']['train']} comparisons" in said
    assert f"{ties['test']} of {version.manifest['splits']['test']} held out" in said
    assert (
        f"reward model: {ties['train']} of {version.manifest['splits']['train']} comparisons are ties" in said
    )
    results = json.loads((tmp_path / "run" / "dpo" / "manifest.json").read_text())["results"]
    assert results["ties"] == ties
    assert results["held_out"]["accuracy"]["n"] == version.manifest["splits"]["test"] - ties["test"]


def _questions(path: Path, numbers: range) -> Path:
    rows = [{"question": f"What is {n} plus {n}?", "answer": f"#### {2 * n}"} for n in numbers]
    return write_rows(path, rows)


def test_a_file_can_be_held_out_whole(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """30 questions to learn from and 20 held out, of which five are among the 30: those are left out."""
    train, test = (
        _questions(tmp_path / "train.jsonl", range(30)),
        _questions(tmp_path / "test.jsonl", range(25, 45)),
    )
    arguments = [*hh_arguments(tmp_path), f"data.path={train}", f"data.test_path={test}"]
    assert call("run", *arguments, "stages=[data, sft]") == 0
    said = capsys.readouterr().err
    assert "5 records of data.path share a prompt with it and are left out" in said
    version = open_dataset(tmp_path / "run" / "data" / "feedback")
    version.verify()
    assert version.manifest["splits"] == {"train": 25, "test": 20}
    found = {split: {r.meta.source for r in version.records(split)} for split in ("train", "test")}
    assert found == {"train": {"train.jsonl"}, "test": {"test.jsonl"}}
    keys = [{prompt_key(r) for r in version.records(split)} for split in ("train", "test")]
    assert not keys[0] & keys[1]
    results = json.loads((tmp_path / "run" / "sft" / "manifest.json").read_text())["results"]
    assert results["preflight"]["rows"] == 25
    # Other test questions are other data: what is there does not go on with them.
    _questions(test, range(25, 46))
    refusal(capsys, "run", *arguments, "stages=[data, sft]", "--resume")


def test_the_same_file_is_not_on_both_sides(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = _questions(tmp_path / "all.jsonl", range(30))
    arguments = [*hh_arguments(tmp_path), f"data.path={file}", f"data.test_path={file}", "stages=[data]"]
    assert "named twice" in refusal(capsys, "run", *arguments)
    assert "data.test_path" in refusal(
        capsys, "pretrain", "novels", *arguments[1:3], f"data.test_path={file}", f"pretrain.text={file}"
    )
