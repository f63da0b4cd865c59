"""GRPO of the comparison: what both sides share, and Trueward's side. TRL is not imported here.

Each side draws for itself, with its own random numbers, so losses cannot be compared. Instead, what stands
for losses is how far the packed engine's log-probs of the completions it drew lie from those of a padded
forward of transformers. Prompts, their order, group size, length limit and reward are the same. No reference,
as in TRL's default (beta 0). Axes: B sequences, T tokens.
"""

import time
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedModel

from benchmarks.vs_trl_watch import Watch
from benchmarks.vs_trl_work import Job, groups_of
from trueward.data.chat import TokenGroup
from trueward.models.packing import pack, unflatten
from trueward.models.scoring import score_completions
from trueward.rollouts.engine import Rollout
from trueward.rollouts.local import LocalEngine
from trueward.trainers.accumulate import forward_precision
from trueward.trainers.group import train_group
from trueward.trainers.group_experience import group_models
from trueward.trainers.group_settings import GroupSettings
from trueward.trainers.groups import rollout_groups
from trueward.trainers.optim import device_of
from trueward.trainers.ppo import PPOHooks
from trueward.trainers.sampling import Sampler

__all__ = ["group_settings", "prompts_in_order", "score_ids", "train_groups"]


def score_ids(ids: Sequence[int]) -> float:
    """The reward of both sides: share of even token ids. Completions of one length still differ in it."""
    return sum(token % 2 == 0 for token in ids) / len(ids)


def group_settings(job: Job) -> GroupSettings:
    """GRPO as both sides run it: one step a round, clip 0.2, no KL, constant learning rate."""
    return GroupSettings(
        method="grpo",
        iterations=job.steps,
        prompts_per_iteration=job.batch,
        completions_per_prompt=job.completions,
        max_new_tokens=job.new_tokens,
        reference=False,
        lr=job.lr,
        # torch's own, which TRL takes.
        adam_beta2=0.999,
        max_tokens_per_forward=job.forward_tokens or 64 * job.max_length * job.completions,
        max_sampler_gap=0.02 if job.precision == "float32" else 1.0,
        precision=job.precision,
        activation_checkpointing=job.checkpointing,
        save_every=job.steps + 1,
        samples_every=job.steps + 1,
    )


def prompts_in_order(job: Job) -> list[int]:
    """Indices of the prompts as Trueward walks them, which TRL is given too."""
    settings = group_settings(job)
    num_drawn = settings.iterations * settings.max_draws * job.batch
    sampler = Sampler(job.steps * job.batch, batch_size=job.batch, num_drawn=num_drawn, seed=settings.seed)
    return [index for step in range(job.steps) for index in sampler.batch(step)]


def train_groups(job: Job, model: PreTrainedModel, watch: Watch, stop: int) -> None:
    """Trueward's run. The check of the log-probs comes after the clock and after memory was read.

    Args:
        stop: id of the stop token.
    """
    settings = group_settings(job)
    prompts = groups_of(job)
    drawn: list[TokenGroup] = []

    def reward(batch: Sequence[TokenGroup], rollouts: Sequence[Rollout]) -> list[float]:
        drawn[:] = rollout_groups(batch, rollouts)
        watch.tokens += sum(len(batch[r.prompt].prompt_ids) + len(r.ids) for r in rollouts)
        return [score_ids(rollout.ids) for rollout in rollouts]

    watch.start()
    train_group(
        group_models(model, settings),
        prompts,
        engine=LocalEngine(model, [stop]),
        reward=reward,
        settings=settings,
        folder=Path(job.work) / f"run-trueward-grpo-{time.time_ns()}",
        hooks=PPOHooks(bar=watch),
    )
    watch.losses = [_log_prob_gap(model, drawn, job)]


@torch.no_grad()
def _log_prob_gap(model: PreTrainedModel, groups: Sequence[TokenGroup], job: Job) -> float:
    """Largest difference of a token's log-prob between the packed engine and a padded forward."""
    gaps = []
    for group in groups:
        with forward_precision(job.precision, device_of(model)):
            packed = pack([group], device_of(model))
            ours_BT = unflatten(score_completions(model, packed).logps_N, packed)
            theirs_BT = _padded_logps(model, group, ours_BT.shape[1])
        gaps.append(float((ours_BT - theirs_BT).abs().max()))
    return max(gaps)


def _padded_logps(model: PreTrainedModel, group: TokenGroup, longest: int) -> Tensor:
    """logps_BT of the completions from transformers' own forward, a padded row each; 0 where padded."""
    start = len(group.prompt_ids)
    rows = [torch.tensor([*group.prompt_ids, *c.ids]) for c in group.completions]
    ids_BT = pad_sequence(rows, batch_first=True)
    mask_BT = pad_sequence([torch.ones_like(row) for row in rows], batch_first=True)
    logits = (
        model(input_ids=ids_BT, attention_mask=mask_BT, use_cache=False).logits[:, start - 1 : -1].float()
    )
    chosen_BT = logits.log_softmax(-1).gather(-1, ids_BT[:, start:, None]).squeeze(-1)
    return torch.nn.functional.pad(chosen_BT * mask_BT[:, start:], (0, longest - chosen_BT.shape[1]))
