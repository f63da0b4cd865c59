"""What the two tasks of weak-to-strong share: who learns, from what, and where it is kept."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Generic, NamedTuple, Protocol, TypeVar

from trueward.core.errors import ConfigError
from trueward.core.seed import derive_seed
from trueward.data.records import Comparison, Demonstration
from trueward.models.load import LoadedModel, load_causal
from trueward.models.scratch import new_llama
from trueward.pipeline.recipe import SupervisorSection
from trueward.pipeline.training import settings_of
from trueward.pipeline.workspace import Begun, Workspace
from trueward.trainers.settings import TrainSettings
from trueward.trainers.weak_to_strong import WeakToStrongSettings

__all__ = ["Learner", "Lesson", "WeakTask", "learner_of", "student_of"]

Item = TypeVar("Item", Comparison, Demonstration)
Label = TypeVar("Label", float, str)
Taught = TypeVar("Taught")
# The truth is not doubted: no weight for the learner's own label.
_IMITATE = WeakToStrongSettings(alpha=0.0)


class Lesson(NamedTuple, Generic[Item, Label]):
    """Records with what a supervisor, or the truth, says of each; `left_out` have no label of use."""

    items: list[Item]
    labels: list[Label]
    left_out: int = 0


class Learner(NamedTuple):
    """Who learns: a model before its training, or a bag of words (None)."""

    name: str
    loaded: LoadedModel | None
    train: TrainSettings
    confidence: WeakToStrongSettings
    begun: Begun

    @property
    def folder(self) -> Path:
        """Of the training; what it has done of it is not done again."""
        return self.begun.folder.path / "trainings" / self.name


class WeakTask(Protocol[Item, Label, Taught]):
    """A task that one model can teach another; `Taught` is what a learner has become."""

    known: Lesson[Item, Label]
    """What the first supervisor learns the truth of."""
    rest: Lesson[Item, Label]
    """What is labelled by supervisors; its true labels teach the ceiling alone."""
    left_out: int
    """Records, held-out ones too, in which there is no right and wrong."""
    measured_by: str
    """What an outcome is, in words."""

    def learn(self, learner: Learner, lesson: Lesson[Item, Label]) -> Taught: ...
    def label(self, taught: Taught, items: Sequence[Item]) -> Lesson[Item, Label]: ...
    def right(self, lesson: Lesson[Item, Label]) -> float | None:
        """Share of labels that are right, where that can be said."""
        ...

    def outcomes(self, taught: Taught) -> Mapping[str, float]:
        """Id of a held-out item -> how right the learner is on it."""
        ...

    def save(self, taught: Taught, made_from: dict[str, str]) -> str:
        """Save a student; the hash of its model."""
        ...


def learner_of(
    workspace: Workspace, begun: Begun, link: SupervisorSection, number: int, base: LoadedModel
) -> Learner:
    """A supervisor of the chain before its training.

    Args:
        number: its place in the chain, from 1; the first learns the truth and doubts nothing.

    Raises:
        ConfigError: a bag of words behind the first place.
    """
    section = workspace.recipe.weak_to_strong
    name = f"{number}-{link.kind}"
    seed = derive_seed(workspace.seed("weak_to_strong"), name)
    loaded: LoadedModel | None = None
    if link.path is not None:
        loaded = load_causal(link.path, dtype="float32", device=workspace.device)
    elif link.shape is not None:
        shape = link.shape.model_copy(update={"seed": derive_seed(seed, "shape") % 2**31})
        model = new_llama(base.tokenizer, shape).to(workspace.device)  # type: ignore[arg-type]
        loaded = replace(base, model=model.eval(), path="from scratch", commit="", hash="")
    elif number > 1:
        raise ConfigError(
            "a bag of words can only be the first of the chain: labels cannot make it better",
            value=f"place {number}",
            remedy="give the later ones a path or a shape",
        )
    settings = settings_of(workspace, "weak_to_strong", section.supervisor)
    confidence = _IMITATE if number == 1 else section.objective
    return Learner(name, loaded, settings.model_copy(update={"seed": seed}), confidence, begun)


def student_of(workspace: Workspace, begun: Begun, *, ceiling: bool, adapters: bool) -> Learner:
    """The strong model before its training on labels of the chain, or on the truth.

    Both begin with the same weights and see the items in the same order.
    """
    section = workspace.recipe.weak_to_strong
    loaded = workspace.load_to_train("base", adapters=adapters)
    settings = settings_of(workspace, "weak_to_strong", section.train)
    if ceiling:
        return Learner("ceiling", loaded, settings, _IMITATE, begun)
    return Learner("student", loaded, settings, section.objective, begun)
