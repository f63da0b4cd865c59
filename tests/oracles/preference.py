"""Oracles of the objectives on pairs, pair by pair, from probabilities and odds as the papers have them.

Every function takes the log-probs of a pair as (policy chosen, policy rejected, ref chosen, ref rejected).
"""

import math


def implicit_reward(policy_logp: float, ref_logp: float, beta: float) -> float:
    """beta log(pi(y|x) / pi_ref(y|x)), Rafailov et al. 2023, eq. 5 without its constant."""
    return beta * math.log(math.exp(policy_logp) / math.exp(ref_logp))


def _logistic(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def _rewards(pair: tuple[float, float, float, float], beta: float) -> tuple[float, float]:
    policy_w, policy_l, ref_w, ref_l = pair
    return implicit_reward(policy_w, ref_w, beta), implicit_reward(policy_l, ref_l, beta)


def dpo(pair: tuple[float, float, float, float], *, beta: float, label_smoothing: float = 0.0) -> float:
    """Rafailov et al. 2023, eq. 7 from the odds; labels flipped with a probability as in Mitchell 2023."""
    policy_w, policy_l, ref_w, ref_l = pair
    odds = (math.exp(policy_w - ref_w) / math.exp(policy_l - ref_l)) ** beta
    preferred = odds / (1 + odds)
    return -(1 - label_smoothing) * math.log(preferred) - label_smoothing * math.log(1 - preferred)


def robust_dpo(pair: tuple[float, float, float, float], *, beta: float, flip_rate: float) -> float:
    """Ray Chowdhury et al. 2024: ((1 - e) L(w, l) - e L(l, w)) / (1 - 2 e)."""
    policy_w, policy_l, ref_w, ref_l = pair
    kept, flipped = dpo(pair, beta=beta), dpo((policy_l, policy_w, ref_l, ref_w), beta=beta)
    return ((1 - flip_rate) * kept - flip_rate * flipped) / (1 - 2 * flip_rate)


def ipo(pair: tuple[float, float, float, float], *, beta: float) -> float:
    """Azar et al. 2023, eq. 17: (h - 1 / (2 tau))^2, h the log of the ratio of ratios."""
    policy_w, policy_l, ref_w, ref_l = pair
    h = math.log((math.exp(policy_w) * math.exp(ref_l)) / (math.exp(policy_l) * math.exp(ref_w)))
    return (h - 1 / (2 * beta)) ** 2


def hinge(pair: tuple[float, float, float, float], *, beta: float) -> float:
    """Zhao et al. 2023: max(0, margin - difference), margin 1, difference of implicit rewards."""
    chosen, rejected = _rewards(pair, beta)
    return max(0.0, 1 - (chosen - rejected))


def rpo(pair: tuple[float, float, float, float], nll: float, *, beta: float, alpha: float) -> float:
    """Pang et al. 2024, eq. 1."""
    return dpo(pair, beta=beta) + alpha * nll


def discopop(pair: tuple[float, float, float, float], *, beta: float, tau: float) -> float:
    """Lu et al. 2024, eq. 5: a mixture of the logistic and the exponential loss."""
    chosen, rejected = _rewards(pair, beta)
    rho = chosen - rejected
    share = _logistic(rho / tau)
    return (1 - share) * -math.log(_logistic(rho)) + share * math.exp(-rho)


def exo_pair(pair: tuple[float, float, float, float], *, beta: float, label_smoothing: float) -> float:
    """Ji et al. 2024: KL from the policy's softmax over the pair to the smoothed label."""
    chosen, rejected = _rewards(pair, beta)
    weights = [math.exp(chosen), math.exp(rejected)]
    label = [1 - label_smoothing, label_smoothing]
    return sum(w / sum(weights) * math.log(w / sum(weights) / p) for w, p in zip(weights, label, strict=True))


def apo_zero(pair: tuple[float, float, float, float], *, beta: float) -> float:
    """D'Oosterlinck et al. 2024, eq. 7, plus 1."""
    chosen, rejected = _rewards(pair, beta)
    return 1 - _logistic(chosen) + _logistic(rejected)


def apo_down(pair: tuple[float, float, float, float], *, beta: float) -> float:
    """D'Oosterlinck et al. 2024, eq. 8, plus 1."""
    chosen, rejected = _rewards(pair, beta)
    return 1 + _logistic(chosen) - _logistic(chosen - rejected)


def nca_pair(pair: tuple[float, float, float, float], *, beta: float) -> float:
    """Chen et al. 2024: the chosen one is data, both are noise with weight 1 / K, K = 2."""
    chosen, rejected = _rewards(pair, beta)
    noise = sum(math.log(1 - _logistic(reward)) / 2 for reward in (chosen, rejected))
    return -math.log(_logistic(chosen)) - noise


def sppo_hard(pair: tuple[float, float, float, float], *, beta: float) -> float:
    """Wu et al. 2024, eq. 4.7 with eta = 1 / beta: (log ratio - eta (P - 1/2))^2, P = 1 and P = 0."""
    chosen, rejected = _rewards(pair, 1.0)
    return (chosen - (1 - 0.5) / beta) ** 2 + (rejected - (0 - 0.5) / beta) ** 2


def simpo(pair: tuple[float, float, float, float], *, beta: float, gamma: float) -> float:
    """Meng et al. 2024, eq. 6; the pair's log-probs are means, the reference is not looked at."""
    odds = math.exp(beta * pair[0]) / math.exp(beta * pair[1] + gamma)
    return -math.log(odds / (1 + odds))


def cpo(pair: tuple[float, float, float, float], *, beta: float) -> float:
    """Xu et al. 2024, L_prefer; the reference is not looked at."""
    chosen, rejected = math.exp(pair[0]) ** beta, math.exp(pair[1]) ** beta
    return -math.log(chosen / (chosen + rejected))


def orpo(pair: tuple[float, float, float, float], nll: float, *, weight: float) -> float:
    """Hong et al. 2024, eq. 4, 6, 7; the pair's log-probs are means."""
    odds_w, odds_l = (math.exp(logp) / (1 - math.exp(logp)) for logp in pair[:2])
    return nll - weight * math.log(odds_w / (odds_w + odds_l))


def d2o(
    rejected: tuple[float, float], sampled: list[tuple[float, float]], *, beta: float, alpha: float
) -> float:
    """Duan et al. 2024, L_D2O; (policy, ref) log-probs of the dispreferred completion and of each sample."""
    anchor = sum(beta / len(sampled) * math.log(math.exp(p) / math.exp(r)) for p, r in sampled)
    return -math.log(_logistic(anchor - alpha * math.log(math.exp(rejected[0]) / math.exp(rejected[1]))))
