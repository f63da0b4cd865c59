"""Low-rank adapters (Hu et al. 2021) through PEFT: settings, applying and switching them, and what they leave
untrained."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from pydantic import Field
from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from trueward.core.config import Config
from trueward.core.errors import ModelError
from trueward.models.scoring import unwrap

__all__ = ["LoraSettings", "adapter_on", "apply_lora", "check_new_tokens", "embeddings_trained"]


class LoraSettings(Config):
    """Which matrices get adapters, and how large."""

    r: int = Field(default=16, gt=0)
    """Rank of the update."""
    alpha: int = Field(default=32, gt=0)
    """The update is scaled by alpha / r."""
    dropout: float = Field(default=0.0, ge=0, lt=1)
    """Dropout on the input of the update. Above 0 the trainer's log-probs of one row differ from pass to
    pass.
    """
    target_modules: str | tuple[str, ...] = "all-linear"
    """Names of the matrices; `all-linear` takes every one but the head."""
    train_embeddings: bool = False
    """Train (and save) embeddings and head in full; needed where tokens are new."""


def apply_lora(model: PreTrainedModel, settings: LoraSettings, *, seed: int) -> PeftModel:
    """Wrap a model with fresh adapters; with them off it is the model as it was.

    Args:
        model: causal language model or sequence classifier; its weights are frozen in place.
        seed: decides the adapters' first values.

    Raises:
        ModelError: no module has one of the names in `target_modules`.
    """
    full = ["embed_tokens", "wte", "lm_head"] if settings.train_embeddings else []
    present = {name.rpartition(".")[2] for name, _ in model.named_modules()}
    config = LoraConfig(
        r=settings.r,
        lora_alpha=settings.alpha,
        lora_dropout=settings.dropout,
        target_modules=settings.target_modules
        if isinstance(settings.target_modules, str)
        else list(settings.target_modules),
        modules_to_save=[name for name in full if name in present] or None,
        fan_in_fan_out=any(isinstance(module, Conv1D) for module in model.modules()),
        task_type="SEQ_CLS" if hasattr(model, "score") else "CAUSAL_LM",
    )
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            wrapped: PeftModel = get_peft_model(model, config)
    except ValueError as error:
        raise ModelError(
            f"the adapters do not fit {type(model).__name__}: {' '.join(str(error).split())}",
            remedy="set target_modules to names of its linear layers, or to all-linear",
        ) from error
    return wrapped


@contextmanager
def adapter_on(model: PeftModel, name: str) -> Iterator[None]:
    """Compute with another set of adapters of the same backbone, frozen; afterwards with the one before.

    Args:
        name: adapters that the model has.
    """
    before = model.active_adapter
    model.set_adapter(name, inference_mode=True)
    try:
        yield
    finally:
        model.set_adapter(before, inference_mode=model.peft_config[before].inference_mode)


def embeddings_trained(model: nn.Module) -> bool:
    """Whether training moves the input embeddings."""
    embeddings: nn.Module = unwrap(model).get_input_embeddings()
    return any(parameter.requires_grad for parameter in embeddings.parameters())


def check_new_tokens(model: nn.Module, new_tokens: int) -> None:
    """Refuse tokens that would stay as random as they were made.

    Raises:
        ModelError: there are new tokens and the embeddings are frozen.
    """
    if new_tokens and not embeddings_trained(model):
        raise ModelError(
            "new tokens under adapters would never be trained",
            value=f"{new_tokens} new tokens",
            expected="embeddings that are trained",
            remedy="set lora.train_embeddings=true, or train without adapters",
        )
