"""Weak-to-strong on preference labels: which of two answers is better. A supervisor says how likely the first
is; a learner is a bag of words or a reward model.

The order of a pair is drawn, so that it tells nothing of the label.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import torch
from transformers import PreTrainedModel

from trueward.core.seed import derive_seed, generator
from trueward.data.records import Comparison
from trueward.evals import fit_bag_of_words, pair_outcomes
from trueward.models.checkpoint import save_reward
from trueward.models.heads import reward_from_causal
from trueward.pipeline.datasets import FeedbackData, decided
from trueward.pipeline.training import card, check, tokenised
from trueward.pipeline.weak_tasks import Learner, Lesson
from trueward.pipeline.workspace import Workspace
from trueward.trainers.reward import RewardPair, score_pairs
from trueward.trainers.sampling import num_steps
from trueward.trainers.weak_to_strong import train_weak_to_strong

__all__ = ["JudgeTaught", "PreferenceLabels"]

# On a few hundred pairs a strong penalty would leave the bag of words without an opinion.
_L2 = 1.0
Margins = Callable[[Sequence[Comparison]], Mapping[str, float]]
"""Id of a pair -> first - second, a log-odds; a pair too long for the model is not there."""


class JudgeTaught:
    """A learner that has become a judge of pairs; `model` is None for a bag of words."""

    def __init__(self, learner: Learner, margins: Margins, model: PreTrainedModel | None) -> None:
        self.learner, self.margins, self.model = learner, margins, model


class PreferenceLabels:
    """The task on comparisons."""

    measured_by = "share of held-out pairs in the right order"

    def __init__(self, workspace: Workspace, data: FeedbackData[Comparison]) -> None:
        self._workspace = workspace
        train, self._held = self._turned(data.train, "train"), self._turned(data.test, "test")
        known = workspace.recipe.weak_to_strong.known
        self.known = Lesson(train.items[:known], train.labels[:known])
        self.rest = Lesson(train.items[known:], train.labels[known:])
        self.left_out = train.left_out + self._held.left_out

    def _turned(self, records: Sequence[Comparison], split: str) -> Lesson[Comparison, float]:
        """Pairs in a drawn order with the truth: 1 where the first is better. Ties are left out."""
        ordered = (
            _by_gold(records) if self._workspace.recipe.data.source == "testbed" else decided(records).records
        )
        rng = generator(self._workspace.seed("weak_to_strong", "order"), split)
        first_better = (rng.random(len(ordered)) < 0.5).tolist()
        items = [
            replace(pair, soft_label=None, margin=None) if keep else _swapped(pair)
            for pair, keep in zip(ordered, first_better, strict=True)
        ]
        return Lesson(items, [float(keep) for keep in first_better], len(records) - len(ordered))

    def learn(self, learner: Learner, lesson: Lesson[Comparison, float]) -> JudgeTaught:
        """Fit a bag of words, or train a reward model on the learner's backbone."""
        if learner.loaded is None:
            first, second = [r.chosen for r in lesson.items], [r.rejected for r in lesson.items]
            score = fit_bag_of_words(first, second, soft_labels=lesson.labels, l2=_L2)
            return JudgeTaught(
                learner,
                lambda pairs: {r.id: score("", r.chosen) - score("", r.rejected) for r in pairs},
                None,
            )
        workspace, loaded = self._workspace, learner.loaded
        seed = derive_seed(learner.train.seed, "head")
        model = reward_from_causal(loaded.model, loaded.tokenizer, seed=seed)
        longest = workspace.recipe.data.max_tokens
        groups, dropped = tokenised(loaded, lesson.items, max_tokens=longest)
        check(workspace, loaded, groups, dropped, quiet=True)
        labels = dict(zip((r.id for r in lesson.items), lesson.labels, strict=True))
        pairs = [RewardPair(group, None, labels[group.id]) for group in groups]
        with workspace.bar(f"weak-to-strong, {learner.name}", num_steps(learner.train, len(pairs))) as bar:
            result = train_weak_to_strong(
                model,
                pairs,
                settings=learner.train,
                confidence=learner.confidence,
                folder=learner.folder,
                bar=bar,
                resume=learner.begun.resume,
            )
        workspace.check_finished(learner.begun.folder, result)

        def margins(asked: Sequence[Comparison]) -> Mapping[str, float]:
            found, _ = tokenised(loaded, asked, max_tokens=longest)
            unlabelled = [RewardPair(group) for group in found]
            budget = learner.train.max_tokens_per_forward
            scores = score_pairs(model, unlabelled, max_tokens_per_forward=budget)
            return {g.id: a - b for g, a, b in zip(found, *scores, strict=True)}

        return JudgeTaught(learner, margins, model)

    def label(self, taught: JudgeTaught, items: Sequence[Comparison]) -> Lesson[Comparison, float]:
        """P(the first is better) by the judge."""
        margins = taught.margins(items)
        kept = [item for item in items if item.id in margins]
        values = torch.tensor([margins[item.id] for item in kept], dtype=torch.float64)
        return Lesson(kept, torch.sigmoid(values).tolist(), len(items) - len(kept))

    def right(self, lesson: Lesson[Comparison, float]) -> float | None:
        """Share of labels on the side of the truth; undecided ones half."""
        truth = dict(zip((r.id for r in self.rest.items), self.rest.labels, strict=True))
        margins = [label - 0.5 for label in lesson.labels]
        return float(pair_outcomes(margins, [truth[r.id] for r in lesson.items]).mean())

    def outcomes(self, taught: JudgeTaught) -> Mapping[str, float]:
        """1 right, 0 wrong, 0.5 undecided on each held-out pair."""
        margins = taught.margins(self._held.items)
        truth = dict(zip((r.id for r in self._held.items), self._held.labels, strict=True))
        ids = list(margins)
        right = pair_outcomes([margins[i] for i in ids], [truth[i] for i in ids])
        return dict(zip(ids, right.tolist(), strict=True))

    def save(self, taught: JudgeTaught, made_from: dict[str, str]) -> str:
        """Save the student as a reward model."""
        learner = taught.learner
        assert taught.model is not None and learner.loaded is not None, "a student is a model"
        text = f"A reward model from a weak supervisor's labels of {len(self.rest.items):,} comparisons."
        readme = card(self._workspace, "weak_to_strong", learner.loaded, text=text, made_from=made_from)
        at, again = learner.begun.folder.model, learner.begun.resume
        return save_reward(taught.model, learner.loaded.tokenizer, at, card=readme, replace=again)


def _swapped(pair: Comparison) -> Comparison:
    return replace(pair, chosen=pair.rejected, rejected=pair.chosen, soft_label=None, margin=None)


def _by_gold(records: Sequence[Comparison]) -> list[Comparison]:
    """Pairs of the testbed with the truly better answer first; equally good ones are left out."""
    golds = [(float(r.meta.extra["gold_chosen"]), float(r.meta.extra["gold_rejected"])) for r in records]
    return [
        pair if first > second else _swapped(pair)
        for pair, (first, second) in zip(records, golds, strict=True)
        if first != second
    ]
