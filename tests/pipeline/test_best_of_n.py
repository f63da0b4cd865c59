"""The best-of-n stage: questions and comparisons with tiny random models; its figures computed again."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.pipeline.test_rollout_labels import arguments, lenient
from tests.pipeline.toy import call, hh_arguments, refusal
from trueward.core.files import read_json, read_jsonl
from trueward.decoding import expected_best

__all__ = ["lenient"]

SMALL = (
    "best_of_n={completions: 4, sizes: [1, 2, 4], max_new_tokens: 12}",
    "questions.kinds=[sum, story]",
)


def figures(run: Path) -> dict[str, Any]:
    found: dict[str, Any] = read_json(run / "best_of_n" / "figures.json")
    return found


def of(body: dict[str, Any], choice: str, n: int) -> dict[str, Any]:
    (row,) = [r for r in body["rows"] if r["choice"] == choice and r["n"] == n]
    return dict(row)


def test_questions_end_to_end(tmp_path: Path, lenient: str, capsys: pytest.CaptureFixture[str]) -> None:
    given, run = [*arguments(tmp_path, lenient), *SMALL], tmp_path / "run"
    assert call("run", *given, "stages=[data, prm, orm, best_of_n]") == 0
    said = capsys.readouterr()
    assert "chosen by" in said.err and "KL bound, nats" in said.err
    body = figures(run)
    names = list(dict.fromkeys(row["choice"] for row in body["rows"]))
    assert names[0] == "any (pass@1)" and names[-1] == "oracle (pass@n)"
    assert {"vote", "prm min", "prm product", "orm", "vote by orm"} <= set(names)
    # With one completion nothing is chosen; any completion is worth the same at every n.
    ones = {of(body, name, 1)["value"]["value"] for name in names}
    assert max(ones) - min(ones) < 1e-12
    assert of(body, "any (pass@1)", 4)["value"] == of(body, "any (pass@1)", 1)["value"]
    assert of(body, "oracle (pass@n)", 4)["value"]["value"] >= of(body, "prm min", 4)["value"]["value"]
    assert of(body, "prm min", 4)["gain"]["n"] == body["prompts"] > 3
    # The figures follow from the completions on disk.
    rows = list(read_jsonl(run / "best_of_n" / "completions.jsonl"))
    worth = [
        expected_best(
            [-np.inf if c["scores"]["orm"] is None else c["scores"]["orm"] for c in row["completions"]],
            [c["right"] for c in row["completions"]],
            n=2,
        )
        for row in rows
    ]
    assert of(body, "orm", 2)["value"]["value"] == pytest.approx(np.mean(worth))
    assert call("best-of-n", *given, "--resume") == 0
    assert "finished best_of_n" in refusal(capsys, "run", *given, "stages=[best_of_n]")


def test_judges_and_best_of_n_are_reported(tmp_path: Path, lenient: str) -> None:
    given = [*arguments(tmp_path, lenient), *SMALL, "sft.train={steps: 2, batch_size: 4}"]
    assert (
        call("run", *given, "eval.max_new_tokens=6", "stages=[data, sft, prm, best_of_n, eval, report]") == 0
    )
    summary = read_json(tmp_path / "run" / "summary.json")
    (judge,) = summary["solution_judges"]
    assert judge["stage"] == "prm" and {row["name"] for row in judge["judges"]} == {
        "model",
        "shorter is right",
    }
    assert judge["verdict"] in summary["notes"]
    assert summary["best_of_n"]["rows"] == figures(tmp_path / "run")["rows"]
    assert "Best of n" in (tmp_path / "run" / "report.html").read_text(encoding="utf-8")


def test_a_completion_without_a_verdict_leaves_its_question_out(
    tmp_path: Path, lenient: str, capsys: pytest.CaptureFixture[str]
) -> None:
    judge = tmp_path / "lenient_judge.py"
    judge.write_text(
        "def judge(completion, answer, prompt):\n"
        "    if answer in ('3', '7', '12'):\n        raise ValueError('not today')\n"
        "    return float(sum(completion.encode()) % 2)\n",
        encoding="utf-8",
    )
    given, run = [*arguments(tmp_path, lenient), *SMALL], tmp_path / "run"
    assert call("run", *given, "stages=[data, best_of_n]") == 0
    body = figures(run)
    assert body["verifier_errors"] == 4 * body["questions_left_out"] > 0
    assert "questions are left out, as the verifier has no verdict" in " ".join(
        capsys.readouterr().err.split()
    )
    assert of(body, "vote", 2)["value"]["n"] == body["prompts"]
    rows = list(read_jsonl(run / "best_of_n" / "completions.jsonl"))
    assert sum(c["right"] is None for row in rows for c in row["completions"]) == body["verifier_errors"]


def test_comparisons_end_to_end(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    given, run = [*hh_arguments(tmp_path), SMALL[0]], tmp_path / "run"
    assert call("run", *given, "stages=[data, sft, reward, best_of_n]") == 0
    body = figures(run)
    assert body["on"] == "comparisons" and body["judge"] == "bag of words" and body["policy"] == "sft"
    own = [of(body, "reward model: its own reward", n)["value"]["value"] for n in (1, 2, 4)]
    assert own == sorted(own) and of(body, "reward model: its own reward", 4)["gain"] is None
    assert 0 <= of(body, "reward model: win rate by bag of words", 4)["value"]["value"] <= 1
    assert of(body, "reward model: win rate by bag of words", 4)["kl_bound"] == pytest.approx(
        0.6363, abs=1e-4
    )
    rows = list(read_jsonl(run / "best_of_n" / "completions.jsonl"))
    assert {len(row["completions"]) for row in rows} == {5}


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["best_of_n.sizes=[1, 99]"], "sizes must lie between 1 and completions"),
        (["best_of_n.on=comparisons"], "holds no reward model to choose by"),
        (["questions.verifiers=[{name: mathz}]"], "unknown verifier 'mathz'"),
    ],
)
def test_what_is_refused(
    tmp_path: Path, lenient: str, capsys: pytest.CaptureFixture[str], overrides: list[str], said: str
) -> None:
    given = [*arguments(tmp_path, lenient), *SMALL, "stages=[data, best_of_n]"]
    assert said in refusal(capsys, "run", *given, *overrides)


def test_a_dry_run_says_what_is_drawn(
    tmp_path: Path, lenient: str, capsys: pytest.CaptureFixture[str]
) -> None:
    given = [*arguments(tmp_path, lenient), "stages=[data, prm, orm, best_of_n]"]
    assert call("run", *given, "--dry-run") == 0
    out = " ".join(capsys.readouterr().out.split())
    for words in ("PRM takes 2 steps of 8 solutions", "best of n draws 16 answers"):
        assert words in out, out
