"""Oracles of distillation (Agarwal et al. 2023, eq. 1) and of weak-to-strong learning (Burns et al. 2023,
eq. 1)."""

import math


def softmax(logits_V: list[float]) -> list[float]:
    """Probabilities."""
    total = sum(math.exp(x) for x in logits_V)
    return [math.exp(x) / total for x in logits_V]


def kl(p_V: list[float], q_V: list[float]) -> float:
    """KL(p || q)."""
    return sum(p * math.log(p / q) for p, q in zip(p_V, q_V, strict=True))


def generalized_jsd(student_V: list[float], teacher_V: list[float], beta: float) -> float:
    """beta KL(teacher || m) + (1 - beta) KL(student || m), m = beta teacher + (1 - beta) student."""
    p_V, q_V = softmax(teacher_V), softmax(student_V)
    mixture_V = [beta * p + (1 - beta) * q for p, q in zip(p_V, q_V, strict=True)]
    return beta * kl(p_V, mixture_V) + (1 - beta) * kl(q_V, mixture_V)


def weak_to_strong(logit: float, weak: float, alpha: float, threshold: float) -> float:
    """(1 - alpha) CE(f, f_w) + alpha CE(f, 1[f > t])."""
    p = 1 / (1 + math.exp(-logit))

    def cross_entropy(label: float) -> float:
        return -label * math.log(p) - (1 - label) * math.log(1 - p)

    return (1 - alpha) * cross_entropy(weak) + alpha * cross_entropy(1.0 if p > threshold else 0.0)


def weak_answer(logits_V: list[float], weak: int, alpha: float) -> float:
    """(1 - alpha) CE(f, weak word) + alpha CE(f, the word that f finds most likely)."""
    p_V = softmax(logits_V)
    own = max(range(len(p_V)), key=lambda word: p_V[word])
    return -(1 - alpha) * math.log(p_V[weak]) - alpha * math.log(p_V[own])
