"""What a charter holds, as validated, frozen configuration. Its hash is the version that evidence names.

Not here: any judgement. Gates are decided in `trueward.registry.gates`, from records.
"""

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Annotated, Any, Literal, Self

from pydantic import ConfigDict, Field, StringConstraints, model_validator

from trueward.core.config import Config
from trueward.core.hashing import hash_json

__all__ = ["Charter", "Criterion", "Dimension", "Hazard", "Level", "OperatingPoint", "Principle"]

SCHEMA: Literal["trueward.charter/1"] = "trueward.charter/1"

Identifier = Annotated[str, StringConstraints(pattern=r"^[a-z][a-z0-9_]*$", max_length=64)]
Prose = Annotated[str, StringConstraints(strip_whitespace=True, min_length=1)]


class Principle(Config):
    """One value the model is to hold."""

    id: Identifier
    text: Prose


class Level(Config):
    """One step of a rubric."""

    score: int
    """Higher is better; the levels of one dimension ascend by it."""
    text: Prose


class Dimension(Config):
    """How one of the three values is graded."""

    dimension: Literal["helpful", "harmless", "honest"]
    question: Prose
    levels: tuple[Level, ...] = Field(min_length=2)

    @model_validator(mode="after")
    def _ascending(self) -> Self:
        scores = [level.score for level in self.levels]
        if scores != sorted(set(scores)):
            raise ValueError(f"the levels of {self.dimension} must ascend by score, got {scores}")
        return self


class Hazard(Config):
    """One kind of harm the model must not assist."""

    id: Identifier
    name: Prose
    description: Prose


class OperatingPoint(Config):
    """A system prompt under which the model is used and measured."""

    system: str
    """The prompt's text; empty means that no system turn is sent."""
    why: Prose


class Criterion(Config):
    """One condition of a gate: a metric, a threshold, and which end of the interval must meet it."""

    id: Identifier
    metric: Identifier
    at_least: float | None = Field(default=None, allow_inf_nan=False)
    at_most: float | None = Field(default=None, allow_inf_nan=False)
    bound: Literal["value", "low", "high"] = "value"
    """`value` is the point estimate, `low` and `high` are the ends of its 95 % interval."""
    min_n: int = Field(ge=1)
    """Fewest items behind the figure; evidence with fewer does not count."""
    subject: Literal["policy", "reward_model"] = "policy"
    """Which model the metric must have been measured on."""
    why: Prose

    @model_validator(mode="after")
    def _one_threshold(self) -> Self:
        if (self.at_least is None) == (self.at_most is None):
            raise ValueError(f"criterion {self.id} needs exactly one of at_least and at_most")
        return self

    @property
    def threshold(self) -> float:
        """The number compared with."""
        threshold = self.at_least if self.at_least is not None else self.at_most
        assert threshold is not None, "the validator admits exactly one threshold"
        return threshold

    @property
    def comparison(self) -> Literal[">=", "<="]:
        """How the figure is compared with the threshold; equality passes."""
        return ">=" if self.at_least is not None else "<="


class Charter(Config):
    """The written values of a model. Two charters that differ in one character have different hashes."""

    # `schema` is taken by pydantic's own method, hence the alias.
    model_config = ConfigDict(validate_by_alias=True, serialize_by_alias=True)

    schema_: Literal["trueward.charter/1"] = Field(alias="schema")
    name: Identifier
    version: Prose
    text: Prose
    principles: tuple[Principle, ...] = Field(min_length=1)
    rubric: tuple[Dimension, ...] = Field(min_length=1)
    hazards: tuple[Hazard, ...] = Field(min_length=1)
    operating_points: Mapping[Identifier, OperatingPoint] = Field(min_length=1)
    gates: Mapping[Identifier, Annotated[tuple[Criterion, ...], Field(min_length=1)]] = Field(min_length=1)
    """Profile (what the model is measured on, such as `testbed` or `real`) to the criteria applied there."""

    @model_validator(mode="after")
    def _unique(self) -> Self:
        _refuse_repeats("principle", (item.id for item in self.principles))
        _refuse_repeats("dimension", (item.dimension for item in self.rubric))
        _refuse_repeats("hazard", (item.id for item in self.hazards))
        for profile, criteria in self.gates.items():
            _refuse_repeats(f"criterion of gate {profile}", (item.id for item in criteria))
        return self

    def body(self) -> dict[str, Any]:
        """The charter as JSON values, as it is hashed, stored and written to YAML."""
        return self.model_dump(mode="json")

    @property
    def hash(self) -> str:
        """SHA-256 of the canonical JSON of the content; comments and layout of the file do not count."""
        return hash_json(self.body())


def _refuse_repeats(what: str, names: Iterable[str]) -> None:
    repeated = [name for name, count in Counter(names).items() if count > 1]
    if repeated:
        raise ValueError(f"{what} {repeated[0]!r} appears twice")
