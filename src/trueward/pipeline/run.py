"""Every stage that a recipe lists, in order: the one place that knows them all."""

from collections.abc import Callable

from trueward.pipeline.datasets import data
from trueward.pipeline.evaluate import evaluate
from trueward.pipeline.gate import gate
from trueward.pipeline.ppo import ppo
from trueward.pipeline.recipe import Stage
from trueward.pipeline.report import report
from trueward.pipeline.stages import dpo, reward, sft
from trueward.pipeline.workspace import Workspace

__all__ = ["STAGE_FUNCTIONS", "run"]

STAGE_FUNCTIONS: dict[Stage, Callable[[Workspace], object]] = {
    "data": data,
    "sft": sft,
    "reward": reward,
    "dpo": dpo,
    "ppo": ppo,
    "eval": evaluate,
    "gate": gate,
    "report": report,
}


def run(workspace: Workspace) -> None:
    """Run the stages of the recipe. The gate's refusal is a result, not a failure: the report says so."""
    for stage in workspace.recipe.stages:
        STAGE_FUNCTIONS[stage](workspace)
