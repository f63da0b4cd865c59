"""Models of steps as folders: a reward model's, with what its head means beside it.

    model.safetensors, config.json, tokenizer ...   transformers' sequence classifier
    trueward_probes.json                            eight texts and the scores that every load computes again
    trueward_steps.json                             how a score is read: method, neutral steps, end of a step
A head of one score is a reward model in every respect (`load_reward` takes it): log-odds that all is right so
far, or, of an outcome reward model, that the whole is.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from trueward.core.config import build
from trueward.core.errors import ModelError
from trueward.core.files import read_json, write_json
from trueward.data.chat import Completion, TokenGroup
from trueward.data.steps import StepGroup
from trueward.models.checkpoint import Score, probe_scores, save_reward
from trueward.models.load import LoadedModel, load_reward
from trueward.objectives import STEP_CLASSES
from trueward.trainers.process import ProcessSettings, score_steps

__all__ = ["STEPS_FILE", "StepModel", "Target", "load_steps", "save_steps"]

STEPS_FILE = "trueward_steps.json"
_SCHEMA = "trueward.steps/1"
Target = Literal["steps", "outcome"]
"""What is judged: each step, or the whole at its end."""


@dataclass(frozen=True, kw_only=True, slots=True)
class StepModel:
    """A loaded model of steps. step_end: text that ended a step where it was trained."""

    loaded: LoadedModel
    process: ProcessSettings
    target: Target
    step_end: str


def _score(process: ProcessSettings) -> tuple[int, Score]:
    """Outputs of the head, and how a probe is scored: the score itself, or of three the log-probability that
    a step ending there is right."""
    if process.method == "binary":
        return 1, probe_scores

    def score(model: nn.Module, rows: Sequence[Sequence[int]]) -> list[float]:
        items = []
        for ids in rows:
            ends = (*(False,) * (len(ids) - 2), True)
            items.append(StepGroup(TokenGroup(tuple(ids[:1]), (Completion(tuple(ids[1:]), ends),)), (None,)))
        longest = max(map(len, rows))
        # One text in a forward: a score must not depend on the company.
        return [
            score_steps(model, [item], process=process, max_tokens_per_forward=longest)[0][0]
            for item in items
        ]

    return len(STEP_CLASSES), score


def save_steps(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    folder: Path,
    *,
    process: ProcessSettings,
    target: Target,
    step_end: str,
    card: str,
    replace: bool = False,
) -> str:
    """Save a model of steps; see `save_reward`.

    Returns:
        The model hash of the new folder.

    Raises:
        ModelError, StorageError: as `save_reward`.
    """
    body = {"schema": _SCHEMA, "target": target, "step_end": step_end, "process": process.model_dump()}
    return save_reward(
        model,
        tokenizer,
        folder,
        card=card,
        replace=replace,
        score=_score(process)[1],
        extra=lambda at: write_json(at / STEPS_FILE, body),
    )


def load_steps(path: str | Path, *, device: str = "cpu") -> StepModel:
    """Load a model of steps, and verify its probe scores.

    Raises:
        ModelError: the folder does not say how its scores are read, or what `load_reward` refuses.
    """
    file = Path(path) / STEPS_FILE
    body = read_json(file) if file.is_file() else {}
    if body.get("schema") != _SCHEMA:
        raise ModelError(
            f"{path} does not say how the scores of its steps are read ({STEPS_FILE})",
            value=body.get("schema"),
            expected=_SCHEMA,
            remedy="give a folder that `trueward prm` or `trueward orm` made",
        )
    process = build(ProcessSettings, body["process"], source=str(file))
    labels, score = _score(process)
    loaded = load_reward(path, device=device, labels=labels, score=score)
    return StepModel(loaded=loaded, process=process, target=body["target"], step_end=body["step_end"])
