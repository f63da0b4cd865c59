"""Labels of steps by rollouts (Math-Shepherd): a step is as good as what follows from it.

    for each question: draw solutions; for each step but the last: complete the prefix that ends there K times
    soft label of a step = share of its completions that end right;  hard label = whether any does
The last step's label is the solution's own outcome. A completion that the verifier has no score for is a
third outcome: it is counted, and is neither right nor wrong.
Source: Wang et al. 2024 (2312.08935), section 3.3, eq. 3 (hard) and 4 (soft).
"""

from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

from pydantic import Field

from trueward.core.config import Config
from trueward.core.seed import derive_seed
from trueward.data.chat import TokenGroup
from trueward.data.records import Meta, Prompt, RecordError, StepLabels
from trueward.data.steps import DrawnStep, drawn_steps
from trueward.rewards import Case, Verdict, Verifier
from trueward.rollouts.engine import Engine, Rollout
from trueward.trainers.verified import Question

__all__ = ["Asked", "Labeller", "RolloutSettings", "StepCounts", "StepRollouts", "soft_label"]


class RolloutSettings(Config):
    """How many solutions are drawn of each question, and how each step of them is tried out."""

    solutions: int = Field(15, ge=1)
    """Solutions drawn of each question (Wang et al. 2024: 15)."""
    completions: int = Field(8, ge=1)
    """Completions of each step's prefix, K (Wang et al. 2024: 8). Prefixes that are alike are completed
    once."""
    max_new_tokens: int = Field(256, ge=1)
    """Longest solution, and longest prefix with its completion; those that hit it are counted."""
    temperature: float = Field(1.0, gt=0)
    """Sampling temperature of both."""


class Asked(NamedTuple):
    """A question as it is asked: its record, its tokens, and what is right."""

    prompt: Prompt
    group: TokenGroup
    question: Question


@dataclass(frozen=True, slots=True)
class StepCounts:
    """What was drawn and judged.

    solutions: drawn. right: of those judged. errors: solutions that the verifier has no score for.
    unfinished: that ran into the length limit. unusable: without any step, or with text that no record can
    hold (NUL), which give no record.
    completions: drawn from prefixes. completion_errors: of those.
    """

    solutions: int = 0
    right: int = 0
    errors: int = 0
    unfinished: int = 0
    unusable: int = 0
    completions: int = 0
    completion_errors: int = 0

    def plus(self, other: "StepCounts") -> "StepCounts":
        return StepCounts(*(getattr(self, name) + getattr(other, name) for name in self.__slots__))


class StepRollouts(NamedTuple):
    """Labelled solutions, question by question, and the counts behind them."""

    records: list[StepLabels]
    counts: StepCounts


class _Solution(NamedTuple):
    asked: int
    ids: tuple[int, ...]
    finished: bool
    steps: list[DrawnStep]
    verdict: Verdict


class _Prefix(NamedTuple):
    """Where completions go on from: the question, and the first tokens of a solution."""

    asked: int
    ids: tuple[int, ...]


def soft_label(verdicts: Sequence[Verdict], *, right_at: float) -> float | None:
    """Share of the judged completions that are right; None where none could be judged."""
    scores = [verdict.score for verdict in verdicts if verdict.score is not None]
    return sum(score >= right_at for score in scores) / len(scores) if scores else None


@dataclass(frozen=True, slots=True, kw_only=True)
class Labeller:
    """Draws and labels solutions.

    Args:
        engine: draws from the policy.
        verify: judges a whole solution.
        decode: token ids -> text without special tokens.
        stop_ids: tokens that end a completion.
        step_end: text that ends a step.
        right_at: score at which a solution is right.
        max_tokens: longest prompt with solution. Every prompt leaves room for `max_new_tokens`.
    """

    engine: Engine
    verify: Verifier
    decode: Callable[[Sequence[int]], str]
    stop_ids: Collection[int]
    step_end: str
    right_at: float
    max_tokens: int
    settings: RolloutSettings

    def label(self, asked: Sequence[Asked], *, meta: Meta, seed: int) -> StepRollouts:
        """Solutions of each question with a label a step.

        Args:
            meta: of every record; what rollouts say of a solution is added to `extra`: `outcome` (true, false
                or absent), the verifier's `detail`, and `completions`, the number judged of each step.
        """
        drawn = self.engine.generate(
            [a.group.prompt_ids for a in asked],
            num_completions=self.settings.solutions,
            max_new_tokens=self.settings.max_new_tokens,
            temperature=self.settings.temperature,
            seed=derive_seed(seed, "solutions"),
        )
        solutions = self._solutions(asked, drawn)
        prefixes = list(
            dict.fromkeys(_Prefix(s.asked, s.ids[: step.end]) for s in solutions for step in s.steps[:-1])
        )
        verdicts = self._complete(asked, prefixes, seed=seed)
        made = [
            self._record(asked[s.asked], s, verdicts, meta, index % self.settings.solutions)
            for index, s in enumerate(solutions)
        ]
        records = [record for record in made if record is not None]
        scores = [s.verdict.score for s in solutions]
        counts = StepCounts(
            solutions=len(solutions),
            right=sum(score is not None and score >= self.right_at for score in scores),
            errors=sum(score is None for score in scores),
            unfinished=sum(not s.finished for s in solutions),
            unusable=len(made) - len(records),
            completions=len(prefixes) * self.settings.completions,
            completion_errors=sum(v.score is None for row in verdicts.values() for v in row),
        )
        return StepRollouts(records, counts)

    def _solutions(self, asked: Sequence[Asked], drawn: Sequence[Rollout]) -> list[_Solution]:
        bodies = [self._body(rollout.ids) for rollout in drawn]
        verdicts = self._judge(asked, [_Prefix(r.prompt, ids) for r, ids in zip(drawn, bodies, strict=True)])
        return [
            _Solution(
                rollout.prompt,
                ids,
                rollout.finished,
                drawn_steps(ids, decode=self.decode, end=self.step_end),
                verdict,
            )
            for rollout, ids, verdict in zip(drawn, bodies, verdicts, strict=True)
        ]

    def _body(self, ids: tuple[int, ...]) -> tuple[int, ...]:
        return ids[:-1] if ids and ids[-1] in self.stop_ids else ids

    def _judge(self, asked: Sequence[Asked], answers: Sequence[_Prefix]) -> list[Verdict]:
        questions = [asked[answer.asked].question for answer in answers]
        return self.verify(
            [
                Case(self.decode(answer.ids).strip(), question.answer, question.prompt)
                for answer, question in zip(answers, questions, strict=True)
            ]
        )

    def _complete(
        self, asked: Sequence[Asked], prefixes: Sequence[_Prefix], *, seed: int
    ) -> dict[_Prefix, list[Verdict]]:
        """Verdicts of the completions of each prefix, none longer than a solution may be."""
        found: dict[_Prefix, list[Verdict]] = {}
        limit = self.settings.max_new_tokens
        for number, batch in enumerate(self._batches(asked, prefixes)):
            rollouts = self.engine.generate(
                [(*asked[p.asked].group.prompt_ids, *p.ids) for p in batch],
                num_completions=self.settings.completions,
                max_new_tokens=max(limit - len(p.ids) for p in batch),
                temperature=self.settings.temperature,
                seed=derive_seed(seed, "completions", number),
            )
            wholes = [
                _Prefix(p.asked, (*p.ids, *self._body(r.ids[: limit - len(p.ids)])))
                for r in rollouts
                for p in (batch[r.prompt],)
            ]
            verdicts = self._judge(asked, wholes)
            for n, prefix in enumerate(batch):
                k = self.settings.completions
                found[prefix] = verdicts[n * k : (n + 1) * k]
        return found

    def _batches(self, asked: Sequence[Asked], prefixes: Sequence[_Prefix]) -> Iterator[list[_Prefix]]:
        """Prefixes that are completed together: the longest of them with the longest completion stays within
        `max_tokens`. Each alone does, so every batch takes at least one."""
        batch: list[_Prefix] = []
        longest = 0
        # The first of a batch has the shortest prefix, so the longest completion.
        for prefix in sorted(prefixes, key=lambda p: len(p.ids)):
            length = len(asked[prefix.asked].group.prompt_ids) + len(prefix.ids)
            budget = self.settings.max_new_tokens - len((batch or [prefix])[0].ids)
            if batch and max(longest, length) + budget > self.max_tokens:
                yield batch
                batch, longest = [], 0
            batch.append(prefix)
            longest = max(longest, length)
        if batch:
            yield batch

    def _record(
        self,
        asked: Asked,
        solution: _Solution,
        verdicts: dict[_Prefix, list[Verdict]],
        meta: Meta,
        number: int,
    ) -> StepLabels | None:
        if not solution.steps:
            return None
        rows = [verdicts[_Prefix(solution.asked, solution.ids[: step.end])] for step in solution.steps[:-1]]
        rows.append([solution.verdict])
        soft = tuple(soft_label(row, right_at=self.right_at) for row in rows)
        hard = tuple(None if share is None else 1 if share > 0 else -1 for share in soft)
        extra: dict[str, object] = {
            "completions": [sum(v.score is not None for v in row) for row in rows],
            "finished": solution.finished,
            "detail": solution.verdict.detail,
        }
        if soft[-1] is not None:
            extra["outcome"] = soft[-1] == 1.0
        try:
            return StepLabels(
                id=f"{asked.prompt.id}/{number}",
                prompt=asked.prompt.messages,
                steps=tuple(step.text for step in solution.steps),
                labels=hard,
                soft_labels=soft,
                meta=replace(meta, extra=extra),
            )
        except RecordError:
            return None
