"""Trueward's side of the comparison, in a process of its own, which never imports TRL.

    python -m benchmarks.vs_trl_ours JOB.json RESULT.json
Time includes everything the trainers do: identity of the data, and for DPO the reference pass over all pairs.
"""

import time
from pathlib import Path

from transformers import PreTrainedModel

from benchmarks.peak import training_flops
from benchmarks.vs_trl_watch import Watch, run
from benchmarks.vs_trl_work import Job, groups_of, settings_of
from trueward.core.files import read_jsonl
from trueward.models import prepare_cpu
from trueward.models.packing import count_tokens
from trueward.trainers.preference import PreferenceSettings, train_preference
from trueward.trainers.reward import RewardPair, RewardSettings, train_reward
from trueward.trainers.sft import train_sft

__all__ = ["train"]


def train(job: Job, model: PreTrainedModel, watch: Watch) -> None:
    """Train on the job's pairs; the last checkpoint is written after the last step and not timed."""
    folder = Path(job.work) / f"run-trueward-{job.method}-{time.time_ns()}"
    groups, settings = groups_of(job), settings_of(job)
    watch.start()
    if job.method == "sft":
        train_sft(model, groups, settings=settings, folder=folder, bar=watch)
    elif job.method == "reward":
        pairs = [RewardPair(group) for group in groups]
        # TRL does not centre unless asked.
        train_reward(
            model, pairs, settings=settings, reward=RewardSettings(centering=0.0), folder=folder, bar=watch
        )
    else:
        preference = PreferenceSettings(beta=0.1)
        train_preference(model, groups, settings=settings, preference=preference, folder=folder, bar=watch)
    watch.losses = [float(row["loss"]) for row in read_jsonl(folder / "metrics.jsonl")]
    # Prompts once a pair; a reward model has no vocabulary head, and DPO's reference is a forward more.
    row_tokens = sum(map(count_tokens, groups))
    scored = 0 if job.method == "reward" else sum(len(c.ids) for g in groups for c in g.completions)
    watch.model_flops = training_flops(
        model, row_tokens=row_tokens, scored_tokens=scored, factor=8 if job.method == "dpo" else 6
    )


if __name__ == "__main__":
    run(train, prepare=prepare_cpu)
