"""A reward model as adapters, from the recipe: what it leaves on disk, and PPO on one backbone with it."""

import shutil
from pathlib import Path

import pytest

from tests.pipeline.toy import call, hh_arguments
from trueward.core.files import read_jsonl
from trueward.models import load_causal, load_reward
from trueward.trainers.state import load_tensors

LORA = ("reward.lora={r: 4}", "reward.train={steps: 4, batch_size: 4, lr: 0.02}")


@pytest.mark.parametrize(
    ("policy", "value"),
    [("null", "shared"), ("{r: 2}", "separate")],
    ids=["policy-full", "policy-lora-value-separate"],
)
def test_ppo_takes_reward_adapters_on_its_backbone(policy: str, value: str, tmp_path: Path) -> None:
    stages = ["stages=[data, sft, reward, ppo]", f"model.lora={policy}", *LORA]
    stages.append(f"ppo.train.value_backbone={value}")
    assert call("run", *hh_arguments(tmp_path, out="one"), *stages) == 0
    out = tmp_path / "one"
    assert {path.name for path in (out / "reward").iterdir()} >= {"model", "adapter"}
    load_reward(out / "reward" / "model")
    load_causal(out / "ppo" / "model")
    trained = load_tensors(max((out / "ppo" / "checkpoints").iterdir()) / "weights.safetensors")
    # Only a trunk that was the reward model has a score head.
    assert ("value_backbone.score.weight" in trained) == (value == "separate")
    shutil.copytree(out, tmp_path / "separate", ignore=shutil.ignore_patterns("ppo"))
    again = [*hh_arguments(tmp_path, out="separate"), *stages, "ppo.one_backbone=false"]
    assert call("ppo", *again) == 0
    one, separate = (
        list(read_jsonl(tmp_path / name / "ppo" / "metrics.jsonl")) for name in ("one", "separate")
    )
    for name in ("reward", "objective/kl_k3", "value_loss"):
        assert [row[name] for row in one] == pytest.approx([row[name] for row in separate], abs=1e-4)


def test_an_adapter_of_another_base_ends_the_command(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = [*hh_arguments(tmp_path), *LORA]
    assert call("run", *arguments, "stages=[data, sft, reward]") == 0
    base = tmp_path / "run" / "reward" / "adapter" / "trueward_base.json"
    base.write_text(base.read_text().replace('"hash": "', '"hash": "0'))
    assert call("ppo", *arguments) == 2
    assert "were trained on another model" in capsys.readouterr().err
