"""The plan: hand values, what changes it in which direction, a model too large to load, verdict, command."""

import json
import struct
from pathlib import Path
from typing import Any

import pytest

from tests.pipeline.toy import call, hh_arguments, refusal, tree
from trueward.core.config import build
from trueward.pipeline.advice import Change, advise, changed
from trueward.pipeline.hardware import GPU_MFU, Device, device_named, known_hardware, memory_field
from trueward.pipeline.predict import StagePrediction, predict, read_inputs
from trueward.pipeline.predict_memory import roles_of
from trueward.pipeline.predict_report import make_plan, plan_json, plan_lines
from trueward.pipeline.predict_shape import header_elements, read_shape
from trueward.pipeline.recipe import Recipe

GIB = 2**30
LLAMA_70B: dict[str, Any] = {
    "model_type": "llama",
    "hidden_size": 8192,
    "intermediate_size": 28672,
    "num_hidden_layers": 80,
    "num_attention_heads": 64,
    "num_key_value_heads": 8,
    "vocab_size": 128256,
    "max_position_embeddings": 8192,
    "tie_word_embeddings": False,
}
SMALL: dict[str, Any] = {
    **LLAMA_70B,
    "hidden_size": 256,
    "intermediate_size": 768,
    "num_hidden_layers": 6,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 8000,
}
PARAMETERS_70B = 70_553_706_496


def device(gib: float, **changes: Any) -> Device:
    figures: dict[str, Any] = {
        "name": "a machine",
        "gpu": False,
        "gpus": 1,
        "memory_bytes": gib * GIB,
        "process_bytes": 0.5 * GIB,
        "float32_flops": 1e11,
        "bfloat16_flops": 2e11,
        "memory_bytes_per_s": 1e10,
        "link_bytes_per_s": 0.0,
        "words": "made up",
    }
    return Device(**{**figures, **changes})


def recipe_for(folder: Path, config: dict[str, Any], **sections: Any) -> Recipe:
    """A recipe on a model of which there is only the config.json, over rows of equal lengths."""
    (folder / "model").mkdir(exist_ok=True)
    (folder / "model" / "config.json").write_text(json.dumps(config), encoding="utf-8")
    row = json.dumps({"prompt": "q" * 400, "chosen": "a" * 200, "rejected": "b" * 200})
    (folder / "rows.jsonl").write_text(f"{row}\n" * 100, encoding="utf-8")
    mapping = {
        "name": "test",
        "out": str(folder / "out"),
        "model": {"path": str(folder / "model"), **sections.pop("model", {})},
        "data": {"path": str(folder / "rows.jsonl"), "max_tokens": 256},
        **sections,
    }
    return build(Recipe, mapping, source="test")


def stage_of(recipe: Recipe, name: str, on: Device) -> StagePrediction:
    return next(s for s in predict(recipe, on).stages if s.work.stage == name)


def parts_of(stage: StagePrediction, moment: str) -> dict[str, float]:
    return dict(next(m for m in stage.memory.moments if m.name == moment).parts)


def test_weights_gradients_and_moments_by_hand(tmp_path: Path) -> None:
    recipe = recipe_for(tmp_path, SMALL)
    sft = stage_of(recipe, "sft", device(10))
    # 6 x (2 x 256 x (256 + 128) + 3 x 256 x 768 + 2 x 256) + 256 + 2 x 8000 x 256
    count = 6 * (196_608 + 589_824 + 512) + 256 + 4_096_000
    parts = parts_of(sft, "end of the backward")
    assert read_shape(tmp_path / "model").num_parameters == count
    # The step reads 5088 tokens, so 2912 of the 8000 words at least have no gradient; over the run all come.
    assert sft.work.step_tokens == 5088
    assert (parts["weights"], parts["gradients"], parts["moments of AdamW"]) == (
        4 * count,
        4 * (count - 2912 * 256),
        8 * count,
    )
    decayed = recipe_for(tmp_path, SMALL, sft={"train": {"weight_decay": 0.1}})
    assert parts_of(stage_of(decayed, "sft", device(10)), "end of the backward")["gradients"] == 4 * count


def test_the_roles_are_those_the_stages_load(tmp_path: Path) -> None:
    shape = read_inputs(recipe := recipe_for(tmp_path, SMALL)).shape
    backbone = shape.num_parameters - 8000 * 256
    assert dict(roles_of(recipe, shape, "sft").frozen) == {}
    assert dict(roles_of(recipe, shape, "reward").frozen) == {
        "the SFT model it starts from": shape.num_parameters
    }
    ppo = {"reference": shape.num_parameters, "reward model": backbone}
    assert dict(roles_of(recipe, shape, "ppo").frozen) == ppo
    adapted = recipe_for(tmp_path, SMALL, model={"lora": {"r": 8}, "dtype": "bfloat16"})
    assert dict(roles_of(adapted, shape, "ppo").frozen) == {"reward model": backbone}
    assert roles_of(adapted, shape, "sft").trained == shape.adapter_parameters(8)
    shared = recipe_for(tmp_path, SMALL, model={"lora": {"r": 8}}, reward={"lora": {"r": 8}})
    assert dict(roles_of(shared, shape, "ppo").frozen) == {}


@pytest.mark.parametrize(
    "less",
    [
        ("sft.train.activation_checkpointing=true",),
        ("sft.train.max_tokens_per_forward=512",),
        ("sft.train.precision=bfloat16",),
        ("model.lora.r=8",),
        ("sft.train.batch_size=8",),
    ],
    ids=lambda overrides: overrides[0],
)
def test_what_takes_less_memory_is_predicted_to(tmp_path: Path, less: tuple[str, ...]) -> None:
    recipe = recipe_for(tmp_path, SMALL)
    on = device(10)
    before = stage_of(recipe, "sft", on).memory.peak.size
    smaller = changed(recipe, Change("less", less))
    assert stage_of(smaller, "sft", on).memory.peak.size < before


def test_operations_by_hand(tmp_path: Path) -> None:
    recipe = recipe_for(tmp_path, SMALL, sft={"train": {"batch_size": 10, "steps": 7}})
    sft = stage_of(recipe, "sft", device(10, float32_flops=1e9, memory_bytes_per_s=1e30))
    assert sft.duration is not None
    # Prompt: 400 characters / 4, a template of 4 tokens for the message and 4 for the answer's head. Answer:
    # 200 / 4 and the end. Attention: 4 x 256 operations a layer and cell, half of 159 cells, 3.5 times.
    tokens, scored = 10 * 159, 10 * 51
    layers = 6 * (196_608 + 589_824)
    attention = 4 * 6 * 256 * 159 / 2 * tokens
    expected = 6 * layers * tokens + 3.5 * attention + (2 + 6) * 8000 * 256 * scored
    assert sft.duration.step_s == pytest.approx(expected / 1e9, rel=1e-6)
    assert sft.duration.run_s == pytest.approx(7 * sft.duration.step_s)


def test_a_70b_policy_on_eight_gpus_in_figures(tmp_path: Path) -> None:
    recipe = recipe_for(tmp_path, LLAMA_70B, stages=["sft"], sft={"train": {"precision": "bfloat16"}})
    on = device_named("h100", gpus=8)
    planned = make_plan(recipe, on)
    text = "\n".join(plan_lines(planned))
    assert planned.prediction.inputs.shape.num_parameters == PARAMETERS_70B
    # 16 bytes a parameter in 8 shards are 131 GiB a GPU: more than it has.
    assert f"gradients    {PARAMETERS_70B:,} x 4 bytes / 8 = {PARAMETERS_70B / 2 / GIB:.2f} GiB" in text
    assert f"moments      {PARAMETERS_70B:,} x 8 bytes / 8 = {PARAMETERS_70B / GIB:.2f} GiB" in text
    assert "activations " in text and "bytes a token and layer" in text and "8 shards" in text
    assert "Verdict: it does not fit" in text
    best = planned.advice["sft"]
    assert best is not None and best.fits and "model.lora.r=16" in best.change.overrides
    assert f"{best.after / GIB:.2f} GiB" in text.splitlines()[-1]


def test_what_is_not_counted_is_said(tmp_path: Path) -> None:
    counted = recipe_for(tmp_path, SMALL, stages=["data", "sft", "dpo", "eval", "report"])
    assert make_plan(counted, device(10)).prediction.left_out == ()
    more = recipe_for(tmp_path, SMALL, stages=["data", "dpo", "kto"], dpo={"online": {}})
    planned = make_plan(more, device(10))
    assert plan_json(planned)["not_counted"] == ["the stage kto", "the rounds of dpo.online"]
    assert any("Not counted: the stage kto, the rounds of dpo.online" in line for line in plan_lines(planned))


def test_shards_shrink_what_is_sharded_only(tmp_path: Path) -> None:
    recipe = recipe_for(tmp_path, SMALL, sft={"train": {"batch_size": 64, "max_tokens_per_forward": 256}})
    one, eight = (stage_of(recipe, "sft", device(80, gpus=n, link_bytes_per_s=1e11)) for n in (1, 8))
    small, large = (parts_of(s, "end of the backward") for s in (eight, one))
    assert small["moments of AdamW"] == pytest.approx(large["moments of AdamW"] / 8)
    assert small["process"] == large["process"]
    assert one.duration is not None and eight.duration is not None
    assert eight.duration.step_s < one.duration.step_s


def test_only_headers_of_the_weights_are_read(tmp_path: Path) -> None:
    recipe_for(tmp_path, SMALL)
    entries = {
        "__metadata__": {"format": "pt"},
        "a": {"dtype": "F32", "shape": [1000, 20], "data_offsets": [0, 8]},
    }
    header = json.dumps(entries).encode()
    # There are no weights behind the header.
    (tmp_path / "model" / "model.safetensors").write_bytes(struct.pack("<Q", len(header)) + header)
    assert header_elements(tmp_path / "model") == 20_000
    assert read_shape(tmp_path / "model").num_parameters == 20_000


def test_the_first_change_that_suffices_is_advised(tmp_path: Path) -> None:
    recipe = recipe_for(tmp_path, SMALL, sft={"train": {"batch_size": 64}})
    stage = stage_of(recipe, "sft", device(0.1))
    _, everything = advise(recipe, read_inputs(recipe), device(0.1), stage)
    sizes = [one.after for one in everything]
    # Room for the best of them only, then for all of them.
    narrow, wide = device(min(sizes) / GIB + 1e-6), device(stage.memory.peak.size / GIB - 1e-6)
    best, _ = advise(recipe, read_inputs(recipe), narrow, stage)
    first, _ = advise(recipe, read_inputs(recipe), wide, stage)
    assert best is not None and best.fits and best.after == min(sizes)
    assert first is not None and first.change.overrides == ("sft.train.max_tokens_per_forward=8192",)
    size = stage.memory.peak.size
    assert first.sentence.startswith(
        f"at most 8,192 tokens in one forward brings it from {size / GIB:.2f} to "
    )
    none, _ = advise(recipe, read_inputs(recipe), device(0.1), stage)
    assert none is not None and not none.fits and none.after == min(sizes)


def test_each_gpu_has_figures_and_a_source() -> None:
    known = known_hardware()
    assert {"h100", "h200", "a100", "rtx4090"} <= known.keys()
    for name, sheet in known.items():
        assert len(sheet["source"]) > 20
        found = device_named(name)
        assert found.flops("bfloat16") == pytest.approx(GPU_MFU * sheet["bfloat16_tflops"] * 1e12)
        assert 0 < found.memory_bytes < sheet["memory_gib"] * GIB
        assert found.float32_flops < found.bfloat16_flops


def test_memory_fields_of_the_kernel(tmp_path: Path) -> None:
    (tmp_path / "status").write_text("VmPeak:\t 9 kB\nVmRSS:\t  12 kB\n", encoding="utf-8")
    assert memory_field("VmRSS", str(tmp_path / "status")) == 12 * 1024
    assert memory_field("VmHWM", str(tmp_path / "status")) is None
    assert memory_field("VmRSS", str(tmp_path / "absent")) is None


def test_the_command_prints_a_plan_and_touches_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = hh_arguments(tmp_path)
    before = tree(tmp_path)
    assert call("plan", *arguments, "--hardware", "rtx4090") == 0
    out = capsys.readouterr().out
    for words in (
        "SFT: ",
        "reward model: ",
        "DPO: ",
        "PPO: ",
        "widest moment: ",
        "Verdict: it fits",
        "time: ",
    ):
        assert words in out, out
    assert tree(tmp_path) == before


def test_the_command_gives_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert call("plan", *hh_arguments(tmp_path), "--hardware", "h100", "--json") == 0
    plan = json.loads(capsys.readouterr().out)
    assert plan["schema"] == "trueward.plan/1" and plan["fits"] is True
    assert [stage["stage"] for stage in plan["stages"]] == ["sft", "reward", "dpo", "ppo"]
    for stage in plan["stages"]:
        assert stage["peak_bytes"] == max(moment["bytes"] for moment in stage["moments"])
        assert stage["run_s"] >= stage["step_s"] > 0


def test_json_says_what_was_tried(tmp_path: Path) -> None:
    planned = make_plan(recipe_for(tmp_path, SMALL, stages=["sft"]), device(0.7))
    (stage,) = plan_json(planned)["stages"]
    assert not stage["fits"] and stage["advice"]["bytes_after"] < stage["advice"]["bytes_before"]
    assert stage["advice"] in stage["tried"]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--hardware", "h1000"), "did you mean 'h100'"),
        (("--gpus", "2"), "the number of GPUs is wrong, got 2"),
        (("--hardware", "h100", "--gpus", "0"), "the number of GPUs is wrong, got 0"),
    ],
    ids=["unknown", "gpus-of-this-machine", "no-gpus"],
)
def test_wrong_hardware_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], options: tuple[str, ...], said: str
) -> None:
    assert said in refusal(capsys, "plan", *hh_arguments(tmp_path), *options)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"num_experts": 8}, "experts"),
        ({"hidden_size": None}, "config.json states no hidden_size"),
    ],
    ids=["experts", "no-width"],
)
def test_a_model_that_cannot_be_planned_is_refused(
    tmp_path: Path, changes: dict[str, Any], said: str
) -> None:
    recipe = recipe_for(tmp_path, {**SMALL, **changes})
    with pytest.raises(ValueError, match=said):
        predict(recipe, device(10))


def test_an_unknown_type_is_counted_as_a_llama_and_said_to_be(tmp_path: Path) -> None:
    recipe = recipe_for(tmp_path, {**SMALL, "model_type": "novel"}, stages=["sft"])
    assert "the layers of 'novel' are not known" in "\n".join(plan_lines(make_plan(recipe, device(10))))
