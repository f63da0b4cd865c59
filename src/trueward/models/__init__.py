"""Models: loading, saving, heads, adapters, packed rows, and the log-prob engine that every stage shares."""

from trueward.models.backend import prepare_cpu
from trueward.models.checkpoint import model_card, model_hash, save_causal, save_reward
from trueward.models.heads import ValueHead, reward_from_causal
from trueward.models.load import LoadedModel, load_causal, load_reward
from trueward.models.lora import LoraSettings, apply_lora, check_new_tokens, embeddings_trained
from trueward.models.packing import Packed, batches_by_tokens, completion_mask, count_tokens, pack, unflatten
from trueward.models.reward_adapter import SharedReward, attach_reward, save_reward_adapter
from trueward.models.scoring import (
    TokenScores,
    exact_kl_N,
    fallbacks,
    hidden_states,
    reference,
    score_completions,
    sequence_rewards,
    supports_packing,
    token_values,
)

__all__ = [
    "LoadedModel",
    "LoraSettings",
    "Packed",
    "SharedReward",
    "TokenScores",
    "ValueHead",
    "apply_lora",
    "attach_reward",
    "batches_by_tokens",
    "check_new_tokens",
    "completion_mask",
    "count_tokens",
    "embeddings_trained",
    "exact_kl_N",
    "fallbacks",
    "hidden_states",
    "load_causal",
    "load_reward",
    "model_card",
    "model_hash",
    "pack",
    "prepare_cpu",
    "reference",
    "reward_from_causal",
    "save_causal",
    "save_reward",
    "save_reward_adapter",
    "score_completions",
    "sequence_rewards",
    "supports_packing",
    "token_values",
    "unflatten",
]
