"""Looks at held-out data while a stage trains: what they write, and that they change nothing else."""

from pathlib import Path
from typing import Any

import pytest

from tests.pipeline.toy import call, hh_arguments
from tests.trainers import language
from trueward.core.errors import DataError
from trueward.core.files import read_json, read_jsonl
from trueward.core.run import open_run
from trueward.models.checkpoint import model_hash
from trueward.pipeline.held_out import EVAL_ITEMS, reward_looks, sft_looks
from trueward.trainers.reward import RewardPair
from trueward.trainers.settings import TrainSettings
from trueward.trainers.sft import evaluate_sft

STAGES = ("sft", "reward", "dpo", "ppo")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One run that looks at held-out data and one that does not."""
    folder = tmp_path_factory.mktemp("looks")
    stages = f"stages=[data, {', '.join(STAGES)}]"
    looks = [f"{stage}.train.eval_every=2" for stage in STAGES]
    assert call("run", *hh_arguments(folder, out="looking"), stages, *looks) == 0
    assert call("run", *hh_arguments(folder, out="blind"), stages) == 0
    return folder


def _rows(folder: Path, stage: str) -> list[dict[str, Any]]:
    return list(read_jsonl(folder / "looking" / stage / "metrics.jsonl"))


@pytest.mark.parametrize(
    ("stage", "steps", "names"),
    [
        ("sft", [2, 3], {"eval/loss", "eval/mean_token_accuracy"}),
        ("reward", [2], {"eval/loss", "eval/accuracy", "eval/rewards/margins"}),
        (
            "dpo",
            [2],
            {
                "eval/loss",
                "eval/accuracy",
                "eval/rewards/margins",
                "eval/logps/chosen_per_token_change",
                "eval/logps/rejected_per_token_change",
            },
        ),
        ("ppo", [2], {"eval/reward", "eval/completions/mean_length", "eval/completions/clipped_ratio"}),
    ],
    ids=STAGES,
)
def test_looks_are_in_metrics_at_their_steps(
    stage: str, steps: list[int], names: set[str], place: Path
) -> None:
    """Every second step and the last one."""
    looked = {row["step"]: {name for name in row if name.startswith("eval/")} for row in _rows(place, stage)}
    assert {step: found for step, found in looked.items() if found} == dict.fromkeys(steps, names)
    blind = read_jsonl(place / "blind" / stage / "metrics.jsonl")
    assert not [name for row in blind for name in row if name.startswith("eval/")]


def test_the_last_look_is_what_the_stage_measures_at_its_end(place: Path) -> None:
    # Fewer held-out items than a look sees, so both are over the same ones.
    held = {
        stage: open_run(place / "looking" / stage).manifest["results"]["held_out"] for stage in STAGES[:3]
    }
    last = {stage: _rows(place, stage)[-1] for stage in STAGES[:3]}
    assert last["sft"]["eval/loss"] == pytest.approx(held["sft"]["loss"], rel=1e-5)
    assert last["sft"]["eval/mean_token_accuracy"] == pytest.approx(held["sft"]["mean_token_accuracy"])
    for stage in ("reward", "dpo"):
        assert last[stage]["eval/accuracy"] == pytest.approx(held[stage]["accuracy"]["value"])


def test_looks_reach_the_report(place: Path) -> None:
    looks = [f"{stage}.train.eval_every=2" for stage in STAGES]
    assert call("run", *hh_arguments(place, out="looking"), "stages=[eval, report]", *looks) == 0
    points = read_json(place / "looking" / "summary.json")["curves"]["looks"]
    steps = {stage: [p["step"] for p in points if p["stage"] == stage] for stage in STAGES}
    assert steps == {"sft": [2, 3], "reward": [2], "dpo": [2], "ppo": [2]}
    assert {p["figure"] for p in points if p["stage"] == "ppo"} == {"reward"}
    assert "looks-sft" in (place / "looking" / "report.html").read_text()


def test_looking_changes_no_weight(place: Path) -> None:
    for stage in STAGES:
        looking, blind = (model_hash(place / out / stage / "model") for out in ("looking", "blind"))
        assert looking == blind


def test_a_look_sees_the_first_items_only() -> None:
    model, groups = language.policy(), language.demonstrations(EVAL_ITEMS + 60)
    look = sft_looks(groups, TrainSettings(eval_every=1, max_tokens_per_forward=500))
    assert look is not None
    first = evaluate_sft(model, groups[:EVAL_ITEMS], max_tokens_per_forward=500)
    everything = evaluate_sft(model, groups, max_tokens_per_forward=500)
    assert look(model) == first.metrics() != everything.metrics()


def test_ties_do_not_fill_the_look_at_a_reward_model() -> None:
    pairs = [RewardPair(group, soft_label=0.5) for group in language.comparisons(EVAL_ITEMS)]
    settings = TrainSettings(eval_every=1)
    look = reward_looks([*pairs, RewardPair(language.comparisons(1)[0])], settings)
    assert look is not None
    assert look(language.reward_model())["eval/accuracy"] in (0.0, 1.0)
    with pytest.raises(DataError, match=r"reward\.train\.eval_every is 1, but no held-out item can be used"):
        reward_looks(pairs, settings)


def test_no_look_without_being_asked() -> None:
    assert sft_looks(language.demonstrations(4), TrainSettings()) is None
    assert sft_looks([], TrainSettings()) is None
