"""The prediction of a recipe as a whole: each training stage's memory and time on a device.

Read are config.json, the headers of safetensors files, the tokenizer's vocabulary and the data's rows.
"""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from trueward.models.load import locate_model
from trueward.pipeline.hardware import Device
from trueward.pipeline.predict_memory import Memory, predict_memory
from trueward.pipeline.predict_shape import Shape, read_shape
from trueward.pipeline.predict_time import Duration, predict_time
from trueward.pipeline.predict_work import TRAINED, Counted, Work, count_data, work_of
from trueward.pipeline.recipe import STAGES, Recipe
from trueward.pipeline.testbed_base import shipped_base

__all__ = ["Inputs", "Prediction", "StagePrediction", "predict", "read_inputs"]


_WITHOUT_TRAINING = {"data", "eval", "gate", "report"}


class Inputs(NamedTuple):
    """What was read of the recipe's model and data."""

    shape: Shape
    counted: Counted


class StagePrediction(NamedTuple):
    """One stage: what it computes, the memory it takes, how long."""

    work: Work
    memory: Memory
    duration: Duration | None


class Prediction(NamedTuple):
    """All training stages of a recipe on a device."""

    inputs: Inputs
    device: Device
    stages: tuple[StagePrediction, ...]
    left_out: tuple[str, ...] = ()
    """What the recipe asks for and no figure here counts, in words."""

    @property
    def widest(self) -> StagePrediction:
        """The stage with the highest peak."""
        return max(self.stages, key=lambda stage: stage.memory.peak.size)

    @property
    def fits(self) -> bool:
        return all(stage.memory.peak.size <= self.device.memory_bytes for stage in self.stages)


def _vocabulary(folder: Path, shape: Shape) -> int:
    """Tokens of the tokenizer; the model's rows where it cannot be told (they may be more)."""
    try:
        vocab = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))["model"]["vocab"]
        return len(vocab)
    except (OSError, ValueError, KeyError, TypeError):
        return shape.vocab_size


def read_inputs(recipe: Recipe) -> Inputs:
    """Shape of the model and extent of the data.

    Raises:
        ModelError: the model's folder is missing or not understood.
        DataError, ConfigError: the data is missing or cannot be read.
    """
    path = recipe.model.path
    folder = locate_model(path, download=False).folder if path else shipped_base()
    shape = read_shape(folder)
    return Inputs(shape, count_data(recipe, vocab_size=_vocabulary(folder, shape)))


def _left_out(recipe: Recipe, stages: Iterable[str]) -> tuple[str, ...]:
    wanted = set(stages)
    extra = {
        "the rounds of dpo.online": "dpo" in wanted and recipe.dpo.online is not None,
        "the demonstrations of ppo.train.ptx_coef": "ppo" in wanted and recipe.ppo.train.ptx_coef > 0,
        "ppo.cost_model": "ppo" in wanted and recipe.ppo.cost_model is not None,
    }
    unknown = [f"the stage {stage}" for stage in STAGES if stage in wanted - _WITHOUT_TRAINING - {*TRAINED}]
    return (*unknown, *(words for words, asked in extra.items() if asked))


def predict(
    recipe: Recipe, device: Device, *, inputs: Inputs | None = None, stages: Iterable[str] | None = None
) -> Prediction:
    """Memory and time of every training stage.

    Args:
        inputs: of the same model and data, read before; None reads them.
        stages: which; None is those of the recipe.

    Raises:
        ModelError, DataError, ConfigError: model or data is missing or not understood.
    """
    inputs = inputs or read_inputs(recipe)
    asked = recipe.stages if stages is None else tuple(stages)
    works = work_of(recipe, inputs.counted, asked)
    made = [
        StagePrediction(
            work,
            predict_memory(recipe, inputs.shape, work, device),
            predict_time(recipe, inputs.shape, work, device) if device.float32_flops else None,
        )
        for work in works
    ]
    return Prediction(inputs, device, tuple(made), _left_out(recipe, asked))
