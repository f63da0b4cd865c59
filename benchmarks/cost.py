"""What one optimizer step costs as sequences, groups and vocabularies grow, in a process of its own.

    python -m benchmarks.cost JOB.json RESULT.json
The model is a random Llama, 4 layers of width 256, float32, one thread; the tokens are random. Time is that
of the processor, the least of the repetitions.
"""

import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel

from benchmarks.vs_trl_watch import Watch
from trueward.core.files import read_json, write_json
from trueward.core.seed import generator
from trueward.data.chat import Completion, TokenGroup
from trueward.trainers.optim import build_optimizer, trainable
from trueward.trainers.settings import TrainSettings
from trueward.trainers.sft import SFTObjective
from trueward.trainers.step import Trained, take_step

__all__ = ["AXES", "CostJob", "groups_at", "measure_point", "points"]

AXES: Mapping[str, Sequence[int]] = {
    "length": (128, 256, 512, 1024, 2048, 4096),
    "group size": (1, 2, 4, 8, 16, 32),
    "vocabulary": (1024, 4096, 16_384, 65_536, 131_072),
}
"""Axis -> its values: tokens of a sequence; completions of a prompt; words."""
_VOCABULARY = 8192


class CostJob(NamedTuple):
    """One point of an axis."""

    axis: str
    value: int
    work: str


def points(axis: str, *, quick: bool) -> Sequence[int]:
    """The values that are measured; `quick` leaves out the largest."""
    return AXES[axis][:-1] if quick else AXES[axis]


def groups_at(axis: str, value: int) -> list[TokenGroup]:
    """4 sequences, half of each a prompt; or one prompt of 256 tokens with completions of 64."""
    draw = generator(0, axis, value)

    def ids(count: int) -> tuple[int, ...]:
        return tuple(int(i) for i in draw.integers(0, 1024, count))

    def completion(count: int) -> Completion:
        return Completion(ids(count), (True,) * count)

    if axis == "group size":
        return [TokenGroup(ids(256), tuple(completion(64) for _ in range(value)))]
    half = value // 2 if axis == "length" else 128
    return [TokenGroup(ids(half), (completion(half),)) for _ in range(4)]


def _model(vocabulary: int) -> PreTrainedModel:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=256,
        intermediate_size=704,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=8192,
        tie_word_embeddings=True,
    )
    return LlamaForCausalLM(config)


def _steps(job: CostJob, groups: Sequence[TokenGroup], model: PreTrainedModel) -> tuple[float, int]:
    """Seconds of the fastest of 3 steps, and tokens of one."""
    settings = TrainSettings(lr=1e-4, batch_size=4, steps=1, max_tokens_per_forward=1 << 20)
    optimizer = build_optimizer(model, settings)
    trained = Trained(model=model, optimizer=optimizer, parameters=trainable(model), folder=Path(job.work))
    times_s = []
    for _ in range(3):
        started_s = time.process_time()
        stepped = take_step(trained, SFTObjective(), groups, settings, step=0, num_steps=1, seed=0)
        times_s.append(time.process_time() - started_s)
    return min(times_s), stepped.tokens


def measure_point(job: CostJob) -> dict[str, Any]:
    """Time, tokens and memory (model and optimizer included) of a step."""
    # What the first step of a process loads is no cost of a step.
    _steps(job, groups_at("length", 8), _model(1024))
    watch = Watch()
    watch.loaded()
    model = _model(job.value if job.axis == "vocabulary" else _VOCABULARY)
    seconds, tokens = _steps(job, groups_at(job.axis, job.value), model)
    watch.update(1)
    memory_mib = (watch.peak_bytes - watch.loaded_bytes) / 2**20
    return {"value": job.value, "tokens": tokens, "seconds": seconds, "memory_mib": memory_mib}


def main() -> None:
    """Measure the point that a job names."""
    asked, result = map(Path, sys.argv[1:])
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)
    write_json(result, measure_point(CostJob(**read_json(asked))))


if __name__ == "__main__":
    main()
