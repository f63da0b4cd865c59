"""What a training run is asked to do, for every trainer that walks over a fixed list of items (SFT, reward,
DPO).

PPO has its own (see ppo_settings), because it makes its items as it goes.
"""

from typing import Literal, Protocol, Self

from pydantic import Field, model_validator

from trueward.core.config import Config

__all__ = ["OptimSettings", "Precision", "Schedule", "TrainSettings"]

Schedule = Literal["constant", "linear", "cosine"]
Precision = Literal["float32", "bfloat16"]


class OptimSettings(Protocol):
    """The fields that `optim` reads; `TrainSettings` and `PPOSettings` both have them."""

    @property
    def lr(self) -> float: ...
    @property
    def schedule(self) -> Schedule: ...
    @property
    def warmup_ratio(self) -> float: ...
    @property
    def weight_decay(self) -> float: ...
    @property
    def adam_beta1(self) -> float: ...
    @property
    def adam_beta2(self) -> float: ...
    @property
    def adam_eps(self) -> float: ...
    @property
    def first_moment(self) -> Precision: ...
    @property
    def max_grad_norm(self) -> float: ...
    @property
    def precision(self) -> Precision: ...


class TrainSettings(Config):
    """Settings of one run over a list of items."""

    lr: float = Field(2e-5, gt=0)
    """Peak learning rate. 2e-5 suits full tuning of pretrained models above 100M parameters; small ones want
    more."""
    batch_size: int = Field(32, ge=1)
    """Items (demonstrations, pairs, windows) per optimizer step, over all micro-batches."""
    steps: int | None = Field(None, ge=1)
    """Optimizer steps; exclusive with `epochs`."""
    epochs: float | None = Field(None, gt=0)
    """Passes over the items; exclusive with `steps`. With neither given, one pass."""
    max_tokens_per_forward: int = Field(16384, ge=1)
    """Real tokens in one forward pass. It decides memory and speed, never the result: gradients are
    accumulated."""
    schedule: Schedule = "cosine"
    """Shape of the learning rate after warm-up: constant, or down to 0 linearly or along a half cosine."""
    warmup_ratio: float = Field(0.03, ge=0, lt=1)
    """Share of the steps over which the learning rate rises linearly (Llama 2 and the Alpaca recipe:
    0.03)."""
    weight_decay: float = Field(0.0, ge=0)
    """Decoupled decay (AdamW) of tensors with two axes or more; norms and biases never decay."""
    adam_beta1: float = Field(0.9, ge=0, lt=1)
    """Decay of AdamW's first moment (Kingma & Ba 2015)."""
    adam_beta2: float = Field(0.999, ge=0, lt=1)
    """Decay of AdamW's second moment (Kingma & Ba 2015); 0.95 is usual for pretraining."""
    adam_eps: float = Field(1e-8, gt=0)
    """AdamW's epsilon (Kingma & Ba 2015)."""
    first_moment: Precision = "float32"
    """Precision in which AdamW's first moment of matrices is kept from step to step. bfloat16 saves 2 bytes a
    trained weight and rounds the moment by at most 0.4 %."""
    max_grad_norm: float = Field(1.0, ge=0)
    """Largest gradient norm, longer gradients are scaled down (Pascanu et al. 2013); 0 never scales."""
    precision: Precision = "float32"
    """Arithmetic of the forward pass. Weights and log-probs stay float32 in both."""
    activation_checkpointing: bool = False
    """Compute activations twice to hold fewer: less memory, about a third more time."""
    save_every: int = Field(200, ge=1)
    """Steps between checkpoints; a killed run loses at most so many. The last step is always saved."""
    keep_checkpoints: int = Field(2, ge=1)
    """Newest checkpoints kept; older ones are deleted once a newer one is safe."""
    eval_every: int = Field(0, ge=0)
    """Steps between looks at the first 128 held-out items, as `eval/...` in metrics.jsonl; 0 looks only when
    the stage ends, and then at all of them."""
    log_every: int = Field(1, ge=1)
    """Steps between lines of metrics.jsonl; the last step is always logged."""
    max_skips: int = Field(3, ge=0)
    """Steps with a loss or gradient that is not finite that a run survives; one more stops it."""
    track: tuple[Literal["tensorboard", "wandb", "trackio"], ...] = ()
    """Trackers that get the metrics beside metrics.jsonl."""
    seed: int = Field(0, ge=0)
    """Seed of the order of the items and of dropout."""

    @model_validator(mode="after")
    def _one_length(self) -> Self:
        if self.steps is not None and self.epochs is not None:
            raise ValueError(
                f"steps ({self.steps}) and epochs ({self.epochs}) exclude each other; set one to null"
            )
        return self
