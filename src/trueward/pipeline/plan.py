"""What a run is going to do, in one paragraph, before it does it: rows, tokens, steps, batches, memory.

Counts come from the data where it is there. What cannot be known before is said as a bound or an estimate:
tokens from the first rows, pairs of the testbed from the prompts that may give them.
"""

from trueward.pipeline.hardware import this_machine
from trueward.pipeline.inputs import data_files
from trueward.pipeline.predict import Inputs, predict, read_inputs
from trueward.pipeline.predict_work import Counted
from trueward.pipeline.recipe import Recipe
from trueward.trainers.sampling import num_steps
from trueward.trainers.settings import TrainSettings

__all__ = ["plan"]

_GIB = 2**30
_BYTES = {"float32": 4, "bfloat16": 2}
_NAMES = {"sft": "SFT", "reward": "the reward model", "dpo": "DPO", "ppo": "PPO", "grpo": "GRPO"}
# Parts of the widest moment that are named; the rest is small.
_NAMED_PARTS = 3


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


def _parts(recipe: Recipe, wanted: set[str], data: Counted) -> list[str]:
    testbed = recipe.data.source == "testbed"
    shown = recipe.testbed.demonstrations if testbed else data.items
    compared = recipe.testbed.prompts if testbed else data.items
    parts = []
    if "sft" in wanted:
        parts.append(_stage("SFT", recipe.sft.train, "demonstrations", shown))
    if "reward" in wanted:
        parts.append(_stage("the reward model", recipe.reward.train, "pairs", compared))
    if "dpo" in wanted:
        o = recipe.dpo.online
        rounds = (
            f"online DPO draws in each of {o.rounds} rounds {o.completions} answers to "
            f"{'every prompt' if o.prompts is None else f'{o.prompts:,} prompts'}, and in each "
            if o is not None
            else ""
        )
        items = compared if o is None else o.prompts or compared
        parts.append(rounds + _stage("DPO", recipe.dpo.train, "pairs", items))
    if "kto" in wanted:
        parts.append(_stage("KTO", recipe.kto.train, "labelled answers", None if testbed else data.items))
    for stage, section in (("prm", recipe.prm), ("orm", recipe.orm)):
        if stage in wanted:
            parts.append(_stage(stage.upper(), section.train, "solutions", None if testbed else data.items))
    if "ppo" in wanted:
        p = recipe.ppo.train
        parts.append(
            f"PPO takes {p.iterations} iterations of {p.prompts_per_iteration} prompts x "
            f"{p.completions_per_prompt} = {p.prompts_per_iteration * p.completions_per_prompt} answers of "
            f"at most {p.max_new_tokens} tokens, each seen {p.epochs} times in {p.minibatches} updates"
        )
    if "distill" in wanted:
        share, drawn = recipe.distill.objective.on_policy, recipe.distill.objective.max_new_tokens
        steps = _stage("distillation", recipe.distill.train, "answers", shown)
        parts.append(f"{steps}, {share:.0%} of them the student's own, of at most {drawn} tokens")
    if "weak_to_strong" in wanted:
        w = recipe.weak_to_strong
        items = (
            None if (total := compared if w.labels == "preferences" else shown) is None else total - w.known
        )
        steps = _stage("weak-to-strong", w.train, f"{w.labels} labelled by {len(w.chain)} supervisors", items)
        parts.append(steps + (", twice: student and ceiling" if w.ceiling else ""))
    if "best_of_n" in wanted:
        b = recipe.best_of_n
        parts.append(f"best of n draws {b.completions} answers of at most {b.max_new_tokens} tokens to each")
    if wanted & {"eval", "evaluate"}:
        parts.append(f"evaluation draws {recipe.eval.prompts} answers from each model")
    if "gate" in wanted:
        parts.append(f"the gate {recipe.profile!r} of the charter decides")
    if "report" in wanted:
        parts.append("summary.json and report.html are written")
    return parts


def _memory(recipe: Recipe, inputs: Inputs, wanted: set[str]) -> str:
    """The widest point, in words: `trueward plan` has the rest."""
    device = this_machine(measure=False)
    prediction = predict(recipe, device, inputs=inputs, stages=wanted)
    if not prediction.stages:
        # Evaluation compares two models and may have a reward model beside them.
        held = 3 * _BYTES[recipe.model.dtype] * inputs.shape.num_parameters + device.process_bytes
        return f"About {held / _GIB:.2f} GiB of memory at the widest point."
    widest = prediction.widest
    peak = widest.memory.peak
    largest = sorted(peak.parts, key=lambda part: -part.size)[:_NAMED_PARTS]
    parts = ", ".join(f"{part.name} {part.size / _GIB:.2f}" for part in largest)
    verdict = (
        ""
        if prediction.fits
        else (f"; there are {device.memory_bytes / _GIB:.2f} GiB, and `trueward plan` says what helps")
    )
    return (
        f"About {peak.size / _GIB:.2f} GiB of memory at the widest point, the {peak.name} in "
        f"{_NAMES[widest.work.stage]} ({parts}){verdict}."
    )


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
    inputs = read_inputs(recipe)
    data = inputs.counted
    wanted = set[str](recipe.stages) if target == "run" else {target}
    parts = "; ".join(_parts(recipe, wanted, data)) or "nothing is trained"
    return (
        f"Plan: a model of {inputs.shape.num_parameters / 1e6:.2f}M parameters, feedback from {data.words}, "
        f"rows of at most {recipe.data.max_tokens} tokens; {parts}. "
        f"{_memory(recipe, inputs, wanted)} "
        f"Results go to {recipe.out}."
    )
