"""What a run is going to do, in one paragraph, before it does it: rows, tokens, steps, batches, memory.

Counts come from the data where it is there. What cannot be known before is said as a bound or an estimate:
tokens from the first rows, pairs of the testbed from the prompts that may give them.
"""

import json
import math
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from trueward.core.errors import ModelError
from trueward.data.read_rows import read_rows
from trueward.models.load import locate_model
from trueward.pipeline.inputs import data_files
from trueward.pipeline.recipe import Recipe
from trueward.pipeline.testbed_base import shipped_base
from trueward.trainers.sampling import num_steps
from trueward.trainers.settings import TrainSettings

__all__ = ["plan"]

_BYTES = {"float32": 4, "bfloat16": 2}
_GIB = 2**30
# AdamW in float32: weight, gradient and two moments.
_TRAINED_BYTES = 16
_SAMPLE_ROWS = 64
# Of English text under usual vocabularies; a byte tokenizer has 1, the testbed's words about 5.
_CHARACTERS_PER_TOKEN = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class _Model:
    parameters: int
    width: int
    layers: int
    vocab_size: int


@dataclass(frozen=True, slots=True, kw_only=True)
class _Data:
    """How much there is to train on, and in words."""

    items: int | None
    words: str


def _elements(folder: Path) -> int:
    """Parameters of a model folder, from the headers of its safetensors files."""
    total = 0
    for file in sorted(folder.glob("*.safetensors")):
        with file.open("rb") as stream:
            header = json.loads(stream.read(int.from_bytes(stream.read(8), "little")))
        total += sum(math.prod(entry["shape"]) for name, entry in header.items() if name != "__metadata__")
    return total


def _model(recipe: Recipe) -> _Model:
    folder = locate_model(recipe.model.path, download=False).folder if recipe.model.path else shipped_base()
    if not (folder / "config.json").is_file():
        raise ModelError(
            f"{folder} is no model folder here, so nothing can be planned",
            expected="config.json and weights",
            remedy="check model.path",
        )
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    config = config.get("text_config", config)
    return _Model(
        parameters=_elements(folder),
        width=int(config.get("hidden_size", config.get("n_embd", 0))),
        layers=int(config.get("num_hidden_layers", config.get("n_layer", 0))),
        vocab_size=int(config.get("vocab_size", 0)),
    )


def _characters(value: Any) -> int:
    if isinstance(value, str):
        return len(value)
    if isinstance(value, dict):
        return sum(map(_characters, value.values()))
    return sum(map(_characters, value)) if isinstance(value, list) else 0


def _data(recipe: Recipe) -> _Data:
    """Rows of the files, counted, and tokens, estimated from the first rows."""
    if recipe.data.source == "testbed":
        amounts = recipe.testbed
        words = (
            f"the testbed ({amounts.demonstrations:,} demonstrations, {amounts.prompts:,} prompts for pairs)"
        )
        return _Data(items=None, words=words)
    files = data_files(recipe.data.path, key="data.path")
    rows = characters = sampled = 0
    for file in files:
        _, stream = read_rows(file)
        for row in islice(stream, _SAMPLE_ROWS):
            rows, sampled, characters = rows + 1, sampled + 1, characters + _characters(row.value)
        rows += sum(1 for _ in stream)
    tokens = rows * characters / max(1, sampled) / _CHARACTERS_PER_TOKEN
    items = round(rows * (1 - recipe.data.test_share))
    items = items if recipe.data.limit is None else min(items, recipe.data.limit)
    named = files[0].name if len(files) == 1 else f"{len(files)} files"
    words = (
        f"{named} ({rows:,} rows, about {items:,} of them to train on, roughly {tokens:,.0f} tokens of text)"
    )
    return _Data(items=items, words=words)


def _stage(name: str, train: TrainSettings, what: str, items: int | None) -> str:
    if train.steps is not None:
        steps = f"{train.steps:,} steps"
    elif items is None:
        steps = f"{train.epochs or 1:g} passes"
    else:
        steps = f"about {num_steps(train, items):,} steps ({train.epochs or 1:g} passes)"
    return (
        f"{name} takes {steps} of {train.batch_size} {what}, at most {train.max_tokens_per_forward:,} tokens "
        f"in one forward, peak learning rate {train.lr:g}"
    )


def _parts(recipe: Recipe, wanted: set[str], data: _Data) -> list[str]:
    testbed = recipe.data.source == "testbed"
    shown = recipe.testbed.demonstrations if testbed else data.items
    compared = recipe.testbed.prompts if testbed else data.items
    parts = []
    if "sft" in wanted:
        parts.append(_stage("SFT", recipe.sft.train, "demonstrations", shown))
    if "reward" in wanted:
        parts.append(_stage("the reward model", recipe.reward.train, "pairs", compared))
    if "dpo" in wanted:
        parts.append(_stage("DPO", recipe.dpo.train, "pairs", compared))
    if "ppo" in wanted:
        p = recipe.ppo.train
        parts.append(
            f"PPO takes {p.iterations} iterations of {p.prompts_per_iteration} prompts x "
            f"{p.completions_per_prompt} = {p.prompts_per_iteration * p.completions_per_prompt} answers of "
            f"at most {p.max_new_tokens} tokens, each seen {p.epochs} times in {p.minibatches} updates"
        )
    if wanted & {"eval", "evaluate"}:
        parts.append(f"evaluation draws {recipe.eval.prompts} answers from each model")
    if "gate" in wanted:
        parts.append(f"the gate {recipe.profile!r} of the charter decides")
    if "report" in wanted:
        parts.append("summary.json and report.html are written")
    return parts


def _memory_gib(recipe: Recipe, model: _Model, wanted: set[str]) -> float:
    """An estimate of the widest stage: weights with optimizer, frozen models beside them, one forward.

    Activations count 34 values of 2 bytes per token, layer and unit of width (Korthikanti et al. 2022,
    table 2, without the attention matrix, which is computed in pieces), twice that in float32, and one chunk
    of logits on top.
    """
    lora, frozen = recipe.model.lora, _BYTES[recipe.model.dtype]
    trained = _TRAINED_BYTES if lora is None else frozen
    # The reward model trains in full beside the model it starts from; PPO has a reference and a reward model.
    copies = {
        "sft": trained,
        "reward": _TRAINED_BYTES + 4,
        "dpo": trained,
        "ppo": trained + 4 + (4 if lora is None else 0),
    }
    budgets = {
        "sft": recipe.sft.train.max_tokens_per_forward,
        "reward": recipe.reward.train.max_tokens_per_forward,
        "dpo": recipe.dpo.train.max_tokens_per_forward,
        "ppo": recipe.ppo.train.max_tokens_per_forward,
    }
    batches = {
        "sft": recipe.sft.train.batch_size,
        "reward": 2 * recipe.reward.train.batch_size,
        "dpo": 2 * recipe.dpo.train.batch_size,
        "ppo": recipe.ppo.train.prompts_per_iteration * recipe.ppo.train.completions_per_prompt,
    }
    widest = 3.0 * frozen * model.parameters
    for stage in wanted & set(copies):
        tokens = min(budgets[stage], recipe.data.max_tokens * batches[stage])
        activations = 68 * tokens * model.layers * model.width + 8 * min(tokens, 1024) * model.vocab_size
        widest = max(widest, copies[stage] * model.parameters + activations)
    return widest / _GIB


def _pretrain(recipe: Recipe) -> str:
    section = recipe.pretrain
    files = data_files(section.text, key="pretrain.text")
    chats = [] if recipe.data.path is None else data_files(recipe.data.path, key="data.path")
    megabytes = sum(file.stat().st_size for file in files) / 1e6
    limit = (
        ""
        if section.max_characters is None
        else f", of which at most {section.max_characters:,} characters are read,"
    )
    return (
        f"Plan: train a BPE tokenizer of at most {section.vocab_size:,} tokens and a Llama of "
        f"{section.shape.num_layers} layers and width {section.shape.hidden_size} on {len(files)} files "
        f"of text ({megabytes:.1f} MB{limit} and {len(chats)} files of chats, {section.chat_share:.0%} of "
        f"the tokens); "
        f"{_stage('pretraining', section.train, f'windows of {section.window_tokens} tokens', None)}. "
        f"Results go to {recipe.out}."
    )


def plan(recipe: Recipe, target: str) -> str:
    """The plan as a paragraph.

    Args:
        target: name of the function that would run (`run` for the whole recipe).

    Raises:
        ModelError: the model's folder is missing.
        DataError, ConfigError: the data is missing or cannot be read.
    """
    if target == "pretrain":
        return _pretrain(recipe)
    model, data = _model(recipe), _data(recipe)
    wanted = set[str](recipe.stages) if target == "run" else {target}
    parts = "; ".join(_parts(recipe, wanted, data)) or "nothing is trained"
    return (
        f"Plan: a model of {model.parameters / 1e6:.2f}M parameters, feedback from {data.words}, rows of at "
        f"most {recipe.data.max_tokens} tokens; {parts}. "
        f"About {_memory_gib(recipe, model, wanted):.2f} GiB of memory at the widest point. "
        f"Results go to {recipe.out}."
    )
