"""What to change where a stage does not fit: changes are tried in order by predicting again, cheapest first.

A change is a list of overrides as the command line takes them, so what is printed can be typed. Also the
sentence that an allocation which failed in the middle of a run ends in.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch

from trueward.core.config import apply_overrides, build
from trueward.core.errors import RunError
from trueward.pipeline.hardware import Device, this_machine
from trueward.pipeline.predict import Inputs, Prediction, StagePrediction, predict, read_inputs
from trueward.pipeline.predict_work import TRAINED, TrainedStage, Work
from trueward.pipeline.recipe import Recipe

__all__ = ["Change", "Tried", "advise", "changed", "changes_for", "out_of_memory", "ran_out"]

_GIB = 2**30
_RANK = 16
# What allocators say; torch has a class of its own for GPUs only.
_SAID = ("can't allocate memory", "not enough memory", "out of memory", "Cannot allocate memory")


class Change(NamedTuple):
    """What would be changed, in words, and how to say it on the command line."""

    words: str
    overrides: tuple[str, ...]


class Tried(NamedTuple):
    """A change and the peak of the stage before and after it, bytes."""

    change: Change
    before: float
    after: float
    fits: bool

    @property
    def sentence(self) -> str:
        """`LoRA r=16 brings it from 31.0 to 9.2 GiB (model.lora.r=16)`."""
        typed = " ".join(self.change.overrides)
        sizes = f"from {self.before / _GIB:.2f} to {self.after / _GIB:.2f} GiB"
        return f"{self.change.words} brings it {sizes} ({typed})"


def changed(recipe: Recipe, change: Change) -> Recipe:
    """The recipe with a change made."""
    mapping = apply_overrides(recipe.model_dump(mode="json"), change.overrides)
    return build(Recipe, mapping, source=f"the recipe with {' '.join(change.overrides)}")


def changes_for(recipe: Recipe, work: Work, tokens_at_once: float) -> list[Change]:
    """What can be changed for a stage, in the order in which it costs: first what only takes time, then what
    changes the arithmetic, then what is trained.

    Args:
        tokens_at_once: of the largest training forward.
    """
    stage = work.stage
    key = f"{stage}.train"
    found: list[Change] = []
    tokens = 1 << (int(tokens_at_once) - 1).bit_length()
    smaller: list[Change] = []
    while (tokens := tokens // 2) >= max(64, work.max_tokens):
        smaller.append(
            Change(f"at most {tokens:,} tokens in one forward", (f"{key}.max_tokens_per_forward={tokens}",))
        )
    found += smaller
    checkpoint = Change("activation checkpointing", (f"{key}.activation_checkpointing=true",))
    if not work.checkpointing:
        found.append(checkpoint)
        if smaller:
            words = f"activation checkpointing with {smaller[-1].words}"
            found.append(Change(words, (*checkpoint.overrides, *smaller[-1].overrides)))
    if work.first_moment == "float32":
        found.append(Change("AdamW's first moment in bfloat16", (f"{key}.first_moment=bfloat16",)))
    if work.precision == "float32":
        found.append(Change("bfloat16 arithmetic", (f"{key}.precision=bfloat16",)))
    found += _adapters(recipe, stage)
    adapters = found[-1] if found else Change("", ())
    if adapters.overrides and not work.checkpointing:
        words = f"{adapters.words} with activation checkpointing"
        both = tuple(dict.fromkeys((*adapters.overrides, *checkpoint.overrides)))
        found.append(Change(words, both))
    if smaller:
        last = (*adapters.overrides, *checkpoint.overrides, *smaller[-1].overrides)
        found.append(Change("all of it together", tuple(dict.fromkeys(last))))
    return found


def _adapters(recipe: Recipe, stage: TrainedStage) -> list[Change]:
    section, lora = ("reward", recipe.reward.lora) if stage == "reward" else ("model", recipe.model.lora)
    rank = (f"{section}.lora.r={_RANK}",) if lora is None else ()
    found = [Change(f"LoRA r={_RANK}", rank)] if rank else []
    if stage != "reward" and recipe.model.dtype == "float32":
        words = f"LoRA r={_RANK} on bfloat16 weights" if rank else "bfloat16 weights under the adapters"
        found.append(Change(words, (*rank, "model.dtype=bfloat16")))
    if stage == "ppo" and recipe.reward.lora is None:
        before = found[-1] if found else Change("adapters", ())
        words = f"{before.words}, the reward model as adapters of the same backbone"
        found.append(Change(words, (*before.overrides, f"reward.lora.r={_RANK}")))
    return found


def _stage_of(prediction: Prediction, stage: TrainedStage) -> StagePrediction:
    return next(found for found in prediction.stages if found.work.stage == stage)


def advise(
    recipe: Recipe, inputs: Inputs, device: Device, stage: StagePrediction
) -> tuple[Tried | None, tuple[Tried, ...]]:
    """Changes tried on one stage.

    Returns:
        The one to make: the first that lets the stage fit, else the one that helps most; None if nothing can
        be changed. And all that were tried, in order.
    """
    before = stage.memory.peak.size
    tried = []
    for change in changes_for(recipe, stage.work, stage.memory.tokens):
        name = stage.work.stage
        after = _stage_of(predict(changed(recipe, change), device, inputs=inputs, stages=[name]), name)
        peak = after.memory.peak.size
        tried.append(Tried(change, before, peak, peak <= device.memory_bytes))
    useful = [one for one in tried if one.after < before]
    best = next((one for one in useful if one.fits), None)
    if best is None and useful:
        best = min(useful, key=lambda one: one.after)
    return best, tuple(tried)


def ran_out(error: BaseException) -> bool:
    """Whether an exception says that memory could not be had."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    return type(error) is RuntimeError and any(said in str(error) for said in _SAID)


def out_of_memory(recipe: Recipe, stages: Sequence[str]) -> RunError:
    """The error of a run whose memory ran out in the first of `stages`, with the plan's advice."""
    trained = [stage for stage in stages if stage in TRAINED]
    if not trained:
        return RunError("memory ran out", remedy="free memory and run the command again")
    inputs, device = read_inputs(recipe), this_machine(measure=False)
    (stage,) = predict(recipe, device, inputs=inputs, stages=trained[:1]).stages
    tried = [one for one in advise(recipe, inputs, device, stage)[1] if one.after < one.before]
    # What is free now says little: it did not suffice. The change that helps most is the one to name.
    best = f"; {min(tried, key=lambda one: one.after).sentence}" if tried else ""
    return RunError(
        f"memory ran out in stage {stage.work.stage}, for which the plan expects "
        f"{stage.memory.peak.size / _GIB:.2f} GiB at the widest moment{best}",
        remedy="the last checkpoint is intact: with more memory free, or a smaller max_tokens_per_forward, "
        "--resume goes on from it; another change needs a new `out`",
    )
