"""A new small Llama with random weights and an initialisation that trains at a high learning rate.

Not the initialisation of transformers (normal, 0.02 everywhere): with it small models failed to learn to copy
names.
"""

import math

import torch
from pydantic import Field
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerBase

from trueward.core.config import Config
from trueward.core.errors import ModelError

__all__ = ["ScratchSettings", "new_llama"]

_ZEROED = ("o_proj", "down_proj")


class ScratchSettings(Config):
    """Sizes of a new Llama."""

    hidden_size: int = Field(default=128, gt=0)
    num_layers: int = Field(default=3, gt=0)
    num_heads: int = Field(default=4, gt=0)
    """Query heads; hidden_size / num_heads must be even, for the rotation of pairs."""
    num_kv_heads: int = Field(default=4, gt=0)
    """Key and value heads; must divide num_heads."""
    intermediate_size: int = Field(default=352, gt=0)
    max_positions: int = Field(default=512, gt=1)
    """Longest sequence, in tokens."""
    embedding_std: float = Field(default=0.1, gt=0)
    """Standard deviation of the initial embeddings, which are also the output head.

    0.1 is what let a width of 128 learn to copy names. On prose (width 192, 2,048 tokens, 90 steps of 1,024
    tokens) the loss came to 5.17 with 0.1, 5.15 with 0.05, 5.42 with 0.02, and to 5.72 with transformers' own
    initialisation.
    """
    seed: int = Field(default=0, ge=0)


def new_llama(tokenizer: PreTrainedTokenizerBase, settings: ScratchSettings) -> LlamaForCausalLM:
    """A Llama with tied embeddings and random weights, in float32.

    Embeddings are normal with `embedding_std`; the projections that read the residual stream are normal with
    1 / sqrt(inputs), so that queries, keys and gates have unit scale behind their norm; the two that write to
    it start at zero, so that every layer begins as the identity and gradients reach the embeddings unchanged.
    The padding row is zero and stays so unless it is trained.

    Args:
        tokenizer: gives the vocabulary size and the ids of BOS, end and padding.
        settings: sizes and seed; the same seed gives the same weights.

    Raises:
        ModelError: heads that do not divide, a tokenizer without BOS, end or padding, or padding equal to the
            end.

    Source:
        Zero-initialised residual outputs: Zhang et al. 2019, "Fixup Initialization", section 3.
    """
    _check(tokenizer, settings)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=settings.hidden_size,
        intermediate_size=settings.intermediate_size,
        num_hidden_layers=settings.num_layers,
        num_attention_heads=settings.num_heads,
        num_key_value_heads=settings.num_kv_heads,
        head_dim=settings.hidden_size // settings.num_heads,
        max_position_embeddings=settings.max_positions,
        tie_word_embeddings=True,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        dtype="float32",
    )
    # The constructor draws from torch's global generator; its draws are replaced below and its state is put
    # back.
    with torch.random.fork_rng(devices=[]):
        model = LlamaForCausalLM(config)
    _initialise(model, settings)
    return model


def _check(tokenizer: PreTrainedTokenizerBase, settings: ScratchSettings) -> None:
    if settings.hidden_size % (2 * settings.num_heads) or settings.num_heads % settings.num_kv_heads:
        raise ModelError(
            "the heads do not divide",
            value={"hidden_size": settings.hidden_size, "heads": (settings.num_heads, settings.num_kv_heads)},
            expected="hidden_size a multiple of 2 * num_heads, num_heads a multiple of num_kv_heads",
        )
    ids = {name: getattr(tokenizer, f"{name}_token_id") for name in ("bos", "eos", "pad")}
    if None in ids.values() or ids["pad"] == ids["eos"]:
        raise ModelError(
            "the tokenizer does not fit a new model",
            value=ids,
            expected="tokens for beginning, end and padding, padding apart from the end",
            remedy="train one with `trueward.data.bpe.train_bpe`",
        )


@torch.no_grad()
def _initialise(model: LlamaForCausalLM, settings: ScratchSettings) -> None:
    generator = torch.Generator().manual_seed(settings.seed)
    for name, module in model.named_modules():
        if isinstance(module, nn.Embedding):
            module.weight.normal_(0.0, settings.embedding_std, generator=generator)
            if module.padding_idx is not None:
                module.weight[module.padding_idx].zero_()
        elif isinstance(module, nn.Linear) and name != "lm_head":
            if name.rsplit(".", 1)[-1] in _ZEROED:
                module.weight.zero_()
            else:
                module.weight.normal_(0.0, 1 / math.sqrt(module.in_features), generator=generator)
