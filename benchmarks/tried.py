"""Ideas that were tried, each with its figures: what won is in the package, what did not is only here.

    python -m benchmarks.tried JOB.json RESULT.json
Times are of the processor (one thread), the least of some repetitions; shapes are those of the model in the
work folder.
"""

import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, nullcontext
from pathlib import Path
from typing import Any, NamedTuple
from unittest.mock import patch

import torch
from torch import Tensor, nn
from torch.nn.attention.flex_attention import flex_attention
from torch.nn.functional import linear, scaled_dot_product_attention
from transformers import AutoModelForCausalLM, PreTrainedModel

from benchmarks import overlap
from benchmarks.offload import on_disk
from benchmarks.vs_trl_watch import memory_bytes
from benchmarks.vs_trl_work import Job, groups_of
from trueward.core.files import read_json, write_json
from trueward.data.chat import TokenGroup
from trueward.models import bfloat16, head, onednn, prepare_cpu, routes
from trueward.models.attention import Segment
from trueward.models.backend import own_memory
from trueward.models.flex import FlexKernel, build_flex_plan, compiled_kernel
from trueward.models.packing import batches_by_tokens, count_tokens, pack
from trueward.models.scoring import score_completions
from trueward.trainers.accumulate import accumulate
from trueward.trainers.preference import PreferenceObjective, PreferencePair, PreferenceSettings

__all__ = ["TRIALS", "TriedJob", "first_fit_decreasing"]

Figures = dict[str, float]


class TriedJob(NamedTuple):
    """One trial; `work` holds `causal/` and `pairs.jsonl`."""

    trial: str
    work: str
    batch: int
    quick: bool


class Trial(NamedTuple):
    """What was tried, and what became of it.

    run: figures by what they measure, with units in the names.
    verdict: what the package does, and why.
    """

    run: Callable[[TriedJob], Figures]
    verdict: str


def _least_s(work: Callable[[], object], repetitions: int = 3) -> float:
    work()
    times_s = []
    for _ in range(repetitions):
        started_s = time.process_time()
        work()
        times_s.append(time.process_time() - started_s)
    return min(times_s)


def _model(job: TriedJob) -> PreTrainedModel:
    model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(
        Path(job.work) / "causal", dtype=torch.float32
    )
    return model.train()


def _job(job: TriedJob, **changed: Any) -> Job:
    return Job("dpo", job.work, 1, job.batch, 512, 5e-5, 1, False)._replace(**changed)


def _optimizers(job: TriedJob) -> Figures:
    model = _model(job)
    for parameter in model.parameters():
        parameter.grad = torch.full_like(parameter, 1e-3)
    kinds: Mapping[str, dict[str, bool]] = {
        "fused s": {"fused": True},
        "foreach s": {"foreach": True},
        "one by one s": {"foreach": False},
    }
    return {
        name: _least_s(torch.optim.AdamW(model.parameters(), lr=1e-5, **kind).step)
        for name, kind in kinds.items()
    }


def _small_moments(job: TriedJob) -> Figures:
    """Adam's second moments (beta2 0.999), rounded to bfloat16 each step, and in float32: 300 steps, then
    1,000 with gradients a tenth as large.
    """
    draw = torch.Generator().manual_seed(0)
    exact, rounded = torch.zeros(1 << 14), torch.zeros(1 << 14, dtype=torch.bfloat16)
    for step in range(1300):
        square = (torch.randn(1 << 14, generator=draw) * (1e-3 if step < 300 else 1e-4)) ** 2
        exact.lerp_(square, 0.001)
        rounded = rounded.float().lerp_(square, 0.001).bfloat16()
    return {
        "bytes a parameter": 4.0,
        "bytes a parameter in float32": 8.0,
        "denominator of the update, bfloat16 / float32": float((rounded.float() / exact).sqrt().mean()),
    }


def first_fit_decreasing(sizes: Sequence[int], room: int) -> list[list[int]]:
    """Indices of items in rows of at most `room`: the largest first, each into the first row with a place."""
    rows: list[list[int]] = []
    left: list[int] = []
    for index in sorted(range(len(sizes)), key=lambda i: -sizes[i]):
        at = next((row for row, free in enumerate(left) if free >= sizes[index]), len(rows))
        if at == len(rows):
            rows.append([])
            left.append(room)
        rows[at].append(index)
        left[at] -= sizes[index]
    return rows


def _bins(job: TriedJob) -> Figures:
    groups = groups_of(_job(job, steps=4))
    sizes = [count_tokens(group) for group in groups] * 8
    room = max(1024, *sizes)
    greedy_s = _least_s(lambda: batches_by_tokens(groups * 8, room))
    fitted_s = _least_s(lambda: first_fit_decreasing(sizes, room))
    return {
        "rows in order": float(len(batches_by_tokens(groups * 8, room))),
        "rows first-fit decreasing": float(len(first_fit_decreasing(sizes, room))),
        "least rows possible": float(-(-sum(sizes) // room)),
        "in order s": greedy_s,
        "first-fit decreasing s": fitted_s,
    }


def _gradient(job: TriedJob, model: PreTrainedModel, room: int, precision: Any) -> Callable[[], object]:
    pairs = [PreferencePair(group, -500.0, -500.0) for group in groups_of(_job(job))]
    objective = PreferenceObjective(PreferenceSettings(beta=0.1))

    def work() -> None:
        accumulate(model, objective, pairs, max_tokens=room, precision=precision, seed=0)
        model.zero_grad(set_to_none=True)

    return work


def _forwards(job: TriedJob) -> Figures:
    model = _model(job)
    sizes = [count_tokens(group) for group in groups_of(_job(job))]
    figures: Figures = {}
    for room in (max(512, *sizes), max(1024, *sizes), sum(sizes)):
        for precision in ("float32", "bfloat16"):
            work = _gradient(job, model, room, precision)
            Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")
            figures[f"{precision}, {room} tokens, s"] = _least_s(work, 1)
    figures["peak of the process GiB"] = memory_bytes("VmHWM") / 2**30
    return figures


def _low_products(job: TriedJob) -> Figures:
    """One gradient of one pair under bfloat16 autocast, with torch's products and with the engine's."""
    model = _model(job)
    figures: Figures = {}
    for name, precision, missing in (
        ("float32", "float32", True),
        ("bfloat16 by float32 products", "bfloat16", True),
        ("bfloat16 by torch", "bfloat16", False),
    ):
        with patch.object(bfloat16, "lacks_instructions", lambda missing=missing: missing):
            figures[f"{name} s"] = _least_s(_gradient(job._replace(batch=1), model, 1 << 20, precision), 1)
    return figures


def _compiled(job: TriedJob) -> Figures:
    layer = _model(job).model.layers[0]
    hidden = torch.randn(1, 512, layer.mlp.gate_proj.in_features, requires_grad=True)

    def work() -> None:
        (layer.mlp(layer.post_attention_layernorm(hidden)) + hidden).sum().backward()

    figures = {"eager s": _least_s(work, 5)}
    # Any length, and one compilation for each bucket of lengths.
    for name, dynamic in (("for all lengths", True), ("for one bucket of lengths", False)):
        torch.compiler.reset()
        started_s = time.perf_counter()
        layer.mlp.compile(dynamic=dynamic)
        layer.post_attention_layernorm.compile(dynamic=dynamic)
        work()
        figures[f"compilation {name} s"] = time.perf_counter() - started_s
        figures[f"compiled {name} s"] = _least_s(work, 5)
    return figures


def _head_chunks(job: TriedJob) -> Figures:
    model = _model(job)
    groups = groups_of(_job(job))
    labels_N = torch.tensor([i for g in groups for c in g.completions for i in c.ids])
    hidden_ND = torch.randn(len(labels_N), model.config.hidden_size, requires_grad=True)
    top = head.Head(model.get_output_embeddings(), None)

    def work() -> None:
        head.score_tokens(top, hidden_ND, labels_N).logps_N.sum().backward()

    figures: Figures = {}
    for bits in (22, 24):
        with patch.object(head, "_CHUNK_ELEMENTS", 1 << bits), patch.object(head, "_KEPT_ELEMENTS", 0):
            figures[f"chunks of {(4 << bits) >> 20} MiB, s"] = _least_s(work, 2)
    with patch.object(head, "_KEPT_ELEMENTS", 1 << 40), patch.object(head, "_CHUNK_ELEMENTS", 1 << 40):
        figures["all kept, s"] = _least_s(work, 2)
    return figures


def _attention(job: TriedJob) -> Figures:
    config = _model(job).config
    width = config.hidden_size // config.num_attention_heads
    lengths = (230, 120, 60, 200)

    def states(heads: int, length: int) -> Tensor:
        return torch.randn(1, heads, length, width, requires_grad=True)

    parts = [tuple(states(config.num_attention_heads, n) for _ in range(3)) for n in lengths]

    def by_segment(dtype: torch.dtype) -> Callable[[], None]:
        def work() -> None:
            for qkv in parts:
                q, k, v = (x.to(dtype) for x in qkv)
                scaled_dot_product_attention(q, k, v, is_causal=True).float().sum().backward()

        return work

    def nested() -> None:
        q, k, v = (
            torch.nested.as_nested_tensor(
                [part[i][0].transpose(0, 1) for part in parts], layout=torch.jagged
            ).transpose(1, 2)
            for i in range(3)
        )
        out = scaled_dot_product_attention(q, k, v, is_causal=True)
        out.values().sum().backward()

    starts = [sum(lengths[:i]) for i in range(len(lengths))]
    row = [states(config.num_attention_heads, sum(lengths)) for _ in range(3)]
    segments = [Segment(start, n, 0, 0) for start, n in zip(starts, lengths, strict=True)]

    def flex(kernel: FlexKernel, *, backward: bool) -> Callable[[], None]:
        plan = build_flex_plan(segments, num_tokens=sum(lengths), device="cpu", kernel=kernel)
        module = nn.Module()

        def work() -> None:
            with nullcontext() if backward else torch.no_grad():
                out = plan.attend(module, *row, scaling=None, dropout=0.0, window=None)
            if backward:
                out.sum().backward()

        return work

    def forward_only() -> None:
        with torch.no_grad():
            for q, k, v in parts:
                scaled_dot_product_attention(q, k, v, is_causal=True)

    figures = {
        "segments float32 s": _least_s(by_segment(torch.float32), 5),
        "segments bfloat16 s": _least_s(by_segment(torch.bfloat16), 5),
    }
    ways: Mapping[str, Callable[[], Callable[[], None]]] = {
        "NestedTensor float32 s": lambda: nested,
        "flex-attention with its backward s": lambda: flex(flex_attention, backward=True),
        "segments without a backward s": lambda: forward_only,
        "flex-attention without a backward s": lambda: flex(flex_attention, backward=False),
        "flex-attention compiled, without a backward s": lambda: flex(compiled_kernel(), backward=False),
    }
    for name, way in ways.items():
        try:
            figures[name] = _least_s(way(), 5)
        except (RuntimeError, NotImplementedError):
            figures[name] = float("nan")
    return figures


def _decoding_weights(job: TriedJob) -> Figures:
    """Matrix products of one decoding step of 8 rows, over all layers and the head; then how far log-probs
    under rounded weights are from the trainer's, which would have to be computed again.
    """
    model = _model(job).eval()
    weights = [m.weight.detach() for m in model.modules() if isinstance(m, nn.Linear)]
    rows = {width: torch.randn(8, width) for width in {w.shape[1] for w in weights}}
    halves = [weight.bfloat16() for weight in weights]
    figures: Figures = {}
    for name, plain in (("float32", weights), ("bfloat16", halves)):
        inputs = {width: row.to(plain[0].dtype) for width, row in rows.items()}
        figures[f"{name} s"] = _least_s(
            lambda plain=plain, inputs=inputs: [linear(inputs[w.shape[1]], w) for w in plain], 5
        )
        laid_name = f"{name} laid out beforehand s"
        if not onednn.available(plain[0].dtype):
            figures[laid_name] = float("nan")
            continue
        laid = [(w.shape[1], onednn.copied(w)) for w in plain]
        figures[laid_name] = _least_s(
            lambda laid=laid, inputs=inputs: [onednn.product(inputs[width], w, None) for width, w in laid], 5
        )
    scales = [weight.abs().amax(1) / 127 for weight in weights]
    bytes_ = [(w / s.unsqueeze(1)).round().to(torch.int8) for w, s in zip(weights, scales, strict=True)]
    packed = list(zip(bytes_, [s.bfloat16() for s in scales], strict=True))
    figures["int8 weights, bfloat16 rows s"] = _least_s(
        lambda: [torch._weight_int8pack_mm(rows[w.shape[1]].bfloat16(), w, s) for w, s in packed], 5
    )
    groups = groups_of(_job(job))
    exact_N = _logps(model, groups)
    figures["log-probs again s"] = _least_s(lambda: _logps(model, groups), 1)
    for name, rounded in (
        ("bfloat16", [half.float() for half in halves]),
        ("int8", [b * s.unsqueeze(1) for b, s in zip(bytes_, scales, strict=True)]),
    ):
        kept = [weight.clone() for weight in weights]
        for weight, other in zip(weights, rounded, strict=True):
            weight.copy_(other)
        figures[f"mean difference of a token's log-prob, {name} nats"] = float(
            (_logps(model, groups) - exact_N).abs().mean()
        )
        for weight, other in zip(weights, kept, strict=True):
            weight.copy_(other)
    return figures


@torch.no_grad()
def _logps(model: PreTrainedModel, groups: Sequence[TokenGroup]) -> Tensor:
    return score_completions(model, pack(groups, model.device)).logps_N


def _on_disk(job: TriedJob) -> Figures:
    """One gradient with activations in memory and on disk."""
    model = _model(job)
    own_memory(model)
    weights = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    room = max(1024, *(count_tokens(group) for group in groups_of(_job(job))))
    work = _gradient(job, model, room, "float32")
    Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")
    loaded_bytes = memory_bytes("VmRSS")
    figures: Figures = {}
    # What a later one needs more comes on top of what the one before left in the heap.
    for name in ("on disk", "computed again", "all in memory"):
        with tempfile.TemporaryDirectory(dir=job.work) as folder, ExitStack() as within:
            if name != "computed again":
                # Those of the package hold what they need outside of the graph.
                plain = patch.object(routes, "few_activations", lambda backbone, num_tokens: nullcontext())
                within.enter_context(plain)
            if name == "on disk":
                kept = on_disk(Path(folder), lambda t: t.untyped_storage().data_ptr() in weights)
                within.enter_context(kept)
            work()
            figures[f"{name}, peak above the weights GiB"] = (memory_bytes("VmHWM") - loaded_bytes) / 2**30
            started_s = time.perf_counter()
            work()
            figures[f"{name} s"] = time.perf_counter() - started_s
    return figures


def _overlap(job: TriedJob) -> Figures:
    return overlap.measure(job.work, job.batch, 1 if job.quick else 3)


TRIALS: Mapping[str, Trial] = {
    "AdamW fused, foreach, one by one": Trial(_optimizers, "kept: fused"),
    "optimizer state in bfloat16": Trial(
        _small_moments,
        "not kept for second moments: a step changes them (beta2 0.999) by less than half a step of "
        "bfloat16, so they do not fall when gradients do; a setting for first ones (first_moment)",
    ),
    "first-fit decreasing bins": Trial(
        _bins,
        "not kept: a forward is a budget, not a shape, so an unfilled row wastes nothing",
    ),
    "size of one forward": Trial(_forwards, "a setting (max_tokens_per_forward); the gradient is the same"),
    "bfloat16 by float32 products": Trial(
        _low_products, "kept where the processor has no bfloat16 instructions (models.bfloat16)"
    ),
    "torch.compile of norms and MLP": Trial(
        _compiled, "not kept: needs a C++ compiler at run time, and the wait is seldom earned back"
    ),
    "chunks of the vocabulary head": Trial(
        _head_chunks, "kept: 64 MiB, and a softmax of at most 64 MiB is kept for the backward"
    ),
    "attention per segment, bfloat16, NestedTensor, flex-attention": Trial(
        _attention, "kept: buckets of segments, in float32 also under bfloat16 (CPU); flex-attention on a GPU"
    ),
    "activations on disk": Trial(
        _on_disk, "not kept: a smaller forward gives the same gradient, with less memory and in no more time"
    ),
    "sampling and training in two processes": Trial(
        _overlap,
        "not kept: a little faster, for a second model in memory, and what is trained on was drawn by "
        "weights of a step ago",
    ),
    "bfloat16 and int8 weights for decoding": Trial(
        _decoding_weights,
        "bfloat16 by loading the model so; int8 not kept: little faster than weights laid out, and its error "
        "in a log-prob is several times that of bfloat16, so that every drawn token would have to be scored "
        "again; weights laid out beforehand kept (models.relaid)",
    ),
}
"""Name -> trial."""


def main() -> None:
    """Run the trial that a job names."""
    asked, result = map(Path, sys.argv[1:])
    job = TriedJob(**read_json(asked))
    torch.set_num_threads(1)
    prepare_cpu()
    trial = TRIALS[job.trial]
    figures = {name: (value if value == value else None) for name, value in trial.run(job).items()}
    write_json(result, {"figures": figures, "verdict": trial.verdict})


if __name__ == "__main__":
    main()
