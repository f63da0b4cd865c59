"""What is measured of one side while it trains: ends of steps, losses, memory of the process, matrix peak.

Memory is what the kernel counts (VmRSS, VmHWM in /proc/self/status). Time is wall clock and processor time;
the second is not disturbed by what else runs on the machine.
"""

import gc
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, PreTrainedModel

from benchmarks.peak import matmul_flops_per_s
from benchmarks.vs_trl_work import Job
from trueward.core.files import read_json, write_json

__all__ = ["Watch", "memory_bytes", "run"]


def memory_bytes(field: str, status: str | None = None) -> int:
    """Memory of this process, bytes.

    Args:
        field: VmRSS (now) or VmHWM (the highest so far).
        status: text of /proc/self/status; None reads it.
    """
    text = Path("/proc/self/status").read_text(encoding="utf-8") if status is None else status
    return next(int(line.split()[1]) * 1024 for line in text.splitlines() if line.startswith(f"{field}:"))


class Watch:
    """Collects the ends of steps; `update` is what Trueward's trainers call of a progress bar."""

    def __init__(self) -> None:
        self.started_s = self.started_cpu_s = 0.0
        self.ends_s: list[float] = []
        self.ends_cpu_s: list[float] = []
        self.losses: list[float] = []
        self.loaded_bytes = self.peak_bytes = 0
        self.model_flops = 0.0
        # Of sequences that were drawn; 0 where they are given.
        self.tokens = 0

    def loaded(self) -> None:
        """The model is in memory and the trainer is not yet; the kernel's high-water mark starts anew."""
        gc.collect()
        Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")
        self.loaded_bytes = memory_bytes("VmRSS")

    def start(self) -> None:
        """Training begins."""
        self.started_s, self.started_cpu_s = time.perf_counter(), time.process_time()

    def update(self, done: int, figure: str = "") -> None:
        """A step has ended."""
        self.ends_s.append(time.perf_counter() - self.started_s)
        self.ends_cpu_s.append(time.process_time() - self.started_cpu_s)
        # The mark that started anew can lie a few pages below what was read of the loaded model.
        self.peak_bytes = max(self.loaded_bytes, memory_bytes("VmHWM"))

    def figures(self) -> dict[str, Any]:
        """What was seen, as JSON values."""
        names = ("ends_s", "ends_cpu_s", "losses", "loaded_bytes", "peak_bytes", "model_flops", "tokens")
        return {name: getattr(self, name) for name in names}


def _load(job: Job) -> PreTrainedModel:
    auto: Any = AutoModelForSequenceClassification if job.method == "reward" else AutoModelForCausalLM
    folder = Path(job.work) / ("reward" if job.method == "reward" else "causal")
    model: PreTrainedModel = auto.from_pretrained(folder, dtype=torch.float32)
    # Weights that are still mapped from the file would be copied, and counted, at their first update.
    for parameter in model.parameters():
        parameter.data = parameter.data.clone()
    return model


def run(train: Callable[[Job, PreTrainedModel, Watch], None], *, prepare: Callable[[], object]) -> None:
    """Run one side: `python -m MODULE JOB.json RESULT.json`.

    Args:
        train: calls `start` when it begins to train, `update` after every step, and fills `losses`
            (Trueward's side also `model_flops`).
        prepare: what the side does to the process before it loads a model. Denormals are zero on both sides.
    """
    asked, result = map(Path, sys.argv[1:])
    job = Job(**read_json(asked))
    torch.set_num_threads(job.threads)
    torch.set_flush_denormal(True)
    prepare()
    watch = Watch()
    model = _load(job)
    watch.loaded()
    train(job, model, watch)
    peak = matmul_flops_per_s(getattr(torch, job.precision))
    write_json(result, {**watch.figures(), "matmul_flops_per_s": peak})
