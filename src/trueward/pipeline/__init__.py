"""The stages of a run as functions of a workspace: what the commands of the same names do.

workspace = open_workspace(resolve("quickstart", ["out=runs/mine"]))
run(workspace)
"""

from trueward.pipeline.best_of_n import best_of_n
from trueward.pipeline.command import resolve
from trueward.pipeline.data import data
from trueward.pipeline.distill import distill
from trueward.pipeline.evaluate import evaluate
from trueward.pipeline.evaluate import evaluate as eval
from trueward.pipeline.gate import gate
from trueward.pipeline.group import grpo
from trueward.pipeline.kto import kto
from trueward.pipeline.ppo import ppo
from trueward.pipeline.pretrain import pretrain
from trueward.pipeline.process import orm, prm
from trueward.pipeline.recipe import Recipe
from trueward.pipeline.report import report
from trueward.pipeline.run import run
from trueward.pipeline.stages import dpo, reward, sft
from trueward.pipeline.weak_to_strong import weak_to_strong
from trueward.pipeline.workspace import Workspace, open_workspace

__all__ = [
    "Recipe",
    "Workspace",
    "best_of_n",
    "data",
    "distill",
    "dpo",
    "eval",
    "evaluate",
    "gate",
    "grpo",
    "kto",
    "open_workspace",
    "orm",
    "ppo",
    "pretrain",
    "prm",
    "report",
    "resolve",
    "reward",
    "run",
    "sft",
    "weak_to_strong",
]
