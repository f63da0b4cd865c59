"""The importers on real public files; counts are those that the files' own description states."""

import json
from collections import Counter
from pathlib import Path

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
        ("xstest/xstest_v2_completions_gpt4_gpteval.csv.gz", "trl-prompt-completion", 450, 0),
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
