"""Weak-to-strong on answers: a supervisor writes answers to prompts, and the student is tuned on them.

Measured on held-out prompts: on the testbed the true reward of the likeliest answer, else how many tokens of
the given answer the model finds most likely.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from trueward.core.errors import ConfigError
from trueward.data.chat import TokenGroup, stop_ids
from trueward.data.convert import as_prompt
from trueward.data.records import Demonstration, Message, Prompt
from trueward.evals import held_out
from trueward.models.load import LoadedModel
from trueward.pipeline.datasets import FeedbackData, test_prompts
from trueward.pipeline.sampling import prompt_ids, text_of
from trueward.pipeline.training import card, check, save_policy, tokenised
from trueward.pipeline.weak_tasks import Learner, Lesson
from trueward.pipeline.workspace import Workspace
from trueward.rollouts.local import LocalEngine
from trueward.testbed import gold_reward, task_of
from trueward.trainers.sampling import num_steps
from trueward.trainers.weak_answers import train_weak_answers

__all__ = ["AnswerLabels", "WriterTaught"]


@dataclass(frozen=True, slots=True)
class WriterTaught:
    """A learner that has become a writer of answers: `loaded` is the trained model."""

    learner: Learner
    loaded: LoadedModel


class AnswerLabels:
    """The task on demonstrations."""

    def __init__(self, workspace: Workspace, data: FeedbackData[Demonstration]) -> None:
        self._workspace = workspace
        known = workspace.recipe.weak_to_strong.known
        self.known = _lesson(data.train[:known])
        self.rest = _lesson(data.train[known:])
        self.left_out = 0
        self._testbed = workspace.recipe.data.source == "testbed"
        self._demonstrations = data.test[: workspace.recipe.eval.prompts]
        self._prompts = test_prompts(workspace).prompts if self._testbed else []
        self.measured_by = (
            "true reward of the likeliest answer to held-out prompts"
            if self._testbed
            else "share of the tokens of held-out answers that the model finds most likely"
        )

    def learn(self, learner: Learner, lesson: Lesson[Demonstration, str]) -> WriterTaught:
        """Tune the learner on the answers.

        Raises:
            ConfigError: a bag of words cannot write.
        """
        loaded, workspace = learner.loaded, self._workspace
        if loaded is None:
            raise ConfigError(
                "a bag of words writes no answers",
                expected="a supervisor with a path or a shape",
                remedy="set weak_to_strong.chain, or weak_to_strong.labels=preferences",
            )
        records = [_answered(r, text) for r, text in zip(lesson.items, lesson.labels, strict=True)]
        groups, dropped = tokenised(loaded, records, max_tokens=workspace.recipe.data.max_tokens)
        check(workspace, loaded, groups, dropped, quiet=True)
        with workspace.bar(f"weak-to-strong, {learner.name}", num_steps(learner.train, len(groups))) as bar:
            result = train_weak_answers(
                loaded.model,
                groups,
                settings=learner.train,
                confidence=learner.confidence,
                folder=learner.folder,
                bar=bar,
                resume=learner.begun.resume,
            )
        workspace.check_finished(learner.begun.folder, result)
        return WriterTaught(learner, loaded)

    def _write(
        self, taught: WriterTaught, prompts: Sequence[Prompt], *, temperature: float, whole: bool
    ) -> dict[str, str]:
        """Id of a prompt -> the answer; prompts too long are not there.

        Args:
            whole: leave out answers that ran into the length limit: taught, they would end in mid-sentence.
        """
        workspace = self._workspace
        section = workspace.recipe.weak_to_strong
        room = workspace.recipe.data.max_tokens - section.max_new_tokens
        kept, groups = prompt_ids(taught.loaded, prompts, max_tokens=room)
        loaded = taught.loaded
        rollouts = LocalEngine(loaded.model, stop_ids(loaded.tokenizer)).generate(
            [group.prompt_ids for group in groups],
            num_completions=1,
            max_new_tokens=section.max_new_tokens,
            temperature=temperature,
            seed=workspace.seed("weak_to_strong", "answers"),
        )
        rows = zip(kept, rollouts, strict=True)
        return {prompts[i].id: text_of(loaded, r) for i, r in rows if r.finished or not whole}

    def label(self, taught: WriterTaught, items: Sequence[Demonstration]) -> Lesson[Demonstration, str]:
        """The answers that the writer gives; empty and unfinished ones are left out."""
        temperature = self._workspace.recipe.weak_to_strong.temperature
        written = self._write(taught, [as_prompt(r) for r in items], temperature=temperature, whole=True)
        kept = [item for item in items if written.get(item.id)]
        return Lesson(kept, [written[item.id] for item in kept], len(items) - len(kept))

    def right(self, lesson: Lesson[Demonstration, str]) -> float | None:
        """Mean true reward of the answers on the testbed."""
        if not self._testbed:
            return None
        golds = [
            gold_reward(task_of(r.meta), text).total
            for r, text in zip(lesson.items, lesson.labels, strict=True)
        ]
        return sum(golds) / len(golds)

    def outcomes(self, taught: WriterTaught) -> Mapping[str, float]:
        """True reward of the likeliest answer, or the share of tokens that are the model's likeliest."""
        if self._testbed:
            written = self._write(taught, self._prompts, temperature=0.0, whole=False)
            tasks = {prompt.id: task_of(prompt.meta) for prompt in self._prompts}
            return {i: gold_reward(tasks[i], text).total for i, text in written.items()}
        longest = self._workspace.recipe.data.max_tokens
        groups: list[TokenGroup]
        groups, _ = tokenised(taught.loaded, self._demonstrations, max_tokens=longest)
        budget = taught.learner.train.max_tokens_per_forward
        found = held_out(taught.loaded.model, groups, max_tokens=budget)
        rows = zip(groups, found.correct, found.tokens, strict=True)
        return {group.id: correct / tokens for group, correct, tokens in rows}

    def save(self, taught: WriterTaught, made_from: dict[str, str]) -> str:
        """Save the student as a policy."""
        begun = taught.learner.begun
        text = f"Fine-tuned on a weak supervisor's answers to {len(self.rest.items):,} prompts."
        readme = card(self._workspace, "weak_to_strong", taught.loaded, text=text, made_from=made_from)
        _, digest = save_policy(taught.loaded, begun, readme)
        return digest


def _lesson(records: Sequence[Demonstration]) -> Lesson[Demonstration, str]:
    return Lesson(list(records), [r.messages[-1].content for r in records])


def _answered(record: Demonstration, text: str) -> Demonstration:
    return replace(record, messages=(*record.messages[:-1], Message("assistant", text)))
