"""The weak-to-strong stage: pairs and answers, chains, files and the testbed, what is refused."""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.pipeline.toy import call, hh_arguments, refusal, write_model, write_testbed_model
from trueward.core.run import open_run
from trueward.models.load import load_causal, load_reward
from trueward.pipeline.weak_to_strong import _figures

Capture = pytest.CaptureFixture[str]
TINY = "{steps: 2, batch_size: 4, lr: 0.001, save_every: 1}"
SHAPE = "{shape: {hidden_size: 8, num_layers: 1, num_heads: 2, num_kv_heads: 2, intermediate_size: 8}}"
SMALL = (
    "stages=[data, weak_to_strong]",
    "weak_to_strong.known=20",
    "weak_to_strong.max_new_tokens=6",
    f"weak_to_strong.train={TINY}",
    f"weak_to_strong.supervisor={TINY}",
)


def results(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = open_run(folder / "run" / "weak_to_strong").manifest["results"]
    return found


def test_pairs_from_words_and_a_chain(tmp_path: Path, capsys: Capture) -> None:
    middle = write_model(tmp_path / "middle", seed=4)
    chain = f"weak_to_strong.chain=[{{words: true}}, {{path: {middle}}}]"
    arguments = [*hh_arguments(tmp_path), *SMALL, chain]
    assert call("run", *arguments) == 0
    said = " ".join(capsys.readouterr().err.split())
    found = results(tmp_path)
    assert list(found["chain"]) == ["1-words", "2-path"]
    assert set(found["held_out"]) == {"1-words", "2-path", "student", "ceiling"}
    assert len({estimate["n"] for estimate in found["held_out"].values()}) == 1
    # The rows of the toy say "No." in the worse answer: a bag of words sees it at once.
    assert found["held_out"]["1-words"]["value"] == found["chain"]["1-words"]["right"] == 1
    assert "there is no gap to recover" in found["no_gap"]
    assert "no performance gap recovered can be given" in said
    load_reward(tmp_path / "run" / "weak_to_strong" / "model")
    assert call("weak-to-strong", *arguments, "--resume") == 0


def test_a_killed_stage_goes_on_where_it_was(tmp_path: Path) -> None:
    arguments = [*hh_arguments(tmp_path), *SMALL]
    assert call("run", *arguments) == 0
    folder, before = tmp_path / "run" / "weak_to_strong", results(tmp_path)
    manifest = (folder / "manifest.json").read_text()
    (folder / "manifest.json").write_text(manifest.replace('"status": "done"', '"status": "running"'))
    weights = (folder / "model" / "model.safetensors").read_bytes()
    shutil.rmtree(folder / "trainings" / "ceiling")
    assert call("weak-to-strong", *arguments, "--resume") == 0
    assert results(tmp_path)["held_out"] == before["held_out"]
    assert (folder / "model" / "model.safetensors").read_bytes() == weights


def test_answers_on_files(tmp_path: Path) -> None:
    arguments = [*hh_arguments(tmp_path), *SMALL, "weak_to_strong.labels=answers"]
    chain = f"weak_to_strong.chain=[{{path: {write_model(tmp_path / 'weak', seed=4)}}}]"
    # A model so small never ends its likeliest answer, but some of those it draws.
    longer = [
        "weak_to_strong.supervisor={steps: 40, batch_size: 8, lr: 0.02}",
        "weak_to_strong.max_new_tokens=40",
        "weak_to_strong.temperature=1",
    ]
    assert call("run", *arguments, chain, *longer, "weak_to_strong.ceiling=false") == 0
    found = results(tmp_path)
    assert found["chain"]["1-path"]["right"] is None
    assert set(found["held_out"]) == {"1-path", "student"}
    assert "most likely" in found["measured_by"]
    load_causal(tmp_path / "run" / "weak_to_strong" / "model")


@pytest.mark.parametrize("labels", ["preferences", "answers"])
def test_the_testbed(tmp_path: Path, labels: str) -> None:
    # Pairs of a random model's replies are all equally bad: those take the base model that ships.
    answers = labels == "answers"
    model = f"model.path={write_testbed_model(tmp_path / 'base') if answers else 'null'}"
    asked = [
        "data.source=testbed",
        "testbed={demonstrations: 60, prompts: 80}",
        "eval={prompts: 100, max_new_tokens: 28}",
        "stages=[data, sft, weak_to_strong]",
        f"weak_to_strong.chain=[{SHAPE}]",
        f"weak_to_strong.labels={labels}",
        "weak_to_strong.supervisor={steps: 30, batch_size: 8, lr: 0.02}",
        "weak_to_strong.max_new_tokens=28",
        "weak_to_strong.temperature=1",
    ]
    assert call("run", *hh_arguments(tmp_path), model, *SMALL, *asked) == 0
    found = results(tmp_path)
    assert found["chain"]["1-shape"]["right"] is not None
    assert ("pgr" in found) != ("no_gap" in found)


def test_models_are_compared_on_the_same_items() -> None:
    rng = np.random.default_rng(0)
    weak = {str(i): float(rng.random() < 0.5) for i in range(200)}
    student = {str(i): 0.75 for i in range(150)}
    ceiling = {str(i): 1.0 for i in range(200)}
    found = _figures({"1-words": weak, "student": student, "ceiling": ceiling}, "1-words")
    common = [weak[str(i)] for i in range(150)]
    mean = sum(common) / len(common)
    assert found["held_out_left_out"] == 50
    assert found["held_out"]["ceiling"]["n"] == 150
    assert found["pgr"]["value"] == pytest.approx((0.75 - mean) / (1 - mean))


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("weak_to_strong.known=4000", "learn the truth of every record"),
        ("weak_to_strong.labels=answers", "a bag of words writes no answers"),
        ("weak_to_strong.chain=[{words: true}, {words: true}]", "can only be the first of the chain"),
        ("weak_to_strong.chain=[{words: true, path: x}]", "exactly one of words: true, path and shape"),
        ("weak_to_strong.chain=[]", "at least 1"),
    ],
)
def test_what_is_refused(tmp_path: Path, capsys: Capture, override: str, words: str) -> None:
    assert words in refusal(capsys, "run", *hh_arguments(tmp_path), *SMALL, override)


def test_a_supervisor_that_never_ends_an_answer_is_refused(tmp_path: Path, capsys: Capture) -> None:
    chain = f"weak_to_strong.chain=[{{path: {write_model(tmp_path / 'weak', seed=4)}}}]"
    short = ["weak_to_strong.labels=answers", "weak_to_strong.max_new_tokens=1"]
    said = refusal(capsys, "run", *hh_arguments(tmp_path), *SMALL, chain, *short)
    assert "gives no label of use" in said


def test_the_plan_names_the_stage(tmp_path: Path, capsys: Capture) -> None:
    assert call("weak-to-strong", *hh_arguments(tmp_path), *SMALL, "--dry-run") == 0
    out = " ".join(capsys.readouterr().out.split())
    assert "weak-to-strong takes 2 steps of 4 preferences labelled by 1 supervisors" in out
    assert "twice: student and ceiling" in out
