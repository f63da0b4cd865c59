"""The shape of a model from its config.json and the headers of its safetensors files: no weights are read.

Known are decoders like Llama (RMSNorm, rotary positions, gated MLP; also Mistral, Qwen 2 and 3, Gemma) and
like GPT-2 (LayerNorm, learned positions, plain MLP). Another type with the same keys is counted as a Llama,
and said to be.
"""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from trueward.core.errors import ModelError

__all__ = ["Shape", "header_elements", "read_shape", "shape_of"]

_LLAMA_LIKE = ("llama", "mistral", "qwen2", "qwen3", "gemma", "gemma2", "gemma3_text", "smollm3")
_GPT2_LIKE = ("gpt2",)
# Values of inner width that the backward of the activation function and of the two matrices needs: GPT-2's
# `gelu_new` is written out in four steps (x, tanh, 0.5 x, 1 + tanh), the others are one kernel (x).
_PLAIN_MLP_VALUES = {"gelu_new": 5}
_FUSED_MLP_VALUES = 2
_GATED_MLP_VALUES = 4


@dataclass(frozen=True, kw_only=True, slots=True)
class Shape:
    """Sizes of a decoder. Widths are values per token."""

    model_type: str
    known: bool
    """Whether its layers are known here; else it is counted as a Llama."""
    num_layers: int
    width: int
    query_width: int
    """Heads times head width."""
    kv_width: int
    """Key heads times head width; keys and values have one each."""
    num_heads: int
    head_dim: int
    inner: int
    """Width between the matrices of the MLP."""
    vocab_size: int
    positions: int
    """Longest sequence; for GPT-2 also rows of a trained table."""
    tied: bool
    """Head and embeddings are one matrix."""
    gated: bool
    """MLP with a gate, RMSNorm and rotary positions, as in Llama; else as in GPT-2."""
    head_norms: bool
    """Queries and keys are normalised head by head (Qwen 3, Gemma 3)."""
    post_norms: bool
    """What attention and MLP give is normalised too (Gemma 2 and 3)."""
    mlp_values: int
    """Values of inner width the backward needs."""
    dropout: float
    """Share of values that residual dropout sets to 0 in training."""
    attention_dropout: float
    num_parameters: int

    @property
    def layer_parameters(self) -> int:
        """Weights in the matrices of one layer."""
        attention = 2 * self.width * (self.query_width + self.kv_width)
        return attention + (3 if self.gated else 2) * self.width * self.inner

    @property
    def matrix_parameters(self) -> int:
        """Weights in the matrices of all layers: what a token is multiplied with, the head left out."""
        return self.num_layers * self.layer_parameters

    @property
    def table_parameters(self) -> int:
        """Weights of one vocabulary table (embeddings, or head)."""
        return self.vocab_size * self.width

    @property
    def backbone_parameters(self) -> int:
        """Parameters without a head of its own, as a reward model has them."""
        return self.num_parameters - (0 if self.tied else self.table_parameters)

    def adapter_parameters(self, r: int) -> int:
        """Weights of LoRA of rank `r` on every matrix of the layers."""
        widths = [self.query_width, self.kv_width, self.kv_width] if self.gated else [3 * self.width]
        pairs = [*(self.width + out for out in widths), self.query_width + self.width]
        pairs += [self.width + self.inner] * (3 if self.gated else 2)
        return self.num_layers * r * sum(pairs)


def header_elements(folder: Path) -> int:
    """Parameters of a model folder, from the headers of its safetensors files; 0 where there are none.

    Raises:
        ModelError: a file that is no safetensors.
    """
    total = 0
    for file in sorted(folder.glob("*.safetensors")):
        try:
            with file.open("rb") as stream:
                header = json.loads(stream.read(int.from_bytes(stream.read(8), "little")))
            total += sum(
                math.prod(entry["shape"]) for name, entry in header.items() if name != "__metadata__"
            )
        except (
            ValueError,
            OSError,
            MemoryError,
            OverflowError,
            AttributeError,
            TypeError,
            KeyError,
        ) as error:
            raise ModelError(
                f"{file} has no header of a safetensors file", remedy="restore it from its source"
            ) from error
    return total


def read_shape(folder: Path) -> Shape:
    """The shape of a model folder; weights may be absent, then parameters are counted from the config.

    Raises:
        ModelError: no config.json, or one without the sizes that are needed.
    """
    file = folder / "config.json"
    if not file.is_file():
        raise ModelError(
            f"{folder} is no model folder here, so nothing can be planned",
            expected="config.json and weights",
            remedy="check model.path; a model of the hub has to be downloaded before",
        )
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ModelError(f"{file} is not JSON", remedy="restore it from its source") from error
    return shape_of(config, num_parameters=header_elements(folder) or None)


def _number(config: Mapping[str, Any], *names: str, default: int | None = None) -> int:
    for name in names:
        value = config.get(name)
        if isinstance(value, int) and value > 0:
            return value
    if default is None:
        raise ModelError(
            f"config.json states no {names[0]}", expected="a positive number", remedy="restore config.json"
        )
    return default


def shape_of(config: Mapping[str, Any], *, num_parameters: int | None = None) -> Shape:
    """The shape that a config.json describes.

    Args:
        num_parameters: as counted from the weights; None counts them from the sizes.

    Raises:
        ModelError: a size is missing, or the layers hold experts, whose number in use is not predicted.
    """
    config = config.get("text_config") or config
    kind = str(config.get("model_type", ""))
    if config.get("num_local_experts") or config.get("num_experts"):
        raise ModelError(f"{kind} has experts, and their memory is not predicted", expected="a dense model")
    gated = kind not in _GPT2_LIKE
    width = _number(config, "hidden_size", "n_embd")
    heads = _number(config, "num_attention_heads", "n_head")
    head_dim = _number(config, "head_dim", default=width // heads)
    kv_heads = _number(config, "num_key_value_heads", default=heads)
    inner = _number(config, "intermediate_size", "n_inner", default=None if gated else 4 * width)
    act = str(config.get("activation_function", "gelu_new"))
    # transformers leaves out of config.json what is the default of the class.
    tied_by_default = not gated or kind.startswith("gemma")
    shape = Shape(
        model_type=kind,
        known=kind in (*_LLAMA_LIKE, *_GPT2_LIKE),
        num_layers=_number(config, "num_hidden_layers", "n_layer"),
        width=width,
        query_width=heads * head_dim,
        kv_width=kv_heads * head_dim,
        num_heads=heads,
        head_dim=head_dim,
        inner=inner,
        vocab_size=_number(config, "vocab_size"),
        positions=_number(config, "max_position_embeddings", "n_positions", default=2048),
        tied=bool(config.get("tie_word_embeddings", tied_by_default)),
        gated=gated,
        head_norms=kind in ("qwen3", "gemma3_text"),
        post_norms=kind in ("gemma2", "gemma3_text"),
        mlp_values=_GATED_MLP_VALUES if gated else _PLAIN_MLP_VALUES.get(act, _FUSED_MLP_VALUES),
        dropout=float(config.get("resid_pdrop", 0.0 if gated else 0.1)),
        attention_dropout=float(
            config.get("attn_pdrop", config.get("attention_dropout", 0.0 if gated else 0.1))
        ),
        num_parameters=0,
    )
    return replace(shape, num_parameters=num_parameters or _count(shape, config))


def _count(shape: Shape, config: Mapping[str, Any]) -> int:
    """Parameters from the sizes alone."""
    width = shape.width
    layer = shape.layer_parameters
    if shape.gated:
        layer += (4 if shape.post_norms else 2) * width + (2 * shape.head_dim if shape.head_norms else 0)
        if config.get("attention_bias", shape.model_type == "qwen2"):
            layer += shape.query_width + 2 * shape.kv_width
            layer += 0 if shape.model_type == "qwen2" else width
        layer += 2 * shape.inner + width if config.get("mlp_bias") else 0
        rest = width
    else:
        # Biases of four matrices (3 D, D, inner, D), two norms with scale and offset.
        layer += 5 * width + shape.inner + 4 * width
        rest = 2 * width + shape.positions * width
    tables = (1 if shape.tied else 2) * shape.table_parameters
    return shape.num_layers * layer + rest + tables
