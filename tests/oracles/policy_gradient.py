"""Oracles: each method's objective as its paper prints it, negated to be a loss, token by token.

A completion is its list of log-probs, old log-probs and advantages; padding does not exist here. Where a
paper stops a gradient, the caller passes the stopped log-probs as `fixed`, equal in value to `logps`, and
moves only `logps`.
"""

import math
from collections.abc import Callable
from typing import NamedTuple


class Step(NamedTuple):
    """All completions of one optimizer step; one list of floats per completion."""

    logps: list[list[float]]
    fixed: list[list[float]]
    old: list[list[float]]
    advantages: list[list[float]]
    low: float
    high: float
    max_tokens: int


def surrogate(ratio: float, advantage: float, low: float, high: float) -> float:
    """Schulman et al. 2017, eq. 7: min(r A, clip(r, 1 - low, 1 + high) A)."""
    return min(ratio * advantage, min(max(ratio, 1 - low), 1 + high) * advantage)


def dual_clip(ratio: float, advantage: float, low: float, high: float, c: float) -> float:
    """Ye et al. 2020: max(min(r A, clip(r) A), c A) where A < 0, the plain minimum elsewhere."""
    inner = surrogate(ratio, advantage, low, high)
    return max(inner, c * advantage) if advantage < 0 else inner


def ppo_policy(
    logps_BT: list[list[float]],
    old_logps_BT: list[list[float]],
    advantages_BT: list[list[float]],
    mask_BT: list[list[bool]],
    clip_low: float,
    clip_high: float,
    c: float = math.inf,
) -> list[list[float]]:
    """Loss of each token, 0 where uncounted."""
    loss_BT = [[0.0] * len(row) for row in logps_BT]
    for b, row in enumerate(logps_BT):
        for t, logp in enumerate(row):
            if mask_BT[b][t]:
                ratio = math.exp(logp) / math.exp(old_logps_BT[b][t])
                loss_BT[b][t] = -dual_clip(ratio, advantages_BT[b][t], clip_low, clip_high, c)
    return loss_BT


def _token_terms(step: Step, i: int) -> list[float]:
    terms = []
    for logp, old, advantage in zip(step.logps[i], step.old[i], step.advantages[i], strict=True):
        terms.append(surrogate(math.exp(logp - old), advantage, step.low, step.high))
    return terms


def grpo(step: Step) -> float:
    """2402.03300, eq. 3 without its KL: 1/G sum_i 1/|o_i| sum_t min(...)."""
    means = [math.fsum(_token_terms(step, i)) / len(o) for i, o in enumerate(step.logps)]
    return -math.fsum(means) / len(means)


def dr_grpo(step: Step) -> float:
    """2503.20783: 1/G sum_i sum_t min(...), divided by a constant length."""
    total = math.fsum(math.fsum(_token_terms(step, i)) for i in range(len(step.logps)))
    return -total / len(step.logps) / step.max_tokens


def dapo(step: Step) -> float:
    """2503.14476, eq. 8: 1 / sum_i |o_i| sum_i sum_t min(...)."""
    total = math.fsum(math.fsum(_token_terms(step, i)) for i in range(len(step.logps)))
    return -total / sum(len(o) for o in step.logps)


def gspo(step: Step) -> float:
    """2507.18071, eq. 5: 1/G sum_i min(s_i A_i, clip(s_i) A_i); eq. 7: s_i = (pi / pi_old) ** (1 / |y|)."""
    total = 0.0
    for i, logps in enumerate(step.logps):
        ratio = (math.exp(math.fsum(logps)) / math.exp(math.fsum(step.old[i]))) ** (1 / len(logps))
        total += surrogate(ratio, step.advantages[i][0], step.low, step.high)
    return -total / len(step.logps)


def cispo(step: Step) -> float:
    """2506.13585, eq. 4 and 5: 1 / sum_i |o_i| sum_i sum_t sg(clip(r)) A log pi."""
    total = 0.0
    for i, logps in enumerate(step.logps):
        for t, logp in enumerate(logps):
            ratio = math.exp(step.fixed[i][t]) / math.exp(step.old[i][t])
            total += min(max(ratio, 1 - step.low), 1 + step.high) * step.advantages[i][t] * logp
    return -total / sum(len(o) for o in step.logps)


def rloo(step: Step) -> float:
    """2402.14740: mean over completions of A log pi(y | x), log pi(y | x) the sum over tokens."""
    terms = [step.advantages[i][0] * math.fsum(o) for i, o in enumerate(step.logps)]
    return -math.fsum(terms) / len(terms)


OBJECTIVES: dict[str, Callable[[Step], float]] = {
    "rloo": rloo,
    # 2501.03262: the mean over tokens of PPO's surrogate. TRL's "bnpo": the same, within each micro-batch.
    "reinforce_plus_plus": dapo,
    "bnpo": dapo,
    "grpo": grpo,
    "dr_grpo": dr_grpo,
    "dapo": dapo,
    "gspo": gspo,
    "cispo": cispo,
}


def gradient(objective: Callable[[Step], float], step: Step, *, size: float = 1e-6) -> list[list[float]]:
    """Central differences in `logps`; `fixed` stays."""
    out = [[0.0] * len(row) for row in step.logps]
    for i, row in enumerate(step.logps):
        for t in range(len(row)):
            ends = []
            for move in (size, -size):
                moved = [list(other) for other in step.logps]
                moved[i][t] += move
                ends.append(objective(step._replace(logps=moved)))
            out[i][t] = (ends[0] - ends[1]) / (2 * size)
    return out
