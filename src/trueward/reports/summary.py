"""The summary a report is drawn from: `summary.json` of a run, schema trueward.summary/1, validated.

What a part that is None or empty means is always the same: it was not measured, and the report says so.
"""

import graphlib
from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self

from pydantic import ConfigDict, Field, model_validator

from trueward.core.config import Config, build
from trueward.core.errors import ConfigError, EvidenceError
from trueward.registry import CriterionResult

__all__ = [
    "Baseline",
    "BestOfN",
    "Bin",
    "CategoryRate",
    "CharterName",
    "ChosenOfN",
    "Curves",
    "DpoPoint",
    "Figure",
    "Gate",
    "JudgedSteps",
    "LineageGraph",
    "LookPoint",
    "PpoPoint",
    "Refusal",
    "RewardModel",
    "Sample",
    "SolutionJudge",
    "StageSummary",
    "Summary",
    "WinCell",
    "read_summary",
    "visible",
]

Finite = Annotated[float, Field(allow_inf_nan=False)]


class Figure(Config):
    """A number with its 95 % interval and the items behind it."""

    value: Finite
    low: Finite
    high: Finite
    n: int = Field(ge=0)


class CategoryRate(Figure):
    """How often one category of request is refused."""

    category: str
    kind: Literal["harmful", "benign", "wrapper"]


class Refusal(Config):
    """Refusals of one stage."""

    harmful: Figure
    benign: Figure
    by_category: tuple[CategoryRate, ...] = ()


class StageSummary(Config):
    """One stage's figures."""

    stage: str
    scores: Mapping[str, Figure]
    kl: Figure | None = None
    """Nats per completion, to the reference model."""
    win_rate: Figure | None = None
    win_against: str = "sft"
    win_judge: str = ""
    seconds: Finite
    refusal: Refusal | None = None
    capability: Figure | None = None
    extra: Mapping[str, Figure] = Field(default_factory=dict)


class Bin(Config):
    """One bar of a reliability diagram."""

    low: Finite
    high: Finite
    confidence: Finite
    accuracy: Finite
    n: int


class Baseline(Config):
    """A simple rule the reward model is compared with."""

    name: str
    accuracy: Figure


class RewardModel(Config):
    """Held-out figures of the reward model."""

    accuracy: Figure
    gold_accuracy: Figure | None = None
    ece: Finite
    invariance: Finite | None = None
    bins: tuple[Bin, ...] = ()
    baselines: tuple[Baseline, ...] = ()
    verdict: str = ""


class JudgedSteps(Config):
    """How well one judge of solutions agrees with held-out labels."""

    name: str
    accuracy: Figure
    balanced_accuracy: Figure
    auc: Figure


class SolutionJudge(Config):
    """A model that judges solutions (PRM, ORM) beside what it has to beat."""

    stage: str
    problems: int
    majority: Finite
    """Share of the more frequent label: the accuracy of a constant."""
    judges: tuple[JudgedSteps, ...]
    verdict: str


class ChosenOfN(Config):
    """What one way of choosing among n completions is worth."""

    choice: str
    n: int
    kl_bound: Finite
    value: Figure
    gain: Figure | None = None
    """Over any one completion, paired; None where the value is of another kind."""
    gain_over_vote: Figure | None = None
    """Over the vote of the same n, paired; None where there is no vote."""


class BestOfN(Config):
    """Best of n on held-out prompts."""

    on: Literal["questions", "comparisons"]
    policy: str
    prompts: int
    completions: int
    rows: tuple[ChosenOfN, ...]

    def sizes(self) -> list[int]:
        """Each n, in order."""
        return list(dict.fromkeys(row.n for row in self.rows))

    def by_choice(self) -> dict[str, list[ChosenOfN]]:
        """Way of choosing -> its rows, n by n."""
        return {
            name: [row for row in self.rows if row.choice == name]
            for name in dict.fromkeys(row.choice for row in self.rows)
        }


class PpoPoint(Config):
    """One iteration of PPO. Reward is the proxy that is optimised, gold the truth where it is known.

    Under a constraint also the mean cost, its threshold less that cost, and lambda.
    """

    step: int
    kl: Finite
    reward: Finite
    gold: Finite | None = None
    cost: Finite | None = None
    slack: Finite | None = None
    price: Finite | None = None


class DpoPoint(Config):
    """One logged step of DPO. Changes are of mean log-probability per token, in nats, since the start."""

    step: int
    margins: Finite
    chosen_per_token_change: Finite
    rejected_per_token_change: Finite


class LookPoint(Config):
    """One look at held-out data while a stage trained, beside the training figure of the same step."""

    stage: str
    step: int
    figure: Literal["loss", "reward"]
    training: Finite | None
    held_out: Finite


class Curves(Config):
    """What was logged while training."""

    ppo: tuple[PpoPoint, ...] = ()
    ppo_unbounded: tuple[PpoPoint, ...] = ()
    dpo: tuple[DpoPoint, ...] = ()
    looks: tuple[LookPoint, ...] = ()


class WinCell(Figure):
    """How often `row` beats `column` on the same prompts."""

    row: str
    column: str
    judge: str


class Sample(Config):
    """One prompt with each stage's answer. Untrusted text."""

    prompt: str
    category: str = ""
    completions: Mapping[str, str]
    scores: Mapping[str, Finite] | None = None


class LineageNode(Config):
    """One record."""

    id: str
    kind: str
    label: str


class LineageGraph(Config):
    """Records and their edges, parent first. Without cycles, as a registry cannot hold one."""

    nodes: tuple[LineageNode, ...] = ()
    edges: tuple[tuple[str, str], ...] = ()

    @model_validator(mode="after")
    def _acyclic(self) -> Self:
        parents: dict[str, set[str]] = {node.id: set() for node in self.nodes}
        if len(parents) < len(self.nodes):
            raise ValueError("two records have the same id")
        for parent, child in self.edges:
            if parent not in parents or child not in parents:
                raise ValueError(f"the edge {parent} to {child} names a record that is not listed")
            parents[child].add(parent)
        try:
            graphlib.TopologicalSorter(parents).prepare()
        except graphlib.CycleError as error:
            raise ValueError("the records form a cycle") from error
        return self


class Gate(Config):
    """The gate's verdict."""

    passed: bool
    subject: str
    criteria: tuple[CriterionResult, ...]
    release: str | None = None


class CharterName(Config):
    """Which charter was in force."""

    name: str
    hash: str


class Summary(Config):
    """Everything a report shows."""

    model_config = ConfigDict(validate_by_alias=True, serialize_by_alias=True)

    schema_: Literal["trueward.summary/1"] = Field(alias="schema")
    title: str
    kind: Literal["testbed", "real"]
    seed: int
    created: str
    charter: CharterName
    total_s: Finite
    stages: tuple[StageSummary, ...] = Field(min_length=1)
    reward_model: RewardModel | None = None
    solution_judges: tuple[SolutionJudge, ...] = ()
    best_of_n: BestOfN | None = None
    curves: Curves = Curves()
    win_matrix: tuple[WinCell, ...] = ()
    samples: tuple[Sample, ...] = ()
    lineage: LineageGraph = LineageGraph()
    gate: Gate | None = None
    notes: tuple[str, ...] = ()


def read_summary(summary: Mapping[str, Any]) -> Summary:
    """Validate a summary, and make every string in it printable.

    Raises:
        EvidenceError: a key or a value that does not fit the schema.
    """
    try:
        return build(Summary, _visible_in(dict(summary)), source="summary")
    except ConfigError as error:
        raise EvidenceError(str(error), remedy="write the summary again with this version") from error


def visible(text: str) -> str:
    """`text` with control characters, direction overrides and lone surrogates as marks; nothing is lost."""
    return "".join(c if _plain(c) else f"⟦U+{ord(c):04X}⟧" for c in text)


# C1 controls, direction overrides and isolates, lone surrogates.
_MARKED = ((0x80, 0x9F), (0x202A, 0x202E), (0x2066, 0x2069), (0xD800, 0xDFFF))


def _plain(c: str) -> bool:
    code = ord(c)
    if code < 0x20 or code == 0x7F:
        return c in "\n\t"
    return not any(first <= code <= last for first, last in _MARKED)


def _visible_in(value: Any) -> Any:
    if isinstance(value, str):
        return visible(value)
    if isinstance(value, Mapping):
        return {
            visible(key) if isinstance(key, str) else key: _visible_in(item) for key, item in value.items()
        }
    if isinstance(value, list | tuple):
        return [_visible_in(item) for item in value]
    return value
