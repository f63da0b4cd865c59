"""What every method of the table starts from on one seed, and the unit of compute that they share.

A pass is one token through one model of the testbed's size: forward counts 1, forward and backward 3 (a
backward is twice the work of a forward). Sampling, old and reference log-probs and scoring by the reward
model are counted like training. Counted is what models were really given, prompts that answers share once.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from trueward.core.seed import generator
from trueward.data.chat import TokenGroup
from trueward.data.records import Prompt
from trueward.models import LoadedModel
from trueward.pipeline import open_workspace, resolve, run
from trueward.pipeline.datasets import decided, demonstrations, pairs, train_prompts
from trueward.pipeline.kto import labels_of
from trueward.pipeline.measured import HeldPrompts, held_prompts
from trueward.pipeline.sampling import prompt_ids
from trueward.pipeline.training import tokenised
from trueward.pipeline.workspace import Workspace
from trueward.trainers import LabelledCompletion

__all__ = ["TRAINED", "Lengths", "Shared", "Tally", "counting", "prepare"]

TRAINED = 3
"""Passes of a token that goes forward and backward."""


@dataclass(slots=True)
class Tally:
    """Tokens that models were given: forward only, and forward of a step that goes backward."""

    forward: int = 0
    trained: int = 0

    @property
    def passes(self) -> int:
        return self.forward + TRAINED * self.trained


@contextmanager
def counting(*models: nn.Module) -> Iterator[Tally]:
    """Count the tokens of these models, and of copies that are made of them meanwhile."""
    tally = Tally()

    def count(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        tokens = inputs[0].numel()
        if torch.is_grad_enabled():
            tally.trained += tokens
        else:
            tally.forward += tokens

    hooks = [model.get_input_embeddings().register_forward_hook(count) for model in models]
    try:
        yield tally
    finally:
        for hook in hooks:
            hook.remove()


@dataclass(frozen=True, kw_only=True, slots=True)
class Lengths:
    """Mean tokens of a prompt, of a completion of the SFT model, and of a demonstration with its prompt."""

    prompt: float
    completion: float
    demonstration: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Shared:
    """One seed: SFT and reward model, and the data of every method, in one random order.

    pairs: comparisons, better answer first. labels: the same answers, one by one.
    prompts, asked: those of the comparisons, as tokens and as records. shown: demonstrations of SFT.
    """

    workspace: Workspace
    pairs: list[TokenGroup]
    labels: list[LabelledCompletion]
    prompts: list[TokenGroup]
    asked: list[Prompt]
    shown: list[TokenGroup]
    held: HeldPrompts
    lengths: Lengths
    rates: dict[str, float] = field(default_factory=dict)

    def policy(self) -> LoadedModel:
        """The SFT model, fresh."""
        return self.workspace.load_to_train("sft")

    def seed(self, name: str) -> int:
        return self.workspace.seed("methods", name)


def _lengths(pairs_: list[TokenGroup], shown: list[TokenGroup]) -> Lengths:
    def total(group: TokenGroup) -> int:
        return len(group.prompt_ids) + sum(len(c.ids) for c in group.completions)

    answers = [len(c.ids) for group in pairs_ for c in group.completions]
    return Lengths(
        prompt=float(np.mean([len(group.prompt_ids) for group in pairs_])),
        completion=float(np.mean(answers)),
        demonstration=float(np.mean([total(group) for group in shown])),
    )


def prepare(out: Path, seed: int, overrides: tuple[str, ...] = ()) -> Shared:
    """Data, SFT and reward model of the quickstart's recipe, made where they are not there yet."""
    stages = "stages=[data,sft,reward]"
    recipe = resolve("quickstart", [f"out={out / f'seed-{seed}'}", f"seed={seed}", stages, *overrides])
    workspace = open_workspace(recipe, resume=True)
    run(workspace)
    longest, sft = recipe.data.max_tokens, workspace.load("sft")
    order = generator(workspace.seed("methods", "order"))
    records = decided(pairs(workspace).train).records
    records = [records[i] for i in order.permutation(len(records))]
    groups, dropped = tokenised(sft, records, max_tokens=longest)
    found = labels_of(records).labels
    singles, single_dropped = tokenised(sft, found, max_tokens=longest)
    shown, shown_dropped = tokenised(sft, demonstrations(workspace).train, max_tokens=longest)
    assert not [*dropped, *single_dropped, *shown_dropped], "the testbed's own records fit"
    good = {label.id: label.label for label in found}
    asked = train_prompts(workspace)
    kept, prompts = prompt_ids(sft, asked, max_tokens=longest - recipe.ppo.train.max_new_tokens)
    return Shared(
        workspace=workspace,
        pairs=groups,
        labels=[LabelledCompletion(group, good[group.id]) for group in singles],
        prompts=prompts,
        asked=[asked[index] for index in kept],
        shown=shown,
        held=held_prompts(workspace, sft),
        lengths=_lengths(groups, shown),
    )
