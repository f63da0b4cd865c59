"""Every stage that a recipe lists, in order: the one place that knows them all."""

from collections.abc import Callable

from trueward.core.errors import RunError
from trueward.core.trackers import check_trackers
from trueward.models.heads import check_pad
from trueward.pipeline.best_of_n import best_of_n
from trueward.pipeline.data import data
from trueward.pipeline.distill import distill
from trueward.pipeline.evaluate import evaluate
from trueward.pipeline.gate import gate
from trueward.pipeline.group import grpo
from trueward.pipeline.kto import kto
from trueward.pipeline.ppo import ppo
from trueward.pipeline.process import orm, prm
from trueward.pipeline.recipe import Stage
from trueward.pipeline.report import report
from trueward.pipeline.stages import dpo, reward, sft
from trueward.pipeline.weak_to_strong import weak_to_strong
from trueward.pipeline.workspace import Workspace, trackers_of

__all__ = ["STAGE_FUNCTIONS", "run"]

STAGE_FUNCTIONS: dict[Stage, Callable[[Workspace], object]] = {
    "data": data,
    "sft": sft,
    "reward": reward,
    "dpo": dpo,
    "kto": kto,
    "ppo": ppo,
    "grpo": grpo,
    "distill": distill,
    "weak_to_strong": weak_to_strong,
    "prm": prm,
    "orm": orm,
    "best_of_n": best_of_n,
    "eval": evaluate,
    "gate": gate,
    "report": report,
}
_REPEATABLE = ("eval", "gate", "report")


def run(workspace: Workspace) -> None:
    """Run the stages of the recipe. The gate's refusal is a result, not a failure: the report says so.

    Raises:
        RunError: one of the stages has been run and `resume` is off; nothing is changed.
        ConfigError: a tracker of one of the stages is not installed; nothing is changed.
        ModelError: the base model cannot be used for one of the stages; nothing is changed.
    """
    stages = workspace.recipe.stages
    _refuse_repeats(workspace)
    check_trackers(trackers_of(workspace.recipe, stages))
    if {"sft", "prm", "orm"} & set(stages) and not workspace.has("sft"):
        # What would stop a later stage is found before the first one has taken its time.
        base = workspace.load("base")
        if {"reward", "prm", "orm"} & set(stages):
            check_pad(base.tokenizer)
    for stage in stages:
        STAGE_FUNCTIONS[stage](workspace)


def _refuse_repeats(workspace: Workspace) -> None:
    done = [s for s in workspace.recipe.stages if s not in _REPEATABLE and workspace.has(s)]
    if done and not workspace.resume:
        raise RunError(
            f"{workspace.out} holds a finished {done[0]} stage already",
            remedy="choose another `out`, or pass --resume to go on from what is there",
        )
