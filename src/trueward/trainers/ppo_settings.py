"""What a PPO run is asked to do. Defaults for language: no discount, reward at the end, KL to ref in the
reward."""

from typing import Literal, Self

from pydantic import Field, model_validator

from trueward.core.config import Config
from trueward.trainers.settings import Precision, Schedule

__all__ = ["ConstraintSettings", "PPOSettings"]


class ConstraintSettings(Config):
    """An upper bound on the mean cost of completions (Safe RLHF: Dai et al. 2023)."""

    threshold: float = 0.0
    """Largest mean cost that is allowed, in units of the cost model (whose 0 divides harmful from harmless in
    Dai et al. 2023)."""
    init_lambda: float = Field(1.0, gt=0)
    """First price of a unit of cost, in units of reward (Dai et al. 2023, released code)."""
    lambda_lr: float = Field(0.1, gt=0)
    """Step size of log lambda per iteration (Dai et al. 2023, released code)."""
    max_lambda: float | None = Field(None, gt=0)
    """Highest price; null has no limit."""

    @model_validator(mode="after")
    def _starts_within_its_bound(self) -> Self:
        if self.max_lambda is not None and self.init_lambda > self.max_lambda:
            raise ValueError(
                f"init_lambda ({self.init_lambda}) must not exceed max_lambda ({self.max_lambda})"
            )
        return self


class PPOSettings(Config):
    """Settings of one PPO run."""

    iterations: int = Field(40, ge=1)
    """Rounds of sampling and updating."""
    prompts_per_iteration: int = Field(256, ge=1)
    """Prompts of a round."""
    completions_per_prompt: int = Field(1, ge=1)
    """Completions of each; they share the computation of their prompt."""
    max_new_tokens: int = Field(64, ge=1)
    """Longest completion, tokens."""
    temperature: float = Field(1.0, gt=0)
    """Of sampling. All log-probs and KL are those at this temperature; 1 is the policy as it will be used."""
    epochs: int = Field(2, ge=1)
    """Passes over the completions of a round."""
    minibatches: int = Field(4, ge=1)
    """Optimizer steps per pass."""
    clip: float = Field(0.2, gt=0, lt=1)
    """Range of the ratio (Schulman et al. 2017, section 6.1)."""
    value_clip: float | None = Field(0.2, gt=0)
    """Range of a value's move per round, reward units; null does not clip (see objectives.ppo_value)."""
    value_coef: float = Field(0.1, ge=0)
    """Weight of the value loss (Ziegler et al. 2019, released code)."""
    value_lr_scale: float = Field(10.0, gt=0)
    """Learning rate of the value head over `lr`: the head starts at 0, and the trunk gets no gradient of the
    values before the head has grown."""
    value_backbone: Literal["shared", "separate"] = "shared"
    """Value head on the policy's own trunk, or on one of its own that begins as the reward model (Ouyang et
    al. 2022, appendix C): better values from the first rounds on, for twice the memory."""
    ptx_coef: float = Field(0.0, ge=0)
    """Weight of the negative log-likelihood of demonstrations in each optimizer step, both terms means over
    tokens; 0 is plain PPO (PPO-ptx: Ouyang et al. 2022, eq. 2)."""
    ptx_batch_size: int = Field(32, ge=1)
    """Demonstrations of an optimizer step, where `ptx_coef` is above 0."""
    constraint: ConstraintSettings | None = None
    """Maximise the reward under a bound on the cost (Safe RLHF); null has no cost."""
    gamma: float = Field(1.0, ge=0, le=1)
    """Discount per token."""
    lam: float = Field(0.95, ge=0, le=1)
    """GAE's lambda (Schulman et al. 2016)."""
    whiten_advantages: bool = True
    """Scale the advantages of a round to mean 0 and deviation 1."""
    whiten_rewards: bool = False
    """Scale the token rewards of a round to deviation 1, mean kept."""
    missing_eos_penalty: float = Field(0.0, ge=0)
    """Taken off the score of a completion that ran into the length limit, reward units."""
    kl_coef: float = Field(0.05, ge=0)
    """Price of a nat of KL to the reference, reward units; the first one under the adaptive controller."""
    kl_controller: Literal["fixed", "adaptive"] = "fixed"
    """Adaptive: the price follows the KL towards `kl_target` (Ziegler et al. 2019, section 2.2)."""
    kl_target: float = Field(6.0, gt=0)
    """Nats per completion that the adaptive controller aims at (Ziegler et al. 2019, released code)."""
    kl_horizon: float = Field(10000.0, gt=0)
    """Completions over which the adaptive controller acts (Ziegler et al. 2019, released code)."""
    kl_budget: float | None = Field(None, gt=0)
    """Stop rule, nats per completion (k3): the run ends with the last policy measured at or below it. Null:
    none."""
    max_sampler_gap: float = Field(0.02, gt=0)
    """Largest allowed |sampler - trainer| token log-prob, nats. Float32 stays below 0.001; bfloat16 needs
    0.5."""
    lr: float = Field(1e-5, gt=0)
    """Peak learning rate. Pretrained models above 100M parameters want 1e-6 to 1e-5, small ones more."""
    schedule: Schedule = "constant"
    """Shape of the learning rate over all optimizer steps of the run."""
    warmup_ratio: float = Field(0.0, ge=0, lt=1)
    """Share of the optimizer steps over which the learning rate rises linearly."""
    weight_decay: float = Field(0.0, ge=0)
    """Decoupled decay (AdamW) of tensors with two axes or more."""
    adam_beta1: float = Field(0.9, ge=0, lt=1)
    """Decay of AdamW's first moment."""
    adam_beta2: float = Field(0.95, ge=0, lt=1)
    """Decay of AdamW's second moment (Stiennon et al. 2020 and later code)."""
    adam_eps: float = Field(1e-5, gt=0)
    """AdamW's epsilon (Huang et al. 2022, "The 37 Implementation Details of PPO", 3)."""
    first_moment: Precision = "float32"
    """Precision of AdamW's first moment of matrices; bfloat16 saves 2 bytes a trained weight."""
    max_grad_norm: float = Field(1.0, ge=0)
    """Largest gradient norm; 0 never scales."""
    max_tokens_per_forward: int = Field(16384, ge=1)
    """Real tokens in one forward pass; decides memory and speed."""
    precision: Precision = "float32"
    """Arithmetic of the forward pass; weights, values and log-probs stay float32."""
    activation_checkpointing: bool = False
    """Compute activations twice to hold fewer."""
    save_every: int = Field(10, ge=1)
    """Iterations between checkpoints."""
    keep_checkpoints: int = Field(2, ge=1)
    """Newest checkpoints kept."""
    eval_every: int = Field(0, ge=0)
    """Iterations between looks at completions of the first 128 held-out prompts, as `eval/...` in
    metrics.jsonl; 0 leaves them to the evaluation stage."""
    tokens_every: int = Field(5, ge=1)
    """Iterations between rows of ppo_tokens.jsonl."""
    max_skips: int = Field(3, ge=0)
    """Optimizer steps that are not finite that a run survives."""
    track: tuple[Literal["tensorboard", "wandb", "trackio"], ...] = ()
    """Trackers that get the metrics beside metrics.jsonl."""
    seed: int = Field(0, ge=0)
    """Seed of the order of prompts, of sampling and of minibatches."""

    @model_validator(mode="after")
    def _minibatches_hold_prompts(self) -> Self:
        if self.minibatches > self.prompts_per_iteration:
            raise ValueError(
                f"minibatches ({self.minibatches}) must not exceed prompts_per_iteration "
                f"({self.prompts_per_iteration}): a prompt's completions stay together"
            )
        return self

    @model_validator(mode="after")
    def _cost_has_a_price_in_reward(self) -> Self:
        if self.constraint is not None and self.whiten_rewards:
            raise ValueError(
                "whiten_rewards changes the unit of the reward each iteration, and lambda is a price in that "
                "unit: leave it off under a constraint"
            )
        return self

    @property
    def num_updates(self) -> int:
        """Optimizer steps of the whole run."""
        return self.iterations * self.epochs * self.minibatches
