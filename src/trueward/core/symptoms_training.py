"""What can be wrong with any training, and with training on pairs: rules over its metrics.

Each is a pure function with its bounds beside it. Means are over windows (see `symptom.History`).
"""

from functools import partial
from statistics import median

from trueward.core.symptom import Finding, History, Rule

__all__ = ["TRAINING_RULES"]

_RL = ("completions/mean_length", "as the loss of policy optimisation says little")
# A half above what was usual just before, and far outside of how it varied there.
_SPIKE_SHARE, _SPIKE_DEVIATIONS, _SPIKE_BEFORE = 0.5, 10.0, 20
# AdamW moves a weight by about lr; float32 next to weights of 0.02 rounds 1e-9 away.
_NO_LR = 1e-9
_EXPLODED = 10.0
_OVERFIT = 0.05
_CHANCE = 0.55


def _skips(seen: History) -> Finding | None:
    steps, counts = seen.series("skipped")
    if not counts[-1]:
        return None
    first = next(step for step, count in zip(steps, counts, strict=True) if count)
    return Finding(
        "skipped steps",
        first,
        f"steps were skipped because loss or gradient was not finite ({counts[-1]:.0f}), the first by step "
        f"{first}",
        "what they held was not learned, and the arithmetic is near its limits",
        "look at bad_batches; lower lr or max_grad_norm, or use float32",
    )


def _spikes(seen: History) -> Finding | None:
    steps, losses = seen.series("loss")
    spikes = []
    for i in range(_SPIKE_BEFORE // 2, len(losses)):
        before = losses[max(0, i - _SPIKE_BEFORE) : i]
        usual = median(before)
        deviation = median(abs(loss - usual) for loss in before)
        if losses[i] > usual + max(_SPIKE_DEVIATIONS * deviation, _SPIKE_SHARE * abs(usual)):
            spikes.append((losses[i], usual, steps[i]))
    if not spikes:
        return None
    loss, usual, step = max(spikes)
    more = f", the largest of {len(spikes)} jumps" if len(spikes) > 1 else ""
    return Finding(
        "loss spikes",
        step,
        f"the loss jumped from about {usual:.3g} to {loss:.3g} at step {step}{more}",
        "an update was too large, or a batch is unlike the others",
        "lower lr or max_grad_norm, warm up longer, and read the rows of that step",
    )


def _diverging(seen: History) -> Finding | None:
    first, last = seen.first("loss"), seen.last("loss")
    if last <= first + max(0.1 * abs(first), 3 * seen.noise("loss")):
        return None
    return Finding(
        "loss rises",
        seen.step("loss"),
        f"the training loss rose from {first:.3g} to {last:.3g}",
        "the run moves away from what it is trained on",
        "lower lr, warm up longer, and check that labels and masks are right",
    )


def _exploding(seen: History) -> Finding | None:
    first, last = seen.first("grad_norm"), seen.last("grad_norm")
    steps, norms = seen.series("grad_norm")
    # The first steps of a new model are large by nature.
    steps, norms = steps[len(steps) // 10 + 1 :], norms[len(norms) // 10 + 1 :]
    usual, largest = median(norms), max(norms)
    if largest > 2 * _EXPLODED * usual > 0:
        step = steps[norms.index(largest)]
        figures = f"the gradient's norm reached {largest:.3g} at step {step}, usually {usual:.3g}"
    elif last > _EXPLODED * first > 0:
        step = steps[-1]
        figures = f"the gradient's norm grew from {first:.3g} to {last:.3g}"
    else:
        return None
    return Finding(
        "exploding gradient",
        step,
        figures,
        "single steps decide where the weights go",
        "lower lr or max_grad_norm, and read the rows of that step",
    )


def _no_gradient(seen: History) -> Finding | None:
    if max(seen.series("grad_norm").values) > 0:
        return None
    return Finding(
        "no gradient",
        seen.step("grad_norm"),
        "the gradient is 0 at every step",
        "nothing is learned",
        "check that tokens are trained, that parameters are not all frozen, and that rewards differ",
    )


def _no_rate(seen: History) -> Finding | None:
    steps, rates = seen.series("lr")
    if max(rates) > _NO_LR:
        return None
    return Finding(
        "learning rate of zero",
        steps[-1],
        f"the learning rate never rose above {max(rates):.1g}",
        "float32 rounds such steps away: the model is the one it began as",
        "raise lr; 1e-6 to 1e-4 are usual",
    )


def _overfit(seen: History) -> Finding | None:
    steps, held_out = seen.series("eval/loss")
    best = held_out.index(min(held_out))
    trained = dict(zip(*seen.series("loss"), strict=True))
    since = [loss for step, loss in trained.items() if step > steps[best]]
    until = [loss for step, loss in trained.items() if step <= steps[best]]
    if not since or not until or held_out[-1] <= held_out[best] + _OVERFIT * abs(held_out[best]):
        return None
    recent = until[-len(since) :]
    if sum(since) / len(since) >= sum(recent) / len(recent):
        return None
    return Finding(
        "overfitting",
        steps[-1],
        f"the held-out loss rose from {held_out[best]:.3g} at step {steps[best]} to {held_out[-1]:.3g} while "
        "the training loss fell",
        "the training data are being learned by heart",
        f"stop near step {steps[best]}, lower lr, or use more data",
    )


def _at_chance(seen: History, *, name: str, pairs: str) -> Finding | None:
    share = seen.last(name)
    if share >= _CHANCE:
        return None
    return Finding(
        f"{pairs} pairs at chance",
        seen.step(name),
        f"{share:.0%} of the {pairs} pairs are ordered as labelled",
        "a coin orders 50%, so the scores say next to nothing about what people prefer",
        "check that chosen and rejected are not swapped, raise lr or steps, or use more or cleaner pairs",
    )


def _displaced(seen: History) -> Finding | None:
    change, margin = seen.last("logps/chosen_per_token_change"), seen.last("rewards/margins")
    limit = seen.bounds.displacement_limit
    if change >= -limit:
        return None
    beside = f"rose to {margin:.2f}, but" if margin > 0 else f"is {margin:.2f}, and"
    return Finding(
        "chosen falls",
        seen.step("logps/chosen_per_token_change"),
        f"the margin {beside} the chosen completions became less likely by {-change:.2f} nats per token "
        f"(limit {limit:g})",
        "the policy moves its probability elsewhere (Razin et al. 2024)",
        "try a larger beta, a lower lr, fewer steps, or a method that holds chosen up (rpo, ipo, apo_zero), "
        "and read samples",
    )


def _reversed(seen: History) -> Finding | None:
    # Against a reference margins begin at 0; without one, long answers have low log-probs from the start.
    margin, share = seen.last("rewards/margins"), seen.last("rewards/accuracies")
    if share >= 0.5 or margin >= -2 * seen.noise("rewards/margins"):
        return None
    return Finding(
        "preference turned round",
        seen.step("rewards/margins"),
        f"{share:.0%} of the training pairs are ordered as labelled, and the margin is {margin:.2g}",
        "the policy prefers the rejected answers more than the reference does",
        "check that chosen and rejected are not swapped; with discopop raise tau; else try another method",
    )


TRAINING_RULES: tuple[Rule, ...] = (
    Rule("skipped steps", ("skipped",), _skips),
    Rule("loss spikes", ("loss",), _spikes, rows=_SPIKE_BEFORE // 2 + 1, unless=_RL),
    Rule("loss rises", ("loss",), _diverging, rows=8, unless=_RL),
    Rule("exploding gradient", ("grad_norm",), _exploding, rows=8),
    Rule("no gradient", ("grad_norm",), _no_gradient),
    Rule("learning rate of zero", ("lr",), _no_rate),
    Rule("overfitting", ("eval/loss", "loss"), _overfit, rows=3),
    Rule(
        "training pairs at chance", ("accuracy",), partial(_at_chance, name="accuracy", pairs="training"), 10
    ),
    Rule(
        "held-out pairs at chance",
        ("eval/accuracy",),
        partial(_at_chance, name="eval/accuracy", pairs="held-out"),
    ),
    Rule("chosen falls", ("logps/chosen_per_token_change", "rewards/margins"), _displaced),
    Rule(
        "preference turned round",
        ("rewards/accuracies", "rewards/margins", "logps/chosen_per_token_change"),
        _reversed,
        rows=8,
    ),
)
