"""Declared metrics. A name that was never declared raises; what is declared says its unit and meaning in one
place.

Every run appends to `metrics.jsonl`, and gives the same figures to the trackers it was asked for.
Names follow those that users of TRL already search for.
"""

import math
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import NamedTuple

from trueward.core.errors import RunError, nearest
from trueward.core.files import append_jsonl
from trueward.core.trackers import TRACKERS, Tracker, check_trackers

__all__ = ["METRICS", "Metric", "MetricsLog", "declare"]


class Metric(NamedTuple):
    """A declared metric."""

    name: str
    unit: str
    meaning: str


METRICS: dict[str, Metric] = {}


def declare(name: str, unit: str, meaning: str) -> str:
    """Declare a metric once and return its name.

    Raises:
        RunError: the name is declared already with another unit or meaning.
    """
    metric = Metric(name, unit, meaning)
    if METRICS.setdefault(name, metric) != metric:
        raise RunError(f"metric {name!r} is declared twice", value=metric, expected=str(METRICS[name]))
    return name


for _name, _unit, _meaning in [
    ("loss", "nats", "objective of the step, averaged with one global denominator"),
    ("lr", "1", "learning rate of the step"),
    ("grad_norm", "1", "norm of the gradient before clipping"),
    ("tokens", "tokens", "real tokens of the step"),
    ("tokens_per_s", "tokens/s", "real tokens of the step over its wall-clock time"),
    ("step_s", "s", "wall-clock time of the step"),
    ("skipped", "steps", "steps skipped so far because loss or gradient was not finite"),
    ("epoch", "epochs", "passes over the data so far"),
    ("accuracy", "1", "share of pairs that the reward model orders as the label does; ties half"),
    ("mean_token_accuracy", "1", "share of trained tokens that the model would have chosen greedily"),
    (
        "rewards/chosen",
        "nats",
        "reward of chosen: the objective's own, for DPO beta x (policy - ref) log-prob, or a reward model's",
    ),
    ("rewards/rejected", "nats", "the same for rejected"),
    ("rewards/margins", "nats", "rewards/chosen - rewards/rejected"),
    ("rewards/accuracies", "1", "share of pairs with a positive margin; ties half"),
    ("logps/chosen", "nats", "mean summed log-prob of chosen under the policy"),
    ("logps/rejected", "nats", "mean summed log-prob of rejected under the policy"),
    (
        "logps/chosen_per_token_change",
        "nats/token",
        "policy - ref log-prob of chosen per token; below 0 = displaced",
    ),
    ("logps/rejected_per_token_change", "nats/token", "policy - ref log-prob of rejected per token"),
    (
        "objective/baseline",
        "nats",
        "what the rewards of single completions are compared with: KL of mismatched pairs, or reward shift",
    ),
    ("weak_to_strong/alpha", "1", "weight of the student's own hard label beside the weak supervisor's"),
    ("distill/agreement", "1", "share of trained tokens where teacher and student find one word most likely"),
    ("distill/on_policy", "1", "share of the step's answers that the student drew itself"),
    ("reward", "1", "mean score of the completions of the iteration"),
    ("reward_std", "1", "standard deviation of those scores"),
    ("gold", "1", "mean true reward of the completions of the iteration, where a testbed knows it"),
    ("objective/kl", "nats", "mean KL(policy || ref) per completion, k1 estimate summed over tokens"),
    ("objective/kl_k3", "nats", "the same by k3, which is never negative"),
    ("objective/entropy", "nats", "mean entropy of the policy per token"),
    ("objective/kl_coef", "1", "KL coefficient in use"),
    ("policy_loss", "1", "clipped surrogate, token mean"),
    ("value_loss", "1", "clipped value loss, token mean"),
    ("cost", "1", "mean cost of the completions of the iteration, in units of the cost model"),
    ("constraint/lambda", "1", "price of a unit of cost in units of reward, after the iteration's update"),
    ("constraint/slack", "1", "threshold - mean cost; below 0 the constraint is violated"),
    ("cost/value_loss", "1", "clipped value loss of the cost's value function, token mean"),
    ("cost/value_explained_variance", "1", "value_explained_variance of the cost's value function"),
    ("step_accuracy", "1", "share of labelled steps that a process reward model judges as their label does"),
    ("ptx_loss", "nats/token", "negative log-likelihood of the demonstrations that are mixed in"),
    ("value_explained_variance", "1", "1 - Var(return - value) / Var(return)"),
    ("clip_ratio/mean", "1", "share of tokens whose ratio was clipped"),
    ("policy_kl_old", "nats", "k3 KL of the update against the policy that sampled"),
    ("completions/mean_length", "tokens", "mean tokens per completion, stop token included"),
    ("completions/clipped_ratio", "1", "share of completions that hit the length limit without a stop token"),
    ("sampler_gap/max", "nats", "largest |sampler - trainer| token log-prob of the iteration"),
    ("group/zero_variance_share", "1", "share of the groups drawn whose scores are all equal"),
    ("group/kept", "groups", "groups that the update learns from"),
    ("group/draws", "batches", "batches of prompts drawn in the iteration"),
    ("verifier/error_share", "1", "share of completions that the verifier has no score for"),
    ("mismatch/kl_k1", "nats/token", "KL(sampler || trainer), k1: sampler - trainer log-prob"),
    ("mismatch/kl_k3", "nats/token", "the same by k3, which is never negative"),
    ("mismatch/corrected", "1", "share of tokens whose importance weight was truncated or masked"),
    ("time/rollout_s", "s", "time spent drawing completions"),
    ("time/update_s", "s", "time spent updating"),
    ("eval/loss", "nats", "held-out objective, without margin and centering of a reward model"),
    ("eval/accuracy", "1", "held-out pair accuracy"),
    ("eval/step_accuracy", "1", "step_accuracy on held-out labelled steps"),
    ("eval/mean_token_accuracy", "1", "mean_token_accuracy on held-out demonstrations or text"),
    ("eval/rewards/margins", "nats", "rewards/margins on held-out pairs; of a reward model better - worse"),
    ("eval/logps/chosen_per_token_change", "nats/token", "that of chosen on held-out pairs"),
    ("eval/logps/rejected_per_token_change", "nats/token", "that of rejected on held-out pairs"),
    ("eval/reward", "1", "mean score of the reward model over completions of held-out prompts"),
    ("eval/gold", "1", "mean true reward of those completions, where a testbed knows it"),
    ("eval/completions/mean_length", "tokens", "mean tokens of those completions, stop token included"),
    ("eval/completions/clipped_ratio", "1", "share of those completions that hit the length limit"),
]:
    declare(_name, _unit, _meaning)


class MetricsLog:
    """Appends `{"step", "time_s", name: value}` lines to `folder/metrics.jsonl`.

    Args:
        folder: the run folder.
        track: names from `tensorboard`, `wandb`, `trackio`.

    Raises:
        ConfigError: a tracker that is unknown, not installed, or does not start.
    """

    def __init__(self, folder: Path, track: Sequence[str] = ()) -> None:
        self._path = folder / "metrics.jsonl"
        self._start_s = time.monotonic()
        check_trackers(track)
        self._trackers: list[Tracker] = [TRACKERS[name](folder) for name in track]

    def __enter__(self) -> "MetricsLog":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def log(self, values: Mapping[str, float], *, step: int) -> None:
        """Append one line. A value that is not finite is written as null, because JSON has no NaN.

        Raises:
            RunError: a name was never declared.
        """
        for name in values:
            if name not in METRICS:
                raise RunError(f"metric {name!r} was never declared", remedy=nearest(name, METRICS))
        finite = {name: (float(value) if math.isfinite(value) else None) for name, value in values.items()}
        append_jsonl(
            self._path, {"step": step, "time_s": round(time.monotonic() - self._start_s, 3), **finite}
        )
        for tracker in self._trackers:
            tracker.log({name: value for name, value in finite.items() if value is not None}, step)

    def close(self) -> None:
        """Flush and close the trackers."""
        for tracker in self._trackers:
            tracker.close()
