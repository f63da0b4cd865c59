"""The KTO stage: the SFT model on single answers labelled desirable or not, with KTO or BCO.

Labels come as they are; a comparison gives two, its better answer desirable and the other not.
"""

from collections.abc import Sequence
from typing import NamedTuple

from trueward.core.errors import DataError
from trueward.core.hashing import short
from trueward.data.chat import TokenGroup
from trueward.data.convert import as_comparison
from trueward.data.records import Comparison, Label, Record, RecordError
from trueward.models.load import LoadedModel
from trueward.pipeline.datasets import FeedbackData, asked_records, decided, pairs
from trueward.pipeline.held_out import unpaired_looks
from trueward.pipeline.training import (
    begin_stage,
    card,
    check,
    parents_of,
    save_policy,
    settings_of,
    tokenised,
    training_figures,
)
from trueward.pipeline.workspace import Workspace
from trueward.trainers.sampling import num_steps
from trueward.trainers.unpaired import (
    LabelledCompletion,
    evaluate_unpaired,
    train_unpaired,
    unpaired_examples,
)

__all__ = ["Labels", "kto", "labels_of"]


class Labels(NamedTuple):
    """Single answers with a label.

    Attributes:
        labels: in the order of the records, of a comparison the better answer first.
        compared: comparisons that gave two labels each.
        ties: comparisons without a better answer, left out.
        others: records without a label or a second answer, left out.
    """

    labels: list[Label]
    compared: int
    ties: int
    others: int

    @property
    def desirable(self) -> int:
        return sum(label.label for label in self.labels)


def labels_of(records: Sequence[Record]) -> Labels:
    """Labels as they are, and two of every comparison or ranking (best against worst)."""
    labels: list[Label] = []
    compared = ties = others = 0
    for record in records:
        if isinstance(record, Label):
            labels.append(record)
            continue
        try:
            preferences = decided([as_comparison(record)])
        except RecordError:
            others += 1
            continue
        ties += preferences.ties
        for pair in preferences.records:
            compared += 1
            labels += _split(pair)
    return Labels(labels, compared, ties, others)


def _split(pair: Comparison) -> list[Label]:
    sides = (("chosen", pair.chosen, True), ("rejected", pair.rejected, False))
    return [
        Label(id=f"{pair.id}/{side}", prompt=pair.prompt, completion=text, label=good, meta=pair.meta)
        for side, text, good in sides
    ]


def _records(workspace: Workspace) -> FeedbackData[Record]:
    """Feedback of every kind; on the testbed the comparisons of the SFT model's own replies."""
    if workspace.recipe.data.source == "files":
        return asked_records(workspace)
    found = pairs(workspace)
    return FeedbackData(found.name, found.hash, list(found.train), list(found.test), found.records)


def _labels(workspace: Workspace, records: Sequence[Record], split: str) -> list[Label]:
    """The labels of a split; where they come from and what is left out is counted and said.

    Raises:
        DataError: there is none, or all are alike.
    """
    found = labels_of(records)
    total = len(found.labels)
    if not 0 < found.desirable < total:
        what = "holds no labelled answer" if not total else f"has {total:,} labels, all of them alike"
        raise DataError(
            f"the {split} split {what}",
            value=f"{found.desirable:,} desirable, {total - found.desirable:,} undesirable",
            expected="some of both",
            remedy="give labelled answers of both sorts, or comparisons"
            + (
                "; to learn from good answers alone, use sft"
                if split == "training"
                else ", or raise data.test_share"
            ),
        )
    origin = (
        f", {2 * found.compared:,} of them from comparisons: the better answer desirable, the other not"
        if found.compared
        else ""
    )
    left_out = f"; {found.ties:,} ties and {found.others:,} records without a label are left out"
    workspace.say(
        f"KTO: {found.desirable:,} desirable and {total - found.desirable:,} undesirable answers in the "
        f"{split} split{origin}{left_out if found.ties or found.others else ''}"
    )
    return found.labels


def _labelled(groups: Sequence[TokenGroup], labels: Sequence[Label]) -> list[LabelledCompletion]:
    by_id = {label.id: label.label for label in labels}
    return [LabelledCompletion(group, by_id[group.id]) for group in groups]


def _checked(
    workspace: Workspace, policy: LoadedModel, labels: Sequence[Label], *, quiet: bool
) -> tuple[list[LabelledCompletion], dict[str, object]]:
    groups, dropped = tokenised(policy, labels, max_tokens=workspace.recipe.data.max_tokens)
    return _labelled(groups, labels), check(workspace, policy, groups, dropped, quiet=quiet)


def kto(workspace: Workspace) -> None:
    """KTO, or the method that the recipe names, of the SFT model, which is also the reference.

    Raises:
        DataError: no labels, or all of them alike.
    """
    section = workspace.recipe.kto
    policy, data = workspace.load_to_train("sft"), _records(workspace)
    parents = parents_of(workspace, policy, data)
    begun = begin_stage(workspace, "kto", section.model_dump(mode="json"), parents)
    if begun.done:
        return
    train_labels = _labels(workspace, data.train, "training")
    train, counts = _checked(workspace, policy, train_labels, quiet=False)
    test, _ = _checked(workspace, policy, _labels(workspace, data.test, "test"), quiet=True)
    settings, budget = settings_of(workspace, "kto", section.train), section.train.max_tokens_per_forward
    longest = workspace.recipe.data.max_tokens
    held = unpaired_examples(
        policy.model,
        test,
        unpaired=section.objective,
        ref_model=None,
        cache=begun.folder.path,
        max_tokens_per_forward=budget,
        precision=settings.precision,
        max_tokens=longest,
    )
    name = section.objective.method.upper()
    with workspace.bar(name, num_steps(settings, len(train))) as bar:
        result = train_unpaired(
            policy.model,
            train,
            settings=settings,
            unpaired=section.objective,
            folder=begun.folder.path,
            bar=bar,
            evaluate=unpaired_looks(held, settings, section.objective),
            resume=begun.resume,
            max_tokens=longest,
        )
    workspace.check_finished(begun.folder, result)
    text = f"{name} on {len(train):,} labelled answers (data set {data.name}, {short(data.hash)})."
    model, digest = save_policy(policy, begun, card(workspace, "kto", policy, text=text, made_from=parents))
    figures = evaluate_unpaired(model, held, unpaired=section.objective, max_tokens_per_forward=budget)
    workspace.say(f"{name}: held-out accuracy {figures.accuracy.shown()} over {figures.accuracy.n} labels")
    workspace.finish(
        begun.folder,
        results={
            **training_figures(result),
            "preflight": counts,
            "labels": {"desirable": sum(item.desirable for item in train), "all": len(train)},
            "held_out": {"accuracy": figures.accuracy._asdict(), "loss": figures.loss._asdict()},
        },
        model=digest,
        parents=[*data.records, workspace.record_of("sft", "model")],
    )
