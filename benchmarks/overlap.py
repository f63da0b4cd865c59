"""Sampling and training at once, each on a core of its own, against one after the other on both cores.

    python -m benchmarks.overlap JOB.json RESULT.json
Two processes with a model each: while one trains on what was drawn before, the other draws with the weights
of a step ago. Training is one step on what was drawn, for its log-probs. Handing weights over is left out, in
favour of the two.
"""

import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from transformers import AutoModelForCausalLM

from benchmarks.decode import DecodeJob, prompts_of
from benchmarks.vs_trl_watch import memory_bytes
from benchmarks.vs_trl_work import Job, groups_of
from trueward.core.errors import RunError
from trueward.core.files import read_json, write_json
from trueward.data.chat import TokenGroup
from trueward.models import prepare_cpu
from trueward.models.backend import own_memory
from trueward.models.packing import count_tokens
from trueward.rollouts.local import LocalEngine
from trueward.trainers.accumulate import accumulate
from trueward.trainers.groups import rollout_groups
from trueward.trainers.sft import SFTObjective

__all__ = ["OverlapJob", "measure"]

# Completions of each of a quarter as many prompts, as GRPO draws them.
_COMPLETIONS, _NEW_TOKENS = 8, 64


class OverlapJob(NamedTuple):
    """One process: what it does in turn, how often, with how many threads, when its rounds start
    (Unix seconds; 0 at once)."""

    work: str
    batch: int
    draws: bool
    trains: bool
    rounds: int
    threads: int
    starts_s: float


def main() -> None:
    """Draw, train, or both in turn. Times are those of the rounds after the first."""
    asked, result = map(Path, sys.argv[1:])
    job = OverlapJob(**read_json(asked))
    torch.set_num_threads(job.threads)
    prepare_cpu()
    model = AutoModelForCausalLM.from_pretrained(Path(job.work) / "causal", dtype=torch.float32)
    own_memory(model)
    stop = int(model.config.pad_token_id or 0)
    count = max(1, job.batch // 4)
    prompts = prompts_of(DecodeJob("trueward", job.work, "float32", count, _NEW_TOKENS, job.threads))
    engine = LocalEngine(model, [stop])
    training = Job("dpo", job.work, 1, count, 512, 5e-5, job.threads, False)
    asking = [TokenGroup(group.prompt_ids, (), group.id) for group in groups_of(training)]

    def draw() -> Sequence[TokenGroup]:
        rollouts = engine.generate(
            prompts, num_completions=_COMPLETIONS, max_new_tokens=_NEW_TOKENS, temperature=1.0, seed=0
        )
        return rollout_groups(asking, rollouts)

    drawn = draw()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-6, fused=True)

    def train() -> None:
        most = max(1024, *map(count_tokens, drawn))
        accumulate(model, SFTObjective(), drawn, max_tokens=most, precision="float32", seed=0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    if job.trains:
        train()
    if job.starts_s:
        wait_s = job.starts_s - time.time()
        if wait_s < 0:
            raise RunError(f"not ready {-wait_s:.0f} s after both processes were to start")
        time.sleep(wait_s)
    started_s = time.perf_counter()
    for _ in range(job.rounds):
        if job.draws:
            drawn = draw()
        if job.trains:
            train()
    write_json(
        result,
        {"seconds": (time.perf_counter() - started_s) / job.rounds, "peak_bytes": memory_bytes("VmHWM")},
    )


def measure(work: str, batch: int, rounds: int) -> dict[str, float]:
    """Seconds a round, and memory of all processes together, both ways."""
    cores = sorted(os.sched_getaffinity(0))[:2]

    def run(jobs: Sequence[OverlapJob], cores_of: Sequence[Sequence[int]]) -> tuple[float, float]:
        started = []
        for index, (job, own) in enumerate(zip(jobs, cores_of, strict=True)):
            asked, result = (Path(work) / f"overlap-{kind}-{index}.json" for kind in ("job", "result"))
            write_json(asked, job._asdict())
            command = [sys.executable, "-m", "benchmarks.overlap", str(asked), str(result)]
            process = subprocess.Popen(
                command,
                env={**os.environ, "OMP_NUM_THREADS": str(job.threads), "MKL_NUM_THREADS": str(job.threads)},
                preexec_fn=lambda own=own: os.sched_setaffinity(0, own),
                stderr=subprocess.DEVNULL,
            )
            started.append((process, result))
        found = []
        for process, result in started:
            if process.wait() != 0:
                raise RunError(f"benchmarks.overlap failed with exit status {process.returncode}")
            found.append(read_json(result))
        return max(one["seconds"] for one in found), sum(one["peak_bytes"] for one in found)

    together = OverlapJob(work, batch, True, True, rounds, len(cores), 0.0)
    in_turn_s, in_turn_bytes = run([together], [cores])
    alone = together._replace(threads=1, starts_s=time.time() + 60)
    at_once_s, at_once_bytes = run(
        [alone._replace(trains=False), alone._replace(draws=False)], [cores[:1], cores[1:]]
    )
    return {
        "in turn on both cores, s a round": in_turn_s,
        "at once on a core each, s a round": at_once_s,
        "in turn, GiB": in_turn_bytes / 2**30,
        "at once, GiB of both processes": at_once_bytes / 2**30,
    }


if __name__ == "__main__":
    main()
