"""Trueward's side of the GPU benchmark: the step of its trainers, packed rows and all.

DPO's reference log-probs are those of the first weights, kept; the forward that a trainer spends on them,
once a pair, is spent (and timed) inside the step.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedTokenizerFast

from benchmarks.gpu_work import Job, Step, make_model
from benchmarks.peak import training_flops
from trueward.core.seed import generator
from trueward.data.chat import TokenGroup
from trueward.models.packing import count_tokens, pack
from trueward.models.scoring import score_completions
from trueward.objectives import group_relative, ppo_policy
from trueward.trainers.accumulate import LossSum, StepObjective, forward_precision
from trueward.trainers.loop import checkpoint_activations
from trueward.trainers.optim import build_optimizer, device_of, trainable
from trueward.trainers.preference import PreferenceObjective, PreferencePair, PreferenceSettings, pair_scores
from trueward.trainers.reward import RewardObjective, RewardPair, RewardSettings
from trueward.trainers.settings import TrainSettings
from trueward.trainers.sft import SFTObjective
from trueward.trainers.step import Trained, take_step

__all__ = ["advantages", "start"]


def advantages(groups: Sequence[TokenGroup], seed: int) -> torch.Tensor:
    """advantages_S of the completions: rewards drawn at random, compared within their group."""
    sizes = [len(group.completions) for group in groups]
    rewards_PG = torch.from_numpy(generator(seed, "rewards").normal(size=(len(sizes), sizes[0]))).float()
    return group_relative(rewards_PG, scale="std").flatten()


@dataclass(frozen=True, kw_only=True, slots=True)
class _Grouped:
    """GRPO of one update for each sampling: old log-probs are the present ones, no KL penalty, token mean."""

    seed: int
    name: str = "grpo"
    settings: Mapping[str, object] = field(default_factory=dict)

    def describe(self, item: TokenGroup) -> Mapping[str, object]:
        return {"tokens": count_tokens(item)}

    def count(self, items: Sequence[TokenGroup]) -> float:
        return float(sum(len(c.ids) for group in items for c in group.completions))

    def micro_batches(self, items: Sequence[TokenGroup], max_tokens: int) -> list[list[TokenGroup]]:
        return [list(items)]

    def loss(self, model: nn.Module, items: Sequence[TokenGroup]) -> LossSum:
        packed = pack(items, device_of(model))
        logps_1N = score_completions(model, packed).logps_N.unsqueeze(0)
        of_tokens_1N = advantages(items, self.seed).to(logps_1N.device)[packed.sequence_N].unsqueeze(0)
        out = ppo_policy(logps_1N, logps_1N.detach(), of_tokens_1N, clip_low=0.2, clip_high=0.2)
        return LossSum(out.loss_BT.sum(), packed.num_tokens)


def start(
    job: Job, words: PreTrainedTokenizerFast, batches: Sequence[Sequence[TokenGroup]]
) -> tuple[Step, Callable[..., float]]:
    """The step of a job, and the operations of a batch."""
    model = make_model(job, words)
    settings = TrainSettings(
        lr=job.lr,
        schedule="constant",
        warmup_ratio=0.0,
        precision=job.precision,
        max_tokens_per_forward=1 << 20,
    )
    optimizer = build_optimizer(model, settings)
    if job.checkpointing:
        checkpoint_activations(model)
    trained = Trained(model=model, optimizer=optimizer, parameters=trainable(model), folder=Path("unused"))

    def references(groups: Sequence[TokenGroup]) -> list[PreferencePair]:
        with torch.no_grad(), forward_precision(job.precision, device_of(model)):
            found = pair_scores(model, groups)
        each = zip(groups, found.chosen_B.tolist(), found.rejected_B.tolist(), strict=True)
        return [PreferencePair(*pair) for pair in each]

    # As in the trainers' loop; nothing here drops out, so the reference's log-probs are the same.
    model.train()
    kept = {id(batch): references(batch) for batch in batches} if job.method == "dpo" else {}

    def taken(objective: StepObjective[Any], items: Sequence[Any]) -> float:
        return take_step(trained, objective, items, settings, step=0, num_steps=1, seed=job.seed).loss

    def step(groups: Sequence[TokenGroup]) -> float:
        if job.method == "sft":
            return taken(SFTObjective(), groups)
        if job.method == "grpo":
            return taken(_Grouped(seed=job.seed), groups)
        if job.method == "reward":
            return taken(
                RewardObjective(RewardSettings(centering=0.0)), [RewardPair(group) for group in groups]
            )
        references(groups)
        return taken(PreferenceObjective(PreferenceSettings(beta=0.1)), kept[id(groups)])

    def flops(groups: Sequence[TokenGroup]) -> float:
        scored = 0 if job.method == "reward" else sum(len(c.ids) for g in groups for c in g.completions)
        factor = 8 if job.method == "dpo" else 6
        rows = sum(map(count_tokens, groups))
        return training_flops(model, row_tokens=rows, scored_tokens=scored, factor=factor)

    return step, flops
