"""Preference tuning from single completions labelled desirable or not: KTO and BCO.

    baseline of the step's items, without gradient -> log-probs under the policy -> objective against the
    stored log-probs of the reference -> mean over completions
The baseline of KTO is measured on mismatched pairs: a prompt with the completion of another prompt. Which one
is fixed before the first step, so that the reference scores it once. Axes: B completions.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch
from pydantic import Field, field_validator
from torch import Tensor, nn

from trueward.core.config import Config
from trueward.core.errors import DataError, unknown
from trueward.core.stats import Estimate, bootstrap_mean
from trueward.data.chat import TokenGroup
from trueward.models.packing import count_tokens
from trueward.models.scoring import evaluating
from trueward.objectives.unpaired import UnpairedLoss, bco, bco_delta, kto, kto_kl
from trueward.trainers.accumulate import LossSum, forward_precision
from trueward.trainers.groups import cut, describe_group
from trueward.trainers.loop import Evaluate, Progress, TrainResult, train
from trueward.trainers.optim import device_of
from trueward.trainers.reference import reference_logps, sequence_scores
from trueward.trainers.settings import Precision, TrainSettings

__all__ = [
    "UNPAIRED_METHODS",
    "LabelledCompletion",
    "UnpairedEvaluation",
    "UnpairedExample",
    "UnpairedMethod",
    "UnpairedObjective",
    "UnpairedSettings",
    "evaluate_unpaired",
    "train_unpaired",
    "unpaired_examples",
    "with_reference",
]


@dataclass(frozen=True, kw_only=True, slots=True)
class UnpairedMethod:
    """What the trainer must know of a method.

    loss: called with policy and reference log-probs, labels, baseline, and the options by name.
    baseline: of the whole step, from policy - ref of its completions, their labels, and beta.
    mismatched: the baseline is measured on mismatched completions, not on the items' own.
    """

    loss: Callable[..., UnpairedLoss]
    baseline: Callable[[Tensor, Tensor, float], Tensor]
    mismatched: bool


def _kl(log_ratios_B: Tensor, desirable_B: Tensor, beta: float) -> Tensor:
    return kto_kl(log_ratios_B, torch.zeros_like(log_ratios_B))


def _shift(log_ratios_B: Tensor, desirable_B: Tensor, beta: float) -> Tensor:
    return bco_delta(beta * log_ratios_B, desirable_B)


UNPAIRED_METHODS: dict[str, UnpairedMethod] = {
    "kto": UnpairedMethod(loss=kto, baseline=_kl, mismatched=True),
    "bco": UnpairedMethod(loss=bco, baseline=_shift, mismatched=False),
}


class UnpairedSettings(Config):
    """Settings of a method on labelled completions."""

    method: str = "kto"
    """Name of the objective: kto or bco."""
    beta: float = Field(0.1, gt=0)
    """Strength of the tie to the reference (Ethayarajh et al. 2024, section 4)."""
    desirable_weight: float = Field(1.0, gt=0)
    """Weight of a desirable completion; KTO advises weights that balance unequal numbers of both."""
    undesirable_weight: float = Field(1.0, gt=0)
    """Weight of an undesirable completion."""

    @field_validator("method")
    @classmethod
    def _known(cls, name: str) -> str:
        if name not in UNPAIRED_METHODS:
            raise ValueError(unknown("method", name, UNPAIRED_METHODS))
        return name

    def record(self) -> UnpairedMethod:
        """The method's line in the table."""
        return UNPAIRED_METHODS[self.method]


@dataclass(frozen=True, slots=True)
class LabelledCompletion:
    """A prompt with one completion as tokens, and whether it is desirable."""

    group: TokenGroup
    desirable: bool


@dataclass(frozen=True, slots=True)
class UnpairedExample:
    """A labelled completion with the reference's summed log-probs in nats; `mismatched` is the same prompt
    with another prompt's completion, where the method looks at one."""

    group: TokenGroup
    desirable: bool
    ref: float
    mismatched: TokenGroup | None = None
    ref_mismatched: float | None = None


def _loss(
    logps_B: Tensor, examples: Sequence[UnpairedExample], baseline: float, settings: UnpairedSettings
) -> UnpairedLoss:
    return settings.record().loss(
        logps_B,
        logps_B.new_tensor([example.ref for example in examples]),
        _labels(examples, logps_B),
        baseline,
        beta=settings.beta,
        desirable_weight=settings.desirable_weight,
        undesirable_weight=settings.undesirable_weight,
    )


def _labels(examples: Sequence[UnpairedExample], like: Tensor) -> Tensor:
    return torch.tensor([example.desirable for example in examples], device=like.device)


def _looked_at(
    examples: Sequence[UnpairedExample], settings: UnpairedSettings
) -> list[tuple[TokenGroup, float]]:
    """What the baseline is measured on: completions and the reference's log-probs of them.

    Raises:
        DataError: the method needs mismatched completions, and an example has none.
    """
    if not settings.record().mismatched:
        return [(e.group, e.ref) for e in examples]
    found = [
        (e.mismatched, e.ref_mismatched)
        for e in examples
        if e.mismatched is not None and e.ref_mismatched is not None
    ]
    if len(found) != len(examples):
        raise DataError(
            f"an example has no mismatched completion, which {settings.method} needs",
            remedy="make the examples with unpaired_examples and the same settings",
        )
    return found


def _baseline(
    logps_B: Tensor, refs: Sequence[float], examples: Sequence[UnpairedExample], settings: UnpairedSettings
) -> float:
    """The baseline of all `examples` together; log-probs are those of `_looked_at`."""
    log_ratios_B = logps_B - logps_B.new_tensor(refs)
    return float(settings.record().baseline(log_ratios_B, _labels(examples, log_ratios_B), settings.beta))


def _all_logps(model: nn.Module, groups: Sequence[TokenGroup], max_tokens: int) -> Tensor:
    """logps_S of all groups, forward by forward."""
    batches = cut(groups, lambda group: group, max_tokens)
    return torch.cat([sequence_scores(model, batch).logps_S for batch in batches])


class UnpairedObjective:
    """A method of the table over labelled completions; the weight of each follows from its label."""

    def __init__(self, settings: UnpairedSettings) -> None:
        self.name = settings.method
        self._settings = settings
        self.settings: Mapping[str, object] = settings.model_dump(mode="json")
        self._step_baseline: float | None = None

    def describe(self, item: UnpairedExample) -> Mapping[str, object]:
        other = {} if item.mismatched is None else {"mismatched": describe_group(item.mismatched)}
        refs = {"ref": item.ref, "ref_mismatched": item.ref_mismatched}
        return {**describe_group(item.group), "desirable": item.desirable, **refs, **other}

    def count(self, items: Sequence[UnpairedExample]) -> float:
        return len(items)

    def micro_batches(self, items: Sequence[UnpairedExample], max_tokens: int) -> list[list[UnpairedExample]]:
        return cut(items, lambda example: example.group, max_tokens)

    def prepare(self, model: nn.Module, items: Sequence[UnpairedExample], max_tokens: int) -> None:
        """Measure the baseline of the step that `items` are."""
        groups, refs = zip(*_looked_at(items, self._settings), strict=True)
        with evaluating(model), torch.no_grad():
            logps_B = _all_logps(model, groups, max_tokens)
        self._step_baseline = _baseline(logps_B, refs, items, self._settings)

    def loss(self, model: nn.Module, items: Sequence[UnpairedExample]) -> LossSum:
        assert self._step_baseline is not None, "prepare comes before the first micro-batch of a step"
        scores = sequence_scores(model, [example.group for example in items])
        out = _loss(scores.logps_S, items, self._step_baseline, self._settings)
        sums: dict[str, tuple[Tensor, float]] = {
            "objective/baseline": (out.loss_B.new_tensor(self._step_baseline * len(items)), len(items))
        }
        changes_B = out.rewards_B / self._settings.beta
        for side, rows_B in _sides(items, out.loss_B).items():
            number = float(rows_B.sum())
            sums[f"rewards/{side}"] = (out.rewards_B[rows_B].sum(), number)
            sums[f"logps/{side}"] = (scores.logps_S[rows_B].sum(), number)
            tokens = float(scores.counts_S[rows_B].sum())
            sums[f"logps/{side}_per_token_change"] = (changes_B[rows_B].sum(), tokens)
        return LossSum(out.loss_B.sum(), scores.num_tokens, sums)


def _sides(examples: Sequence[UnpairedExample], like: Tensor) -> dict[str, Tensor]:
    labels_B = _labels(examples, like)
    return {"chosen": labels_B, "rejected": ~labels_B}


def _mismatches(labelled: Sequence[LabelledCompletion], max_tokens: int) -> list[TokenGroup]:
    """Each prompt with the completion of the next prompt that differs and that is not too long for it: with
    it no longer than the longest item, or, where there is none, than `max_tokens`.

    Raises:
        DataError: there is none.
    """
    longest = max(count_tokens(item.group) for item in labelled)
    bounds = (longest, max(longest, max_tokens))
    found = []
    for i, item in enumerate(labelled):
        prompt = item.group.prompt_ids
        other = next(
            (
                group.completions[0]
                for bound in bounds
                for k in range(1, len(labelled))
                for group in (labelled[(i + k) % len(labelled)].group,)
                if group.prompt_ids != prompt and len(prompt) + len(group.completions[0].ids) <= bound
            ),
            None,
        )
        if other is None:
            raise DataError(
                f"no completion of another prompt fits the prompt of {item.group.id or '(no id)'}",
                expected=f"prompt and completion of at most {bounds[-1]} tokens",
                remedy="add data, leave this prompt out, or use bco, which needs no mismatched completion",
            )
        found.append(TokenGroup(prompt, (other,), item.group.id))
    return found


def unpaired_examples(
    model: nn.Module,
    labelled: Sequence[LabelledCompletion],
    *,
    unpaired: UnpairedSettings,
    ref_model: nn.Module | None,
    cache: Path,
    max_tokens_per_forward: int,
    precision: Precision = "float32",
    max_tokens: int = 0,
) -> list[UnpairedExample]:
    """Examples as the method needs them; the other arguments are those of `reference.reference_logps`.

    Args:
        max_tokens: longest mismatched prompt and completion; at least that of the longest item.

    Raises:
        DataError: a group is not one completion with trained tokens, or no other completion fits a prompt.
    """
    for item in labelled:
        if len(item.group.completions) != 1 or not any(item.group.completions[0].trained):
            raise DataError(
                f"example {item.group.id or '(no id)'} is not one completion with trained tokens",
                value=[sum(c.trained) for c in item.group.completions],
            )
    others = _mismatches(labelled, max_tokens) if labelled and unpaired.record().mismatched else None
    return with_reference(
        model,
        labelled,
        others,
        ref_model=ref_model,
        cache=cache,
        max_tokens_per_forward=max_tokens_per_forward,
        precision=precision,
    )


def with_reference(
    model: nn.Module,
    labelled: Sequence[LabelledCompletion],
    mismatched: Sequence[TokenGroup] | None,
    *,
    ref_model: nn.Module | None,
    cache: Path,
    max_tokens_per_forward: int,
    precision: Precision = "float32",
) -> list[UnpairedExample]:
    """Examples with the reference's log-probs; arguments are those of `reference.reference_logps`.

    Args:
        mismatched: of each example its prompt with another completion; None for methods that look at none.
    """
    groups: list[TokenGroup] = []
    together: list[TokenGroup] = []
    others: Sequence[TokenGroup | None] = [None] * len(labelled) if mismatched is None else mismatched
    for item, other in zip(labelled, others, strict=True):
        groups += [item.group] if other is None else [item.group, other]
        together += _side_by_side(item.group, other, max_tokens_per_forward)
    logps = iter(
        reference_logps(
            model,
            groups,
            ref_model=ref_model,
            cache=cache,
            max_tokens_per_forward=max_tokens_per_forward,
            precision=precision,
            together=together,
        )
    )
    if mismatched is None:
        return [
            UnpairedExample(item.group, item.desirable, ref)
            for item, ref in zip(labelled, logps, strict=True)
        ]
    return [
        UnpairedExample(item.group, item.desirable, next(logps), other, next(logps))
        for item, other in zip(labelled, mismatched, strict=True)
    ]


def _side_by_side(group: TokenGroup, other: TokenGroup | None, max_tokens: int) -> list[TokenGroup]:
    """Both completions behind one prompt, where they fit into one forward; else one after the other."""
    if other is None:
        return [group]
    both = TokenGroup(group.prompt_ids, (*group.completions, *other.completions), group.id)
    shared = group.prompt_ids == other.prompt_ids and count_tokens(both) <= max_tokens
    return [both] if shared else [group, other]


def train_unpaired(
    model: nn.Module,
    labelled: Sequence[LabelledCompletion],
    *,
    settings: TrainSettings,
    unpaired: UnpairedSettings,
    folder: Path,
    ref_model: nn.Module | None = None,
    bar: Progress | None = None,
    evaluate: Evaluate | None = None,
    resume: bool = False,
    max_tokens: int = 0,
) -> TrainResult:
    """Train a policy on labelled completions; see `loop.train`.

    Args:
        model: the policy as it was before its first step, also when resuming.
        ref_model: see `reference.reference_logps`.
        max_tokens: see `unpaired_examples`.

    Raises:
        DataError: all labels are alike, or see `unpaired_examples`.
    """
    if len({item.desirable for item in labelled}) == 1:
        sort = "desirable" if labelled[0].desirable else "undesirable"
        raise DataError(
            f"all {len(labelled)} completions are labelled {sort}",
            expected="some of both",
            remedy="nothing is told apart here; to learn from good answers alone, use sft",
        )
    examples = unpaired_examples(
        model,
        labelled,
        unpaired=unpaired,
        ref_model=ref_model,
        cache=folder,
        max_tokens_per_forward=settings.max_tokens_per_forward,
        precision=settings.precision,
        max_tokens=max_tokens,
    )
    return train(
        model,
        objective=UnpairedObjective(unpaired),
        items=examples,
        settings=settings,
        folder=folder,
        bar=bar,
        evaluate=evaluate,
        resume=resume,
    )


class UnpairedEvaluation(NamedTuple):
    """Held-out figures of a policy, with intervals over completions.

    accuracy: share of completions whose reward is on the side of the baseline that the label says, ties half.
    baseline: of all held-out completions together, in the units of the method.
    """

    loss: Estimate
    accuracy: Estimate
    baseline: float

    def metrics(self) -> dict[str, float]:
        return {"eval/loss": self.loss.value, "eval/accuracy": self.accuracy.value}


@torch.no_grad()
def evaluate_unpaired(
    model: nn.Module,
    examples: Sequence[UnpairedExample],
    *,
    unpaired: UnpairedSettings,
    max_tokens_per_forward: int,
    precision: Precision = "float32",
) -> UnpairedEvaluation:
    """Loss and accuracy on held-out completions (made by `unpaired_examples`); intervals resample prompts.

    Raises:
        DataError: no examples.
    """
    if not examples:
        raise DataError("there is no held-out completion to evaluate on", remedy="check the split")
    looked_at = _looked_at(examples, unpaired)
    mismatched = unpaired.record().mismatched
    groups: list[TokenGroup] = []
    for example, (group, _) in zip(examples, looked_at, strict=True):
        groups += _side_by_side(example.group, group if mismatched else None, max_tokens_per_forward)
    with forward_precision(precision, device_of(model)):
        logps_S = _all_logps(model, groups, max_tokens_per_forward)
    own_B, other_B = logps_S.view(-1, 2).unbind(1) if mismatched else (logps_S, logps_S)
    baseline = _baseline(other_B, [ref for _, ref in looked_at], examples, unpaired)
    out = _loss(own_B, examples, baseline, unpaired)
    # A KL is in nats, a reward is beta times that.
    signs_B = torch.sign(out.rewards_B - (unpaired.beta * baseline if mismatched else baseline))
    right_B = 0.5 + 0.5 * torch.where(_labels(examples, signs_B), signs_B, -signs_B)
    asked = [example.group.prompt_ids for example in examples]
    return UnpairedEvaluation(
        bootstrap_mean(out.loss_B.cpu().numpy(), groups=asked),
        bootstrap_mean(right_B.cpu().numpy(), groups=asked),
        baseline,
    )
