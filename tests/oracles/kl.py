"""Oracle: the estimators as in Schulman 2020, with x ~ q, estimating KL[q, p], and the ratio p(x) / q(x)."""

import math

from tests.oracles.logprobs import softmax


def k1(q: float, p: float) -> float:
    """log(q / p), from probabilities of the drawn token."""
    return math.log(q / p)


def k2(q: float, p: float) -> float:
    """Half the squared log ratio."""
    return math.log(p / q) ** 2 / 2


def k3(q: float, p: float) -> float:
    """(ratio - 1) - log ratio."""
    ratio = p / q
    return (ratio - 1) - math.log(ratio)


def exact(q_V: list[float], p_V: list[float]) -> float:
    """KL[q, p] = sum_v q_v log(q_v / p_v); a token with q_v = 0 contributes nothing."""
    return math.fsum(q * math.log(q / p) for q, p in zip(q_V, p_V, strict=True) if q > 0)


def kl_exact(
    q_logits_BTV: list[list[list[float]]], p_logits_BTV: list[list[list[float]]]
) -> list[list[float]]:
    """Exact KL at each position."""
    rows = []
    for q_TV, p_TV in zip(q_logits_BTV, p_logits_BTV, strict=True):
        rows.append([exact(softmax(q_V), softmax(p_V)) for q_V, p_V in zip(q_TV, p_TV, strict=True)])
    return rows
