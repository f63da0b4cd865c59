"""Importing llama2.c version-0 checkpoints: raw weights and a vocabulary become a Hugging Face Llama folder.

Not here: versions 1 and 2 of that format (they carry a magic number and are refused by name), quantised
files, export. Two things are not copied one to one. The rows of wq and wk are reordered, because llama2.c
rotates neighbouring pairs (2i, 2i + 1) of a head and Hugging Face rotates halves (i, i + size / 2). And the
tokenizer's merges are derived from the vocabulary's scores, which llama2.c searches directly.
"""

import math
import struct
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import save_file
from tokenizers import AddedToken, Tokenizer, decoders, normalizers, processors
from tokenizers import models as token_models
from torch import Tensor
from transformers import LlamaConfig

from trueward.core.errors import ModelError
from trueward.core.files import new_folder, write_json, write_text
from trueward.core.hashing import hash_file

__all__ = ["CHAT_TEMPLATE", "import_llama2c"]

_HEADER = struct.Struct("<7i")
_TOKEN = struct.Struct("<fi")
_MAGIC = 0x616B3432
_EPSILON = 1e-5
_THETA = 10_000.0
_UNK, _BOS, _EOS, _FIRST_BYTE, _FIRST_PIECE = 0, 1, 2, 3, 259
_SPECIAL = ("<unk>", "<s>", "</s>")

CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}"
    "{{ message['role'] | capitalize + ': ' + message['content'] + eos_token }}"
    "{% endfor %}{% if add_generation_prompt %}Assistant:{% endif %}"
)
"""`<s>User: hi</s>Assistant: hello</s>`. Ours: the weights were never trained on chats.

Every turn ends in </s>, the one boundary that text cannot imitate by accident. The space after the colon
belongs to the reply, since the vocabulary joins a space to the word behind it; so the ids of the prompt are a
prefix of those of the whole.
"""

_CARD = """---
library_name: transformers
pipeline_tag: text-generation
---

# Imported llama2.c checkpoint

{layers} layers, width {dim}, {heads} query heads and {kv_heads} key/value heads, {vocab} tokens, context
{context}. Imported by `trueward models import-llama2c` from a llama2.c version-0 checkpoint.

| file | sha256 |
|---|---|
| {weights} | `{weights_hash}` |
| {vocabulary} | `{vocabulary_hash}` |

- **Licence, training data, intended use**: those of the checkpoint's author; the format carries none of them.
- **Chat template**: added at import so that the folder can be fine-tuned. The weights were never trained on
  chats, and until they are, replies are continuations of text.
- **Padding**: `<unk>` (id 0). The vocabulary has no padding token, and the end of sequence cannot serve as
  one: a model that reads its score at the last real token could not tell the two apart. Every character that
  is no token falls back to bytes, so `<unk>` never stands in tokenised text.
- **Special tokens**: `<s>` and `</s>` written in a text are read as the special tokens; llama2.c reads their
  letters.
"""


@dataclass(frozen=True, kw_only=True, slots=True)
class _Header:
    dim: int
    hidden: int
    layers: int
    heads: int
    kv_heads: int
    vocab: int
    context: int
    tied: bool

    @property
    def head_size(self) -> int:
        return self.dim // self.heads

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Tensors of the file in their order."""
        layers, dim, kv_dim = self.layers, self.dim, self.kv_heads * self.head_size
        tables = (self.context, self.head_size // 2)
        shapes: dict[str, tuple[int, ...]] = {
            "embedding": (self.vocab, dim),
            "attention_norm": (layers, dim),
            "wq": (layers, dim, dim),
            "wk": (layers, kv_dim, dim),
            "wv": (layers, kv_dim, dim),
            "wo": (layers, dim, dim),
            "ffn_norm": (layers, dim),
            "w1": (layers, self.hidden, dim),
            "w2": (layers, dim, self.hidden),
            "w3": (layers, self.hidden, dim),
            "final_norm": (dim,),
            "rope_cos": tables,
            "rope_sin": tables,
        }
        return shapes if self.tied else {**shapes, "classifier": (self.vocab, dim)}


def import_llama2c(weights: Path, vocabulary: Path, out: Path) -> None:
    """Write a llama2.c version-0 checkpoint as a Hugging Face Llama folder with tokenizer and chat template.

    Args:
        weights: the checkpoint, such as `stories260K.bin`.
        vocabulary: its tokenizer, such as `tok512.bin`.
        out: the folder to make; must not exist.

    Raises:
        ModelError: `out` exists; a file is missing, truncated or too long; an impossible header; weights that
            are not finite; a vocabulary of another size or layout.
        StorageError: the disk refused; nothing is left behind.

    Source:
        karpathy/llama2.c, run.c (memory_map_weights, build_tokenizer, encode) and export.py (legacy_export).
    """
    if out.exists():
        raise ModelError(f"{out} exists already", remedy="choose another folder, or move the old one away")
    header = _read_header(weights)
    tokens, scores = _read_vocabulary(vocabulary)
    if len(tokens) != header.vocab:
        raise ModelError(
            f"{vocabulary} does not belong to {weights}",
            value=f"{len(tokens)} tokens",
            expected=f"{header.vocab}, the vocabulary of the checkpoint",
            remedy="give the tokenizer file the checkpoint was trained with",
        )
    state = _state_dict(_read_tensors(weights, header), header)
    tokenizer = _tokenizer(tokens, scores)
    special_ids = {"bos_token_id": _BOS, "eos_token_id": _EOS, "pad_token_id": _UNK}
    with new_folder(out) as folder:
        save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
        (folder / "model.safetensors").chmod(0o644)
        _config(header).save_pretrained(folder)
        write_json(folder / "generation_config.json", special_ids)
        write_text(folder / "tokenizer.json", tokenizer.to_str(pretty=True))
        write_json(folder / "tokenizer_config.json", _tokenizer_config(header))
        write_text(folder / "README.md", _card(header, weights, vocabulary))


def _read_header(path: Path) -> _Header:
    try:
        with path.open("rb") as file:
            raw = file.read(_HEADER.size)
    except OSError as error:
        raise ModelError(f"cannot read {path}: {error.strerror}", remedy="check the path") from error
    if len(raw) < _HEADER.size:
        raise ModelError(
            f"{path} is no llama2.c checkpoint",
            value=f"{len(raw)} bytes",
            expected=f"a header of {_HEADER.size} bytes",
        )
    dim, hidden, layers, heads, kv_heads, vocab, context = _HEADER.unpack(raw)
    if dim == _MAGIC:
        raise ModelError(
            f"{path} is of version 1 or later", remedy="export it with llama2.c's `export.py --version 0`"
        )
    header = _Header(
        dim=dim,
        hidden=hidden,
        layers=layers,
        heads=heads,
        kv_heads=kv_heads,
        vocab=abs(vocab),
        context=context,
        tied=vocab > 0,
    )
    values = (dim, hidden, layers, heads, kv_heads, abs(vocab), context)
    if min(values) <= 0 or dim % heads or heads % kv_heads or header.head_size % 2:
        raise ModelError(
            f"{path} is no llama2.c version-0 checkpoint: its header is impossible",
            value=dict(
                zip(("dim", "hidden", "layers", "heads", "kv_heads", "vocab", "context"), values, strict=True)
            ),
            expected="sizes > 0, heads that divide dim into even parts, kv_heads that divide heads",
        )
    return header


def _read_tensors(path: Path, header: _Header) -> dict[str, NDArray[np.float32]]:
    shapes = header.shapes()
    sizes = {name: int(np.prod([int(n) for n in shape], dtype=object)) for name, shape in shapes.items()}
    expected = _HEADER.size + 4 * sum(sizes.values())
    size = path.stat().st_size
    if size != expected:
        raise ModelError(
            f"{path} is {'truncated' if size < expected else 'longer than its header says'}",
            value=f"{size} bytes",
            expected=f"{expected} bytes",
            remedy="download the file again",
        )
    data = np.memmap(path, dtype="<f4", mode="r", offset=_HEADER.size)
    tensors: dict[str, NDArray[np.float32]] = {}
    start = 0
    for name, shape in shapes.items():
        values = np.array(data[start : start + sizes[name]], dtype=np.float32).reshape(shape)
        if not np.isfinite(values).all():
            raise ModelError(
                f"{path}: tensor {name} holds values that are not finite", remedy="download it again"
            )
        tensors[name] = values
        start += sizes[name]
    return tensors


def _halves(rows: NDArray[np.float32], heads: int) -> NDArray[np.float32]:
    """Rows of one wq or wk, head by head, from neighbouring pairs to halves: the even ones come first."""
    width = rows.shape[1]
    return rows.reshape(heads, -1, 2, width).swapaxes(1, 2).reshape(-1, width)


def _state_dict(tensors: dict[str, NDArray[np.float32]], header: _Header) -> dict[str, Tensor]:
    named = {"model.embed_tokens.weight": tensors["embedding"], "model.norm.weight": tensors["final_norm"]}
    if not header.tied:
        named["lm_head.weight"] = tensors["classifier"]
    for layer in range(header.layers):
        prefix = f"model.layers.{layer}."
        named |= {
            prefix + "input_layernorm.weight": tensors["attention_norm"][layer],
            prefix + "self_attn.q_proj.weight": _halves(tensors["wq"][layer], header.heads),
            prefix + "self_attn.k_proj.weight": _halves(tensors["wk"][layer], header.kv_heads),
            prefix + "self_attn.v_proj.weight": tensors["wv"][layer],
            prefix + "self_attn.o_proj.weight": tensors["wo"][layer],
            prefix + "post_attention_layernorm.weight": tensors["ffn_norm"][layer],
            prefix + "mlp.gate_proj.weight": tensors["w1"][layer],
            prefix + "mlp.down_proj.weight": tensors["w2"][layer],
            prefix + "mlp.up_proj.weight": tensors["w3"][layer],
        }
    return {name: torch.tensor(values) for name, values in named.items()}


def _config(header: _Header) -> LlamaConfig:
    return LlamaConfig(
        architectures=["LlamaForCausalLM"],
        vocab_size=header.vocab,
        hidden_size=header.dim,
        intermediate_size=header.hidden,
        num_hidden_layers=header.layers,
        num_attention_heads=header.heads,
        num_key_value_heads=header.kv_heads,
        head_dim=header.head_size,
        max_position_embeddings=header.context,
        rms_norm_eps=_EPSILON,
        rope_parameters={"rope_type": "default", "rope_theta": _THETA},
        tie_word_embeddings=header.tied,
        dtype="float32",
        bos_token_id=_BOS,
        eos_token_id=_EOS,
        pad_token_id=_UNK,
    )


def _read_vocabulary(path: Path) -> tuple[list[str], list[float]]:
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise ModelError(f"cannot read {path}: {error.strerror}", remedy="check the path") from error
    tokens: list[str] = []
    scores: list[float] = []
    offset = 4
    while offset < len(raw) or len(raw) < 4:
        start = offset + _TOKEN.size
        score, length = _TOKEN.unpack_from(raw, offset) if start <= len(raw) else (0.0, -1)
        if not 0 <= length <= len(raw) - start or not math.isfinite(score):
            raise ModelError(
                f"{path} is truncated, or no llama2.c vocabulary",
                value=f"a token of {length} bytes at byte {offset} of {len(raw)}",
                expected="a float32 score, an int32 length and that many bytes",
            )
        try:
            tokens.append(raw[start : start + length].decode())
        except UnicodeDecodeError as error:
            raise ModelError(
                f"{path}: token {len(tokens)} is not UTF-8", value=raw[start : start + length]
            ) from error
        scores.append(score)
        offset = start + length
    _check_layout(path, tokens)
    return tokens, scores


def _check_layout(path: Path, tokens: list[str]) -> None:
    """llama2.c takes byte b for token b + 3 without looking; so the layout is part of the format."""
    layout = [*_SPECIAL, *(f"<0x{byte:02X}>" for byte in range(256))]
    for index, expected in enumerate(layout):
        seen = tokens[index].strip() if index < len(tokens) else "nothing"
        if seen != expected:
            raise ModelError(
                f"{path}: token {index} is no {expected}", value=seen, expected=f"{expected} at {index}"
            )
    # In the Hugging Face form a space is written "▁", so two tokens may become one.
    names = [*layout, *(token.replace(" ", "▁") for token in tokens[_FIRST_PIECE:])]
    if len(set(names)) < len(names) or "" in names:
        raise ModelError(f"{path} holds an empty or a repeated token", remedy="download the file again")


def _tokenizer(tokens: list[str], scores: list[float]) -> Tokenizer:
    """The vocabulary as a BPE model with byte fallback.

    llama2.c joins, again and again, the neighbouring pair whose joined token scores highest, the leftmost of
    equals. That is BPE with one merge for every way to cut a token into two tokens, ranked by the score of
    the whole. The ways to cut one token get ranks of their own, which shows only where two of them overlap in
    the text (`a` `aa` `a`).
    """
    pieces = [token.replace(" ", "▁") for token in tokens[_FIRST_PIECE:]]
    names = [*_SPECIAL, *tokens[_FIRST_BYTE:_FIRST_PIECE], *pieces]
    vocab = {name: index for index, name in enumerate(names)}
    known = set(pieces)
    ranked = sorted(range(_FIRST_PIECE, len(names)), key=lambda index: -scores[index])
    cuts = ((names[index][:at], names[index][at:]) for index in ranked for at in range(1, len(names[index])))
    merges = [cut for cut in cuts if cut[0] in known and cut[1] in known]
    tokenizer = Tokenizer(
        token_models.BPE(vocab=vocab, merges=merges, unk_token="<unk>", byte_fallback=True, fuse_unk=True)
    )
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A <s> $B", special_tokens=[("<s>", _BOS)]
    )
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in _SPECIAL])
    return tokenizer


def _tokenizer_config(header: _Header) -> dict[str, object]:
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": "<s>",
        "eos_token": "</s>",
        "unk_token": "<unk>",
        "pad_token": "<unk>",
        "model_max_length": header.context,
        "clean_up_tokenization_spaces": False,
        "chat_template": CHAT_TEMPLATE,
    }


def _card(header: _Header, weights: Path, vocabulary: Path) -> str:
    return _CARD.format(
        layers=header.layers,
        dim=header.dim,
        heads=header.heads,
        kv_heads=header.kv_heads,
        vocab=header.vocab,
        context=header.context,
        weights=weights.name,
        weights_hash=hash_file(weights),
        vocabulary=vocabulary.name,
        vocabulary_hash=hash_file(vocabulary),
    )
