"""What a run is going to do, in one paragraph, before it does it: rows, tokens, steps, batches, memory.

Counts come from the data where it is there; what cannot be known before (how many pairs the annotators will
give) is said as a bound.
"""

import json
from pathlib import Path

from trueward.core.errors import ModelError
from trueward.pipeline.recipe import Recipe
from trueward.pipeline.testbed_base import shipped_base
from trueward.trainers.settings import TrainSettings

__all__ = ["plan"]

_BYTES = {"float32": 4, "bfloat16": 2}
_GIB = 2**30
# AdamW in float32: weight, gradient and two moments.
_TRAINING_COPIES = 4


def _safetensors_elements(folder: Path) -> int:
    """Parameters of a model folder, from the headers of its safetensors files."""
    total = 0
    for file in sorted(folder.glob("*.safetensors")):
        with file.open("rb") as stream:
            header = json.loads(stream.read(int.from_bytes(stream.read(8), "little")))
        for name, entry in header.items():
            if name != "__metadata__":
                count = 1
                for size in entry["shape"]:
                    count *= size
                total += count
    return total


def _model(recipe: Recipe) -> tuple[int, dict[str, int]]:
    folder = Path(recipe.model.path) if recipe.model.path else shipped_base()
    if not (folder / "config.json").is_file():
        raise ModelError(
            f"{folder} is no model folder here, so nothing can be planned", expected="config.json"
        )
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    sizes = {
        "hidden": int(config.get("hidden_size", config.get("n_embd", 0))),
        "layers": int(config.get("num_hidden_layers", config.get("n_layer", 0))),
        "vocab": int(config.get("vocab_size", 0)),
    }
    return _safetensors_elements(folder), sizes


def _memory_gib(recipe: Recipe, parameters: int, sizes: dict[str, int], tokens: int) -> float:
    """An estimate: weights with optimizer, a frozen reference, and activations of one forward.

    Activations count about 34 values per token, layer and hidden unit (Korthikanti et al. 2022, table 2,
    without the attention matrix, which is computed in pieces); log-probs hold one chunk of logits at a time.
    """
    weights = parameters * (4 * _TRAINING_COPIES + _BYTES[recipe.model.dtype])
    activations = 34 * tokens * sizes["layers"] * sizes["hidden"] * 2
    return (weights + activations) / _GIB


def _steps(train: TrainSettings, items: int | None) -> str:
    if train.steps is not None:
        return f"{train.steps:,} steps"
    epochs = train.epochs or 1.0
    if items is None:
        return f"{epochs:g} passes over the data"
    return f"{max(1, round(epochs * items / train.batch_size)):,} steps ({epochs:g} passes over {items:,})"


def _stage(name: str, train: TrainSettings, what: str, items: int | None) -> str:
    return (
        f"{name} takes {_steps(train, items)} of {train.batch_size} {what}, at most "
        f"{train.max_tokens_per_forward:,} tokens in one forward, peak learning rate {train.lr:g}"
    )


def plan(recipe: Recipe, target: str) -> str:
    """The plan as a paragraph.

    Args:
        target: name of the function that would run (`run` for the whole recipe).

    Raises:
        ModelError: the model's folder is missing.
    """
    if target == "pretrain":
        train = recipe.pretrain.train
        return (
            f"Plan: train a BPE tokenizer of {recipe.pretrain.vocab_size:,} tokens and a Llama of "
            f"{recipe.pretrain.shape.num_layers} layers and width {recipe.pretrain.shape.hidden_size}; "
            f"{_stage('pretraining', train, f'windows of {recipe.pretrain.window_tokens} tokens', None)}."
        )
    parameters, sizes = _model(recipe)
    testbed = recipe.data.source == "testbed"
    rows = recipe.testbed.demonstrations if testbed else recipe.data.limit
    bound = recipe.testbed.prompts if testbed else recipe.data.limit
    wanted = recipe.stages if target == "run" else (target,)
    parts: list[str] = []
    if "sft" in wanted:
        parts.append(_stage("SFT", recipe.sft.train, "demonstrations", rows))
    if "reward" in wanted:
        parts.append(_stage("the reward model", recipe.reward.train, "pairs", bound))
    if "dpo" in wanted:
        parts.append(_stage("DPO", recipe.dpo.train, "pairs", bound))
    if "ppo" in wanted:
        p = recipe.ppo.train
        answers = p.prompts_per_iteration * p.completions_per_prompt
        parts.append(
            f"PPO takes {p.iterations} iterations of {p.prompts_per_iteration} prompts x "
            f"{p.completions_per_prompt} = {answers} answers, "
            f"each seen {p.epochs} times in {p.minibatches} updates"
        )
    if "eval" in wanted or "evaluate" in wanted:
        parts.append(f"evaluation draws {recipe.eval.prompts} answers from each model")
    budget = max(recipe.sft.train.max_tokens_per_forward, recipe.dpo.train.max_tokens_per_forward)
    tokens = min(budget, recipe.data.max_tokens * 2 * recipe.dpo.train.batch_size)
    source = "the testbed" if testbed else f"{recipe.data.path}"
    return (
        f"Plan: a model of {parameters / 1e6:.2f}M parameters, feedback from {source}, rows of at most "
        f"{recipe.data.max_tokens} tokens; {'; '.join(parts) or 'nothing is trained'}. About "
        f"{_memory_gib(recipe, parameters, sizes, tokens):.2f} GiB of memory at the widest point. "
        f"Results go to {recipe.out}."
    )
