"""The recipe: all that a run is asked to do, in one nested file. Defaults live here or with their owner."""

from pathlib import Path
from typing import Literal, Self, get_args

from pydantic import Field, model_validator

from trueward.core.config import Config
from trueward.models.lora import LoraSettings
from trueward.models.scratch import ScratchSettings
from trueward.pipeline.recipe_inputs import (
    DataSection,
    EvalSection,
    ModelSection,
    PretrainSection,
    TestbedSection,
)
from trueward.rewards import VerifierSettings
from trueward.trainers.distill import DistillSettings
from trueward.trainers.group_settings import GroupSettings
from trueward.trainers.ppo_settings import PPOSettings
from trueward.trainers.preference import PreferenceSettings
from trueward.trainers.process import ProcessSettings
from trueward.trainers.reward import RewardSettings
from trueward.trainers.settings import TrainSettings
from trueward.trainers.step_rollouts import RolloutSettings
from trueward.trainers.unpaired import UnpairedSettings
from trueward.trainers.weak_to_strong import WeakToStrongSettings

__all__ = [
    "STAGES",
    "BestOfNSection",
    "DPOSection",
    "DataSection",
    "DistillSection",
    "EvalSection",
    "GRPOSection",
    "KTOSection",
    "ModelSection",
    "ORMSection",
    "OnlineSection",
    "PPOSection",
    "PRMSection",
    "Policy",
    "PretrainSection",
    "QuestionsSection",
    "Recipe",
    "RewardPartSection",
    "RewardSection",
    "RewardSumSection",
    "SFTSection",
    "Stage",
    "StepsSection",
    "SupervisorSection",
    "TestbedSection",
    "WeakToStrongSection",
]

Stage = Literal[
    "data",
    "sft",
    "reward",
    "dpo",
    "kto",
    "ppo",
    "grpo",
    "distill",
    "weak_to_strong",
    "prm",
    "orm",
    "best_of_n",
    "eval",
    "gate",
    "report",
]
STAGES: tuple[Stage, ...] = get_args(Stage)
Policy = Literal["base", "sft", "dpo", "kto", "ppo", "grpo", "distill"]
# Labels of single answers or of steps, verifiable answers and a teacher are not at everybody's hand.
_USUAL_STAGES: tuple[Stage, ...] = ("data", "sft", "reward", "dpo", "ppo", "eval", "gate", "report")


class SFTSection(Config):
    """Supervised fine-tuning."""

    train: TrainSettings = TrainSettings()
    train_on: Literal["last", "all"] = "last"
    """Train on the last assistant turn, or on all of them."""


class RewardSection(Config):
    """The reward model."""

    train: TrainSettings = TrainSettings()
    objective: RewardSettings = RewardSettings()
    lora: LoraSettings | None = None
    """Train adapters and a score head on the frozen SFT model; null trains all weights."""


class RewardPartSection(Config):
    """One of several rewards that are summed: a reward model, or a verifier."""

    name: str | None = Field(None, pattern=r"^[a-z0-9][a-z0-9_-]*$")
    """Name in the metrics, as `reward/<name>`; null makes one of its place and kind."""
    model: str | None = None
    """Folder, or hub id, of a reward model with the policy's tokenizer; null, without a verifier, is the
    run's own."""
    verifier: VerifierSettings | None = None
    """A verifier of the text, in place of a model."""
    answer: str | None = None
    """Of a verifier: column that holds what is right, as `grpo.answer`; on the testbed the true one."""
    weight: float = Field(1.0, allow_inf_nan=False)
    """Factor of its score in the sum; below 0 for what is to be low."""

    @property
    def kind(self) -> str:
        """`own`, `model`, or the name of the verifier."""
        if self.verifier is not None:
            return self.verifier.name
        return "own" if self.model is None else "model"

    @model_validator(mode="after")
    def _one(self) -> Self:
        if self.verifier is not None and self.model is not None:
            raise ValueError("a part is a model or a verifier, not both")
        if self.verifier is not None and self.verifier.weight != 1:
            raise ValueError("the weight of a part stands beside its verifier, not in it")
        return self


class RewardSumSection(Config):
    """Several rewards as one, by weights that stay: sum of weight * score."""

    parts: tuple[RewardPartSection, ...] = Field(min_length=1)
    """What is summed; each is logged as `reward/<name>`, in its raw unit."""
    scale: Literal["raw", "reference"] = "raw"
    """`raw` sums scores as they are; `reference` first takes off a part's mean and divides by its standard
    deviation over answers of the SFT model to 256 training prompts, once, before training."""


class OnlineSection(Config):
    """Online (iterative) DPO on the policy's own answers: the best by the reward model against the worst.

    `dpo.train` is the length of each round.
    """

    rounds: int = Field(3, ge=1)
    """Rounds; the reference of each is the policy at its start (three: Dong et al. 2024, RLHF workflow)."""
    prompts: int | None = Field(None, ge=1)
    """Prompts of a round, each once before any comes again; null is all of the training comparisons' in every
    round."""
    completions: int = Field(8, ge=2)
    """Answers to each prompt (Dong et al. 2024: 8)."""
    max_new_tokens: int = Field(64, ge=1)
    """Longest answer; those that hit it are counted."""
    temperature: float = Field(1.0, gt=0)
    """Sampling temperature."""
    rewards: RewardSumSection | None = None
    """What scores the answers in place of the run's reward model; null is that model alone."""


class DPOSection(Config):
    """Direct preference optimisation, or another method on pairs (`objective.method`)."""

    train: TrainSettings = TrainSettings()
    objective: PreferenceSettings = PreferenceSettings()
    online: OnlineSection | None = None
    """Train in rounds on the policy's own answers, scored by the reward model, in place of the comparisons;
    null is off."""


class KTOSection(Config):
    """Preference tuning on single answers labelled desirable or not: KTO, or BCO (`objective.method`)."""

    train: TrainSettings = TrainSettings()
    objective: UnpairedSettings = UnpairedSettings()


class UnboundedSection(Config):
    """What the run without KL penalty and budget does otherwise than PPO proper."""

    iterations: int = Field(40, ge=1)
    """Rounds of sampling and updating."""
    lr: float = Field(5e-4, gt=0)
    """Learning rate: higher than is wise, so that it gets far in little time."""


class PPOSection(Config):
    """PPO with a KL budget, and beside it a run without one."""

    train: PPOSettings = PPOSettings()
    one_backbone: bool = True
    """Where the reward model is adapters (`reward.lora`): reward and reference on one frozen SFT model, which
    is the policy's own under `model.lora`. False loads the merged reward model; scores agree to rounding."""
    rewards: RewardSumSection | None = None
    """What is maximised in place of the run's reward model; null is that model alone."""
    cost_model: str | None = None
    """Under `train.constraint`: folder, or hub id, of the model whose score is the cost of a completion. It
    is made as a reward model is, of pairs whose chosen answer is the more harmful one, with the policy's
    tokenizer."""
    unbounded: UnboundedSection | None = None
    """A second run without KL penalty or budget, which shows over-optimisation; null leaves it out."""

    @model_validator(mode="after")
    def _constraint_has_a_cost(self) -> Self:
        if (self.cost_model is None) != (self.train.constraint is None):
            missing = "cost_model" if self.cost_model is None else "train.constraint"
            raise ValueError(f"train.constraint and cost_model go together, and there is no {missing}")
        return self


class GRPOSection(Config):
    """Policy gradients with groups of completions and verifiers: GRPO and its relatives."""

    train: GroupSettings = GroupSettings()
    verifiers: tuple[VerifierSettings, ...] = Field((VerifierSettings(),), min_length=1)
    """What judges a completion; the scores of several are summed by weight."""
    rewards: RewardSumSection | None = None
    """Reward models, or further verifiers, whose sum is added to that of the verifiers; null adds nothing."""
    answer: str | None = None
    """Column that holds what is right, with dots into objects (`reward_model.ground_truth`); null is the
    answer of the demonstration, and on the testbed the true one."""
    kinds: tuple[Literal["sum", "story", "list", "known"], ...] = Field(("sum",), min_length=1)
    """On the testbed: kinds of prompts to train and measure on."""


class DistillSection(Config):
    """Distillation of a teacher into the SFT model, on answers of its own."""

    teacher: str | None = None
    """Folder, or hub id, of a causal language model with the base model's tokenizer and chat template."""
    train: TrainSettings = TrainSettings()
    objective: DistillSettings = DistillSettings()


class SupervisorSection(Config):
    """One supervisor of the chain: exactly one of its keys."""

    words: bool = False
    """A bag of words: logistic regression on the words of the answers. It labels preferences only."""
    path: str | None = None
    """Folder, or hub id, of a causal language model; its tokenizer may be another."""
    shape: ScratchSettings | None = None
    """A Llama with random weights, with the base model's tokenizer."""

    @property
    def kind(self) -> str:
        """`words`, `path` or `shape`."""
        return "words" if self.words else "shape" if self.path is None else "path"

    @model_validator(mode="after")
    def _one(self) -> Self:
        if sum((self.words, self.path is not None, self.shape is not None)) != 1:
            raise ValueError("a supervisor is exactly one of words: true, path and shape")
        return self


class WeakToStrongSection(Config):
    """A strong student, the base model, from the labels of a weak supervisor or of a chain of them."""

    labels: Literal["preferences", "answers"] = "preferences"
    """What supervisors give: which of two answers is better, or answers to imitate."""
    chain: tuple[SupervisorSection, ...] = Field((SupervisorSection(words=True),), min_length=1)
    """Supervisors, the weakest first. It learns the truth of `known` records and labels the others; each
    later one is trained on these labels and labels again (bootstrapping); the last teaches the student."""
    known: int = Field(400, ge=10)
    """Records of the training split whose truth the first supervisor learns from."""
    ceiling: bool = True
    """Also train the student on the truth, which the performance gap recovered is measured against."""
    objective: WeakToStrongSettings = WeakToStrongSettings()
    """The confidence loss of later supervisors and of the student."""
    supervisor: TrainSettings = TrainSettings()
    """Training of each supervisor that is a model."""
    train: TrainSettings = TrainSettings()
    """Training of the student and of its ceiling."""
    max_new_tokens: int = Field(64, ge=1)
    """Of `answers`: the longest; those that hit it are left out and counted."""
    temperature: float = Field(0.0, ge=0)
    """Of `answers`: sampling temperature of supervisors; 0 takes the likeliest words."""


class QuestionsSection(Config):
    """Questions with verifiable answers, for labels by rollouts and best of n."""

    verifiers: tuple[VerifierSettings, ...] = Field((VerifierSettings(),), min_length=1)
    """What judges a solution; the scores of several are summed by weight."""
    right_at: float = Field(1.0, allow_inf_nan=False)
    """Score from which on a solution is right."""
    answer: str | None = None
    """Column that holds what is right, with dots into objects (`reward_model.ground_truth`); null is the
    answer of the demonstration, and on the testbed the true one."""
    kinds: tuple[Literal["sum", "story", "list", "known"], ...] = Field(("sum",), min_length=1)
    """On the testbed: kinds of prompts to ask."""


class StepsSection(Config):
    """Solutions in steps: where those that PRM and ORM learn from come from."""

    labels: Literal["files", "rollouts"] | None = None
    """`files`: solutions with a label a step in the data (PRM800K, TRL's stepwise rows), for an ORM answers
    labelled right or wrong. `rollouts`: the policy's own solutions of `questions`, tried out step by step.
    Null is files where the data holds such labels, else rollouts."""
    rollouts: RolloutSettings = RolloutSettings()
    policy: Policy | None = None
    """Stage whose model draws; null is the SFT model where the run has one, else the base."""
    train_questions: int | None = Field(None, ge=1)
    """Questions of the training split to draw solutions of; null is all."""
    test_questions: int | None = Field(100, ge=1)
    """Questions of the test split, labelled to judge by; null is all."""
    end: str | None = Field(None, min_length=1)
    """Text that ends a step of a solution that is cut into steps here; null is a newline, and on the testbed
    the end of a sentence."""
    max_dropped: float = Field(0.5, ge=0, le=1)
    """Largest share of solutions that are too long or cannot be tokenised; above it the stage stops."""


class PRMSection(Config):
    """A process reward model: whether each step of a solution is right."""

    start: Policy | None = None
    """Stage whose model lends the backbone; null is the SFT model where the run has one, else the base."""
    train: TrainSettings = TrainSettings()
    objective: ProcessSettings = ProcessSettings()


class ORMSection(Config):
    """An outcome reward model: whether a solution as a whole is right."""

    start: Policy | None = None
    """Stage whose model lends the backbone; null is the SFT model where the run has one, else the base."""
    train: TrainSettings = TrainSettings()


class BestOfNSection(Config):
    """Best of n: choosing among several completions of each held-out prompt."""

    on: Literal["questions", "comparisons"] | None = None
    """`questions` with verifiable answers, chosen among by PRM, ORM, reward model and votes; prompts of
    `comparisons`, by the reward model. Null is comparisons where the files hold some, else questions."""
    policy: Policy | None = None
    """Stage whose model answers; null is the SFT model where the run has one, else the base."""
    completions: int = Field(16, ge=1)
    """Completions of each prompt; every n is measured on subsets of them."""
    sizes: tuple[int, ...] = Field((1, 2, 4, 8, 16), min_length=1)
    """Each n to measure, from 1 to `completions`."""
    max_new_tokens: int = Field(256, ge=1)
    """Longest completion; those that hit it are counted."""
    temperature: float = Field(1.0, gt=0)
    """Sampling temperature."""

    @model_validator(mode="after")
    def _sizes_fit(self) -> Self:
        wrong = [n for n in self.sizes if not 1 <= n <= self.completions]
        if wrong:
            raise ValueError(f"sizes must lie between 1 and completions ({self.completions}), got {wrong[0]}")
        return self


class Recipe(Config):
    """One whole run."""

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9_-]*$")
    seed: int = Field(0, ge=0)
    """The one seed; every stage derives its own from it."""
    out: Path
    """Folder of the run."""
    charter: Path | None = None
    """Charter file; null is the one that ships."""
    operating_point: str | None = None
    """Operating point of the charter: its system prompt goes in front of every prompt that has no system turn
    of its own, in training and evaluation; null sends none."""
    profile: Literal["testbed", "real"] = "real"
    """Which of the charter's gates applies."""
    release: Literal["sft", "dpo", "kto", "ppo", "grpo", "distill", "best"] = "best"
    """Which stage is brought before the gate; `best` is whichever trained policy beats SFT most often."""
    stages: tuple[Stage, ...] = _USUAL_STAGES
    """Stages to run, in this order; all but kto, grpo, distill, weak_to_strong, prm, orm and best_of_n if
    nothing is said."""
    track: tuple[Literal["tensorboard", "wandb", "trackio"], ...] = ()
    """Trackers that get the metrics of every stage beside its metrics.jsonl."""
    model: ModelSection = ModelSection()
    data: DataSection = DataSection()
    testbed: TestbedSection = TestbedSection()
    pretrain: PretrainSection = PretrainSection()
    sft: SFTSection = SFTSection()
    reward: RewardSection = RewardSection()
    dpo: DPOSection = DPOSection()
    kto: KTOSection = KTOSection()
    ppo: PPOSection = PPOSection()
    grpo: GRPOSection = GRPOSection()
    distill: DistillSection = DistillSection()
    weak_to_strong: WeakToStrongSection = WeakToStrongSection()
    questions: QuestionsSection = QuestionsSection()
    steps: StepsSection = StepsSection()
    prm: PRMSection = PRMSection()
    orm: ORMSection = ORMSection()
    best_of_n: BestOfNSection = BestOfNSection()
    eval: EvalSection = EvalSection()

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if list(self.stages) != [stage for stage in STAGES if stage in self.stages]:
            raise ValueError(f"stages must be some of {', '.join(STAGES)}, in this order, each once")
        return self
