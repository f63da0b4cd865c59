"""What can be wrong with policy optimisation (PPO, GRPO and relatives): rules over its metrics.

Each is a pure function with its bounds beside it. Means are over windows (see `symptom.History`).
"""

from functools import partial

from trueward.core.symptom import Finding, History, Rule

__all__ = ["POLICY_RULES"]

_USUAL_KL = 10.0
_ALL_EQUAL = 1e-6


def _negative_kl(seen: History) -> Finding | None:
    k1, k3 = seen.last("objective/kl"), seen.last("objective/kl_k3")
    if not (k1 < -0.1 and k1 < -k3 / 2 and k1 + 2 * seen.noise("objective/kl") < 0):
        return None
    return Finding(
        "negative KL",
        seen.step("objective/kl"),
        f"the k1 estimate of KL(policy || ref) is {k1:.2f} nats while k3 is {k3:.2f}",
        "a KL cannot be negative, so the completions were not drawn from the policy that is scored, or it "
        "learned to draw tokens that ref prefers in order to earn the KL term",
        "check temperature and sampler_gap/max, and lower kl_coef or lr",
    )


def _heavy_tail(seen: History) -> Finding | None:
    k1, k3 = seen.last("objective/kl"), seen.last("objective/kl_k3")
    if not (k1 > 0.1 and k3 > 5 * k1):
        return None
    return Finding(
        "heavy tail of the KL",
        seen.step("objective/kl_k3"),
        f"k3 ({k3:.2f} nats) is far above k1 ({k1:.2f})",
        "a few drawn tokens are much likelier under ref than under the policy",
        "look for them in ppo_tokens.jsonl or group_samples.jsonl",
    )


def _over_budget(seen: History) -> Finding | None:
    kl, budget = seen.last("objective/kl_k3"), seen.bounds.kl_budget
    limit = _USUAL_KL if budget is None else budget
    if kl <= limit:
        return None
    named = "the budget of" if budget is not None else "a usual limit of"
    return Finding(
        "far from the reference",
        seen.step("objective/kl_k3"),
        f"the policy is {kl:.1f} nats from the reference, above {named} {limit:g}",
        "scores of a reward model mean little out there",
        "raise kl_coef or set kl_budget",
    )


def _collapsed(seen: History) -> Finding | None:
    first, last = seen.first("objective/entropy"), seen.last("objective/entropy")
    if not last < 0.2 * first:
        return None
    return Finding(
        "entropy collapse",
        seen.step("objective/entropy"),
        f"entropy fell from {first:.2f} to {last:.2f} nats per token",
        "the policy repeats itself and explores no more",
        "lower lr, raise kl_coef, or raise clip_high",
    )


def _equal_rewards(seen: History) -> Finding | None:
    if seen.last("reward_std") > _ALL_EQUAL:
        return None
    return Finding(
        "equal rewards",
        seen.step("reward_std"),
        "all completions get the same score",
        "every advantage is 0, so there is nothing to learn from",
        "check the reward function, and whether the prompts are all too hard or too easy",
    )


def _equal_groups(seen: History) -> Finding | None:
    share = seen.last("group/zero_variance_share")
    if share <= 0.8:
        return None
    return Finding(
        "groups without advantage",
        seen.step("group/zero_variance_share"),
        f"in {share:.0%} of the groups all scores are equal",
        "their advantages are 0: most of what is drawn teaches nothing",
        "use prompts of medium difficulty, more completions_per_prompt, or dynamic_sampling",
    )


def _blind_values(seen: History, *, name: str, what: str) -> Finding | None:
    explained = seen.last(name)
    if explained > 0:
        return None
    return Finding(
        f"blind {what}",
        seen.step(name),
        f"the {what} explain {explained:.2f} of the returns' variance",
        "no more than or less than a constant would, so advantages are noisier than without them",
        "raise value_lr_scale, or use value_backbone: separate",
    )


def _longer(seen: History) -> Finding | None:
    length = seen.first("completions/mean_length"), seen.last("completions/mean_length")
    reward = seen.first("reward"), seen.last("reward")
    rose = reward[1] > reward[0] + 2 * seen.noise("reward")
    if not (length[1] > 2 * length[0] or (rose and length[1] > 1.5 * length[0])):
        return None
    paid = f" while the reward rose from {reward[0]:.2f} to {reward[1]:.2f}" if rose else ""
    return Finding(
        "length grows",
        seen.step("completions/mean_length"),
        f"completions grew from {length[0]:.0f} to {length[1]:.0f} tokens{paid}",
        "the reward may pay for length",
        "compare scores at equal length, and read samples",
    )


def _cut_off(seen: History) -> Finding | None:
    share, limit = seen.last("completions/clipped_ratio"), seen.bounds.max_new_tokens
    if share <= 0.2:
        return None
    return Finding(
        "truncated completions",
        seen.step("completions/clipped_ratio"),
        f"{share:.0%} of the completions hit max_new_tokens" + (f" ({limit})" if limit else ""),
        "they are scored unfinished",
        "raise max_new_tokens, missing_eos_penalty or overlong_penalty",
    )


def _clipped(seen: History) -> Finding | None:
    share = seen.last("clip_ratio/mean")
    if share <= 0.3:
        return None
    return Finding(
        "clip fraction",
        seen.step("clip_ratio/mean"),
        f"{share:.0%} of the ratios are clipped",
        "those tokens send no gradient: updates are larger than the clip allows",
        "lower lr or epochs",
    )


def _long_steps(seen: History) -> Finding | None:
    moved = seen.last("policy_kl_old")
    if moved <= 0.1:
        return None
    return Finding(
        "large updates",
        seen.step("policy_kl_old"),
        f"an iteration moves the policy {moved:.3f} nats per token from the one that sampled",
        "the completions no longer are those of the policy that learns from them",
        "lower lr, epochs or minibatches",
    )


def _falls(seen: History, *, name: str, what: str) -> Finding | None:
    reward = seen.first("reward"), seen.last("reward")
    best, last, spread = seen.best(name), seen.last(name), seen.last("reward_std")
    fall = best - last
    if not (reward[1] > reward[0] and fall > max(0.2 * max(spread, _ALL_EQUAL), 2 * seen.noise(name))):
        return None
    return Finding(
        f"reward against {what}",
        seen.step(name),
        f"the score rises ({reward[0]:.2f} to {reward[1]:.2f}) while the {what} fell from {best:.2f} to "
        f"{last:.2f}",
        "this is over-optimisation, as the policy learns what the score pays for and not what it stands for",
        "stop earlier, set kl_budget, use more prompts, or improve the reward model",
    )


def _reward_falls(seen: History) -> Finding | None:
    first, last, spread = seen.first("reward"), seen.last("reward"), seen.first("reward_std")
    if first - last <= max(0.3 * spread, 3 * seen.noise("reward")):
        return None
    return Finding(
        "reward falls",
        seen.step("reward"),
        f"the score fell from {first:.2f} to {last:.2f}",
        "the policy gets worse at what it is trained on",
        "lower lr or kl_coef, and check the sign of the reward",
    )


def _constraint(seen: History) -> Finding | None:
    cost, slack = seen.last("cost"), seen.last("constraint/slack")
    if slack + seen.noise("constraint/slack") >= 0:
        return None
    price, highest = seen.series("constraint/lambda").values[-1], seen.bounds.max_lambda
    held = highest is not None and price >= highest * (1 - 1e-9)
    return Finding(
        "constraint missed",
        seen.step("constraint/slack"),
        f"the constraint is missed: mean cost {cost:.3g} at the end, at most {cost + slack:.3g} allowed",
        f"the policy that comes out breaks the bound it was trained under; lambda ended at {price:.3g}"
        + (", its upper bound" if held else ""),
        "raise max_lambda" if held else "raise lambda_lr, init_lambda or iterations",
    )


def _sampler_gap(seen: History) -> Finding | None:
    steps, gaps = seen.series("sampler_gap/max")
    largest, limit = max(gaps), seen.bounds.max_sampler_gap
    # The trainer stops above the limit; half of it is a run that will.
    if largest <= limit / 2:
        return None
    step = steps[gaps.index(largest)]
    return Finding(
        "sampler and trainer disagree",
        step,
        f"sampler and trainer differ by {largest:.3g} nats at a token of step {step} (limit {limit:g})",
        "ratios and KL compare two programs beside two policies",
        "use the same precision and weights in both, or set importance",
    )


def _mismatch(seen: History) -> Finding | None:
    kl = seen.last("mismatch/kl_k3")
    if kl <= 1e-3:
        return None
    return Finding(
        "off-policy samples",
        seen.step("mismatch/kl_k3"),
        f"KL(sampler || trainer) is {kl:.2g} nats per token",
        "completions come from another distribution than the one that is trained; rounding stays below 0.001",
        "set importance: truncate or mask, and check that the sampler has the newest weights and no top-p",
    )


def _corrected(seen: History) -> Finding | None:
    share = seen.last("mismatch/corrected")
    if share <= 0.1:
        return None
    return Finding(
        "many corrected weights",
        seen.step("mismatch/corrected"),
        f"{share:.0%} of the importance weights were truncated or masked",
        "so much is left out that the gradient is biased",
        "bring sampler and trainer closer, or widen importance_low and importance_high",
    )


def _verifier_errors(seen: History) -> Finding | None:
    share = seen.last("verifier/error_share")
    if share <= 0.05:
        return None
    return Finding(
        "verifier errors",
        seen.step("verifier/error_share"),
        f"the verifier has no score for {share:.0%} of the completions",
        "these are left out, and if they are of one kind, that kind is never learned",
        "read the errors in group_samples.jsonl and mend the verifier or the references",
    )


_KL = ("objective/kl", "objective/kl_k3")
_VALUES = {"value_explained_variance": "values", "cost/value_explained_variance": "values of the cost"}
_SCORES = ("reward", "reward_std")
# What stands for the aim better than the score of the training prompts does.
_TRUER = {"gold": "true reward", "eval/gold": "held-out true reward", "eval/reward": "held-out reward"}

POLICY_RULES: tuple[Rule, ...] = (
    Rule("negative KL", _KL, _negative_kl),
    Rule("heavy tail of the KL", _KL, _heavy_tail),
    Rule("far from the reference", ("objective/kl_k3",), _over_budget),
    Rule("entropy collapse", ("objective/entropy",), _collapsed, rows=4),
    Rule("equal rewards", ("reward_std",), _equal_rewards),
    Rule("groups without advantage", ("group/zero_variance_share",), _equal_groups),
    *(
        Rule(f"blind {what}", (name,), partial(_blind_values, name=name, what=what), rows=5)
        for name, what in _VALUES.items()
    ),
    Rule("length grows", ("completions/mean_length", "reward"), _longer, rows=4),
    Rule("truncated completions", ("completions/clipped_ratio",), _cut_off),
    Rule("clip fraction", ("clip_ratio/mean",), _clipped),
    Rule("large updates", ("policy_kl_old",), _long_steps),
    *(
        Rule(f"reward against {what}", (*_SCORES, name), partial(_falls, name=name, what=what), rows=2)
        for name, what in _TRUER.items()
    ),
    Rule("reward falls", _SCORES, _reward_falls, rows=4),
    Rule("constraint missed", ("cost", "constraint/slack", "constraint/lambda"), _constraint),
    Rule("sampler and trainer disagree", ("sampler_gap/max",), _sampler_gap),
    Rule("off-policy samples", ("mismatch/kl_k3",), _mismatch),
    Rule("many corrected weights", ("mismatch/corrected",), _corrected),
    Rule("verifier errors", ("verifier/error_share",), _verifier_errors),
)
