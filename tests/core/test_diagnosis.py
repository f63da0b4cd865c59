"""Every rule on a series made sick on purpose and on its healthy twin."""

from collections.abc import Sequence
from typing import Any

import pytest

from trueward.core.diagnosis import RULES, diagnosis
from trueward.core.metrics import METRICS
from trueward.core.symptom import Bounds, Row

POLICY: dict[str, Any] = {
    "reward": 0.5,
    "reward_std": 1.0,
    "gold": 0.5,
    "eval/gold": 0.5,
    "eval/reward": 0.5,
    "objective/kl": 1.0,
    "objective/kl_k3": 1.1,
    "objective/entropy": 2.0,
    "value_explained_variance": 0.3,
    "completions/mean_length": 20.0,
    "completions/clipped_ratio": 0.0,
    "clip_ratio/mean": 0.1,
    "policy_kl_old": 0.01,
    "sampler_gap/max": 1e-5,
    "group/zero_variance_share": 0.3,
    "mismatch/kl_k3": 1e-6,
    "mismatch/corrected": 0.0,
    "verifier/error_share": 0.0,
    "cost": 0.2,
    "constraint/slack": 0.05,
    "constraint/lambda": 1.0,
    "cost/value_explained_variance": 0.2,
    "loss": 0.01,
    "grad_norm": 1.0,
    "lr": 1e-5,
    "skipped": 0.0,
}
PAIRS: dict[str, Any] = {
    "loss": 0.6,
    "eval/loss": 0.62,
    "accuracy": 0.7,
    "eval/accuracy": 0.65,
    "rewards/margins": 0.5,
    "rewards/accuracies": 0.7,
    "logps/chosen_per_token_change": 0.01,
    "grad_norm": 1.0,
    "lr": 1e-5,
    "skipped": 0.0,
}


def series(healthy: Row, later: Row, num_rows: int = 24) -> list[Row]:
    """Healthy for the first half, sick for the second."""
    half = num_rows // 2
    values = [healthy] * half + [{**healthy, **later}] * (num_rows - half)
    return [{"step": step, **row} for step, row in enumerate(values, 1)]


def falling(start: float, last: float, num_rows: int = 24) -> list[float]:
    return [start + (last - start) * i / (num_rows - 1) for i in range(num_rows)]


def columns(healthy: Row, **given: Sequence[float]) -> list[Row]:
    rows = series(healthy, {})
    return [{**row, **{name: values[i] for name, values in given.items()}} for i, row in enumerate(rows)]


def with_peak(name: str, usual: float, peak: float) -> list[Row]:
    rows = series(PAIRS, {name: usual})
    return [{**row, name: peak if i == 15 else usual} for i, row in enumerate(rows)]


SICK: list[tuple[str, list[Row], str]] = [
    ("negative KL", series(POLICY, {"objective/kl": -2.0}), "a KL cannot be negative"),
    ("heavy tail of the KL", series(POLICY, {"objective/kl_k3": 9.0}), "far above k1"),
    (
        "far from the reference",
        series(POLICY, {"objective/kl": 20.0, "objective/kl_k3": 21.0}),
        "21.0 nats from the reference, above a usual limit of 10",
    ),
    ("entropy collapse", series(POLICY, {"objective/entropy": 0.1}), "entropy fell from 2.00 to 0.10"),
    ("equal rewards", series(POLICY, {"reward_std": 0.0}), "all completions get the same score"),
    ("groups without advantage", series(POLICY, {"group/zero_variance_share": 0.95}), "in 95% of the groups"),
    ("blind values", series(POLICY, {"value_explained_variance": -0.5}), "less than a constant would"),
    (
        "blind values of the cost",
        series(POLICY, {"cost/value_explained_variance": 0.0}),
        "values of the cost explain 0.00",
    ),
    (
        "constraint missed",
        series(POLICY, {"cost": 0.4, "constraint/slack": -0.15, "constraint/lambda": 3.0}),
        "mean cost 0.4 at the end, at most 0.25 allowed",
    ),
    ("length grows", series(POLICY, {"completions/mean_length": 50.0}), "grew from 20 to 50 tokens"),
    (
        "length grows",
        series(POLICY, {"completions/mean_length": 32.0, "reward": 0.9}),
        "grew from 20 to 32 tokens while the reward rose from 0.50 to 0.90",
    ),
    (
        "truncated completions",
        series(POLICY, {"completions/clipped_ratio": 0.5}),
        "50% of the completions hit",
    ),
    ("clip fraction", series(POLICY, {"clip_ratio/mean": 0.6}), "60% of the ratios are clipped"),
    ("large updates", series(POLICY, {"policy_kl_old": 0.2}), "0.200 nats per token"),
    (
        "reward against true reward",
        series(POLICY, {"reward": 1.5, "gold": -0.5}),
        "(0.50 to 1.50) while the true reward fell from 0.50 to -0.50",
    ),
    (
        "reward against held-out true reward",
        series(POLICY, {"reward": 1.5, "eval/gold": -0.5}),
        "held-out true",
    ),
    (
        "reward against held-out reward",
        series(POLICY, {"reward": 1.5, "eval/reward": -0.5}),
        "held-out reward",
    ),
    ("reward falls", series(POLICY, {"reward": -0.5}), "fell from 0.50 to -0.50"),
    ("sampler and trainer disagree", series(POLICY, {"sampler_gap/max": 0.015}), "differ by 0.015 nats"),
    ("off-policy samples", series(POLICY, {"mismatch/kl_k3": 0.02}), "0.02 nats per token"),
    ("many corrected weights", series(POLICY, {"mismatch/corrected": 0.4}), "40% of the importance weights"),
    ("verifier errors", series(POLICY, {"verifier/error_share": 0.15}), "no score for 15%"),
    ("skipped steps", series(PAIRS, {"skipped": 2.0}), "not finite (2), the first by step 13"),
    ("loss spikes", with_peak("loss", 0.6, 3.0), "jumped from about 0.6 to 3 at step 16"),
    ("loss rises", columns(PAIRS, loss=falling(0.6, 0.8)), "training loss rose"),
    ("exploding gradient", with_peak("grad_norm", 1.0, 50.0), "reached 50 at step 16, usually 1"),
    ("exploding gradient", columns(PAIRS, grad_norm=[1.1**i for i in range(48)][::2]), "grew from"),
    ("no gradient", columns(PAIRS, grad_norm=[0.0] * 24), "the gradient is 0 at every step"),
    ("learning rate of zero", columns(PAIRS, lr=[0.0] * 24), "never rose above"),
    (
        "overfitting",
        columns(
            PAIRS,
            **{"loss": falling(0.6, 0.1), "eval/loss": [*falling(0.7, 0.6, 12), *falling(0.6, 0.8, 12)]},
        ),
        "from 0.6 at step 12 to 0.8 while the training loss fell",
    ),
    ("training pairs at chance", series(PAIRS, {"accuracy": 0.51}), "51% of the training pairs"),
    ("held-out pairs at chance", series(PAIRS, {"eval/accuracy": 0.49}), "49% of the held-out pairs"),
    (
        "chosen falls",
        series(PAIRS, {"logps/chosen_per_token_change": -0.4, "rewards/margins": 2.0}),
        "margin rose to 2.00, but the chosen completions became less likely by 0.40 nats per token",
    ),
    (
        "chosen falls",
        series(PAIRS, {"logps/chosen_per_token_change": -0.8, "rewards/margins": -0.08}),
        "margin is -0.08, and the chosen completions became less likely by 0.80 nats per token",
    ),
    (
        "preference turned round",
        series(PAIRS, {"rewards/margins": -0.025, "rewards/accuracies": 0.31}),
        "31% of the training pairs are ordered as labelled, and the margin is -0.025",
    ),
]
# What looks alike and is not: noise, a usual course of training, an alarm of another kind.
HEALTHY: list[tuple[str, list[Row]]] = [
    ("policy", series(POLICY, {})),
    ("pairs", series(PAIRS, {})),
    ("k1 below 0 by chance", columns(POLICY, **{"objective/kl": [-3.0, 1.0] * 12})),
    ("k1 a little below 0", series(POLICY, {"objective/kl": -0.05, "objective/kl_k3": 0.2})),
    ("the cost hovers about its bound", columns(POLICY, **{"constraint/slack": [-0.2, 0.1] * 12})),
    ("entropy falls slowly", columns(POLICY, **{"objective/entropy": falling(2.0, 0.9)})),
    ("longer and not better paid", series(POLICY, {"completions/mean_length": 32.0})),
    ("reward and true reward rise", series(POLICY, {"reward": 1.5, "gold": 1.0})),
    (
        "true reward falls by noise",
        columns(
            {**POLICY, "reward_std": 0.1},
            reward=falling(0.5, 0.9),
            gold=[float(bit) for bit in "110111010011001011011010"],
        ),
    ),
    ("the last learning rate is 0", columns(PAIRS, lr=falling(1e-5, 0.0))),
    ("the first gradients are large", columns(PAIRS, grad_norm=[80.0, 40.0, *[1.0] * 22])),
    ("loss of batches", columns(PAIRS, loss=[0.55, 0.7, 0.62] * 8)),
    ("held-out loss flattens", columns(PAIRS, **{"loss": falling(0.6, 0.3), "eval/loss": falling(0.7, 0.6)})),
    (
        "a margin below 0 by noise",
        columns(PAIRS, **{"rewards/margins": [-0.5, 0.45] * 12, "rewards/accuracies": [0.45] * 24}),
    ),
    ("a margin below 0 that few pairs make", series(PAIRS, {"rewards/margins": -0.5})),
    (
        "chosen falls within the limit",
        series(PAIRS, {"logps/chosen_per_token_change": -0.08, "rewards/margins": 2.0}),
    ),
]


@pytest.mark.parametrize(
    ("rule", "rows", "words"), SICK, ids=[f"{rule}-{n}" for n, (rule, _, _) in enumerate(SICK)]
)
def test_each_trouble_is_found_alone_and_said(rule: str, rows: list[Row], words: str) -> None:
    (found,) = diagnosis(rows).findings
    assert found.rule == rule and words in found.sentence(), found
    assert 1 <= found.step <= 24 and found.why and found.remedy


@pytest.mark.parametrize(("name", "rows"), HEALTHY, ids=[name for name, _ in HEALTHY])
def test_what_is_healthy_gives_no_alarm(name: str, rows: list[Row]) -> None:
    assert diagnosis(rows).findings == ()


def test_every_rule_has_a_sick_series_and_needs_declared_metrics() -> None:
    names = [rule.name for rule in RULES]
    assert len(names) == len(set(names))
    assert {rule for rule, _, _ in SICK} == set(names)
    assert {metric for rule in RULES for metric in rule.needs} <= METRICS.keys()


def test_what_cannot_be_checked_is_listed_with_its_reason() -> None:
    found = diagnosis([{"step": 1, "loss": 0.6, "lr": 1e-5}])
    assert set(found.checked) == {"learning rate of zero"}
    assert set(found.checked) | found.unchecked.keys() == {rule.name for rule in RULES}
    assert found.unchecked["overfitting"] == "no metric eval/loss"
    assert found.unchecked["loss spikes"] == "as 1 values are too few (they need 11)"
    assert "policy optimisation" in diagnosis(series(POLICY, {})).unchecked["loss rises"]
    assert diagnosis([]).checked == ()


def test_the_bounds_of_a_rule_are_those_of_the_run() -> None:
    config = {"section": {"kl_budget": 30.0, "max_new_tokens": 64, "displacement_limit": None}, "lr": 1.0}
    assert Bounds.of(config) == Bounds(kl_budget=30.0, max_new_tokens=64)
    far = series(POLICY, {"objective/kl": 20.0, "objective/kl_k3": 21.0})
    assert diagnosis(far, Bounds.of(config)).findings == ()
    (over,) = diagnosis(far, Bounds(kl_budget=2.0)).findings
    assert "above the budget of 2" in over.seen
    (cut,) = diagnosis(series(POLICY, {"completions/clipped_ratio": 0.5}), Bounds.of(config)).findings
    assert "max_new_tokens (64)" in cut.seen
    missed = series(POLICY, {"cost": 0.4, "constraint/slack": -0.15, "constraint/lambda": 3.0})
    (held,) = diagnosis(missed, Bounds.of({"constraint": {"max_lambda": 3.0}})).findings
    assert held.remedy == "raise max_lambda"
    displaced = series(PAIRS, {"logps/chosen_per_token_change": -0.4, "rewards/margins": 2.0})
    assert diagnosis(displaced, Bounds(displacement_limit=0.5)).findings == ()


def test_values_that_are_not_finite_are_left_out_of_means() -> None:
    rows = [{**row, "objective/kl": None if row["step"] % 2 else 1.0} for row in series(POLICY, {})]
    assert diagnosis(rows).findings == ()
