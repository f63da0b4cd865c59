"""Greedy decoding of one side in a process of its own: Trueward's engine, or `generate` of transformers.

    python -m benchmarks.decode JOB.json RESULT.json
Both start from the same weights in the same precision and the same prompts (real, of HH-RLHF); `generate`
gets them padded on the left. The first tokens are drawn once before the clock starts.
"""

import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch
from transformers import AutoModelForCausalLM, PreTrainedModel

from benchmarks.peak import matmul_flops_per_s
from benchmarks.vs_trl_watch import Watch
from trueward.core.files import read_json, read_jsonl, write_json
from trueward.models import prepare_cpu
from trueward.models.backend import own_memory
from trueward.rollouts.local import LocalEngine

__all__ = ["DecodeJob", "decode", "prompts_of"]


class DecodeJob(NamedTuple):
    """One run.

    side: trueward or generate.
    work: folder with `causal/` and `pairs.jsonl`.
    rows, new_tokens: prompts, each with one completion of so many tokens.
    """

    side: str
    work: str
    precision: str
    rows: int
    new_tokens: int
    threads: int


def prompts_of(job: DecodeJob) -> list[list[int]]:
    """The first prompts of `pairs.jsonl`."""
    rows = read_jsonl(Path(job.work) / "pairs.jsonl")
    return [list(row["prompt_ids"]) for _, row in zip(range(job.rows), rows, strict=False)]


def _ours(model: PreTrainedModel, prompts: list[list[int]], new_tokens: int, stop: int) -> list[list[int]]:
    engine = LocalEngine(model, [stop])
    drawn = engine.generate(prompts, num_completions=1, max_new_tokens=new_tokens, temperature=0.0, seed=0)
    return [list(rollout.ids) for rollout in drawn]


def _theirs(model: PreTrainedModel, prompts: list[list[int]], new_tokens: int, stop: int) -> list[list[int]]:
    longest = max(map(len, prompts))
    ids = torch.tensor([[stop] * (longest - len(prompt)) + prompt for prompt in prompts])
    mask = torch.tensor([[0] * (longest - len(prompt)) + [1] * len(prompt) for prompt in prompts])
    generate: Callable[..., torch.Tensor] = model.generate  # type: ignore[assignment]  # of a mixin
    drawn = generate(
        input_ids=ids,
        attention_mask=mask,
        max_new_tokens=new_tokens,
        do_sample=False,
        eos_token_id=stop,
        pad_token_id=stop,
    )
    rows = drawn[:, longest:].tolist()
    return [row[: row.index(stop) + 1] if stop in row else row for row in rows]


def decode(job: DecodeJob, model: PreTrainedModel, watch: Watch) -> list[list[int]]:
    """Drawn ids, row by row; time and memory are in `watch`."""
    prompts = prompts_of(job)
    side = _ours if job.side == "trueward" else _theirs
    stop = int(model.config.pad_token_id or 0)
    with torch.no_grad():
        side(model, prompts[:1], 2, stop)
        watch.start()
        drawn = side(model, prompts, job.new_tokens, stop)
        watch.update(1)
    return drawn


def main() -> None:
    """Run one side."""
    asked, result = map(Path, sys.argv[1:])
    job = DecodeJob(**read_json(asked))
    torch.set_num_threads(job.threads)
    torch.set_flush_denormal(True)
    if job.side == "trueward":
        prepare_cpu()
    dtype = getattr(torch, job.precision)
    watch = Watch()
    model = AutoModelForCausalLM.from_pretrained(Path(job.work) / "causal", dtype=dtype).eval()
    if job.side == "trueward":
        # What load_causal does after transformers has read the file.
        own_memory(model)
    float(sum(parameter.detach().float().sum() for parameter in model.parameters()))
    watch.loaded()
    started_s = time.perf_counter()
    drawn = decode(job, model, watch)
    write_json(
        result,
        {
            **watch.figures(),
            "ids": drawn,
            "whole_s": time.perf_counter() - started_s,
            "matmul_flops_per_s": matmul_flops_per_s(dtype),
        },
    )


if __name__ == "__main__":
    main()
