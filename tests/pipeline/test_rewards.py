"""Several rewards as one, from the recipe: PPO, online DPO, GRPO; scales; what is refused."""

import shutil
from pathlib import Path
from typing import Any

import pytest

from tests.pipeline.test_group import testbed_arguments as group_arguments
from tests.pipeline.toy import call, hh_arguments, refusal, write_testbed_model
from trueward.core.files import read_json, read_jsonl
from trueward.core.run import open_run

Capture = pytest.CaptureFixture[str]
LENGTH = "{verifier: {name: length, max_words: 2}, weight: 0.3, name: short}"


@pytest.fixture(scope="module")
def scored(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the run up to the reward model."""
    folder = tmp_path_factory.mktemp("rewards")
    assert call("run", *hh_arguments(folder), "stages=[data, sft, reward]") == 0
    return folder


def copied(scored: Path, name: str) -> list[str]:
    """Arguments of a run of its own that begins there."""
    shutil.copytree(scored / "run", scored / name)
    return [*hh_arguments(scored), f"out={scored / name}"]


def test_ppo_sums_a_model_and_a_verifier_by_weight(scored: Path) -> None:
    arguments = copied(scored, "ppo")
    parts = f"ppo.rewards={{parts: [{{weight: 0.7}}, {LENGTH}]}}"
    assert call("ppo", *arguments, parts) == 0
    rows = list(read_jsonl(scored / "ppo" / "ppo" / "metrics.jsonl"))
    for row in rows:
        assert row["reward"] == pytest.approx(0.7 * row["reward/1-own"] + 0.3 * row["reward/short"], abs=1e-5)
    assert call("ppo", *arguments, parts, "--resume") == 0


def test_a_named_model_counts_as_the_own_one_and_needs_no_stage(scored: Path) -> None:
    path = scored / "run" / "reward" / "model"
    arguments = copied(scored, "named")
    shutil.rmtree(scored / "named" / "reward")
    assert call("ppo", *arguments, f"ppo.rewards={{parts: [{{model: {path}, weight: 2}}]}}") == 0
    manifest = open_run(scored / "named" / "ppo").manifest
    assert "reward 1-model" in manifest["parents"] and "reward_model" not in manifest["parents"]
    rows = list(read_jsonl(scored / "named" / "ppo" / "metrics.jsonl"))
    assert all(row["reward"] == pytest.approx(2 * row["reward/1-model"], rel=1e-5) for row in rows)


def test_scales_come_from_the_sft_model(scored: Path, capsys: Capture) -> None:
    arguments = copied(scored, "scaled")
    assert call("ppo", *arguments, "ppo.rewards={scale: reference, parts: [{weight: 1}]}") == 0
    said = " ".join(capsys.readouterr().err.split())
    assert (
        "rewards are summed in units of the SFT model's answers (mean, standard deviation): 1-own (" in said
    )
    row = next(read_jsonl(scored / "scaled" / "ppo" / "metrics.jsonl"))
    shift, scale = map(float, said.split("1-own (")[1].split(")")[0].split(", "))
    # Mean and deviation are said with four digits.
    assert row["reward"] == pytest.approx((row["reward/1-own"] - shift) / scale, abs=5e-3 / scale)


def test_a_part_that_is_always_the_same_has_no_scale(scored: Path, capsys: Capture) -> None:
    always = "{verifier: {name: length}}"
    said = refusal(
        capsys,
        "ppo",
        *copied(scored, "flat"),
        f"ppo.rewards={{scale: reference, parts: [{{weight: 1}}, {always}]}}",
    )
    assert "reward 2-length gives all answers of the SFT model the same score" in said


def test_online_dpo_scores_by_the_sum(scored: Path) -> None:
    online = (
        "{rounds: 1, prompts: 12, completions: 3, max_new_tokens: 6, rewards: {parts: [{}, " + LENGTH + "]}}"
    )
    assert call("dpo", *copied(scored, "online"), f"dpo.online={online}") == 0
    drawn = read_json(scored / "online" / "dpo" / "rounds" / "1" / "drawn.json")
    assert set(drawn["parts"]) == {"reward/1-own", "reward/short"}
    expected = drawn["parts"]["reward/1-own"] + 0.3 * drawn["parts"]["reward/short"]
    assert drawn["reward"]["value"] == pytest.approx(expected, abs=1e-5)


def test_the_best_of_n_is_imitated(scored: Path) -> None:
    online = "dpo.online={rounds: 1, prompts: 12, completions: 3, max_new_tokens: 6}"
    asked = [*copied(scored, "raft"), online, "dpo.objective.method=sft", "dpo.train={steps: 20, lr: 0.01}"]
    assert call("dpo", *asked) == 0
    stage = scored / "raft" / "dpo" / "rounds" / "1"
    rows = list(read_jsonl(stage / "metrics.jsonl"))
    assert rows[-1]["loss"] < rows[0]["loss"]
    assert rows[-1]["logps/chosen"] > rows[0]["logps/chosen"]
    assert not list(stage.glob("ref_logps-*"))


def test_groups_add_parts_to_their_verifiers(tmp_path: Path) -> None:
    arguments = group_arguments(tmp_path)
    added = "grpo.rewards={parts: [{verifier: {name: length, max_words: 2}, weight: -0.5, name: short}]}"
    assert call("run", *arguments, added) == 0
    for row in read_jsonl(tmp_path / "run" / "grpo" / "metrics.jsonl"):
        expected = row["reward/verifiers"] - 0.5 * row["reward/short"]
        assert row["reward"] == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize(
    ("parts", "words"),
    [
        ("[]", "at least 1"),
        ("[{model: x, verifier: {name: length}}]", "a model or a verifier, not both"),
        ("[{verifier: {name: length, weight: 2}}]", "stands beside its verifier"),
        ("[{weight: .nan}]", "weight"),
        ("[{name: a}, {name: a}]", "have the same name"),
        ("[{verifier: {name: exact}}]", "compares with what is right, and"),
    ],
)
def test_what_is_refused(scored: Path, capsys: Capture, parts: str, words: str) -> None:
    arguments = [*hh_arguments(scored), f"out={scored / 'run'}"]
    assert words in refusal(capsys, "ppo", *arguments, f"ppo.rewards={{parts: {parts}}}")
    assert not (scored / "run" / "ppo" / "metrics.jsonl").exists()


def test_a_model_of_other_tokens_is_refused(scored: Path, tmp_path: Path, capsys: Capture) -> None:
    model = write_testbed_model(tmp_path / "base")
    asked: list[Any] = [*hh_arguments(tmp_path), f"model.path={model}", "stages=[data, sft, reward]"]
    assert call("run", *asked) == 0
    capsys.readouterr()
    other = f"ppo.rewards={{parts: [{{model: {tmp_path / 'run' / 'reward' / 'model'}}}]}}"
    assert "reads other tokens than the policy" in refusal(capsys, "ppo", *hh_arguments(scored), other)
