"""Tiny language-model fixtures: random models of 24 words, and groups whose right answer follows from the
prompt."""

from collections.abc import Sequence

import numpy as np
from peft import PeftModel
from transformers import PreTrainedModel

from trueward.data.chat import Completion, TokenGroup
from trueward.models import LoraSettings, apply_lora, reward_from_causal
from trueward.models.tiny import Kind, tiny_model, tiny_tokenizer

VOCAB = 24
STOP = 2


def policy(seed: int = 0, kind: Kind = "llama") -> PreTrainedModel:
    """Nearly uniform at first (scale 1), so that it can learn in few steps."""
    return tiny_model(kind, seed, vocab_size=VOCAB, width=16, layers=1, scale=1.0)


def adapted(seed: int = 0) -> PeftModel:
    return apply_lora(policy(seed), LoraSettings(r=4, alpha=8.0), seed=seed)


def reward_model(seed: int = 0) -> PreTrainedModel:
    return reward_from_causal(policy(seed), tiny_tokenizer(), seed=seed)


def adapted_reward_model(seed: int = 0) -> PeftModel:
    return apply_lora(reward_model(seed), LoraSettings(r=4, alpha=8), seed=seed)


def completion(ids: Sequence[int]) -> Completion:
    return Completion(tuple(ids), (True,) * len(ids))


def demonstrations(n: int = 24, seed: int = 0) -> list[TokenGroup]:
    """The answer repeats the last token of the prompt two to four times, then stops."""
    rng = np.random.default_rng(seed)
    groups = []
    for i in range(n):
        prompt = rng.integers(8, VOCAB, rng.integers(2, 6)).tolist()
        groups.append(TokenGroup((1, *prompt), (completion([prompt[-1]] * (2 + i % 3) + [STOP]),), f"d{i}"))
    return groups


def comparisons(n: int = 24, seed: int = 0) -> list[TokenGroup]:
    """Chosen is made of low words, rejected of high ones; lengths differ."""
    rng = np.random.default_rng(seed)
    groups = []
    for i in range(n):
        prompt = (1, *rng.integers(8, VOCAB, rng.integers(2, 6)).tolist())
        chosen = [*rng.integers(8, 16, rng.integers(1, 5)).tolist(), STOP]
        rejected = [*rng.integers(16, VOCAB, rng.integers(1, 5)).tolist(), STOP]
        groups.append(TokenGroup(prompt, (completion(chosen), completion(rejected)), f"c{i}"))
    return groups
