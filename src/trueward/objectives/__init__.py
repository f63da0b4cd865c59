"""Alignment objectives as pure functions: tensors in, unreduced tensors out.

Not here: models, config, devices, logging, randomness, process groups. Imports torch and the standard
library only.
Axes: B sequences, T tokens, V vocabulary. Masks are bool, True = counts. Log-probs and KL in nats.
"""

from trueward.objectives.advantages import Advantages, gae, token_rewards, whiten
from trueward.objectives.kl import KL_ESTIMATORS, kl_exact, kl_k1, kl_k2, kl_k3
from trueward.objectives.logprobs import token_entropy, token_logps
from trueward.objectives.policy_gradient import PolicyLoss, ppo_policy
from trueward.objectives.preference import PreferenceLoss, dpo
from trueward.objectives.reduce import masked_sum_B, sequence_mean, token_mean, zero_masked
from trueward.objectives.reward_model import BradleyTerryLoss, accuracy, bradley_terry
from trueward.objectives.sft import SFTLoss, sft
from trueward.objectives.value import ValueLoss, ppo_value

__all__ = [
    "KL_ESTIMATORS",
    "Advantages",
    "BradleyTerryLoss",
    "PolicyLoss",
    "PreferenceLoss",
    "SFTLoss",
    "ValueLoss",
    "accuracy",
    "bradley_terry",
    "dpo",
    "gae",
    "kl_exact",
    "kl_k1",
    "kl_k2",
    "kl_k3",
    "masked_sum_B",
    "ppo_policy",
    "ppo_value",
    "sequence_mean",
    "sft",
    "token_entropy",
    "token_logps",
    "token_mean",
    "token_rewards",
    "whiten",
    "zero_masked",
]
