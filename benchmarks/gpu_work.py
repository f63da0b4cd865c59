"""What every side of the GPU benchmark works on: models from their configuration, conversations of the
testbed's sentences with lengths like HH-RLHF's, and the watch.

Nothing is loaded: weights are random (speed and memory do not depend on what they say).
"""

import gc
import math
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel, PreTrainedTokenizerFast

from trueward.core.seed import generator
from trueward.data.chat import Completion, TokenGroup, tokenise_prompt
from trueward.data.records import Message
from trueward.models import reward_from_causal
from trueward.testbed import declarations, make_world, write_tokenizer
from trueward.trainers.settings import Precision

__all__ = [
    "METHODS",
    "SIZES",
    "Step",
    "Conversation",
    "Job",
    "Measured",
    "Method",
    "batches_of",
    "config_of",
    "conversations",
    "make_model",
    "matmul_flops_per_s",
    "measure",
    "tokenizer",
]

Method = Literal["sft", "reward", "dpo", "grpo"]
METHODS: Mapping[Method, int] = {"sft": 1, "reward": 2, "dpo": 2, "grpo": 8}
"""Answers of a prompt."""
_PROMPT_TOKENS = (20, 300)
_ANSWER_TOKENS = (20, 200)
# Texts are cut out of this many sentences of the testbed.
_SENTENCES = 1000


class Size(NamedTuple):
    """A Llama with tied embeddings."""

    layers: int
    width: int
    inner: int
    heads: int
    kv_heads: int
    words: int


SIZES: Mapping[str, Size] = {
    "tiny": Size(2, 64, 128, 4, 2, 2048),
    # The proportions of SmolLM 135M and of Qwen2.5 1.5B.
    "135M": Size(30, 576, 1536, 9, 3, 49_152),
    "1.5B": Size(28, 1536, 8960, 12, 2, 151_936),
}


class Job(NamedTuple):
    """One run of one side.

    sequences: answers of an optimizer step; steps: those that are timed, after `warmup` others.
    checkpointing: recompute activations in the backward.
    per_forward: answers that a peer takes at once, gradients summed; 0: all of a step.
    """

    method: Method
    size: str
    device: str
    precision: Precision
    sequences: int
    steps: int
    warmup: int
    checkpointing: bool = False
    per_forward: int = 0
    lr: float = 1e-5
    seed: int = 0


class Conversation(NamedTuple):
    """One prompt and its answers, as text."""

    prompt: str
    answers: tuple[str, ...]


class Measured(NamedTuple):
    """Figures of a run: seconds and loss of each timed step; the floating-point operations that its tokens
    ask for; peak memory of the device (None on a CPU). `failed` says why there are none."""

    step_s: tuple[float, ...]
    losses: tuple[float, ...]
    flops: tuple[float, ...]
    peak_bytes: int | None
    failed: str = ""


@cache
def tokenizer() -> PreTrainedTokenizerFast:
    """The testbed's words."""
    with tempfile.TemporaryDirectory(prefix="trueward-gpu-") as name:
        write_tokenizer(make_world(), Path(name))
        made: PreTrainedTokenizerFast = PreTrainedTokenizerFast.from_pretrained(name)
    return made


def conversations(job: Job) -> list[Conversation]:
    """Those of all steps of a job, in order; prompts and answers have log-uniform lengths."""
    rng = generator(job.seed, "gpu benchmark", job.method)
    answers = METHODS[job.method]
    count = (job.steps + job.warmup) * max(1, job.sequences // answers)
    words = [
        word for sentence in declarations(make_world(), _SENTENCES, job.seed) for word in sentence.split()
    ]

    def text(low: int, high: int) -> str:
        length = round(math.exp(rng.uniform(math.log(low), math.log(high))))
        start = int(rng.integers(len(words) - length))
        return " ".join(words[start : start + length])

    return [
        Conversation(text(*_PROMPT_TOKENS), tuple(text(*_ANSWER_TOKENS) for _ in range(answers)))
        for _ in range(count)
    ]


def batches_of(job: Job, words: PreTrainedTokenizerFast) -> list[list[TokenGroup]]:
    """Token groups of every step; the first `warmup` are not timed."""

    def completion(text: str) -> Completion:
        ids = (*words.encode(text, add_special_tokens=False), int(words.eos_token_id))
        return Completion(ids, (True,) * len(ids))

    groups = [
        TokenGroup(tokenise_prompt(words, [Message("user", c.prompt)]), tuple(map(completion, c.answers)))
        for c in conversations(job)
    ]
    each = len(groups) // (job.steps + job.warmup)
    return [groups[start : start + each] for start in range(0, len(groups), each)]


def config_of(size: str) -> LlamaConfig:
    """Sizes of a model, by its name in `SIZES`."""
    of = SIZES[size]
    return LlamaConfig(
        vocab_size=of.words,
        hidden_size=of.width,
        intermediate_size=of.inner,
        num_hidden_layers=of.layers,
        num_attention_heads=of.heads,
        num_key_value_heads=of.kv_heads,
        max_position_embeddings=2048,
        tie_word_embeddings=True,
        dtype="float32",
    )


def make_model(job: Job, words: PreTrainedTokenizerFast) -> PreTrainedModel:
    """The model of a job on its device, float32, the same for the same seed; for `reward` under a score."""
    config = config_of(job.size)
    config.bos_token_id, config.eos_token_id = words.bos_token_id, words.eos_token_id
    config.pad_token_id = words.pad_token_id
    torch.manual_seed(job.seed)
    with torch.device(job.device):
        model: PreTrainedModel = LlamaForCausalLM(config)
    return reward_from_causal(model, words, seed=job.seed) if job.method == "reward" else model


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


Step = Callable[[Sequence[TokenGroup]], float]
"""One optimizer step; returns its loss."""
Start = Callable[
    [Job, PreTrainedTokenizerFast, Sequence[Sequence[TokenGroup]]], tuple[Step, Callable[..., float]]
]


def measure(job: Job, start: Start) -> Measured:
    """Build a side, warm it up, time its steps one by one.

    Args:
        start: makes the model and returns the step, and the operations that a batch asks for.
    """
    device, words = torch.device(job.device), tokenizer()
    batches = batches_of(job, words)
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)
    seconds, losses, flops = [], [], []
    try:
        step, count = start(job, words, batches)
        for number, batch in enumerate(batches):
            _wait(device)
            started_s = time.perf_counter()
            loss = step(batch)
            _wait(device)
            if number >= job.warmup:
                seconds.append(time.perf_counter() - started_s)
                losses.append(loss)
                flops.append(count(batch))
        peak = torch.cuda.max_memory_allocated(device) if device.type == "cuda" else None
    except torch.OutOfMemoryError:
        return Measured((), (), (), None, "out of memory")
    finally:
        step = count = None  # type: ignore[assignment]  # the model goes with them
        gc.collect()
    return Measured(tuple(seconds), tuple(losses), tuple(flops), peak)


def matmul_flops_per_s(device: torch.device, dtype: torch.dtype, *, products: int = 20) -> float:
    """Highest rate of square products on the device: the yardstick of utilisation, measured in this run."""
    side = 8192 if device.type == "cuda" else 512
    rng: Any = torch.Generator(device=device).manual_seed(0)
    first, second = (torch.randn(side, side, device=device, generator=rng).to(dtype) for _ in range(2))
    out = torch.empty_like(first)
    best = math.inf
    for _ in range(products):
        _wait(device)
        started_s = time.perf_counter()
        torch.mm(first, second, out=out)
        _wait(device)
        best = min(best, time.perf_counter() - started_s)
    return 2 * side**3 / best
