"""Trueward's side of the comparison, in a process of its own, which never imports TRL.

    python -m benchmarks.vs_trl_ours JOB.json RESULT.json
Time includes everything the trainers do: identity of the data, and for DPO and KTO the reference pass over
all answers. KTO's baseline is that of TRL: answers mismatched within a batch (see `kto_groups`).
"""

import time
from collections.abc import Callable, Mapping
from pathlib import Path

from transformers import AutoTokenizer, PreTrainedModel

from benchmarks.peak import training_flops
from benchmarks.vs_trl_group import train_groups
from benchmarks.vs_trl_watch import Watch, run
from benchmarks.vs_trl_work import Job, batches_of, groups_of, read_pairs, settings_of
from trueward.core.files import read_jsonl
from trueward.data.chat import Completion, TokenGroup
from trueward.models import prepare_cpu
from trueward.models.packing import count_tokens
from trueward.trainers.loop import train as train_items
from trueward.trainers.preference import PreferenceSettings, train_preference
from trueward.trainers.reward import RewardPair, RewardSettings, train_reward
from trueward.trainers.sft import train_sft
from trueward.trainers.unpaired import (
    LabelledCompletion,
    UnpairedObjective,
    UnpairedSettings,
    with_reference,
)

__all__ = ["kto_groups", "train"]


def _sft(job: Job, model: PreTrainedModel, groups: list[TokenGroup], watch: Watch, folder: Path) -> None:
    train_sft(model, groups, settings=settings_of(job), folder=folder, bar=watch)


def _reward(job: Job, model: PreTrainedModel, groups: list[TokenGroup], watch: Watch, folder: Path) -> None:
    pairs = [RewardPair(group) for group in groups]
    # TRL does not centre unless asked.
    reward = RewardSettings(centering=0.0)
    train_reward(model, pairs, settings=settings_of(job), reward=reward, folder=folder, bar=watch)


def _preference(
    job: Job, model: PreTrainedModel, groups: list[TokenGroup], watch: Watch, folder: Path
) -> None:
    # TRL's defaults: beta 0.1, which it also calls the weight of ORPO's odds ratio.
    options = {"weight": 0.1} if job.method == "orpo" else {"beta": 0.1}
    train_preference(
        model,
        groups,
        settings=settings_of(job),
        preference=PreferenceSettings(method=job.method, **options),
        folder=folder,
        bar=watch,
    )


def kto_groups(job: Job) -> tuple[list[LabelledCompletion], list[TokenGroup]]:
    """Labelled answers, and each prompt with the answer that TRL mismatches it with.

    TRL takes the answer of the row before it in the batch, the last one's for the first, and cuts the
    sequence at `max_length`. Trueward by itself takes the next other prompt's of the whole data that fits;
    that baseline is another sample, so its losses could not be compared.
    """
    groups = groups_of(job)
    own = [LabelledCompletion(g, r["desirable"]) for g, r in zip(groups, read_pairs(job), strict=True)]
    other: dict[int, TokenGroup] = {}
    for batch in batches_of(job):
        for i, before in zip(batch, [batch[-1], *batch[:-1]], strict=True):
            prompt = groups[i].prompt_ids
            ids = groups[before].completions[0].ids[: job.max_length - len(prompt)]
            other[i] = TokenGroup(prompt, (Completion(ids, (True,) * len(ids)),), str(i))
    return own, [other[i] for i in range(len(groups))]


def _kto(job: Job, model: PreTrainedModel, groups: list[TokenGroup], watch: Watch, folder: Path) -> None:
    own, other = kto_groups(job)
    settings = settings_of(job)
    examples = with_reference(
        model,
        own,
        other,
        ref_model=None,
        cache=folder,
        max_tokens_per_forward=settings.max_tokens_per_forward,
        precision=job.precision,
    )
    objective = UnpairedObjective(UnpairedSettings(method="kto", beta=0.1))
    train_items(model, objective=objective, items=examples, settings=settings, folder=folder, bar=watch)


_TRAINERS: Mapping[str, Callable[[Job, PreTrainedModel, list[TokenGroup], Watch, Path], None]] = {
    "sft": _sft,
    "reward": _reward,
    "dpo": _preference,
    "orpo": _preference,
    "kto": _kto,
}


def _flops(job: Job, model: PreTrainedModel) -> float:
    """Prompts once a pair; a reward model has no vocabulary head; the reference of DPO and KTO is
    a forward more, and so are the mismatched answers of KTO under both models. Where an answer and its
    mismatched one fit into one forward, the reference needs their prompt once.
    """

    def needed(groups: list[TokenGroup], factor: int, shared: int = 0) -> float:
        row_tokens = sum(map(count_tokens, groups)) - shared
        scored = 0 if job.method == "reward" else sum(len(c.ids) for g in groups for c in g.completions)
        return training_flops(model, row_tokens=row_tokens, scored_tokens=scored, factor=factor)

    groups = groups_of(job)
    own = needed(groups, 8 if job.method in ("dpo", "kto") else 6)
    if job.method != "kto":
        return own
    others = kto_groups(job)[1]
    most = settings_of(job).max_tokens_per_forward
    shared = sum(
        len(group.prompt_ids)
        for group, other in zip(groups, others, strict=True)
        if count_tokens(group) + len(other.completions[0].ids) <= most
    )
    return own + needed(others, 2) + needed(others, 2, shared)


def train(job: Job, model: PreTrainedModel, watch: Watch) -> None:
    """Train on the job's pairs; the last checkpoint is written after the last step and not timed."""
    folder = Path(job.work) / f"run-trueward-{job.method}-{time.time_ns()}"
    if job.method == "grpo":
        tokenizer = AutoTokenizer.from_pretrained(Path(job.work) / "causal")
        train_groups(job, model, watch, int(tokenizer.eos_token_id))
        return
    groups = groups_of(job)
    watch.start()
    _TRAINERS[job.method](job, model, groups, watch, folder)
    watch.losses = [float(row["loss"]) for row in read_jsonl(folder / "metrics.jsonl")]
    watch.model_flops = _flops(job, model)


if __name__ == "__main__":
    run(train, prepare=prepare_cpu)
