"""Scalar heads: a reward model built on a causal model's backbone, and a value head for PPO.

A reward model is transformers' own sequence classifier with one label, so that transformers alone can load
and run it.
Axes: L tokens, S sequences, D width.
"""

import copy
import math

import torch
from torch import Tensor, nn
from transformers import AutoModelForSequenceClassification, PreTrainedModel, PreTrainedTokenizerBase

from trueward.core.errors import ModelError
from trueward.models.scoring import unwrap

__all__ = ["ValueHead", "check_pad", "reward_from_causal", "reward_over"]

_HEAD_SCALE = 0.1


def check_pad(tokenizer: PreTrainedTokenizerBase) -> int:
    """The pad id of a tokenizer whose pad token is no other token.

    transformers finds the last token of a padded sequence by searching for the pad id; where that is also
    the end of turn, it reads the score one token too early and says nothing.

    Raises:
        ModelError: no pad token, or it is the end-of-sequence token.
    """
    pad = tokenizer.pad_token_id
    if pad is None or pad == tokenizer.eos_token_id:
        raise ModelError(
            "a reward model needs a pad token of its own",
            value=tokenizer.pad_token,
            expected=f"a token other than the end token {tokenizer.eos_token!r}",
            remedy="name a token that no text uses as pad_token in tokenizer_config.json",
        )
    return int(pad)


def _classifier(causal: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> PreTrainedModel:
    """transformers' sequence classifier of one label for the architecture, weights as it makes them."""
    config = copy.deepcopy(causal.config)
    config.num_labels = 1
    config.problem_type = "regression"
    config.pad_token_id = check_pad(tokenizer)
    try:
        # The classes of transformers that pick an architecture have no types.
        made: PreTrainedModel = AutoModelForSequenceClassification.from_config(  # type: ignore[no-untyped-call]
            config, dtype=causal.dtype
        )
    except ValueError as error:
        raise ModelError(
            f"transformers has no sequence classifier for {config.model_type}",
            remedy="choose another base model for the reward",
        ) from error
    return made


def reward_from_causal(model: nn.Module, tokenizer: PreTrainedTokenizerBase, *, seed: int) -> PreTrainedModel:
    """A reward model: a copy of a causal model's backbone under a fresh head of one label.

    The head starts small (normal, standard deviation 0.1 / sqrt(D)), so that first scores lie near 0 and no
    early sample wins by chance; it is not zero, so that the backbone learns from the first step.

    Args:
        model: causal language model without adapters.
        seed: decides the head.

    Raises:
        ModelError: no such class for this architecture, or a pad token that is also the end token.
    """
    causal = unwrap(model)
    if causal is not model:
        raise ModelError(
            "a reward model is built on a model without adapters",
            remedy="merge them into the model first; adapters of the reward model go on it afterwards",
        )
    with torch.random.fork_rng(devices=[]):
        reward = _classifier(causal, tokenizer)
    reward.base_model.load_state_dict(causal.base_model.state_dict())
    generator = torch.Generator().manual_seed(seed)
    weight_1D = reward.get_parameter("score.weight")
    drawn_1D = torch.randn(weight_1D.shape, generator=generator) * _HEAD_SCALE / math.sqrt(weight_1D.shape[1])
    with torch.no_grad():
        weight_1D.copy_(drawn_1D)
    nn.Module.to(reward, causal.device)
    reward.train(False)
    return reward


def reward_over(model: nn.Module, tokenizer: PreTrainedTokenizerBase, weight_1D: Tensor) -> PreTrainedModel:
    """A reward model whose backbone *is* that of a causal model: the same modules, with their adapters.

    Args:
        model: causal language model, PEFT-wrapped or not.
        weight_1D: the score head; it is kept in float32.

    Raises:
        ModelError: as `reward_from_causal`, or a head of another width.
    """
    causal = unwrap(model)
    with torch.device("meta"):
        reward = _classifier(causal, tokenizer)
    expected = tuple(reward.get_parameter("score.weight").shape)
    if tuple(weight_1D.shape) != expected:
        raise ModelError(
            "the score head has another shape than the model's hidden states",
            value=tuple(weight_1D.shape),
            expected=str(expected),
        )
    setattr(reward, reward.base_model_prefix, causal.base_model)
    held_1D = weight_1D.to(device=causal.device, dtype=torch.float32, copy=True)
    reward.get_submodule("score").weight = nn.Parameter(held_1D, requires_grad=False)
    reward.train(causal.training)
    return reward


class ValueHead(nn.Module):
    """A linear value of each hidden state, in float32, starting at 0."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.linear = nn.Linear(width, 1)
        nn.init.zeros_(self.linear.weight)
        nn.init.zeros_(self.linear.bias)

    def forward(self, hidden_LD: Tensor) -> Tensor:
        """values_L1 from hidden_LD; precision changes here to that of the head."""
        values_L1: Tensor = self.linear(hidden_LD.to(self.linear.weight.dtype))
        return values_L1
