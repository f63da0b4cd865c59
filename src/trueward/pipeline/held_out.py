"""Held-out data while a stage trains: what `eval_every` writes into metrics.jsonl under `eval/...`.

A look sees the first `EVAL_ITEMS` held-out items only, so that it stays cheap; a stage measures all of them
when it ends. Where `eval_every` is 0 there is no look before that end.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import TypeVar

from torch import nn

from trueward.core.errors import DataError
from trueward.data.chat import TokenGroup, stop_ids
from trueward.data.steps import StepGroup
from trueward.evals import RewardModelReport, evaluate_reward_model
from trueward.models.load import LoadedModel
from trueward.rollouts.local import LocalEngine
from trueward.trainers.experience import RewardFunction
from trueward.trainers.loop import Evaluate
from trueward.trainers.ppo_settings import PPOSettings
from trueward.trainers.preference import PreferencePair, PreferenceSettings, evaluate_preference
from trueward.trainers.process import ProcessSettings, evaluate_steps
from trueward.trainers.reward import RewardPair, score_pairs
from trueward.trainers.settings import Precision, TrainSettings
from trueward.trainers.sft import evaluate_sft
from trueward.trainers.unpaired import UnpairedExample, UnpairedSettings, evaluate_unpaired

__all__ = [
    "EVAL_ITEMS",
    "judge_pairs",
    "preference_looks",
    "reward_looks",
    "rollout_looks",
    "sft_looks",
    "step_looks",
    "unpaired_looks",
]

EVAL_ITEMS = 128
"""Held-out items of one look: four batches of 32, without their backward pass."""

T = TypeVar("T")
Look = Callable[[nn.Module, Sequence[T]], Mapping[str, float]]


def _looks(
    stage: str, settings: TrainSettings | PPOSettings, items: Sequence[T], look: Look[T]
) -> Evaluate | None:
    """`look` at the first items, or nothing where the recipe asks for none.

    Raises:
        DataError: it asks, and there is nothing to look at.
    """
    if settings.eval_every == 0:
        return None
    few = items[:EVAL_ITEMS]
    if not few:
        raise DataError(
            f"{stage}.train.eval_every is {settings.eval_every}, but no held-out item can be used",
            remedy=f"raise data.test_share or data.max_tokens, or set {stage}.train.eval_every=0",
        )
    return lambda model: look(model, few)


def sft_looks(
    groups: Sequence[TokenGroup], settings: TrainSettings, *, stage: str = "sft"
) -> Evaluate | None:
    """Loss and token accuracy of held-out demonstrations or windows of text."""

    def look(model: nn.Module, few: Sequence[TokenGroup]) -> Mapping[str, float]:
        budget, precision = settings.max_tokens_per_forward, settings.precision
        return evaluate_sft(model, few, max_tokens_per_forward=budget, precision=precision).metrics()

    return _looks(stage, settings, groups, look)


def judge_pairs(
    model: nn.Module,
    pairs: Sequence[RewardPair],
    *,
    max_tokens_per_forward: int,
    precision: Precision = "float32",
    gold_differences: Sequence[float] | None = None,
) -> RewardModelReport:
    """How right a reward model is on held-out pairs: the one judgement of looks, stage and evaluation.

    Raises:
        EvidenceError: no pair, or none with a preference.
    """
    chosen, rejected = score_pairs(
        model, pairs, max_tokens_per_forward=max_tokens_per_forward, precision=precision
    )
    labels = [1.0 if pair.soft_label is None else pair.soft_label for pair in pairs]
    return evaluate_reward_model(
        chosen,
        rejected,
        soft_labels=labels,
        gold_differences=gold_differences,
        groups=[pair.group.prompt_ids for pair in pairs],
    )


def reward_looks(pairs: Sequence[RewardPair], settings: TrainSettings) -> Evaluate | None:
    """Loss, accuracy and margin on held-out pairs that have a preference."""

    def look(model: nn.Module, few: Sequence[RewardPair]) -> Mapping[str, float]:
        budget, precision = settings.max_tokens_per_forward, settings.precision
        return judge_pairs(model, few, max_tokens_per_forward=budget, precision=precision).metrics()

    # Ties alone can be neither right nor wrong, and the first items might be.
    return _looks("reward", settings, [pair for pair in pairs if pair.soft_label != 0.5], look)


def preference_looks(
    pairs: Sequence[PreferencePair], settings: TrainSettings, preference: PreferenceSettings
) -> Evaluate | None:
    """Loss, accuracy and margin of the policy against its reference on held-out pairs."""

    def look(model: nn.Module, few: Sequence[PreferencePair]) -> Mapping[str, float]:
        return evaluate_preference(
            model,
            few,
            preference=preference,
            max_tokens_per_forward=settings.max_tokens_per_forward,
            precision=settings.precision,
        ).metrics()

    return _looks("dpo", settings, pairs, look)


def unpaired_looks(
    examples: Sequence[UnpairedExample], settings: TrainSettings, unpaired: UnpairedSettings
) -> Evaluate | None:
    """Loss and accuracy of the policy against its reference on held-out labelled completions."""

    def look(model: nn.Module, few: Sequence[UnpairedExample]) -> Mapping[str, float]:
        return evaluate_unpaired(
            model,
            few,
            unpaired=unpaired,
            max_tokens_per_forward=settings.max_tokens_per_forward,
            precision=settings.precision,
        ).metrics()

    return _looks("kto", settings, examples, look)


def rollout_looks(
    policy: LoadedModel,
    groups: Sequence[TokenGroup],
    settings: PPOSettings,
    *,
    reward: RewardFunction,
    gold: RewardFunction | None,
    seed: int,
) -> Evaluate | None:
    """One completion of each held-out prompt, always from the same noise, and how it scores.

    Args:
        policy: the model that is trained.
        groups: held-out prompts, without completions.
        gold: true scores, where they are known.
        seed: of sampling.
    """
    engine = LocalEngine(policy.model, stop_ids(policy.tokenizer))

    def look(_: nn.Module, few: Sequence[TokenGroup]) -> Mapping[str, float]:
        rollouts = engine.generate(
            [group.prompt_ids for group in few],
            num_completions=1,
            max_new_tokens=settings.max_new_tokens,
            temperature=settings.temperature,
            seed=seed,
        )
        figures = {
            "eval/reward": _mean(reward(few, rollouts)),
            "eval/completions/mean_length": _mean([len(rollout.ids) for rollout in rollouts]),
            "eval/completions/clipped_ratio": _mean([not rollout.finished for rollout in rollouts]),
        }
        return figures if gold is None else {**figures, "eval/gold": _mean(gold(few, rollouts))}

    return _looks("ppo", settings, groups, look)


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def step_looks(
    items: Sequence[StepGroup], settings: TrainSettings, process: ProcessSettings, *, stage: str
) -> Evaluate | None:
    """Loss and accuracy of held-out labelled steps."""

    def look(model: nn.Module, few: Sequence[StepGroup]) -> Mapping[str, float]:
        budget, precision = settings.max_tokens_per_forward, settings.precision
        return evaluate_steps(model, few, process=process, max_tokens_per_forward=budget, precision=precision)

    return _looks(stage, settings, items, look)
