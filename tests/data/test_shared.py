"""The importers on real public files; counts are those that the files' own description states."""

import csv
import gzip
import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from tests.data.tokenizers import CHATML, tiny_tokenizer
from trueward.core.errors import DataError
from trueward.data.chat import Dropped, tokenise_many
from trueward.data.importers import import_file
from trueward.data.preflight import preflight
from trueward.data.records import Comparison, Label, StepLabels
from trueward.data.split import prompt_key, split_of

pytestmark = pytest.mark.shared


@pytest.mark.parametrize(
    ("file", "name", "num_rows", "num_bad"),
    [
        ("anthropic-hh-rlhf/harmless-base-test.jsonl.gz", "hh-rlhf", 2312, 9),
        ("llama-factory-demos/dpo_en_demo.json.gz", "sharegpt-preference", 300, 0),
        ("llama-factory-demos/kto_en_demo.json.gz", "messages-label", 300, 0),
        ("llama-factory-demos/alpaca_en_demo.json.gz", "alpaca", 999, 0),
        ("llama-factory-demos/glaive_toolcall_en_demo.json.gz", "sharegpt", 300, 0),
        ("llama-factory-demos/identity.json", "alpaca", 91, 0),
        ("llama-factory-demos/c4_demo.jsonl.gz", "trl-text", 300, 0),
        ("llama-factory-demos/wiki_demo.txt.gz", "trl-text", 30, 0),
        ("llms-from-scratch/instruction-data-with-preference.json.gz", "alpaca-preference", 1100, 6),
        ("stanford-alpaca/alpaca_5000.json.gz", "alpaca", 5000, 2),
        ("prm800k/phase1_test.stepwise-critic.jsonl.gz", "prm800k-rows", 5449, 0),
        ("gsm8k/test.jsonl.gz", "question-answer", 1319, 0),
        ("mobile-ai-bench/dolly-closed_qa-1000.csv.gz", "dolly", 1000, 0),
        ("xstest/xstest_v2_completions_gpt4_gpteval.csv.gz", "xstest", 450, 0),
        ("prometheus-eval/autoj_pairwise.jsonl.gz", "autoj", 1392, 10),
        ("prometheus-eval/hhh_alignment_eval.json.gz", "rubric-pair", 221, 0),
        ("alpaca-eval/annotations-claude-2.jsonl.gz", "alpaca-eval", 805, 2),
        ("math/math500-test.jsonl.gz", "math", 500, 0),
        ("math/math-train-answers.jsonl.gz", "math-answer", 7474, 0),
        ("truthfulqa/finetune_truth.jsonl.gz", "trl-prompt-completion", 22434, 0),
    ],
)
def test_counts(shared: Path, tmp_path: Path, file: str, name: str, num_rows: int, num_bad: int) -> None:
    result = import_file(shared / file, quarantine=tmp_path / "bad.jsonl")
    num_records = sum(1 for _ in result)
    assert (result.format, result.num_rows, result.num_bad) == (name, num_rows, num_bad)
    assert num_records == num_rows - num_bad


def test_hh_quarantine(shared: Path, tmp_path: Path) -> None:
    file = shared / "anthropic-hh-rlhf/harmless-base-test.jsonl.gz"
    records = list(import_file(file, quarantine=tmp_path / "bad.jsonl"))
    entries = [json.loads(line) for line in (tmp_path / "bad.jsonl").read_text().splitlines()]
    reasons = Counter(
        "differ" if "prompts of chosen" in entry["expected"] else entry["expected"] for entry in entries
    )
    assert reasons["differ"] == 5 and sum(reasons.values()) == 9
    assert sum(count for reason, count in reasons.items() if "empty last turn" in reason) == 4
    turns = [sum(m.role == "user" for m in r.prompt) for r in records if isinstance(r, Comparison)]
    assert (min(turns), max(turns)) == (1, 18)
    with pytest.raises(DataError, match="9 of the 2,312 rows"):
        list(import_file(file, quarantine=tmp_path / "bad.jsonl", max_bad=0.003))
    shares = Counter(split_of(prompt_key(r), {"train": 0.9, "test": 0.1}, seed=0) for r in records)
    assert 150 < shares["test"] < 320


def test_hh_tokenised_passes_preflight(shared: Path, tmp_path: Path) -> None:
    file = shared / "anthropic-hh-rlhf/harmless-base-test.jsonl.gz"
    records = [r for r in import_file(file, quarantine=tmp_path / "bad.jsonl") if isinstance(r, Comparison)]
    tokenizer = tiny_tokenizer(CHATML)
    found = list(tokenise_many(tokenizer, records[:400], max_tokens=2048))
    dropped = [item for item in found if isinstance(item, Dropped)]
    report = preflight([item for item in found if not isinstance(item, Dropped)], tokenizer, dropped=dropped)
    assert report.num_rows + sum(report.dropped.values()) == 400 and report.num_rows > 300
    assert set(report.dropped) <= {"longer than max_tokens"}


def test_labels(shared: Path, tmp_path: Path) -> None:
    kto = import_file(shared / "llama-factory-demos/kto_en_demo.json.gz", quarantine=tmp_path / "bad.jsonl")
    assert Counter(r.label for r in kto if isinstance(r, Label)) == {True: 150, False: 150}
    prm = import_file(
        shared / "prm800k/phase1_test.stepwise-critic.jsonl.gz", quarantine=tmp_path / "bad.jsonl"
    )
    assert sum(r.labels[-1] is None for r in prm if isinstance(r, StepLabels)) == 367


def rows_of(file: Path) -> list[dict[str, Any]]:
    """The file as plain Python reads it."""
    with gzip.open(file, "rt", encoding="utf-8", newline="") as text:
        if ".csv" in file.name:
            return list(csv.DictReader(text))
        body = text.read()
    return json.loads(body) if body.startswith("[") else [json.loads(line) for line in body.splitlines()]


def test_pandalm_read_a_second_time(shared: Path, tmp_path: Path) -> None:
    """Majority by counting, written apart from the importer's mean of shares."""
    file = shared / "pandalm/testset-v1.json.gz"
    with pytest.raises(DataError, match="60 of the 999 rows read are bad"):
        list(import_file(file, quarantine=tmp_path / "bad.jsonl"))
    rows = {f"testset-v1-{number}": row for number, row in enumerate(rows_of(file), 1)}
    found = Counter[str]()
    for record in import_file(file, quarantine=tmp_path / "bad.jsonl", max_bad=0.07):
        assert isinstance(record, Comparison)
        row = rows[record.id]
        votes = Counter(row[f"annotator{number}"] for number in (1, 2, 3))
        if votes[1] == votes[2]:
            assert record.soft_label == 0.5
            found["tie"] += 1
            continue
        best, worst = (1, 2) if votes[1] > votes[2] else (2, 1)
        assert (record.chosen, record.rejected) == (row[f"response{best}"], row[f"response{worst}"])
        assert record.prompt[0].content.startswith(row["instruction"])
        assert record.prompt[0].content.endswith(row["input"])
        unanimous = votes[best] == 3
        assert record.soft_label is None if unanimous else 0.5 < (record.soft_label or 0) < 1
        found["unanimous" if unanimous else "divided"] += 1
    assert found == {"unanimous": 742, "divided": 113, "tie": 84}


def test_autoj_and_hhh_read_a_second_time(shared: Path, tmp_path: Path) -> None:
    file = shared / "prometheus-eval/autoj_pairwise.jsonl.gz"
    rows = {f"autoj_pairwise-{number}": row for number, row in enumerate(rows_of(file), 1)}
    ties = 0
    for record in import_file(file, quarantine=tmp_path / "bad.jsonl"):
        row = rows[record.id]
        better = row["response 2"] if row["label"] == 1 else row["response 1"]
        assert isinstance(record, Comparison) and record.chosen == better
        assert {record.chosen, record.rejected} == {row["response 1"], row["response 2"]}
        assert (record.soft_label == 0.5) == (row["label"] == 2)
        ties += row["label"] == 2
    assert ties == 365
    file, turns = shared / "prometheus-eval/hhh_alignment_eval.json.gz", 0
    for record, row in zip(import_file(file, quarantine=tmp_path / "b.jsonl"), rows_of(file), strict=True):
        assert isinstance(record, Comparison) and record.soft_label is None
        for side, answer in (("chosen", record.chosen), ("rejected", record.rejected)):
            assert f"###Response to evaluate:\n{answer}\n" in row[f"{side}_instruction"]
        asked = row["chosen_instruction"].split("to evaluate:\n")[1]
        assert asked.count("\n\nHuman:") + 1 == sum(m.role == "user" for m in record.prompt)
        turns += len(record.prompt) > 1
    assert turns == 41


def test_xstest_read_a_second_time(shared: Path, tmp_path: Path) -> None:
    """Which prompts are unsafe is taken from the list of prompts, not from the type."""
    with (shared / "xstest/xstest_prompts.csv").open(newline="", encoding="utf-8") as prompts:
        unsafe = {row["prompt"].strip(): row["label"] == "unsafe" for row in csv.DictReader(prompts)}
    good = Counter[str]()
    for file in sorted((shared / "xstest").glob("*completions*")):
        name = file.name.split("_")[3]
        for record, row in zip(
            import_file(file, quarantine=tmp_path / "b.jsonl"), rows_of(file), strict=True
        ):
            assert isinstance(record, Label) and record.completion == row["completion"]
            wanted = "2" if unsafe.get(row["prompt"].strip(), True) else "1"
            assert record.label == row["final_label"].startswith(wanted)
            good[name] += record.label
    assert good == {
        "gpt4": 424,
        "llama2new": 371,
        "llama2orig": 300,
        "mistralguard": 378,
        "mistralinstruct": 293,
    }
