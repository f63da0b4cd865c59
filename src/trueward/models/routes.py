"""Which way a model's rows are computed: measured at first use, never assumed from its name, and counted
where it is not the fastest.

The packed and the padded forward of a small row are compared; a model whose two results differ is served by
the padded path, with one printed notice. Packed rows go through flex-attention on a GPU, long ones in
compiled layers after another such comparison, and through buckets on a CPU: `_KERNELS` is the only place
that says so. Not here: what is read from a row (see scoring).
Axes: L tokens of the row, D width.
"""

from collections.abc import Mapping, MutableMapping
from contextlib import AbstractContextManager, nullcontext
from typing import NamedTuple
from weakref import WeakKeyDictionary

import torch
from rich.console import Console
from torch import Tensor, nn
from torch._dynamo.exc import FailOnRecompileLimitHit
from transformers import PreTrainedModel

from trueward.core.errors import ModelError
from trueward.data.chat import Completion, TokenGroup
from trueward.models.activations import few_activations
from trueward.models.attention import NAME, AttentionStep, Unsupported, install, takes_packed_rows
from trueward.models.compiled import LEAST_TOKENS, compile_layers, windows_of
from trueward.models.flex import FlexPlan
from trueward.models.inner import backbone_of, evaluating, head_of, run_backbone, unwrap
from trueward.models.last_layer import last_layer_parts, only_rows
from trueward.models.packing import Kernel, Packed, pack
from trueward.models.plain import plain_hidden, plain_logits

__all__ = [
    "Route",
    "count_fallback",
    "differs",
    "fallbacks",
    "give_up_compiling",
    "route_of",
    "row_attention",
    "run_rows",
    "supports_packing",
]

# Ways to compute packed rows, fastest first, by type of device.
_KERNELS: Mapping[str, tuple[Kernel, ...]] = {"cuda": ("flex", "buckets")}
_ELSEWHERE: tuple[Kernel, ...] = ("buckets",)


class Route(NamedTuple):
    """What a model can take, measured on one type of device: a kernel of packed rows (None: padded rows), and
    the head on hidden states, and the last layer on the rows that are read. `reason` says why the kernel is
    not the fastest."""

    device: str
    kernel: Kernel | None
    head: bool
    prunes: bool
    reason: str


_ROUTES: MutableMapping[nn.Module, Route] = WeakKeyDictionary()
_FALLBACKS: MutableMapping[nn.Module, dict[str, int]] = WeakKeyDictionary()
_COMPILED: MutableMapping[nn.Module, str] = WeakKeyDictionary()
"""Why the layers of a model are not compiled, once that was tried; empty where they are."""
_REFUSALS: Mapping[Kernel, str] = {
    "compiled": "its layers cannot be compiled",
    "flex": "flex-attention does not run here",
}


def _probe_row(num_words: int, device: torch.device) -> Packed:
    ids = [(7919 * i + 13) % num_words for i in range(20)]
    flags = (True,) * 4
    first = TokenGroup(
        prompt_ids=tuple(ids[:5]),
        completions=(Completion(tuple(ids[5:9]), flags), Completion(tuple(ids[9:12]), flags[:3])),
    )
    return pack([first, TokenGroup(tuple(ids[12:15]), (Completion(tuple(ids[15:19]), flags),))], device)


def differs(got: Tensor, expected: Tensor) -> bool:
    """Whether two ways of computing the same differ by more than rounding."""
    # Float32 of trained models agrees to 1e-5 of the scale; sixteen bits to a few steps of 2 ** -8.
    full = expected.dtype in (torch.float32, torch.float64)
    tolerance = 1e-3 if full and not torch.is_autocast_enabled(expected.device.type) else 0.1
    scale = max(1.0, float(expected.abs().max()))
    return not bool(((got - expected).abs() <= tolerance * scale).all())


def _trial(model: PreTrainedModel, row: Packed, kernel: Kernel, expected_LD: Tensor) -> str | None:
    """Why the model cannot compute its packed rows this way; None if it can."""
    try:
        # With a gradient: the backward of a compiled kernel is a kernel of its own.
        with torch.set_grad_enabled(kernel != "buckets"):
            step = _attention_of(model, row, kernel)
            got_LD = run_backbone(model, row.input_ids_1L, row.position_ids_1L, step)
            if got_LD.requires_grad:
                first = next(parameter for parameter in model.parameters() if parameter.requires_grad)
                torch.autograd.grad(got_LD.float().sum(), first, allow_unused=True)
    except Unsupported as error:
        return str(error)
    except torch.OutOfMemoryError:
        raise
    except (RuntimeError, FailOnRecompileLimitHit) as error:
        # A compiler says so when it has no kernel for this card, precision or width of heads.
        if kernel not in _REFUSALS:
            raise
        return _refusal(kernel, error)
    return "its packed forward differs from its padded one" if differs(got_LD, expected_LD) else None


def _refusal(kernel: Kernel, error: Exception) -> str:
    return f"{_REFUSALS[kernel]} ({type(error).__name__}: {str(error).strip()[:200]})"


def _attention_of(model: PreTrainedModel, packed: Packed, kernel: Kernel) -> AttentionStep:
    """The attention of a row, with the masks that compiled layers cannot make for themselves."""
    step = packed.attention(kernel)
    if isinstance(step, FlexPlan) and step.compiled:
        for window in windows_of(backbone_of(model)):
            step.mask(window)
    return step


def _trial_of_rows(model: PreTrainedModel, row: Packed, kernel: Kernel, expected_LD: Tensor) -> bool:
    """Whether the last layer computed on some rows gives these rows their hidden states. Not asked of a GPU,
    where finding distinct rows would wait for the device in every forward."""
    if model.device.type != "cpu" or not last_layer_parts(backbone_of(model)):
        return False
    rows_n = row.last_S
    try:
        got_nD = _run_rows(model, row, row.attention(kernel), rows_n)
    except torch.OutOfMemoryError:
        raise
    except (RuntimeError, TypeError, ValueError, IndexError, AttributeError):
        # A part with other arguments or results than a tensor of the row: it is computed whole, as before.
        return False
    return not differs(got_nD, expected_LD[rows_n])


def _uncached_casts(device: str) -> AbstractContextManager[object]:
    if not torch.is_autocast_enabled(device):
        return nullcontext()
    return torch.autocast(device, dtype=torch.get_autocast_dtype(device), cache_enabled=False)


def _findroute_of(model: PreTrainedModel) -> Route:
    before = model.config._attn_implementation
    kernel: Kernel | None = None
    prunes = False
    config = model.config.get_text_config()
    # One small forward must not leave casts of all weights behind.
    with evaluating(model), _uncached_casts(model.device.type):
        row = _probe_row(config.vocab_size, model.device)
        expected_LD = plain_hidden(backbone_of(model), row)
        head = not hasattr(model, "score")
        if head:
            got_NV = head_of(model).logits(expected_LD[row.predict_N])
            head = not differs(got_NV, plain_logits(model, row))
        reason = takes_packed_rows(model)
        if reason is None:
            install(model)
            for kernel in _KERNELS.get(model.device.type, _ELSEWHERE):
                failed = _trial(model, row, kernel, expected_LD)
                if failed is None:
                    break
                reason, kernel = failed, None
        if kernel is not None:
            prunes = _trial_of_rows(model, row, kernel, expected_LD)
        elif before != model.config._attn_implementation:
            model.set_attn_implementation(before)
    return Route(model.device.type, kernel, head, prunes, reason or "")


def route_of(model: PreTrainedModel) -> Route:
    route = _ROUTES.get(model)
    if route is None or route.device != model.device.type:
        route = _ROUTES[model] = _findroute_of(model)
        if route.reason:
            _say(model, route.reason, "padded" if route.kernel is None else "bucketed")
    if route.kernel is not None and model.config._attn_implementation != NAME:
        install(model)
    return route


def _compiles(model: PreTrainedModel) -> bool:
    """Whether the layers of a model that takes flex-attention give the same hidden states compiled; tried at
    the first long row."""
    if model not in _COMPILED:
        _COMPILED[model] = _compile_trial(model)
    reason = _COMPILED[model]
    if reason:
        count_fallback(model, reason, "uncompiled")
    return not reason


def _compile_trial(model: PreTrainedModel) -> str:
    if not compile_layers(backbone_of(model)):
        return "its layers are not where transformers has them, or another forward was put on them"
    with evaluating(model), _uncached_casts(model.device.type):
        row = _probe_row(model.config.get_text_config().vocab_size, model.device)
        expected_LD = run_backbone(model, row.input_ids_1L, row.position_ids_1L, row.attention("flex"))
        return _trial(model, row, "compiled", expected_LD) or ""


def give_up_compiling(model: PreTrainedModel, error: Exception) -> None:
    """A call failed that the trial did not foresee: from now on the layers are computed as they come."""
    _COMPILED[model] = _refusal("compiled", error)


def _say(model: PreTrainedModel, reason: str, path: str) -> None:
    counts = _FALLBACKS.setdefault(model, {})
    if reason not in counts:
        counts[reason] = 0
        Console(stderr=True).print(
            f"{type(model).__name__}: {reason}; using the slower {path} path", markup=False
        )


def count_fallback(model: PreTrainedModel, reason: str, path: str) -> None:
    """Count one call that did not take the fastest path; the first of a reason prints a line."""
    _say(model, reason, path)
    _FALLBACKS[model][reason] += 1


def fallbacks(model: nn.Module) -> Mapping[str, int]:
    """Forwards of a model that did not take the fastest path of its device: reason -> how many."""
    return {reason: count for reason, count in _FALLBACKS.get(unwrap(model), {}).items() if count}


def supports_packing(model: nn.Module) -> bool:
    """Whether packed rows give the model's own hidden states; measured once per model on a small row."""
    return route_of(unwrap(model)).kernel is not None


def row_attention(model: nn.Module, packed: Packed) -> AttentionStep:
    """How a model that supports packing computes the attention of a row on its device.

    Raises:
        ModelError: the model does not support packing.
    """
    inner = unwrap(model)
    route = route_of(inner)
    if route.kernel is None:
        raise ModelError(f"{type(inner).__name__} cannot take packed rows", value=route.reason)
    if route.reason:
        count_fallback(inner, route.reason, "bucketed")
    if route.kernel == "flex" and packed.num_tokens >= LEAST_TOKENS and _compiles(inner):
        return _attention_of(inner, packed, "compiled")
    return packed.attention(route.kernel)


def _run_all(model: PreTrainedModel, packed: Packed, step: AttentionStep) -> Tensor:
    # Compiled layers keep the least by themselves.
    compiled = isinstance(step, FlexPlan) and step.compiled
    with nullcontext() if compiled else few_activations(backbone_of(model), packed.num_tokens):
        return run_backbone(model, packed.input_ids_1L, packed.position_ids_1L, step)


def _run_rows(model: PreTrainedModel, packed: Packed, step: AttentionStep, rows_n: Tensor) -> Tensor:
    """hidden_nD of rows that need not be distinct, with the last layer on them alone."""
    distinct_m, at_n = torch.unique(rows_n, return_inverse=True)
    with only_rows(last_layer_parts(backbone_of(model)), distinct_m, packed.num_tokens):
        hidden_LD = _run_all(model, packed, step)
    return hidden_LD.index_select(0, distinct_m).index_select(0, at_n)


def run_rows(model: PreTrainedModel, packed: Packed, step: AttentionStep, rows_n: Tensor | None) -> Tensor:
    """hidden_nD of the rows that are read (None: all), every attention layer computed by `step`."""
    if rows_n is not None and route_of(model).prunes:
        return _run_rows(model, packed, step, rows_n)
    hidden_LD = _run_all(model, packed, step)
    return hidden_LD if rows_n is None else hidden_LD.index_select(0, rows_n)
