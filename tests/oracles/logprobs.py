"""Oracle: softmax probabilities by their definition, p_v = exp(z_v) / sum_u exp(z_u)."""

import math


def softmax(logits_V: list[float]) -> list[float]:
    """Probabilities of one position."""
    weights = [math.exp(logit) for logit in logits_V]
    total = math.fsum(weights)
    return [weight / total for weight in weights]


def token_logps(logits_BTV: list[list[list[float]]], labels_BT: list[list[int]]) -> list[list[float]]:
    """log p_label at each position."""
    rows = []
    for logits_TV, labels_T in zip(logits_BTV, labels_BT, strict=True):
        rows.append([math.log(softmax(z)[label]) for z, label in zip(logits_TV, labels_T, strict=True)])
    return rows


def token_entropy(logits_BTV: list[list[list[float]]]) -> list[list[float]]:
    """Shannon entropy, sum_v p_v log(1 / p_v)."""
    return [[math.fsum(p * math.log(1 / p) for p in softmax(z)) for z in row] for row in logits_BTV]
