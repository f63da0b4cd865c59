"""Trainers: one loop over items (pretraining, SFT, reward modelling, DPO), PPO, groups (GRPO)."""

from trueward.trainers.checks import checked
from trueward.trainers.diagnosis import diagnose
from trueward.trainers.distill import DISTILL_METHODS, DistillSettings, train_distill
from trueward.trainers.experience import PPOModels, RewardFunction, ppo_models
from trueward.trainers.group import train_group
from trueward.trainers.group_experience import GroupModels, group_models
from trueward.trainers.group_rollout import GroupReward
from trueward.trainers.group_settings import GroupSettings
from trueward.trainers.loop import TrainResult, resume_hint, train
from trueward.trainers.ppo import PPOHooks, train_ppo
from trueward.trainers.ppo_settings import ConstraintSettings, PPOSettings
from trueward.trainers.ppo_tokens import token_table
from trueward.trainers.preference import (
    PREFERENCE_METHODS,
    PreferenceEvaluation,
    PreferencePair,
    PreferenceSettings,
    evaluate_preference,
    preference_pairs,
    reference_pairs,
    train_preference,
)
from trueward.trainers.process import (
    ProcessSettings,
    score_steps,
    step_scorer,
    train_process,
)
from trueward.trainers.process_judge import ProcessEvaluation, auc_gain, evaluate_process
from trueward.trainers.reward import (
    RewardPair,
    RewardSettings,
    reward_function,
    score_pairs,
    train_reward,
)
from trueward.trainers.reward_sum import RewardPart, VerdictSum, WeightedReward, weighted_reward
from trueward.trainers.settings import TrainSettings
from trueward.trainers.sft import SFTEvaluation, evaluate_sft, train_sft
from trueward.trainers.step_model import StepModel, load_steps, save_steps
from trueward.trainers.unpaired import (
    UNPAIRED_METHODS,
    LabelledCompletion,
    UnpairedEvaluation,
    UnpairedExample,
    UnpairedSettings,
    evaluate_unpaired,
    train_unpaired,
    unpaired_examples,
)
from trueward.trainers.verified import Question, verified_reward
from trueward.trainers.weak_answers import train_weak_answers
from trueward.trainers.weak_to_strong import WeakToStrongSettings, train_weak_to_strong

__all__ = [
    "DISTILL_METHODS",
    "PREFERENCE_METHODS",
    "UNPAIRED_METHODS",
    "ConstraintSettings",
    "DistillSettings",
    "GroupModels",
    "GroupReward",
    "GroupSettings",
    "LabelledCompletion",
    "PPOHooks",
    "PPOModels",
    "PPOSettings",
    "PreferenceEvaluation",
    "PreferencePair",
    "PreferenceSettings",
    "ProcessEvaluation",
    "ProcessSettings",
    "Question",
    "RewardFunction",
    "RewardPair",
    "RewardPart",
    "RewardSettings",
    "SFTEvaluation",
    "StepModel",
    "TrainResult",
    "TrainSettings",
    "UnpairedEvaluation",
    "UnpairedExample",
    "UnpairedSettings",
    "VerdictSum",
    "WeakToStrongSettings",
    "WeightedReward",
    "auc_gain",
    "checked",
    "diagnose",
    "evaluate_preference",
    "evaluate_process",
    "evaluate_sft",
    "evaluate_unpaired",
    "group_models",
    "load_steps",
    "ppo_models",
    "preference_pairs",
    "reference_pairs",
    "resume_hint",
    "reward_function",
    "save_steps",
    "score_pairs",
    "score_steps",
    "step_scorer",
    "token_table",
    "train",
    "train_distill",
    "train_group",
    "train_ppo",
    "train_preference",
    "train_process",
    "train_reward",
    "train_sft",
    "train_unpaired",
    "train_weak_answers",
    "train_weak_to_strong",
    "unpaired_examples",
    "verified_reward",
    "weighted_reward",
]
