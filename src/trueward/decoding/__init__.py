"""Alignment without training: choosing among several completions of a policy."""

from trueward.decoding.best_of_n import (
    best_of_n,
    expected_best,
    expected_pass,
    expected_vote,
    kl_bound,
    solution_scores,
)

__all__ = [
    "best_of_n",
    "expected_best",
    "expected_pass",
    "expected_vote",
    "kl_bound",
    "solution_scores",
]
