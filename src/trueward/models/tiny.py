"""Tiny random models of five architectures and a byte tokenizer, made in memory: for tests, examples and
benchmarks.

The weights are random. Nothing here is trained, downloaded or read from disk.
"""

from typing import Any, Literal

import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Qwen3Config,
    Qwen3ForCausalLM,
)

__all__ = ["KINDS", "Kind", "tiny_model", "tiny_tokenizer"]

Kind = Literal["llama", "qwen3", "mistral", "gpt2", "gemma3"]
KINDS: tuple[Kind, ...] = ("llama", "qwen3", "mistral", "gpt2", "gemma3")

_SPECIAL = ("<pad>", "<bos>", "<|end|>", "<|system|>", "<|user|>", "<|assistant|>", "<|tool|>")
_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}"
    "{{ '<|' + message['role'] + '|>' + message['content'] + '<|end|>' }}\n"
    "{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
_WINDOW = 8
_MAX_POSITIONS = 512


def tiny_tokenizer() -> PreTrainedTokenizerFast:
    """A tokenizer of single bytes: 7 special tokens (pad 0, bos 1, end of turn 2, roles) and 256 bytes, 263
    in all.

    Its chat template is `<bos><|role|>content<|end|>\\n...`, so a newline follows the trained stop token.
    """
    vocab = {
        token: index for index, token in enumerate([*_SPECIAL, *sorted(pre_tokenizers.ByteLevel.alphabet())])
    }
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in _SPECIAL])
    return PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]  # untyped in transformers
        tokenizer_object=tokenizer,
        bos_token="<bos>",
        eos_token="<|end|>",
        pad_token="<pad>",
        chat_template=_TEMPLATE,
        model_max_length=_MAX_POSITIONS,
        clean_up_tokenization_spaces=False,
    )


def _build(
    kind: str, *, vocab_size: int, width: int, layers: int, heads: int, kv_heads: int
) -> tuple[PreTrainedConfig, type[PreTrainedModel]]:
    ids: dict[str, Any] = {"vocab_size": vocab_size, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
    if kind == "gpt2":
        dropout: dict[str, Any] = {"attn_pdrop": 0.0, "embd_pdrop": 0.0, "resid_pdrop": 0.0}
        gpt2 = GPT2Config(
            n_embd=width, n_layer=layers, n_head=heads, n_positions=_MAX_POSITIONS, **ids, **dropout
        )
        return gpt2, GPT2LMHeadModel
    common: dict[str, Any] = {
        **ids,
        "hidden_size": width,
        "intermediate_size": 2 * width,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "head_dim": width // heads,
        "max_position_embeddings": _MAX_POSITIONS,
    }
    if kind == "llama":
        return LlamaConfig(**common), LlamaForCausalLM
    if kind == "qwen3":
        return Qwen3Config(**common, tie_word_embeddings=True), Qwen3ForCausalLM
    if kind == "mistral":
        return MistralConfig(**common, sliding_window=_WINDOW), MistralForCausalLM
    if kind == "gemma3":
        kinds = ["sliding_attention" if layer % 2 == 0 else "full_attention" for layer in range(layers)]
        gemma = Gemma3TextConfig(
            **common, sliding_window=_WINDOW, layer_types=kinds, query_pre_attn_scalar=2 * width // heads
        )
        return gemma, Gemma3ForCausalLM
    raise ValueError(f"kind must be one of {', '.join(KINDS)}, got {kind!r}")


def tiny_model(
    kind: Kind,
    seed: int = 0,
    *,
    vocab_size: int = 263,
    width: int = 32,
    layers: int = 2,
    heads: int = 4,
    kv_heads: int = 2,
    scale: float = 4.0,
) -> PreTrainedModel:
    """A random causal language model in float32, in evaluation mode.

    Gemma 3 scales its scores by other than the head width. Mistral has a sliding window of 8 tokens in
    every layer, Gemma 3 in every other one; Qwen 3, GPT-2 and Gemma 3 tie the head to the embeddings. All
    positions up to 512 are known.

    Args:
        scale: factor on the initial matrices; at 1 a random model is nearly uniform and hides mistakes.

    Raises:
        ValueError: unknown kind.
    """
    config, cls = _build(
        kind, vocab_size=vocab_size, width=width, layers=layers, heads=heads, kv_heads=kv_heads
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model: PreTrainedModel = cls(config)
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.ndim >= 2:
                    parameter.mul_(scale)
                else:
                    parameter.add_(torch.randn_like(parameter) * 0.1)
    model.train(False)
    return model
