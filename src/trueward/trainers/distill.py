"""On-policy distillation: a student learns the next-token distributions of a teacher, on what it says itself.

    for each step:
        the student answers its share of the prompts; the others are answered by the data, or by the teacher
        loss = mean over answers of (mean over tokens of D(teacher, student) of the next token)
The share is `on_policy`, GKD's lambda. No gradient flows through the drawing. A method is one line of
DISTILL_METHODS. Axes: N completion tokens, n tokens of a chunk, S sequences, V vocabulary.
"""

import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from trueward.core.config import Config
from trueward.core.errors import DataError, ModelError, RunError
from trueward.core.seed import derive_seed
from trueward.data.chat import Completion, TokenGroup
from trueward.models.distributions import Predicting, over_vocabulary, shared_words
from trueward.models.packing import Packed, pack
from trueward.models.scoring import head_states, unwrap
from trueward.objectives.distill import DistillLoss, forward_kl, generalized_jsd, reverse_kl
from trueward.rollouts.engine import Engine, Rollout
from trueward.rollouts.local import LocalEngine
from trueward.trainers.accumulate import LossSum
from trueward.trainers.drawing import draw_completions
from trueward.trainers.groups import cut, describe_group, sequence_sums, trained_counts
from trueward.trainers.loop import Evaluate, Progress, TrainResult, train
from trueward.trainers.optim import device_of
from trueward.trainers.settings import TrainSettings
from trueward.trainers.state import fingerprint

__all__ = [
    "DISTILL_METHODS",
    "Answer",
    "DistillObjective",
    "DistillSettings",
    "divergence_N",
    "train_distill",
]

Divergence = Callable[[Tensor, Tensor, Tensor, float], DistillLoss]
"""(student_logits_BTV, teacher_logits_BTV, mask_BT, beta) -> loss."""

DISTILL_METHODS: Mapping[str, Divergence] = {
    "forward_kl": lambda student, teacher, mask, _: forward_kl(student, teacher, mask),
    "reverse_kl": lambda student, teacher, mask, _: reverse_kl(student, teacher, mask),
    "jsd": lambda student, teacher, mask, beta: generalized_jsd(student, teacher, mask, beta=beta),
}


class DistillSettings(Config):
    """Settings of distillation (Agarwal et al. 2023, arXiv:2306.13649: GKD)."""

    method: Literal["forward_kl", "reverse_kl", "jsd"] = "jsd"
    """Divergence of teacher and student."""
    beta: float = Field(0.5, gt=0, lt=1)
    """Of `jsd`: weight of the teacher in the mixture (GKD, eq. 1); towards 0 it is like the forward KL,
    towards 1 like the reverse."""
    on_policy: float = Field(1.0, ge=0, le=1)
    """Share of the answers that the student draws itself (GKD's lambda, which does best at 1)."""
    others: Literal["data", "teacher"] = "data"
    """Who answers the rest: the demonstrations, or the teacher, drawn anew each step."""
    max_new_tokens: int = Field(64, ge=1)
    """Longest drawn answer; those that hit it are counted, and their tokens train like any others."""
    temperature: float = Field(1.0, gt=0)
    """Sampling temperature; the divergence is always that at temperature 1."""


@dataclass(frozen=True, slots=True)
class Answer:
    """A prompt with its answer; no completion where it is yet to be drawn.

    by: who wrote it. finished: it ended with a stop token.
    """

    group: TokenGroup
    by: Literal["data", "student", "teacher"] = "data"
    finished: bool = True


class DistillObjective:
    """The divergence of a student from its teacher.

    Args:
        student: the model that is trained.
        teacher: frozen causal language model with the student's vocabulary.
        engine: draws from the student.
        teacher_engine: draws from the teacher.
        seed: of drawing.
    """

    name = "distill"

    def __init__(
        self,
        student: nn.Module,
        teacher: nn.Module,
        settings: DistillSettings,
        *,
        engine: Engine,
        teacher_engine: Engine,
        seed: int,
    ) -> None:
        self._teacher, self._settings, self._seed = teacher, settings, seed
        self._engines: dict[Literal["student", "teacher"], Engine] = {
            "student": engine,
            "teacher": teacher_engine,
        }
        self.settings: Mapping[str, object] = {
            **settings.model_dump(mode="json"),
            "teacher": fingerprint(teacher),
        }
        self._num_words = shared_words(unwrap(student), unwrap(teacher))
        self._step = 0
        self._answers: list[Answer] = []
        self._rollout_s: float | None = None

    def describe(self, item: Answer) -> Mapping[str, object]:
        return describe_group(item.group)

    def count(self, items: Sequence[Answer]) -> float:
        return len(items)

    def at(self, step: int, num_steps: int) -> None:
        """What is drawn depends on the step alone, so that resuming needs no state."""
        self._step = step

    def prepare(self, model: nn.Module, items: Sequence[Answer], max_tokens: int) -> None:
        """Draw the answers of a step."""
        started_s, n, share = time.monotonic(), len(items), self._settings.on_policy
        # Rounded over the run, not in each step: any share is met with any batch size.
        own = int((self._step + 1) * n * share + 1e-9) - int(self._step * n * share + 1e-9)
        self._answers = self._drawn("student", items[:own])
        others = items[own:]
        self._answers += self._drawn("teacher", others) if self._settings.others == "teacher" else others
        self._rollout_s = time.monotonic() - started_s

    def _drawn(self, by: Literal["student", "teacher"], items: Sequence[Answer]) -> list[Answer]:
        settings = self._settings
        with torch.autocast(device_of(self._teacher).type, enabled=False):
            rollouts = draw_completions(
                self._engines[by],
                [item.group for item in items],
                num_completions=1,
                max_new_tokens=settings.max_new_tokens,
                temperature=settings.temperature,
                seed=derive_seed(self._seed, "distill", by, self._step),
            )
        answers = [_answered(item, by, rollout) for item, rollout in zip(items, rollouts, strict=True)]
        last = max((max(rollout.ids) for rollout in rollouts), default=0)
        if last >= self._num_words:
            raise RunError(
                f"the {by} drew a token that the other model does not have",
                value=last,
                expected=f"below {self._num_words}",
                remedy="this token is padding of the vocabulary and must never be likely; check the model",
            )
        return answers

    def micro_batches(self, items: Sequence[Answer], max_tokens: int) -> list[list[Answer]]:
        assert len(items) == len(self._answers), "prepare saw the items of this step"
        return cut(self._answers, lambda answer: answer.group, max_tokens)

    def loss(self, model: nn.Module, items: Sequence[Answer]) -> LossSum:
        packed = pack([item.group for item in items], device_of(model))
        loss_N, agree_N = divergence_N(model, self._teacher, packed, self._settings)
        counts_S = trained_counts(packed)
        loss_S = sequence_sums(loss_N, packed) / counts_S
        own = [item for item in items if item.by == "student"]
        lengths = [len(item.group.completions[0].ids) for item in own]
        one = loss_S.new_tensor
        figures = {
            "distill/agreement": (sequence_sums(agree_N, packed).sum(), float(counts_S.sum())),
            "distill/on_policy": (one(float(len(own))), len(items)),
            "completions/mean_length": (one(float(sum(lengths))), len(own)),
            "completions/clipped_ratio": (one(float(sum(not item.finished for item in own))), len(own)),
        }
        if self._rollout_s is not None:
            figures["time/rollout_s"] = (one(self._rollout_s), 1)
            self._rollout_s = None
        return LossSum(loss_S.sum(), packed.num_tokens, figures)


def divergence_N(
    student: nn.Module, teacher: nn.Module, packed: Packed, settings: DistillSettings
) -> tuple[Tensor, Tensor]:
    """The divergence at every completion token, and whether both find the same word most likely.

    Returns:
        loss_N with gradient, nats; agree_N, 0 or 1; both float32.

    Raises:
        ModelError: a model whose logits are changed after its head.
    """
    inner, hidden_ND = head_states(student, packed)
    with torch.no_grad():
        teacher_inner, teacher_hidden_ND = head_states(teacher, packed)
    divergence = DISTILL_METHODS[settings.method]

    def compute(student_nV: Tensor, teacher_nV: Tensor) -> tuple[Tensor, ...]:
        teacher_nV = teacher_nV.detach()
        all_1n = torch.ones(1, len(student_nV), dtype=torch.bool, device=student_nV.device)
        loss_1n = divergence(student_nV.unsqueeze(0), teacher_nV.unsqueeze(0), all_1n, settings.beta).loss_BT
        agree_n = (student_nV.detach().argmax(-1) == teacher_nV.argmax(-1)).float()
        return loss_1n.squeeze(0), agree_n

    models = [Predicting.of(inner, hidden_ND), Predicting.of(teacher_inner, teacher_hidden_ND)]
    loss_N, agree_N = over_vocabulary(models, compute, num_words=shared_words(inner, teacher_inner))
    return loss_N, agree_N


def _answered(item: Answer, by: Literal["student", "teacher"], rollout: Rollout) -> Answer:
    completion = Completion(rollout.ids, (True,) * len(rollout.ids))
    return Answer(replace(item.group, completions=(completion,)), by, rollout.finished)


def train_distill(
    student: nn.Module,
    groups: Sequence[TokenGroup],
    *,
    teacher: nn.Module,
    stop_ids: Collection[int],
    distill: DistillSettings,
    settings: TrainSettings,
    folder: Path,
    bar: Progress | None = None,
    evaluate: Evaluate | None = None,
    resume: bool = False,
) -> TrainResult:
    """Train `student` towards `teacher`; see `loop.train`.

    Args:
        groups: prompts; with one completion each where the data is to answer some of them.
        teacher: a model of the same tokenizer, used as it is and not trained. Its matrix of words may be
            padded to another number than the student's: only words of both count.
        stop_ids: tokens that end a completion, of both.

    Raises:
        DataError: the data is to answer, and a group does not hold one completion with a trained token.
        ModelError: teacher and student are one model, or their logits are changed after the head.
    """
    if unwrap(teacher) is unwrap(student):
        raise ModelError("teacher and student are the same model in memory", remedy="load the teacher anew")
    if distill.on_policy < 1 and distill.others == "data":
        _check_answers(groups)
    teacher.requires_grad_(False).eval()
    objective = DistillObjective(
        student,
        teacher,
        distill,
        engine=LocalEngine(student, stop_ids),
        teacher_engine=LocalEngine(teacher, stop_ids),
        seed=settings.seed,
    )
    return train(
        student,
        objective=objective,
        items=[Answer(group) for group in groups],
        settings=settings,
        folder=folder,
        bar=bar,
        evaluate=evaluate,
        resume=resume,
    )


def _check_answers(groups: Sequence[TokenGroup]) -> None:
    for group in groups:
        if len(group.completions) != 1 or not any(group.completions[0].trained):
            raise DataError(
                f"the data is to answer prompt {group.id or '(no id)'}, and does not",
                value=f"{len(group.completions)} completions",
                expected="one completion with a trained token",
                remedy="set on_policy to 1, or others to teacher",
            )
