"""The log-prob engine: one packed forward, and what every stage reads from it (log-probs, entropy, KL,
rewards, values).

Which way a model's rows are computed is not decided here (see routes); what leaves the fast path is counted
(`fallbacks`).
Axes: L tokens of the row, N completion tokens, S sequences, D width, V vocabulary.
"""

import math

import torch
from torch import Tensor, nn
from torch._dynamo.exc import FailOnRecompileLimitHit, TorchDynamoException
from transformers import PreTrainedModel

from trueward.core.errors import ModelError
from trueward.models.attention import Unsupported
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
from trueward.models.packing import Packed
from trueward.models.plain import plain_hidden, plain_logits
from trueward.models.processor import with_model_products
from trueward.models.routes import (
    count_fallback,
    differs,
    fallbacks,
    give_up_compiling,
    route_of,
    row_attention,
    run_rows,
    supports_packing,
)
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


@with_model_products
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
    route = route_of(inner)
    if route.kernel is None:
        count_fallback(inner, route.reason, "padded")
        hidden_LD = plain_hidden(backbone_of(inner), packed)
        return hidden_LD if rows_n is None else hidden_LD.index_select(0, rows_n)
    step = row_attention(inner, packed)
    try:
        return run_rows(inner, packed, step, rows_n)
    except (TorchDynamoException, FailOnRecompileLimitHit) as error:
        if not (isinstance(step, FlexPlan) and step.compiled):
            raise
        # Asked of this call only: another mode or precision than that of the trial.
        give_up_compiling(inner, error)
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


@with_model_products
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
    if not route_of(inner).head:
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
@with_model_products
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
    if not route_of(inner).head:
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
