"""TRL's side of the GPU benchmark, in a process of its own: its trainers for SFT, reward model and DPO.

    python -m benchmarks.gpu_trl JOB.json RESULT.json
The conversations are those of the other sides; TRL tokenises them itself. Its settings are its own defaults,
but for those that fix the comparison.
"""

import copy
import sys
import time
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from transformers import TrainerCallback
from trl.trainer.dpo_config import DPOConfig
from trl.trainer.dpo_trainer import DPOTrainer
from trl.trainer.reward_config import RewardConfig
from trl.trainer.reward_trainer import RewardTrainer
from trl.trainer.sft_config import SFTConfig
from trl.trainer.sft_trainer import SFTTrainer

from benchmarks.gpu_work import METHODS, Conversation, Job, batches_of, conversations, make_model, tokenizer
from benchmarks.peak import training_flops
from trueward.core.files import read_json, write_json

_TRAINERS: dict[str, tuple[Any, Any]] = {
    "sft": (SFTTrainer, SFTConfig),
    "reward": (RewardTrainer, RewardConfig),
    "dpo": (DPOTrainer, DPOConfig),
}


class _Watch(TrainerCallback):
    """Seconds of each optimizer step, the device waited for."""

    def __init__(self, device: str) -> None:
        self._cuda = device.startswith("cuda")
        self._started_s = 0.0
        self.step_s: list[float] = []

    def _now(self) -> float:
        if self._cuda:
            torch.cuda.synchronize()
        return time.perf_counter()

    def on_step_begin(self, *args: Any, **kwargs: Any) -> None:
        self._started_s = self._now()

    def on_step_end(self, *args: Any, **kwargs: Any) -> None:
        self.step_s.append(self._now() - self._started_s)


def _row(method: str, conversation: Conversation) -> dict[str, Any]:
    prompt = [{"role": "user", "content": conversation.prompt}]
    answers = [[{"role": "assistant", "content": text}] for text in conversation.answers]
    if method == "sft":
        return {"prompt": prompt, "completion": answers[0]}
    return {"prompt": prompt, "chosen": answers[0], "rejected": answers[1]}


def run(job: Job, work: Path) -> dict[str, Any]:
    """Train for the job's steps; figures as `gpu_work.Measured` has them."""
    words = tokenizer()
    rows = [_row(job.method, conversation) for conversation in conversations(job)]
    batches = batches_of(job, words)
    trainer_class, config_class = _TRAINERS[job.method]
    at_once = job.per_forward or job.sequences
    args = config_class(
        output_dir=str(work / "run-trl"),
        per_device_train_batch_size=at_once // METHODS[job.method],
        gradient_accumulation_steps=job.sequences // at_once,
        max_steps=job.steps + job.warmup,
        max_length=1024,
        learning_rate=job.lr,
        lr_scheduler_type="constant",
        weight_decay=0.0,
        max_grad_norm=1.0,
        bf16=job.precision == "bfloat16",
        gradient_checkpointing=job.checkpointing,
        train_sampling_strategy="sequential",
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        use_cpu=job.device == "cpu",
        logging_steps=1,
    )
    watch = _Watch(job.device)
    cuda = job.device.startswith("cuda")
    if cuda:
        torch.cuda.reset_peak_memory_stats()
    model = make_model(job, words)
    reference = {"ref_model": copy.deepcopy(model)} if job.method == "dpo" else {}
    trainer = trainer_class(
        model=model,
        **reference,
        args=args,
        train_dataset=Dataset.from_list(rows),
        processing_class=words,
        callbacks=[watch],
    )
    failed = ""
    try:
        trainer.train()
    except torch.OutOfMemoryError:
        failed = "out of memory"
    flops = []
    for batch in batches[job.warmup :]:
        tokens = sum(len(g.prompt_ids) + len(c.ids) for g in batch for c in g.completions)
        scored = 0 if job.method == "reward" else tokens
        factor = 8 if job.method == "dpo" else 6
        flops.append(training_flops(model, row_tokens=tokens, scored_tokens=scored, factor=factor))
    losses = [float(row["loss"]) for row in trainer.state.log_history if "loss" in row]
    return {
        "step_s": [] if failed else watch.step_s[job.warmup :],
        "losses": losses[job.warmup :],
        "flops": flops,
        "peak_bytes": torch.cuda.max_memory_allocated() if cuda else None,
        "failed": failed,
    }


if __name__ == "__main__":
    asked = read_json(Path(sys.argv[1]))
    folder = Path(asked.pop("work"))
    write_json(Path(sys.argv[2]), run(Job(**asked), folder))
