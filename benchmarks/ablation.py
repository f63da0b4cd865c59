"""What each idea buys: DPO steps and decoding with one idea off in turn, in a process of its own.

    python -m benchmarks.ablation JOB.json RESULT.json
The switches live here, not in the package: each variant puts the plain way in the place of the fast one.
The work is 2 passes over the pairs, so that the reference is needed twice, or 8 completions of each prompt
that end at different lengths.
"""

import copy
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext
from pathlib import Path
from typing import Any, NamedTuple
from unittest.mock import patch

import torch
from torch import nn
from transformers import AutoModelForCausalLM, PreTrainedModel

from benchmarks.decode import DecodeJob, prompts_of
from benchmarks.vs_trl_watch import Watch
from benchmarks.vs_trl_work import Job, groups_of, settings_of
from trueward.core.files import read_json, read_jsonl, write_json
from trueward.data.chat import TokenGroup
from trueward.models import attention, backend, routes, scoring
from trueward.models.head import TokenScores
from trueward.models.packing import Packed, pack
from trueward.objectives.logprobs import token_logps
from trueward.rollouts import local
from trueward.rollouts.decoding import SharedDecoder
from trueward.trainers import preference, reference, step
from trueward.trainers.accumulate import LossSum
from trueward.trainers.preference import PreferenceObjective, PreferencePair, PreferenceSettings

__all__ = ["ALL_ON", "DECODING", "TRAINING", "AblationJob", "run_variant"]

ALL_ON = "all on"
MKL = "without oneDNN in float32 (MKL, as torch comes)"
_COMPLETIONS = 8
_STOP_SHARE = 50  # Every so many-th word ends a completion, so that a random model's lengths differ.


class AblationJob(NamedTuple):
    """One run.

    kind: training or decoding.
    variant: name in `TRAINING` or `DECODING`.
    work: folder with `causal/` and `pairs.jsonl`.
    batch: pairs of a step; a quarter of them as prompts of decoding.
    """

    kind: str
    variant: str
    work: str
    steps: int
    batch: int
    new_tokens: int


def _unshared(groups: Sequence[TokenGroup], device: Any) -> Packed:
    """Every completion behind a copy of its prompt."""
    return pack([TokenGroup(g.prompt_ids, (c,), g.id) for g in groups for c in g.completions], device)


def _whole_head(model: nn.Module, packed: Packed, **_: Any) -> TokenScores:
    """Logits of every token of the row, all at once, and a softmax that autograd keeps."""
    inner = scoring.unwrap(model)
    logits_LV = scoring.head_of(inner).logits(scoring.hidden_states(model, packed)).float()
    logits_NV = logits_LV[packed.predict_N]
    logps_N = token_logps(logits_NV.unsqueeze(0), packed.labels_N.unsqueeze(0))[0]
    return TokenScores(logps_N, None, logits_NV.argmax(-1) == packed.labels_N)


class _Uncached:
    """The reference is a second model that runs in every step, as peers do it."""

    def __init__(self, model: nn.Module) -> None:
        self._ref = copy.deepcopy(model).requires_grad_(False)
        self._loss = PreferenceObjective.loss

    def pairs(self, model: nn.Module, groups: Sequence[TokenGroup], **_: Any) -> list[PreferencePair]:
        return [PreferencePair(group, 0.0, 0.0) for group in groups]

    def loss(
        self, objective: PreferenceObjective, model: nn.Module, items: Sequence[PreferencePair]
    ) -> LossSum:
        with torch.no_grad():
            scores = preference.pair_scores(self._ref, [pair.group for pair in items])
        refs = zip(items, scores.chosen_B.tolist(), scores.rejected_B.tolist(), strict=True)
        return self._loss(objective, model, [PreferencePair(p.group, c, r) for p, c, r in refs])


def _uncached(model: PreTrainedModel) -> AbstractContextManager[Any]:
    plain = _Uncached(model)

    def loss(self: PreferenceObjective, policy: nn.Module, items: Sequence[PreferencePair]) -> LossSum:
        return plain.loss(self, policy, items)

    stack = ExitStack()
    stack.enter_context(patch.object(preference, "reference_pairs", plain.pairs))
    stack.enter_context(patch.object(PreferenceObjective, "loss", loss))
    return stack


def _padded(model: PreTrainedModel) -> AbstractContextManager[Any]:
    return patch.object(routes, "takes_packed_rows", lambda model: "packing is off")


def _compiled(model: PreTrainedModel) -> AbstractContextManager[Any]:
    for layer in model.model.layers:
        layer.mlp.compile(dynamic=True)
        layer.input_layernorm.compile(dynamic=True)
        layer.post_attention_layernorm.compile(dynamic=True)
    return _all_kept(model)


def _all_kept(model: PreTrainedModel) -> AbstractContextManager[Any]:
    return patch.object(routes, "few_activations", lambda backbone, num_tokens: nullcontext())


def _as_it_is(model: PreTrainedModel) -> AbstractContextManager[Any]:
    return nullcontext()


TRAINING: Mapping[str, Callable[[PreTrainedModel], AbstractContextManager[Any]]] = {
    ALL_ON: _as_it_is,
    "without packing and shared prompts (padded rows)": _padded,
    "without shared prompts": lambda model: patch.object(reference, "pack", _unshared),
    "without completion-only head": lambda model: patch.object(reference, "score_completions", _whole_head),
    "without cached reference": _uncached,
    "with the whole last layer": lambda model: patch.object(routes, "last_layer_parts", lambda backbone: ()),
    "without computing norms and activations again": _all_kept,
    "without memory apart from the heap (gradients, activations)": lambda model: patch.object(
        step, "row_gradients", lambda model, memory, **_: nullcontext()
    ),
    "without the allocator's settings (glibc's defaults)": _as_it_is,
    "without attention by blocks (torch's own)": lambda model: patch.object(
        attention, "takes", lambda *_, **__: False
    ),
    MKL: _as_it_is,
    "with bfloat16": _as_it_is,
    "with torch.compile of norms and MLP": _compiled,
}
"""Name -> what to put in place while the model trains."""

DECODING: Mapping[str, Callable[[PreTrainedModel], AbstractContextManager[Any]]] = {
    ALL_ON: _as_it_is,
    "without shared prompt KV": lambda model: patch.object(
        local,
        "_decoder",
        lambda model, prompts, rows: SharedDecoder(
            model, [prompts[row.prompt] for row in rows], range(len(rows))
        ),
    ),
    "without early retirement": lambda model: patch.object(local, "_DROP_SHARE", 2.0),
    "without any cache (padded rows from scratch)": _padded,
    "with bfloat16 weights": _as_it_is,
}


def _train(job: AblationJob, model: PreTrainedModel, watch: Watch) -> None:
    precision = "bfloat16" if job.variant == "with bfloat16" else "float32"
    asked = Job("dpo", job.work, job.steps, job.batch, 512, 5e-5, 1, False, 1024, precision)
    groups = groups_of(asked)[: max(1, job.steps // 2) * job.batch]
    folder = Path(job.work) / f"run-ablation-{time.time_ns()}"
    with TRAINING[job.variant](model):
        watch.start()
        preference.train_preference(
            model,
            groups,
            settings=settings_of(asked),
            preference=PreferenceSettings(beta=0.1),
            folder=folder,
            bar=watch,
        )
    watch.losses = [float(row["loss"]) for row in read_jsonl(folder / "metrics.jsonl")]


def _decode(job: AblationJob, model: PreTrainedModel, watch: Watch) -> None:
    rows = max(1, job.batch // 4)
    prompts = prompts_of(DecodeJob("trueward", job.work, "float32", rows, job.new_tokens, 1))
    engine = local.LocalEngine(model, range(0, model.config.vocab_size, _STOP_SHARE))
    with DECODING[job.variant](model):
        engine.generate(prompts[:1], num_completions=1, max_new_tokens=2, temperature=1.0, seed=1)
        watch.start()
        engine.generate(
            prompts, num_completions=_COMPLETIONS, max_new_tokens=job.new_tokens, temperature=1.0, seed=0
        )
        watch.update(1)


def run_variant(job: AblationJob, model: PreTrainedModel, watch: Watch) -> None:
    """Train or decode under a variant; losses, times and memory are in `watch`."""
    (_train if job.kind == "training" else _decode)(job, model, watch)


def main() -> None:
    """Run the variant that a job names."""
    asked, result = map(Path, sys.argv[1:])
    job = AblationJob(**read_json(asked))
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)
    if "allocator" not in job.variant:
        backend.keep_freed_memory()
    backend.bound_kernels()
    if job.variant == MKL:
        torch.backends.mkldnn.matmul.fp32_precision = "ieee"
    watch = Watch()
    dtype = torch.bfloat16 if job.variant == "with bfloat16 weights" else torch.float32
    model = AutoModelForCausalLM.from_pretrained(Path(job.work) / "causal", dtype=dtype)
    backend.own_memory(model)
    watch.loaded()
    run_variant(job, model, watch)
    write_json(result, watch.figures())


if __name__ == "__main__":
    main()
