"""Bytes that a forward holds per token: what autograd keeps for the backward, and what one layer needs at
work.

Counted operation by operation for the layers as transformers writes them, run by the packed engine; nothing
is fitted. tests/pipeline/test_predict_activations.py compares it with the tensors that autograd saves.
Letters in comments: D width, A query width, B key width, F inner width, H heads, V vocabulary.
"""

from dataclasses import dataclass
from typing import NamedTuple

from trueward.pipeline.predict_shape import Shape

__all__ = [
    "BLOCK_QUERIES",
    "BLOCK_SCORES",
    "SLOT_WASTE",
    "Arithmetic",
    "Row",
    "LEAST_ELEMENTS",
    "LEAST_TOKENS",
    "cast_weights",
    "compiles",
    "computes_again",
    "kept_per_layer",
    "kept_rest",
    "spared_last",
    "working_backward",
    "working_forward",
]

_FLOAT, _HALF = 4, 2
# A bucket may hold a fifth more query-key cells than needed (attention._WASTE), hence a tenth more slots.
SLOT_WASTE = 1.1
# From so many elements of hidden states, of all layers, a processor computes again what is cheap
# (models.activations, whose constant this is).
LEAST_ELEMENTS = 1 << 18
# From so many tokens of a row a GPU computes its layers compiled (models.compiled, whose constant this is).
LEAST_TOKENS = 1024
# Queries and scores of a block of attention, at most (models.blockwise, whose constants these are).
BLOCK_QUERIES, BLOCK_SCORES = 96, 1 << 21


@dataclass(frozen=True, kw_only=True, slots=True)
class Arithmetic:
    """How a stage computes.

    weight_bytes: of a weight that is not trained, 4 or 2. autocast: matrix products in bfloat16.
    lora: rank of the adapters; 0 trains every weight (in float32). gpu: attention is flex-attention; a
    processor computes it by blocks (see models.blockwise). checkpointing: whole layers are computed again.
    """

    weight_bytes: int
    autocast: bool
    lora: int
    gpu: bool = False
    checkpointing: bool = False

    @property
    def compute_bytes(self) -> int:
        """Of what matrix products give."""
        return _HALF if self.autocast or self.weight_bytes == _HALF else _FLOAT

    @property
    def full(self) -> bool:
        return self.lora == 0


class Row(NamedTuple):
    """A packed row. queries, keys: slots of the attention's buckets, padding included; a shared prompt has
    key slots for each further completion.

    scored: tokens that go through the vocabulary head. mask: elements of attention masks. read: tokens whose
    final state is read, and on which alone parts of the last layer run (see models.last_layer).
    """

    tokens: float
    queries: float
    keys: float
    scored: float
    mask: float
    read: float


def computes_again(shape: Shape, how: Arithmetic, row: Row) -> bool:
    """Whether norms and activations are computed again, and products keep where their input comes from."""
    elements = row.tokens * shape.width * shape.num_layers
    return not how.gpu and not how.checkpointing and elements >= LEAST_ELEMENTS


def compiles(shape: Shape, how: Arithmetic, row: Row) -> bool:
    """Whether layers run compiled, which keep less: where all of a model of the Llama kind is trained."""
    whole = how.full and shape.gated and not how.checkpointing
    return how.gpu and whole and row.tokens >= LEAST_TOKENS


def _norm(width: int, how: Arithmetic, *, low: bool = False) -> int:
    """RMSNorm. low: its input is bfloat16, of which a float32 copy is kept."""
    # The input in float32 and 1 / rms; and, where the scale is trained, the normalised input.
    return _FLOAT * width + _FLOAT + (how.full * width * (_HALF if low else _FLOAT))


def _layer_norm(width: int, how: Arithmetic) -> int:
    return how.weight_bytes * width + 2 * _FLOAT


def _input(width: int, how: Arithmetic, *, consumers: int, low: bool) -> int:
    """Input of matrices that read the same tensor. low: it comes in the precision of the products."""
    if how.autocast:
        # Every product casts for itself, unless the input is bfloat16 already and no adapter casts it up.
        return _HALF * width * (1 if how.full and low else consumers)
    # Adapters are float32 and cast up what they read, each for itself.
    return _FLOAT * width * (consumers if how.weight_bytes == _HALF else 1)


def _attention(shape: Shape, how: Arithmetic, row: Row) -> float:
    """Kept by attention itself: queries, keys and values; where it is torch's, the result and log-sum-exp."""
    a, b = shape.query_width, shape.kv_width
    if how.gpu or shape.dropout:
        size = how.compute_bytes if how.gpu else _FLOAT
        # Keys and values that heads share are written out for each (see models.flex).
        keys = a if compiles(shape, how, row) else b
        return (2 * size * a + _FLOAT * shape.num_heads) * row.queries + 2 * size * keys * row.keys
    # What is rotated has the precision of the stream.
    size = how.weight_bytes if shape.gated else how.compute_bytes
    return size * a * row.queries + (size + how.compute_bytes) * b * row.keys


class _Kept(NamedTuple):
    """Bytes per token of one layer: norms, inputs of matrices (of queries, keys and values; of the MLP; of
    the result of attention; of the MLP's last matrix), inner values of the MLP, results of low rank."""

    norms: int
    attention_input: int
    mlp_input: int
    result_input: int
    last_input: int
    mlp: int
    low_rank: int


def _kept_again(shape: Shape, how: Arithmetic) -> _Kept:
    """Where what is cheap is computed again."""
    low = how.compute_bytes == _HALF
    d, a, b, f = shape.width, shape.query_width, shape.kv_width, shape.inner
    rank = how.lora * (_HALF if how.autocast else _FLOAT)
    # Adapters of sixteen-bit weights cast what they read: a copy whose origin nobody knows. So do those that
    # read the MLP's inner values under autocast.
    copied = not how.full and how.weight_bytes == _HALF
    result_input = _input(a, how, consumers=1, low=low)
    last_input = _input(f, how, consumers=1, low=low)
    if not shape.gated:
        # Conv1D is none of the linear layers that remember where their input comes from; adapters are.
        inputs = _input(d, how, consumers=1, low=False) if how.full or copied else 0
        last = last_input if how.full or low else 0
        inner = how.compute_bytes * f
        return _Kept(2 * how.weight_bytes * d, inputs, inputs, result_input, last, inner, 4 * rank)
    norms = 2 * how.weight_bytes * d
    # Those of Gemma after attention and MLP read results of matrices.
    norms += 2 * how.compute_bytes * d if shape.post_norms else 0
    norms += how.compute_bytes * (a + b) if shape.head_norms else 0
    return _Kept(
        norms=norms,
        attention_input=_input(d, how, consumers=3, low=False) if copied else 0,
        mlp_input=_input(d, how, consumers=2, low=False) if copied else 0,
        result_input=result_input,
        last_input=last_input if not how.full and low else 0,
        mlp=2 * how.compute_bytes * f,
        low_rank=7 * rank,
    )


def _kept_all(shape: Shape, how: Arithmetic) -> _Kept:
    """Where autograd keeps what it wants."""
    low = how.compute_bytes == _HALF
    d, a, b, f = shape.width, shape.query_width, shape.kv_width, shape.inner
    if shape.gated and not shape.post_norms and how.weight_bytes == _FLOAT:
        # Norms in few passes (models.norms) keep what they read.
        norms = 2 * _FLOAT * d + (how.compute_bytes * (a + b) if shape.head_norms else 0)
    elif shape.gated:
        norms = 2 * _norm(d, how)
        # Gemma normalises and scales in float32 throughout.
        halved = low and not shape.post_norms
        norms += 2 * _norm(d, how) if shape.post_norms else 0
        norms += _norm(a, how, low=halved) + _norm(b, how, low=halved) if shape.head_norms else 0
    else:
        norms = 2 * _layer_norm(d, how)
    return _Kept(
        norms=norms,
        attention_input=_input(d, how, consumers=3 if shape.gated else 1, low=False),
        mlp_input=_input(d, how, consumers=2 if shape.gated else 1, low=False),
        # The row's own order is restored after attention: a copy that the output matrix reads.
        result_input=_input(a, how, consumers=1, low=low),
        last_input=_input(f, how, consumers=1, low=low),
        mlp=(shape.mlp_values - 1) * how.compute_bytes * f,
        low_rank=(7 if shape.gated else 4) * how.lora * (_HALF if how.autocast else _FLOAT),
    )


def _kept_compiled(shape: Shape, how: Arithmetic) -> _Kept:
    """Where a compiler keeps the least numbers from which the rest is one pass: the stream before each norm
    and what the norm gives, both inner values of the MLP and their product. What attention gives is what the
    matrix after it reads."""
    size, d, f = how.compute_bytes, shape.width, shape.inner
    norms = 2 * how.weight_bytes * d + (2 * size * d if shape.post_norms else 0)
    norms += size * (shape.query_width + shape.kv_width) if shape.head_norms else 0
    return _Kept(
        norms=norms,
        attention_input=size * d,
        mlp_input=size * d,
        result_input=0,
        last_input=size * f,
        mlp=2 * size * f,
        low_rank=0,
    )


def _kept(shape: Shape, how: Arithmetic, row: Row) -> _Kept:
    if compiles(shape, how, row):
        return _kept_compiled(shape, how)
    return _kept_again(shape, how) if computes_again(shape, how, row) else _kept_all(shape, how)


def kept_per_layer(shape: Shape, how: Arithmetic, row: Row) -> float:
    """Bytes that autograd keeps of one layer for a row."""
    kept = _kept(shape, how, row)
    # Two masks in float32 of what is dropped.
    dropped = 2 * _FLOAT * shape.width if shape.dropout else 0
    per_token = sum(kept) + dropped
    return per_token * row.tokens + _attention(shape, how, row)


def spared_last(shape: Shape, how: Arithmetic, row: Row) -> float:
    """Bytes of `kept_per_layer` that the last layer does not keep: its MLP and the matrices of queries and of
    results have only the rows that are read. A layer without matrices of its own for them runs the MLP so."""
    again = computes_again(shape, how, row)
    kept = _kept_again(shape, how) if again else _kept_all(shape, how)
    absent = max(0.0, row.tokens - row.read)
    rank = how.lora * (_HALF if how.autocast else _FLOAT)
    alone = _input(shape.width, how, consumers=1, low=False)
    inner = kept.mlp_input + kept.last_input + kept.mlp
    if not shape.gated:
        # Rows taken from a norm's result come from nowhere that is known.
        taken = alone if again and not kept.mlp_input else 0
        return (inner + 2 * rank) * absent - taken * row.read
    spared = inner + kept.result_input + 5 * rank
    if again and not kept.mlp_input:
        taken = alone + _input(shape.width, how, consumers=2, low=False)
        return spared * absent - taken * row.read
    # Queries read what keys and values read: shared before, now a copy of the rows, unless each has its own.
    shared = alone == _input(shape.width, how, consumers=3, low=False)
    return spared * absent - alone * row.read if shared else (spared + alone) * absent


def kept_rest(shape: Shape, how: Arithmetic, row: Row) -> float:
    """Bytes kept outside of the layers: rotary tables, last norm, hidden states of scored tokens, masks."""
    last = _norm(shape.width, how) if shape.gated else _layer_norm(shape.width, how)
    rotary = 2 * _FLOAT * shape.head_dim if shape.gated else 0
    # Ids, positions and the plan's indices are int64.
    indices = 8 * 6
    scored = shape.width * how.compute_bytes * row.scored
    return (last + rotary + indices) * row.tokens + scored + _FLOAT * row.mask


def cast_weights(shape: Shape, how: Arithmetic, row: Row) -> int:
    """bfloat16 copies of float32 matrices that autocast makes, and that the backward reads again. Products
    that keep less cast again in the backward."""
    if shape.gated and computes_again(shape, how, row):
        return 0
    return _HALF * shape.matrix_parameters if how.autocast and how.weight_bytes == _FLOAT else 0


def working_forward(shape: Shape, how: Arithmetic, row: Row) -> float:
    """Bytes at work in one layer beyond what is kept: the wider of its two halves."""
    size = how.compute_bytes
    d, a, b, f = shape.width, shape.query_width, shape.kv_width, shape.inner
    stream = 2 * how.weight_bytes * d
    # gelu_new, without a graph: its input, half of it, and what one operation reads and gives.
    mlp = (3 if shape.gated else min(4, shape.mlp_values)) * size * f
    # q, k, v; rotated q and k with the halves they are made of; slots.
    attention = 4 * size * a + 4 * size * b + _FLOAT * a
    return (stream + max(mlp, attention)) * row.tokens + _probabilities(shape, how, row)


def _probabilities(shape: Shape, how: Arithmetic, row: Row) -> float:
    """Of one block of queries, where attention goes by blocks: scores, probabilities and their gradients."""
    if how.gpu or shape.dropout:
        return 0.0
    return 4 * _FLOAT * min(BLOCK_SCORES, shape.num_heads * BLOCK_QUERIES * row.keys)


def working_backward(shape: Shape, how: Arithmetic, row: Row) -> float:
    """Bytes of gradients at work in one layer: of the stream, and of the MLP's inner values."""
    inner = (2 if shape.gated else shape.mlp_values - 1) * how.compute_bytes * shape.inner
    return (2 * how.weight_bytes * shape.width + inner) * row.tokens + _probabilities(shape, how, row)
