"""The log-prob engine: one packed forward, and what every stage reads from it (log-probs, entropy, KL,
rewards, values).

Whether a model can take packed rows is not assumed from its name: at first use the packed and the padded
forward of a small row are compared, and a model whose two results differ is served by the padded path, with
one printed notice. Packed rows go through flex-attention on a GPU, long ones in compiled layers after another
such comparison, and through buckets on a CPU: `_KERNELS` is the only place that says so. What leaves the fast
path is counted (`fallbacks`).
Axes: L tokens of the row, N completion tokens, S sequences, D width, V vocabulary.
"""

import math
from collections.abc import Mapping, MutableMapping
from contextlib import AbstractContextManager, nullcontext
from typing import NamedTuple
from weakref import WeakKeyDictionary

import torch
from rich.console import Console
from torch import Tensor, nn
from torch._dynamo.exc import TorchDynamoException
from transformers import PreTrainedModel

from trueward.core.errors import ModelError
from trueward.data.chat import Completion, TokenGroup
from trueward.models.activations import few_activations
from trueward.models.attention import NAME, AttentionStep, Unsupported, install, takes_packed_rows
from trueward.models.compiled import LEAST_TOKENS, compile_layers, windows_of
from trueward.models.flex import FlexPlan
from trueward.models.head import TokenScores, score_tokens
from trueward.models.inner import (
    backbone_of,
    check_positions,
    evaluating,
    head_of,
    reference,
    run_backbone,
    unwrap,
)
from trueward.models.last_layer import last_layer_parts, only_rows
from trueward.models.packing import Kernel, Packed, pack
from trueward.models.plain import plain_hidden, plain_logits
from trueward.objectives import kl
from trueward.objectives.logprobs import token_entropy, token_logps

__all__ = [
    "TokenScores",
    "check_positions",
    "count_fallback",
    "differs",
    "evaluating",
    "exact_kl_N",
    "fallbacks",
    "head_of",
    "head_states",
    "hidden_states",
    "reference",
    "row_attention",
    "run_backbone",
    "run_rows",
    "score_completions",
    "sequence_rewards",
    "supports_packing",
    "token_values",
    "unwrap",
]

_KL_CHUNK_ELEMENTS = 1 << 23
_KL_CHUNK_ELEMENTS_GPU = 1 << 27


# Ways to compute packed rows, fastest first, by type of device.
_KERNELS: Mapping[str, tuple[Kernel, ...]] = {"cuda": ("flex", "buckets")}
_ELSEWHERE: tuple[Kernel, ...] = ("buckets",)


class _Route(NamedTuple):
    """What a model can take, measured on one type of device: a kernel of packed rows (None: padded rows), and
    the head on hidden states, and the last layer on the rows that are read. `reason` says why the kernel is
    not the fastest."""

    device: str
    kernel: Kernel | None
    head: bool
    prunes: bool
    reason: str


_ROUTES: MutableMapping[nn.Module, _Route] = WeakKeyDictionary()
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
    except RuntimeError as error:
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


def _find_route(model: PreTrainedModel) -> _Route:
    before = model.config._attn_implementation
    kernel: Kernel | None = None
    prunes = False
    # One small forward must not leave casts of all weights behind.
    with evaluating(model), _uncached_casts(model.device.type):
        row = _probe_row(model.config.get_text_config().vocab_size, model.device)
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
    return _Route(model.device.type, kernel, head, prunes, reason or "")


def _route(model: PreTrainedModel) -> _Route:
    route = _ROUTES.get(model)
    if route is None or route.device != model.device.type:
        route = _ROUTES[model] = _find_route(model)
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
        return "its layers are not where transformers has them"
    with evaluating(model), _uncached_casts(model.device.type):
        row = _probe_row(model.config.get_text_config().vocab_size, model.device)
        expected_LD = run_backbone(model, row.input_ids_1L, row.position_ids_1L, row.attention("flex"))
        return _trial(model, row, "compiled", expected_LD) or ""


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
    return _route(unwrap(model)).kernel is not None


def row_attention(model: nn.Module, packed: Packed) -> AttentionStep:
    """How a model that supports packing computes the attention of a row on its device.

    Raises:
        ModelError: the model does not support packing.
    """
    inner = unwrap(model)
    route = _route(inner)
    if route.kernel is None:
        raise ModelError(f"{type(inner).__name__} cannot take packed rows", value=route.reason)
    if route.reason:
        count_fallback(inner, route.reason, "bucketed")
    if route.kernel == "flex" and packed.num_tokens >= LEAST_TOKENS and _compiles(inner):
        return _attention_of(inner, packed, "compiled")
    return packed.attention(route.kernel)


def _run_all(model: PreTrainedModel, packed: Packed, step: AttentionStep) -> Tensor:
    with few_activations(backbone_of(model), packed.num_tokens):
        return run_backbone(model, packed.input_ids_1L, packed.position_ids_1L, step)


def _run_rows(model: PreTrainedModel, packed: Packed, step: AttentionStep, rows_n: Tensor) -> Tensor:
    """hidden_nD of rows that need not be distinct, with the last layer on them alone."""
    distinct_m, at_n = torch.unique(rows_n, return_inverse=True)
    with only_rows(last_layer_parts(backbone_of(model)), distinct_m, packed.num_tokens):
        hidden_LD = _run_all(model, packed, step)
    return hidden_LD.index_select(0, distinct_m).index_select(0, at_n)


def run_rows(model: PreTrainedModel, packed: Packed, step: AttentionStep, rows_n: Tensor | None) -> Tensor:
    """hidden_nD of the rows that are read (None: all), every attention layer computed by `step`."""
    if rows_n is not None and _route(model).prunes:
        return _run_rows(model, packed, step, rows_n)
    hidden_LD = _run_all(model, packed, step)
    return hidden_LD if rows_n is None else hidden_LD.index_select(0, rows_n)


def hidden_states(model: nn.Module, packed: Packed, rows_n: Tensor | None = None) -> Tensor:
    """Final hidden states (after the last norm) of a row.

    Args:
        model: causal language model or sequence classifier, with or without PEFT wrapper.
        rows_n: the tokens whose states are read, int64, such as `packed.predict_N` or `packed.last_S`: the
            last layer is computed for them alone. None reads all.

    Returns:
        hidden_nD (None: hidden_LD) in the model's precision.

    Raises:
        ModelError: not a model of either class, or a sequence longer than its positions reach.
    """
    inner = unwrap(model)
    check_positions(inner, packed.longest)
    route = _route(inner)
    if route.kernel is None:
        count_fallback(inner, route.reason, "padded")
        hidden_LD = plain_hidden(backbone_of(inner), packed)
        return hidden_LD if rows_n is None else hidden_LD.index_select(0, rows_n)
    step = row_attention(inner, packed)
    try:
        return run_rows(inner, packed, step, rows_n)
    except TorchDynamoException as error:
        if not (isinstance(step, FlexPlan) and step.compiled):
            raise
        # Asked of this call only: another mode or precision than that of the trial.
        _COMPILED[inner] = _refusal("compiled", error)
        return hidden_states(model, packed, rows_n)
    except Unsupported as error:
        if route.kernel == "buckets":
            raise
        # Asked of this call only: dropout of attention weights in training, say.
        count_fallback(inner, str(error), "bucketed")
    return run_rows(inner, packed, packed.attention("buckets"), rows_n)


def _check_temperature(temperature: float) -> None:
    if not (math.isfinite(temperature) and temperature > 0):
        raise ValueError(f"temperature must be finite and > 0, got {temperature}")


def score_completions(
    model: nn.Module,
    packed: Packed,
    *,
    temperature: float = 1.0,
    entropy: bool = False,
    hidden_ND: Tensor | None = None,
) -> TokenScores:
    """Log-probability of every completion token given its prompt and the tokens before it.

    The full N x V logits never exist at once: the head runs in chunks, and again in the backward. Precision
    changes before the softmax: sixteen-bit logits become float32.

    Args:
        temperature: > 0; divides the logits.
        entropy: also the entropy of each distribution.
        hidden_ND: result of `hidden_states` for `packed.predict_N`, to share one forward among heads.

    Raises:
        ValueError: temperature is not positive.
        ModelError: not a causal language model.
    """
    _check_temperature(temperature)
    inner = unwrap(model)
    head = head_of(inner)
    if not _route(inner).head:
        check_positions(inner, packed.longest)
        count_fallback(inner, "it changes its logits after the head in a way not known here", "padded")
        logits_1NV = plain_logits(inner, packed).float().unsqueeze(0)
        greedy_N = logits_1NV[0].argmax(-1) == packed.labels_N
        scaled_1NV = logits_1NV / temperature
        logps_N = token_logps(scaled_1NV, packed.labels_N.unsqueeze(0))[0]
        return TokenScores(logps_N, token_entropy(scaled_1NV)[0] if entropy else None, greedy_N)
    if hidden_ND is None:
        hidden_ND = hidden_states(model, packed, packed.predict_N)
    return score_tokens(head, hidden_ND, packed.labels_N, temperature=temperature, entropy=entropy)


@torch.no_grad()
def exact_kl_N(
    model: nn.Module, ref_model: nn.Module | None, packed: Packed, *, temperature: float = 1.0
) -> Tensor:
    """KL(model || ref) of the next-token distribution at every completion token, over the full vocabulary.

    Averaged over tokens that the model itself drew it is the KL per token; over other tokens it is not.

    Args:
        ref_model: the reference; None means the model with its adapters off.

    Returns:
        kl_N, float32, nats, without gradient.
    """
    _check_temperature(temperature)
    logits = [head_states(model, packed)]
    if ref_model is None:
        with reference(model):
            hidden_ND = hidden_states(model, packed, packed.predict_N)
        logits.append((unwrap(model), hidden_ND))
    else:
        logits.append(head_states(ref_model, packed))
    (inner, hidden_ND), (ref_inner, ref_hidden_ND) = logits
    num_words = inner.config.get_text_config().vocab_size
    on_cpu = hidden_ND.device.type == "cpu"
    size = max(1, (_KL_CHUNK_ELEMENTS if on_cpu else _KL_CHUNK_ELEMENTS_GPU) // num_words)
    parts = []
    for start in range(0, len(packed.labels_N), size):
        at = slice(start, start + size)
        first_1NV = head_of(inner).logits(hidden_ND[at]).float().unsqueeze(0)
        second_1NV = head_of(ref_inner).logits(ref_hidden_ND[at]).float().unsqueeze(0)
        parts.append(kl.exact(first_1NV / temperature, second_1NV / temperature)[0])
    return torch.cat(parts)


def head_states(model: nn.Module, packed: Packed) -> tuple[PreTrainedModel, Tensor]:
    """The model inside its wrapper, and hidden_ND whose logits predict the completion tokens.

    Raises:
        ModelError: what it does to its logits after the head is not known.
    """
    inner = unwrap(model)
    if not _route(inner).head:
        raise ModelError(
            f"{type(inner).__name__} changes its logits after the head in a way that is not known here",
            remedy="use the estimators k1 and k3 for this model",
        )
    return inner, hidden_states(model, packed, packed.predict_N)


def sequence_rewards(reward_model: nn.Module, packed: Packed, *, hidden_SD: Tensor | None = None) -> Tensor:
    """Score of every sequence, read at its last token by position.

    Args:
        reward_model: sequence classifier with one label.
        hidden_SD: result of `hidden_states` for `packed.last_S` of the same row and model.

    Returns:
        rewards_S, float32, with gradient.

    Raises:
        ModelError: the model has no score head of one label.
    """
    score = getattr(unwrap(reward_model), "score", None)
    if not isinstance(score, nn.Module):
        raise ModelError(
            "this model has no score head", expected="AutoModelForSequenceClassification, num_labels=1"
        )
    if hidden_SD is None:
        hidden_SD = hidden_states(reward_model, packed, packed.last_S)
    rewards_S1: Tensor = score(hidden_SD)
    if rewards_S1.shape[-1] != 1:
        raise ModelError("a reward model has one label", value=rewards_S1.shape[-1], expected="num_labels=1")
    return rewards_S1.squeeze(-1).float()


def token_values(value_head: nn.Module, hidden_ND: Tensor) -> Tensor:
    """Value of the state before each completion token: what the prompt and the earlier tokens promise.

    Args:
        hidden_ND: `hidden_states` for `packed.predict_N`.

    Returns:
        values_N, float32.
    """
    values_N1: Tensor = value_head(hidden_ND)
    return values_N1.reshape(-1).float()
