"""Rewards that are programs: verifiers of completions. A verifier that fails is an error, never a score of 0.

No torch, so that a worker process starts in a moment.
"""

from trueward.rewards.maths import final_answer
from trueward.rewards.table import VERIFIERS, VerifierSettings, all_of, verifier_named
from trueward.rewards.verdict import Case, Verdict, Verifier, failed, scored

__all__ = [
    "VERIFIERS",
    "Case",
    "Verdict",
    "Verifier",
    "VerifierSettings",
    "all_of",
    "failed",
    "final_answer",
    "scored",
    "verifier_named",
]
