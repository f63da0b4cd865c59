"""The transformers model inside what trainers hold: its backbone, its head, and one forward of a packed row.

Not here: whether the model can take packed rows (see scoring).
Axes: L tokens of the row, D width.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from peft import PeftModel
from torch import Tensor, nn
from transformers import PreTrainedModel

from trueward.core.errors import ModelError
from trueward.models.attention import KEYWORD, AttentionStep
from trueward.models.head import Head

__all__ = [
    "backbone_of",
    "check_positions",
    "evaluating",
    "head_of",
    "reference",
    "run_backbone",
    "unwrap",
]


def unwrap(model: nn.Module) -> PreTrainedModel:
    """The transformers model inside a PEFT wrapper, adapters in place; a model without wrapper is returned
    as it is.

    Raises:
        ModelError: no transformers model, or an adapter that changes the input (prompt tuning).
    """
    if isinstance(model, PeftModel):
        if model.active_peft_config.is_prompt_learning:
            raise ModelError(
                "adapters that add prompt tokens are not supported",
                value=model.active_peft_config.peft_type,
                expected="LoRA or another adapter of weights",
            )
        model = model.get_base_model()
    if not isinstance(model, PreTrainedModel):
        raise ModelError("this is no transformers model", value=type(model).__name__)
    return model


def backbone_of(model: PreTrainedModel) -> PreTrainedModel:
    """The part that makes the hidden states.

    Raises:
        ModelError: the model is one part.
    """
    backbone = model.base_model
    if backbone is model or not isinstance(backbone, PreTrainedModel):
        raise ModelError(
            f"{type(model).__name__} does not say which part of it makes the hidden states",
            remedy="use a model of the class AutoModelForCausalLM or AutoModelForSequenceClassification",
        )
    return backbone


def check_positions(model: PreTrainedModel, longest: int) -> None:
    """Refuse sequences beyond the positions a model was made for.

    Raises:
        ModelError: `longest` is greater than max_position_embeddings.
    """
    limit = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    if limit is not None and longest > limit:
        raise ModelError(
            f"a sequence is longer than the positions {type(model).__name__} knows",
            value=longest,
            expected=f"at most {limit} tokens",
            remedy="lower max_tokens of the data or max_new_tokens of the rollouts",
        )


def head_of(model: PreTrainedModel) -> Head:
    """The vocabulary head of a causal language model."""
    module: nn.Module | None = model.get_output_embeddings()  # type: ignore[no-untyped-call]
    if module is None:
        raise ModelError(f"{type(model).__name__} has no vocabulary head", expected="a causal language model")
    return Head(module, getattr(model.config.get_text_config(), "final_logit_softcapping", None))


def run_backbone(
    model: PreTrainedModel, input_ids_1L: Tensor, position_ids_1L: Tensor, step: AttentionStep
) -> Tensor:
    """hidden_LD of one row; every attention layer is computed by `step`."""
    output = backbone_of(model)(
        input_ids=input_ids_1L,
        position_ids=position_ids_1L,
        # A ready 4D mask makes transformers build none; the step decides what sees what.
        attention_mask=torch.ones(1, 1, 1, 1, dtype=torch.bool, device=input_ids_1L.device),
        use_cache=False,
        **{KEYWORD: step},
    )
    hidden_LD: Tensor = output.last_hidden_state[0]
    return hidden_LD


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Evaluation mode without gradients; the mode of every module is put back."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for module, training in modes:
            module.training = training


@contextmanager
def reference(model: nn.Module) -> Iterator[nn.Module]:
    """The frozen reference of a model with adapters: the model itself while its adapters are off.

    Raises:
        ModelError: the model has no adapters, so it holds no reference.
    """
    if not isinstance(model, PeftModel):
        raise ModelError(
            "a model without adapters does not hold its own reference", remedy="pass a reference model"
        )
    with model.disable_adapter():
        yield model
