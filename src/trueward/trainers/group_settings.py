"""What a run of the group trainer is asked to do, and what its method's name stands for.

A method is four choices (objectives.POLICY_GRADIENT_METHODS) and the defaults beside them here; each may be
set on its own, so that a method of one's own needs no code.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Literal, Self

from pydantic import Field, field_validator, model_validator

from trueward.core.config import Config
from trueward.core.errors import unknown
from trueward.objectives import POLICY_GRADIENT_METHODS, PolicyGradientMethod
from trueward.objectives.reduce import Reduction
from trueward.trainers.settings import Precision, Schedule

__all__ = ["METHOD_DEFAULTS", "Choices", "GroupSettings", "MethodDefaults", "choices_of"]

Advantage = Literal["group_mean", "group_std", "leave_one_out", "reinforce_plus_plus"]


@dataclass(frozen=True, kw_only=True, slots=True)
class MethodDefaults:
    """Hyper-parameters that belong to a method, where a recipe says nothing else.

    overlong_share: length of the overlong buffer as a share of max_new_tokens.
    """

    clip_low: float | None = 0.2
    clip_high: float | None = 0.2
    dynamic_sampling: bool = False
    overlong_share: float = 0.0


METHOD_DEFAULTS: Mapping[str, MethodDefaults] = MappingProxyType(
    {
        "rloo": MethodDefaults(clip_low=None, clip_high=None),
        "reinforce_plus_plus": MethodDefaults(),
        "grpo": MethodDefaults(),
        "dr_grpo": MethodDefaults(),
        # Yu et al. 2025, section 4.1: clip-higher 0.28, a buffer of 4,096 of 20,480 tokens.
        "dapo": MethodDefaults(clip_high=0.28, dynamic_sampling=True, overlong_share=0.2),
        "bnpo": MethodDefaults(),
        # Zheng et al. 2025, section 5.1.
        "gspo": MethodDefaults(clip_low=3e-4, clip_high=4e-4),
        # No lower bound, as in MiniMax 2025, section 3.1; a weight of at most 5, as in Khatri et al. 2025.
        "cispo": MethodDefaults(clip_low=1.0, clip_high=4.0),
    }
)


class GroupSettings(Config):
    """Settings of one run of the group trainer. Null is the method's own choice."""

    method: str = "grpo"
    """One of grpo, dr_grpo, dapo, bnpo, gspo, cispo, rloo, reinforce_plus_plus."""
    ratio_level: Literal["token", "sequence"] | None = None
    """Ratio of each token, or one of the whole completion."""
    clip: Literal["none", "surrogate", "weight"] | None = None
    """Form of the clip: none (REINFORCE), PPO's surrogate, or the clipped weight of CISPO."""
    reduction: Reduction | None = None
    """How losses of tokens become one number."""
    advantage: Advantage | None = None
    """What a score is compared with."""
    clip_low: float | None = Field(None, ge=0, le=1)
    """The ratio is clipped below 1 - clip_low."""
    clip_high: float | None = Field(None, ge=0)
    """The ratio is clipped above 1 + clip_high."""
    dual_clip: float | None = Field(None, gt=1)
    """Largest ratio that counts where the advantage is negative (Ye et al. 2020); null has no bound there."""
    iterations: int = Field(50, ge=1)
    """Rounds of sampling and updating."""
    prompts_per_iteration: int = Field(32, ge=1)
    """Prompts (groups) of a round."""
    completions_per_prompt: int = Field(8, ge=1)
    """Completions of each (the group); they share the computation of their prompt."""
    max_new_tokens: int = Field(256, ge=1)
    """Longest completion, tokens."""
    temperature: float = Field(1.0, gt=0)
    """Of sampling. All log-probs and KL are those at this temperature."""
    epochs: int = Field(1, ge=1)
    """Passes over the completions of a round."""
    minibatches: int = Field(1, ge=1)
    """Optimizer steps per pass; a group stays together."""
    dynamic_sampling: bool | None = None
    """Leave out groups whose scores are all equal, and draw more prompts in their place (DAPO)."""
    max_draws: int = Field(4, ge=1)
    """Batches of prompts that dynamic sampling draws at most in a round; it trains on what it has by then."""
    overlong_buffer: int | None = Field(None, ge=0)
    """Last tokens before the limit over which the score falls linearly by `overlong_penalty` (DAPO, eq. 13);
    0: none."""
    overlong_penalty: float = Field(1.0, ge=0)
    """Taken off the score of a completion that fills the limit, reward units."""
    kl_coef: float = Field(0.0, ge=0)
    """Price of a nat of KL to the reference: reward units in the reward, loss units per token in the loss."""
    kl_in: Literal["loss", "reward"] = "loss"
    """Where the KL is paid."""
    kl_estimator: Literal["k1", "k2", "k3"] | None = None
    """Null is k3 in the loss (Shao et al. 2024, eq. 4) and k1 in the reward."""
    reference: bool = True
    """Score the completions under the reference, too; false saves that, and then no KL is known."""
    importance: Literal["none", "truncate", "mask"] = "none"
    """Weights trainer / sampler for completions that another program drew: truncated at, or masked outside
    of, the bounds."""
    importance_level: Literal["token", "sequence"] = "token"
    """Ratio of each token, or of the whole completion."""
    importance_low: float = Field(0.5, ge=0, le=1)
    """Smallest ratio that `mask` keeps."""
    importance_high: float = Field(2.0, ge=1)
    """Largest ratio that `mask` keeps, and the cap of `truncate`."""
    max_sampler_gap: float = Field(0.02, gt=0)
    """Largest allowed |sampler - trainer| token log-prob, nats; another engine or bfloat16 needs more, and
    `importance`."""
    max_error_share: float = Field(0.2, ge=0, le=1)
    """Largest share of completions of a round that the verifier has no score for."""
    max_idle: int = Field(10, ge=1)
    """Rounds in a row without anything to learn from (all scores of every group equal) that end the run."""
    lr: float = Field(1e-6, gt=0)
    """Peak learning rate. 1e-6 suits full tuning of pretrained models above 1B parameters; small ones want
    more."""
    schedule: Schedule = "constant"
    """Shape of the learning rate over all optimizer steps of the run."""
    warmup_ratio: float = Field(0.0, ge=0, lt=1)
    """Share of the optimizer steps over which the learning rate rises linearly."""
    weight_decay: float = Field(0.0, ge=0)
    """Decoupled decay (AdamW) of tensors with two axes or more."""
    adam_beta1: float = Field(0.9, ge=0, lt=1)
    """Decay of AdamW's first moment."""
    adam_beta2: float = Field(0.99, ge=0, lt=1)
    """Decay of AdamW's second moment."""
    adam_eps: float = Field(1e-8, gt=0)
    """AdamW's epsilon."""
    first_moment: Precision = "float32"
    """Precision of AdamW's first moment of matrices; bfloat16 saves 2 bytes a trained weight."""
    max_grad_norm: float = Field(1.0, ge=0)
    """Largest gradient norm; 0 never scales."""
    max_tokens_per_forward: int = Field(16384, ge=1)
    """Real tokens in one forward pass; decides memory and speed."""
    precision: Precision = "float32"
    """Arithmetic of the forward pass; weights and log-probs stay float32."""
    activation_checkpointing: bool = False
    """Compute activations twice to hold fewer."""
    save_every: int = Field(10, ge=1)
    """Iterations between checkpoints."""
    keep_checkpoints: int = Field(2, ge=1)
    """Newest checkpoints kept."""
    eval_every: int = Field(0, ge=0)
    """Iterations between evaluations; 0 evaluates at the end only."""
    samples_every: int = Field(5, ge=1)
    """Iterations between rows of group_samples.jsonl."""
    max_skips: int = Field(3, ge=0)
    """Optimizer steps that are not finite that a run survives."""
    track: tuple[Literal["tensorboard", "wandb", "trackio"], ...] = ()
    """Trackers that get the metrics beside metrics.jsonl."""
    seed: int = Field(0, ge=0)
    """Seed of the order of prompts, of sampling and of minibatches."""

    @field_validator("method")
    @classmethod
    def _known(cls, name: str) -> str:
        if name not in POLICY_GRADIENT_METHODS:
            raise ValueError(unknown("method", name, POLICY_GRADIENT_METHODS))
        return name

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.minibatches > self.prompts_per_iteration:
            raise ValueError(
                f"minibatches ({self.minibatches}) must not exceed prompts_per_iteration "
                f"({self.prompts_per_iteration}): a prompt's completions stay together"
            )
        _check_group(self)
        _check_kl(self)
        return self

    @property
    def num_updates(self) -> int:
        """Optimizer steps of the whole run."""
        return self.iterations * self.epochs * self.minibatches

    @property
    def scored_by_update(self) -> bool:
        """Whether the policy that sampled is scored by the update's own forward: a round has one optimizer
        step, and nothing before it asks for log-probs (KL in the reward, or importance weights)."""
        asked = self.kl_in == "reward" or self.importance != "none"
        return self.epochs * self.minibatches == 1 and not asked


@dataclass(frozen=True, kw_only=True, slots=True)
class Choices:
    """A method with every choice made."""

    method: PolicyGradientMethod
    clip_low: float | None
    clip_high: float | None
    dual_clip: float | None
    dynamic_sampling: bool
    overlong_buffer: int
    kl_estimator: str


def choices_of(settings: GroupSettings) -> Choices:
    """The method's choices with those of the settings in their place."""
    given = {
        name: value
        for name in ("ratio_level", "clip", "reduction", "advantage")
        if (value := getattr(settings, name)) is not None
    }
    method = replace(POLICY_GRADIENT_METHODS[settings.method], **given)
    usual = METHOD_DEFAULTS[settings.method]
    clips = {"clip_low": settings.clip_low, "clip_high": settings.clip_high}
    if method.clip != "none":
        # A method without a clip has no range; with one put in its place, it takes that of PPO.
        clips = {
            "clip_low": _first(settings.clip_low, usual.clip_low, 0.2),
            "clip_high": _first(settings.clip_high, usual.clip_high, 0.2),
        }
    buffer = settings.overlong_buffer
    dynamic = settings.dynamic_sampling
    return Choices(
        method=method,
        **clips,
        dual_clip=settings.dual_clip,
        dynamic_sampling=usual.dynamic_sampling if dynamic is None else dynamic,
        overlong_buffer=round(usual.overlong_share * settings.max_new_tokens) if buffer is None else buffer,
        kl_estimator=settings.kl_estimator or ("k3" if settings.kl_in == "loss" else "k1"),
    )


def _first(*values: float | None) -> float | None:
    return next((value for value in values if value is not None), None)


def _check_group(settings: GroupSettings) -> None:
    chosen = choices_of(settings)
    if settings.completions_per_prompt < 2 and chosen.method.advantage != "reinforce_plus_plus":
        raise ValueError(
            f"completions_per_prompt is {settings.completions_per_prompt}: in a group of one nothing can be "
            f"compared, and advantage {chosen.method.advantage!r} needs at least 2"
        )
    if chosen.method.clip == "none" and (settings.clip_low is not None or settings.clip_high is not None):
        raise ValueError(f"method {settings.method!r} has no clip; leave clip_low and clip_high out")
    if settings.dual_clip is not None and chosen.method.clip != "surrogate":
        raise ValueError(f"dual_clip belongs to clip 'surrogate', not to {chosen.method.clip!r}")
    if chosen.overlong_buffer > settings.max_new_tokens:
        raise ValueError(
            f"overlong_buffer ({chosen.overlong_buffer}) is longer than max_new_tokens "
            f"({settings.max_new_tokens})"
        )


def _check_kl(settings: GroupSettings) -> None:
    if settings.kl_coef > 0 and not settings.reference:
        raise ValueError("kl_coef needs the reference; set reference: true, or kl_coef: 0")
    if settings.kl_in == "loss" and settings.kl_estimator == "k1":
        raise ValueError("k1 in the loss has no gradient in expectation; use k2 or k3, or kl_in: reward")
