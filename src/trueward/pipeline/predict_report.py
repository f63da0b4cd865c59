"""The plan for people and for programs: stages with their parts, verdict, what to change; text or JSON."""

import json
from collections.abc import Sequence
from typing import Any, NamedTuple

from rich.console import Console

from trueward.pipeline.advice import Tried, advise
from trueward.pipeline.command import resolve
from trueward.pipeline.hardware import Device, device_named
from trueward.pipeline.predict import Prediction, StagePrediction, predict
from trueward.pipeline.predict_activations import kept_per_layer
from trueward.pipeline.predict_memory import roles_of, row_of
from trueward.pipeline.predict_shape import Shape
from trueward.pipeline.recipe import Recipe

__all__ = ["Planned", "make_plan", "plan_command", "plan_json", "plan_lines"]

SCHEMA = "trueward.plan/1"
_GIB = 2**30
_MINUTE_S, _HOUR_S, _DAY_S = 60, 3600, 86400
_NAMES = {"sft": "SFT", "reward": "reward model", "dpo": "DPO", "ppo": "PPO", "grpo": "GRPO"}


class Planned(NamedTuple):
    """A prediction, and by stage what was tried and the change to make (None: nothing helps)."""

    recipe: Recipe
    prediction: Prediction
    advice: dict[str, Tried | None]
    tried: dict[str, tuple[Tried, ...]]


def make_plan(recipe: Recipe, device: Device) -> Planned:
    """Predict a recipe and look for changes where a stage does not fit.

    Raises:
        ModelError, DataError, ConfigError: model or data is missing or not understood.
    """
    prediction = predict(recipe, device)
    advice: dict[str, Tried | None] = {}
    tried: dict[str, tuple[Tried, ...]] = {}
    for stage in prediction.stages:
        if stage.memory.peak.size > device.memory_bytes:
            name = stage.work.stage
            advice[name], tried[name] = advise(recipe, prediction.inputs, device, stage)
    return Planned(recipe, prediction, advice, tried)


def _gib(size: float) -> str:
    return f"{size / _GIB:.2f} GiB"


def _time(seconds: float) -> str:
    if seconds < _MINUTE_S:
        return f"{seconds:.2g} s"
    if seconds < _HOUR_S:
        return f"{seconds / _MINUTE_S:.1f} min"
    return f"{seconds / _HOUR_S:.1f} h" if seconds < 2 * _DAY_S else f"{seconds / _DAY_S:.1f} days"


def _model(shape: Shape) -> str:
    size = shape.num_parameters
    count = f"{size / 1e9:.2f}B" if size >= 1e9 else f"{size / 1e6:.2f}M"
    known = "" if shape.known else f"; the layers of {shape.model_type!r} are not known, counted as a Llama's"
    return (
        f"Model: {count} parameters ({shape.model_type}, {shape.num_layers} layers, "
        f"width {shape.width:,}, inner {shape.inner:,}, {shape.num_heads} heads, "
        f"{shape.kv_width // shape.head_dim} for keys, vocabulary "
        f"{shape.vocab_size:,}{', tied' if shape.tied else ''}){known}"
    )


def _arithmetic(planned: Planned, stage: StagePrediction) -> list[str]:
    """The sums behind the parts, per GPU."""
    recipe, shape, gpus = planned.recipe, planned.prediction.inputs.shape, planned.prediction.device.gpus
    roles = roles_of(recipe, shape, stage.work.stage, gpu=planned.prediction.device.gpu)
    how, share = roles.how, f" / {gpus}" if gpus > 1 else ""
    tokens = stage.memory.tokens
    layer = kept_per_layer(shape, how, row_of(stage.work, tokens, gpu=planned.prediction.device.gpu))
    lines = [
        f"weights      {roles.base:,} x {how.weight_bytes} bytes{share} = "
        f"{_gib(how.weight_bytes * roles.base / gpus)}",
        f"gradients    {roles.trained:,} x 4 bytes{share} = {_gib(4 * roles.trained / gpus)}",
        f"moments      {roles.trained:,} x 8 bytes{share} = {_gib(8 * roles.trained / gpus)}",
    ]
    if roles.looked_up:
        lines.append("             less where words of the table of embeddings never come")
    per_token = f"{layer / tokens:,.0f} bytes a token and layer"
    if stage.work.checkpointing:
        stream = how.weight_bytes * shape.width
        kept = shape.num_layers * stream * tokens + layer
        lines.append(
            f"activations  {tokens:,.0f} tokens x ({shape.num_layers} layers x {stream:,} bytes of input + "
            f"one layer computed again, {per_token}) = {_gib(kept)}"
        )
    else:
        kept = shape.num_layers * layer
        lines.append(
            f"activations  {tokens:,.0f} tokens x {shape.num_layers} layers x {per_token} = {_gib(kept)}"
        )
    return lines


def _stage_lines(planned: Planned, stage: StagePrediction) -> list[str]:
    device, work, peak = planned.prediction.device, stage.work, stage.memory.peak
    fits = peak.size <= device.memory_bytes
    verdict = "fits" if fits else "does not fit"
    each = " on each GPU" if device.gpus > 1 else ""
    lines = [
        "",
        f"{_NAMES[work.stage]}: {_gib(peak.size)}{each} of {_gib(device.memory_bytes)}: {verdict}",
        f"  widest moment: {peak.name}, {stage.memory.tokens:,.0f} tokens in the largest training forward",
        *(f"    {_gib(part.size):>11}  {part.name}" for part in peak.parts),
        *(f"  {line}" for line in _arithmetic(planned, stage)),
    ]
    if stage.duration is not None:
        spent = ", ".join(f"{name} {_time(seconds)}" for name, seconds in stage.duration.parts)
        unit = "iteration" if work.new_tokens else "step"
        before = f" after {_time(stage.duration.setup_s)} of reference pass" if stage.duration.setup_s else ""
        steps = f"{work.steps:,} {unit}{'s' if work.steps != 1 else ''}"
        lines.append(
            f"  time: {_time(stage.duration.step_s)} per {unit} ({spent}), {steps}{before}: "
            f"{_time(stage.duration.run_s)}"
        )
    best = planned.advice.get(work.stage)
    if best is not None:
        lines.append(f"  change: {best.sentence}{', and it fits' if best.fits else ', still too much'}")
        lines += [f"    tried: {one.sentence}" for one in planned.tried[work.stage] if one != best]
    return lines


def _verdict(planned: Planned) -> str:
    prediction = planned.prediction
    if not prediction.stages:
        return "Verdict: nothing is trained."
    if prediction.fits:
        return f"Verdict: it fits; the widest stage takes {_gib(prediction.widest.memory.peak.size)}."
    widest = prediction.widest
    words = (
        f"Verdict: it does not fit: {_NAMES[widest.work.stage]} takes {_gib(widest.memory.peak.size)} of "
        f"{_gib(prediction.device.memory_bytes)}"
    )
    best = planned.advice[widest.work.stage]
    if best is None:
        return f"{words}; nothing in the recipe brings it down."
    if best.fits:
        return f"{words}; {best.sentence}."
    needed = best.after / prediction.device.memory_bytes
    return f"{words}; {best.sentence}, which needs {needed:.1f} times the memory there is."


def plan_lines(planned: Planned) -> list[str]:
    """The plan as lines of text."""
    prediction = planned.prediction
    device = prediction.device
    lines = [
        f"Plan of {planned.recipe.name} on {device.name}: {_gib(device.memory_bytes)} to use; {device.words}",
        _model(prediction.inputs.shape),
        f"Data: {prediction.inputs.counted.words}",
    ]
    if device.gpus > 1:
        lines.append(
            f"Layout: weights, gradients and moments in {device.gpus} shards (FSDP2), each GPU with its own "
            "tokens; this version of Trueward trains on one device, so the layout is arithmetic"
        )
    for stage in prediction.stages:
        lines += _stage_lines(planned, stage)
    if prediction.left_out:
        lines += [
            "",
            f"Not counted: {', '.join(prediction.left_out)}. They take memory and time beside this.",
        ]
    return [*lines, "", _verdict(planned)]


def _tried_json(one: Tried | None) -> dict[str, Any] | None:
    if one is None:
        return None
    return {
        "words": one.change.words,
        "overrides": list(one.change.overrides),
        "bytes_before": round(one.before),
        "bytes_after": round(one.after),
        "fits": one.fits,
    }


def plan_json(planned: Planned) -> dict[str, Any]:
    """The plan as JSON values; memory in bytes, time in seconds."""
    device = planned.prediction.device
    stages = []
    for stage in planned.prediction.stages:
        name, duration = stage.work.stage, stage.duration
        stages.append(
            {
                "stage": name,
                "fits": stage.memory.peak.size <= device.memory_bytes,
                "peak_bytes": round(stage.memory.peak.size),
                "forward_tokens": round(stage.memory.tokens),
                "moments": [
                    {
                        "name": m.name,
                        "bytes": round(m.size),
                        "parts": {p.name: round(p.size) for p in m.parts},
                    }
                    for m in stage.memory.moments
                ],
                "steps": stage.work.steps,
                "step_s": None if duration is None else duration.step_s,
                "run_s": None if duration is None else duration.run_s,
                "step_parts_s": {} if duration is None else dict(duration.parts),
                "advice": _tried_json(planned.advice.get(name)),
                "tried": [_tried_json(one) for one in planned.tried.get(name, ())],
            }
        )
    return {
        "schema": SCHEMA,
        "recipe": planned.recipe.name,
        "parameters": planned.prediction.inputs.shape.num_parameters,
        "device": {
            "name": device.name,
            "gpus": device.gpus,
            "bytes": round(device.memory_bytes),
            "words": device.words,
        },
        "fits": planned.prediction.fits,
        "not_counted": list(planned.prediction.left_out),
        "stages": stages,
    }


def plan_command(recipe: str, overrides: Sequence[str], *, hardware: str, gpus: int, as_json: bool) -> None:
    """`trueward plan`: print the plan of a recipe.

    Raises:
        ConfigError, ModelError, DataError: recipe, hardware, model or data is wrong or missing.
    """
    planned = make_plan(resolve(recipe, overrides), device_named(hardware, gpus=gpus))
    output = Console(soft_wrap=True)
    text = json.dumps(plan_json(planned), indent=2) if as_json else "\n".join(plan_lines(planned))
    output.print(text, markup=False, highlight=False)
