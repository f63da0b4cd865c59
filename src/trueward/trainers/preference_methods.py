"""The table of methods on pairs: for each, its objective, its options with defaults, and what it needs.

A method is added as one line here. Not here: how log-probs are computed and summed (see preference).
Axes: B pairs.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Self

import torch
from pydantic import Field, field_validator, model_validator
from torch import Tensor

from trueward.core.config import Config
from trueward.core.errors import unknown
from trueward.objectives.preference import (
    PreferenceLoss,
    apo_down,
    apo_zero,
    cpo,
    discopop,
    dpo,
    exo_pair,
    hinge,
    ipo,
    nca_pair,
    orpo,
    robust_dpo,
    rpo,
    simpo,
    sppo_hard,
)

__all__ = ["PREFERENCE_METHODS", "PreferenceMethod", "PreferenceSettings"]


@dataclass(frozen=True, kw_only=True, slots=True)
class PreferenceMethod:
    """What the trainer must know of a method.

    loss: called with chosen and rejected log-probs, those of the reference and the likelihood of chosen where
        it takes them, and the options by name.
    options: name -> default, each with its source in docs/methods/preference.md.
    reference: it takes log-probs of the reference; without it no reference pass is made.
    mean: its log-probs are means over tokens, not sums.
    nll: it takes the negative log-prob of chosen per token.
    """

    loss: Callable[..., PreferenceLoss]
    options: Mapping[str, float]
    reference: bool = True
    mean: bool = False
    nll: bool = False

    @property
    def num_inputs(self) -> int:
        """Tensors that `loss` takes."""
        return 2 + 2 * self.reference + self.nll


def _cpo_with_nll(
    chosen_logps_B: Tensor, rejected_logps_B: Tensor, chosen_nll_B: Tensor, *, beta: float, alpha: float
) -> PreferenceLoss:
    """CPO as its paper trains it: the preference term plus alpha times the likelihood of chosen."""
    out = cpo(chosen_logps_B, rejected_logps_B, beta=beta)
    return out._replace(loss_B=out.loss_B + alpha * chosen_nll_B)


def _chosen_likelihood(
    chosen_logps_B: Tensor, rejected_logps_B: Tensor, chosen_nll_B: Tensor
) -> PreferenceLoss:
    """Imitation of the better answer alone; on the policy's own answers, rejection-sampling fine-tuning.

    Source: Dong et al. 2023 (RAFT, arXiv:2304.06767).
    """
    return PreferenceLoss(chosen_nll_B, chosen_logps_B.detach(), rejected_logps_B.detach())


PREFERENCE_METHODS: dict[str, PreferenceMethod] = {
    "dpo": PreferenceMethod(loss=dpo, options={"beta": 0.1, "label_smoothing": 0.0}),
    "robust_dpo": PreferenceMethod(loss=robust_dpo, options={"beta": 0.1, "flip_rate": 0.1}),
    "ipo": PreferenceMethod(loss=ipo, options={"beta": 0.1}, mean=True),
    "hinge": PreferenceMethod(loss=hinge, options={"beta": 0.1}),
    "rpo": PreferenceMethod(loss=rpo, options={"beta": 0.1, "alpha": 1.0}, nll=True),
    "apo_zero": PreferenceMethod(loss=apo_zero, options={"beta": 0.1}),
    "apo_down": PreferenceMethod(loss=apo_down, options={"beta": 0.1}),
    "discopop": PreferenceMethod(loss=discopop, options={"beta": 0.05, "tau": 0.05}),
    "exo_pair": PreferenceMethod(loss=exo_pair, options={"beta": 0.1, "label_smoothing": 1e-3}),
    "nca_pair": PreferenceMethod(loss=nca_pair, options={"beta": 0.1}),
    "sppo_hard": PreferenceMethod(loss=sppo_hard, options={"beta": 1e-3}),
    "simpo": PreferenceMethod(loss=simpo, options={"beta": 2.0, "gamma": 1.0}, reference=False, mean=True),
    "cpo": PreferenceMethod(
        loss=_cpo_with_nll, options={"beta": 0.1, "alpha": 1.0}, reference=False, nll=True
    ),
    "sft": PreferenceMethod(loss=_chosen_likelihood, options={}, reference=False, nll=True),
    "orpo": PreferenceMethod(loss=orpo, options={"weight": 0.1}, reference=False, mean=True, nll=True),
}


class PreferenceSettings(Config):
    """Settings of a method on pairs. An option left null takes the method's default; one that the method does
    not use may not be set."""

    method: str = "dpo"
    """Name of the objective: dpo, robust_dpo, ipo, hinge, rpo, apo_zero, apo_down, discopop, exo_pair,
    nca_pair, sppo_hard, simpo, cpo, sft, orpo; docs/methods/preference.md has them side by side."""
    beta: float | None = Field(None, gt=0)
    """Strength of the tie to the reference, or scale of the implied reward; all methods but orpo and sft.
    null: 0.1; 0.05 for discopop, 2 for simpo, 0.001 for sppo_hard."""
    label_smoothing: float | None = Field(None, ge=0, lt=0.5)
    """Probability that a label is flipped; dpo (null: 0, Mitchell 2023), exo_pair (null: 0.001)."""
    flip_rate: float | None = Field(None, ge=0, lt=0.5)
    """Known probability that a label is flipped, corrected for; robust_dpo (null: 0.1)."""
    alpha: float | None = Field(None, ge=0)
    """Weight of the negative log-likelihood of chosen per token; rpo, cpo (null: 1)."""
    gamma: float | None = Field(None, ge=0)
    """Margin by which the reward of chosen should be greater; simpo (null: 1)."""
    weight: float | None = Field(None, ge=0)
    """Weight of the odds ratio; orpo (null: 0.1)."""
    tau: float | None = Field(None, gt=0, le=1)
    """Width of the change from logistic to exponential loss; discopop (null: 0.05)."""
    displacement_limit: float | None = Field(None, gt=0)
    """Nats per token that chosen may fall below the reference while margins rise before the result warns;
    methods with a reference (null: 0.1)."""

    @field_validator("method")
    @classmethod
    def _known(cls, name: str) -> str:
        if name not in PREFERENCE_METHODS:
            raise ValueError(unknown("method", name, PREFERENCE_METHODS))
        return name

    @model_validator(mode="after")
    def _fitting(self) -> Self:
        method = self.record()
        for name in sorted({option for known in PREFERENCE_METHODS.values() for option in known.options}):
            if getattr(self, name) is not None and name not in method.options:
                used = ", ".join(method.options) or "no option"
                raise ValueError(
                    f"{name} is set, but {self.method} does not use it; it uses {used}; set {name} to null"
                )
        if self.displacement_limit is not None and not method.reference:
            raise ValueError(
                f"displacement_limit is set, but {self.method} has no reference to measure from; "
                "set it to null"
            )
        # The objective itself knows the ranges; better now than at the first step.
        method.loss(*[torch.full((1,), -1.0)] * method.num_inputs, **self.options())
        return self

    def record(self) -> PreferenceMethod:
        """The method's line in the table."""
        return PREFERENCE_METHODS[self.method]

    def options(self) -> dict[str, float]:
        """Every option of the method: what is set, else its default."""
        given = {name: getattr(self, name) for name in self.record().options}
        return {
            name: default if given[name] is None else given[name]
            for name, default in self.record().options.items()
        }
