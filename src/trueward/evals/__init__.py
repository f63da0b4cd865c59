"""Evaluation: reward-model accuracy and calibration, baselines, win rates, KL to the reference, retention."""

from trueward.evals.baselines import (
    BagOfWordsJudge,
    Baseline,
    bag_of_words_baseline,
    chance_baseline,
    fit_bag_of_words,
    longer_answer_baseline,
    verdict,
)
from trueward.evals.invariance import InvarianceReport, reward_invariance
from trueward.evals.kl import KLReport, kl_to_ref
from trueward.evals.retention import HeldOut, Retention, accuracy_ratio, compare_held_out, held_out
from trueward.evals.reward_model import RewardModelReport, evaluate_reward_model, pair_outcomes
from trueward.evals.weak_to_strong import GapRecovered, performance_gap_recovered
from trueward.evals.winrate import Judge, ScoreJudge, WinRate, win_rate_report

__all__ = [
    "BagOfWordsJudge",
    "Baseline",
    "GapRecovered",
    "HeldOut",
    "InvarianceReport",
    "Judge",
    "KLReport",
    "Retention",
    "RewardModelReport",
    "ScoreJudge",
    "WinRate",
    "accuracy_ratio",
    "bag_of_words_baseline",
    "chance_baseline",
    "compare_held_out",
    "evaluate_reward_model",
    "fit_bag_of_words",
    "held_out",
    "kl_to_ref",
    "longer_answer_baseline",
    "pair_outcomes",
    "performance_gap_recovered",
    "reward_invariance",
    "verdict",
    "win_rate_report",
]
