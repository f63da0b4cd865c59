"""What the figures of a PPO run say about its health, in sentences: what was seen, what it means, what to
try.

Rules over lines of metrics.jsonl, each with its bound beside it. A sentence is a hint, never a stop.
"""

from collections.abc import Callable, Mapping, Sequence

from trueward.trainers.ppo_settings import PPOSettings

__all__ = ["diagnose"]

Row = Mapping[str, float | None]
_WINDOW = 5


class _History:
    """Means of a metric over the first and the last rows that have it."""

    def __init__(self, rows: Sequence[Row], settings: PPOSettings) -> None:
        self._rows, self.settings = rows, settings

    def _values(self, name: str) -> list[float]:
        return [value for row in self._rows if (value := row.get(name)) is not None]

    def first(self, name: str) -> float | None:
        values = self._values(name)[:_WINDOW]
        return sum(values) / len(values) if values else None

    def last(self, name: str) -> float | None:
        values = self._values(name)[-_WINDOW:]
        return sum(values) / len(values) if values else None

    def best(self, name: str) -> float | None:
        """Largest mean of a window."""
        values = self._values(name)
        windows = [values[i : i + _WINDOW] for i in range(max(1, len(values) - _WINDOW + 1))]
        return max(sum(w) / len(w) for w in windows) if values else None


def _negative_kl(seen: _History) -> str | None:
    k1, k3 = seen.last("objective/kl"), seen.last("objective/kl_k3")
    if k1 is None or k3 is None or not (k1 < -0.1 and k1 < -k3 / 2):
        return None
    return (
        f"the k1 estimate of KL(policy || ref) is {k1:.2f} nats while k3 is {k3:.2f}: a KL cannot be "
        "negative, so the completions were not drawn from the policy that is scored, or it learned to draw "
        "tokens that ref prefers in order to earn the KL term; check temperature and sampler_gap/max, and "
        "lower kl_coef or lr"
    )


def _heavy_tail(seen: _History) -> str | None:
    k1, k3 = seen.last("objective/kl"), seen.last("objective/kl_k3")
    if k1 is None or k3 is None or not (k1 > 0.1 and k3 > 5 * k1):
        return None
    return (
        f"k3 ({k3:.2f} nats) is far above k1 ({k1:.2f}): a few drawn tokens are much likelier under ref than "
        "under the policy; look at ppo_tokens.jsonl for them"
    )


def _over_budget(seen: _History) -> str | None:
    kl, budget = seen.last("objective/kl_k3"), seen.settings.kl_budget
    limit = 10.0 if budget is None else budget
    if kl is None or kl <= limit:
        return None
    named = "the budget of" if budget is not None else "a usual limit of"
    return (
        f"the policy is {kl:.1f} nats from the reference, above {named} {limit:g}: scores of the reward "
        "model mean little out there; raise kl_coef or set kl_budget"
    )


def _collapsed(seen: _History) -> str | None:
    first, last = seen.first("objective/entropy"), seen.last("objective/entropy")
    if first is None or last is None or not last < 0.2 * first:
        return None
    return (
        f"entropy fell from {first:.2f} to {last:.2f} nats per token: the policy repeats itself and explores "
        "no more; lower lr or raise kl_coef"
    )


def _equal_rewards(seen: _History) -> str | None:
    spread = seen.last("reward_std")
    if spread is None or spread > 1e-6:
        return None
    return "all completions get the same score: there is nothing to learn from; check the reward function"


def _blind_values(seen: _History) -> str | None:
    explained = seen.last("value_explained_variance")
    if explained is None or explained >= 0:
        return None
    return (
        f"the values explain {explained:.2f} of the returns' variance, less than a constant would: "
        "advantages are noisier than without them; raise value_lr_scale, or use value_backbone: separate"
    )


def _longer(seen: _History) -> str | None:
    first, last = seen.first("completions/mean_length"), seen.last("completions/mean_length")
    if first is None or last is None or not last > 2 * first:
        return None
    return (
        f"completions grew from {first:.0f} to {last:.0f} tokens: the reward may pay for length; compare "
        "scores at equal length"
    )


def _cut_off(seen: _History) -> str | None:
    share = seen.last("completions/clipped_ratio")
    if share is None or share <= 0.2:
        return None
    return (
        f"{share:.0%} of the completions hit max_new_tokens ({seen.settings.max_new_tokens}): they are "
        "scored unfinished; raise max_new_tokens or missing_eos_penalty"
    )


def _long_steps(seen: _History) -> str | None:
    share, moved = seen.last("clip_ratio/mean"), seen.last("policy_kl_old")
    if share is None or moved is None or not (share > 0.3 or moved > 0.1):
        return None
    return (
        f"updates are large: {share:.0%} of the ratios are clipped, {moved:.3f} nats per token from the "
        "policy that sampled; lower lr or epochs"
    )


def _overoptimised(seen: _History) -> str | None:
    first, last, best = seen.first("reward"), seen.last("reward"), seen.best("gold")
    gold = seen.last("gold")
    if first is None or last is None or best is None or gold is None:
        return None
    spread = seen.last("reward_std") or 0.0
    if not (last > first and best - gold > 0.2 * max(spread, 1e-6)):
        return None
    return (
        f"the reward model's score rises ({first:.2f} to {last:.2f}) while the true reward fell from "
        f"{best:.2f} to {gold:.2f}: over-optimisation; stop earlier, set kl_budget, or improve the reward "
        "model"
    )


def _skips(seen: _History) -> str | None:
    skipped = seen.last("skipped")
    return (
        f"steps were skipped because they were not finite ({skipped:.0f}); see bad_batches"
        if skipped
        else None
    )


_RULES: tuple[Callable[[_History], str | None], ...] = (
    _negative_kl,
    _heavy_tail,
    _over_budget,
    _collapsed,
    _equal_rewards,
    _blind_values,
    _longer,
    _cut_off,
    _long_steps,
    _overoptimised,
    _skips,
)


def diagnose(rows: Sequence[Row], settings: PPOSettings) -> list[str]:
    """Sentences about what looks wrong in a run; an empty list if nothing does.

    Args:
        rows: lines of metrics.jsonl, in order. Bounds are on means over the last five.
    """
    seen = _History(rows, settings)
    return [sentence for rule in _RULES if (sentence := rule(seen)) is not None]
