"""TRL's side of the comparison, in a process of its own.

    python -m benchmarks.vs_trl_theirs JOB.json RESULT.json
TRL tokenises the conversations itself, before the clock starts; the run ends if its ids are not Trueward's.
Its settings are its own defaults, but for those that fix the comparison: precision, constant learning rate,
the order of the pairs, no files, no reports. ORPO is given the likelihood term of its paper (see `_orpo`).
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from datasets.utils.logging import disable_progress_bar
from transformers import AutoTokenizer, PreTrainedModel, TrainerCallback
from trl.experimental.orpo import ORPOConfig, ORPOTrainer
from trl.trainer.dpo_config import DPOConfig
from trl.trainer.dpo_trainer import DPOTrainer
from trl.trainer.grpo_config import GRPOConfig
from trl.trainer.grpo_trainer import GRPOTrainer
from trl.trainer.kto_config import KTOConfig
from trl.trainer.kto_trainer import KTOTrainer
from trl.trainer.reward_config import RewardConfig
from trl.trainer.reward_trainer import RewardTrainer
from trl.trainer.sft_config import SFTConfig
from trl.trainer.sft_trainer import SFTTrainer

from benchmarks.vs_trl_group import prompts_in_order, score_ids
from benchmarks.vs_trl_watch import Watch, run
from benchmarks.vs_trl_work import Job, Row, batches_of, expected_ids, read_pairs
from trueward.core.errors import DataError

__all__ = ["train"]


def _orpo(*args: Any, **kwargs: Any) -> Any:
    """TRL's ORPO with Trueward's likelihood term, so that losses can be compared.

    TRL takes the likelihood of prompt and answer together, a mean over the tokens of the batch; the paper
    (eq. 6) that of the answer, a mean over its tokens. TRL's own term is still computed, its backward is not:
    that is in TRL's favour.
    """
    trainer: Any = ORPOTrainer(*args, **kwargs)
    forward = trainer.concatenated_forward

    def answers_only(*inputs: Any, **named: Any) -> tuple[torch.Tensor, ...]:
        outputs: tuple[torch.Tensor, ...] = forward(*inputs, **named)
        return (*outputs[:4], -outputs[0].float().mean())

    trainer.concatenated_forward = answers_only
    return trainer


_TRAINERS: dict[str, tuple[Any, Any]] = {
    "sft": (SFTTrainer, SFTConfig),
    "reward": (RewardTrainer, RewardConfig),
    "dpo": (DPOTrainer, DPOConfig),
    "orpo": (_orpo, ORPOConfig),
    "kto": (KTOTrainer, KTOConfig),
}


class _Steps(TrainerCallback):
    def __init__(self, watch: Watch) -> None:
        self._watch = watch

    def on_train_begin(self, *args: Any, **kwargs: Any) -> None:
        self._watch.start()

    def on_step_end(self, *args: Any, **kwargs: Any) -> None:
        self._watch.update(0)


def _check_ids(method: str, rows: list[Row], dataset: Dataset) -> None:
    for number, (ours, theirs) in enumerate(zip(rows, dataset, strict=True)):
        for name, ids in expected_ids(method, ours).items():
            if list(theirs[name]) != ids:
                raise DataError(
                    f"row {number}: TRL has other {name} than Trueward",
                    value=list(theirs[name])[-8:],
                    expected=str(ids[-8:]),
                    remedy="use a chat template that ends an answer with its stop token",
                )


def _dataset(method: str, rows: list[Row]) -> Dataset:
    if method == "sft":
        return Dataset.from_list([{"prompt": row["prompt"], "completion": row["chosen"]} for row in rows])
    if method == "kto":
        labelled = [(row, "chosen" if row["desirable"] else "rejected") for row in rows]
        return Dataset.from_list(
            [{"prompt": r["prompt"], "completion": r[side], "label": r["desirable"]} for r, side in labelled]
        )
    return Dataset.from_list([{key: row[key] for key in ("prompt", "chosen", "rejected")} for row in rows])


def _arguments(job: Job) -> dict[str, Any]:
    """What fixes the comparison for every trainer."""
    return {
        "output_dir": str(Path(job.work) / "run-trl"),
        "max_steps": job.steps,
        "learning_rate": job.lr,
        "lr_scheduler_type": "constant",
        "weight_decay": 0.0,
        "max_grad_norm": 1.0,
        "bf16": job.precision == "bfloat16",
        "gradient_checkpointing": job.checkpointing,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "use_cpu": True,
        "dataloader_pin_memory": False,
        "logging_steps": 1000,
    }


def _train_groups(job: Job, model: PreTrainedModel, watch: Watch) -> None:
    """GRPO: one step a round of drawn groups, the mean over tokens and completions of the paper.

    Raises:
        DataError: TRL tokenised a prompt to something else.
    """
    rows = read_pairs(job)
    rows = [rows[i] for i in prompts_in_order(job)]
    prompts = Dataset.from_list([{"prompt": row["prompt"], "number": n} for n, row in enumerate(rows)])
    seen: list[int] = []

    def reward(completion_ids: list[list[int]], number: list[int], **_: Any) -> list[float | None]:
        seen.extend(number)
        watch.tokens += sum(len(rows[n]["prompt_ids"]) for n in number) + sum(map(len, completion_ids))
        return [score_ids(ids) for ids in completion_ids]

    args = GRPOConfig(
        per_device_train_batch_size=job.batch * job.completions,
        num_generations=job.completions,
        max_completion_length=job.new_tokens,
        loss_type="grpo",
        shuffle_dataset=False,
        remove_unused_columns=False,
        **_arguments(job),
    )
    trainer = GRPOTrainer(
        model=model,
        args=args,
        reward_funcs=[reward],
        train_dataset=prompts,
        processing_class=AutoTokenizer.from_pretrained(Path(job.work) / "causal"),
        callbacks=[_Steps(watch)],
    )
    trainer.train()
    if seen != [n for n in range(len(rows)) for _ in range(job.completions)]:
        raise DataError("TRL drew for other prompts, or in another order", value=seen[:: job.completions])
    # What stands for a loss is measured on Trueward's side (see vs_trl_group).
    watch.losses = [0.0]


def train(job: Job, model: PreTrainedModel, watch: Watch) -> None:
    """Train on the job's pairs in Trueward's order.

    Raises:
        DataError: TRL tokenised a row to something else.
    """
    disable_progress_bar()
    if job.method == "grpo":
        _train_groups(job, model, watch)
        return
    rows = read_pairs(job)
    rows = [rows[i] for batch in batches_of(job) for i in batch]
    trainer_class, config_class = _TRAINERS[job.method]
    args = config_class(
        per_device_train_batch_size=job.batch,
        max_length=job.max_length,
        train_sampling_strategy="sequential",
        **_arguments(job),
    )
    trainer = trainer_class(
        model=model,
        args=args,
        train_dataset=_dataset(job.method, rows),
        processing_class=AutoTokenizer.from_pretrained(Path(job.work) / "causal"),
        callbacks=[_Steps(watch)],
    )
    _check_ids(job.method, rows, trainer.train_dataset)
    trainer.training_step = _recording(trainer.training_step, watch)
    trainer.train()


def _recording(step: Callable[..., torch.Tensor], watch: Watch) -> Callable[..., torch.Tensor]:
    """TRL logs rounded means; here the loss of every step is kept as it is."""

    def recorded(*args: Any, **kwargs: Any) -> torch.Tensor:
        loss = step(*args, **kwargs)
        watch.losses.append(float(loss))
        return loss

    return recorded


if __name__ == "__main__":
    # No settings of the processor: a user of TRL has none.
    run(train, prepare=lambda: None)
