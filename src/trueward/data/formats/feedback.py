"""UltraFeedback, PKU-SafeRLHF, PRM800K in its two forms, and verl's prompts.

Sources: Cui et al. 2023, arXiv 2310.01377; Ji et al. 2024, arXiv 2406.15513; Lightman et al. 2023, arXiv
    2305.20050;
verl, docs/preparation/prepare_data.rst.
"""

from collections.abc import Mapping
from typing import Any, Final

from trueward.data.formats.base import (
    Columns,
    Format,
    conversation,
    matches_columns,
    number,
    text,
    texts,
    with_extra,
)
from trueward.data.records import (
    Comparison,
    Message,
    Meta,
    Prompt,
    Ranking,
    Record,
    RecordError,
    StepLabels,
)

__all__ = ["FORMATS"]


def _ask(row: Columns, name: str) -> tuple[Message, ...]:
    return (Message("user", text(row, name)),)


def _ultrafeedback(row: Columns, id: str, meta: Meta) -> Record:
    completions = row.get("completions")
    if not isinstance(completions, list) or not all(isinstance(item, Mapping) for item in completions):
        raise RecordError("completions", completions, "a list of objects with response and overall_score")
    scored = []
    for index, item in enumerate(completions):
        score = number(item, "overall_score")
        if score is None:
            raise RecordError(f"completions[{index}].overall_score", None, "a number")
        scored.append((score, text(item, "response"), item.get("model")))
    # Stable: equal scores keep the file's order, and `scores` shows that they are equal.
    scored.sort(key=lambda entry: -entry[0])
    extra: dict[str, Any] = {
        "scores": [entry[0] for entry in scored],
        "models": [entry[2] for entry in scored],
    }
    ranked = tuple(entry[1] for entry in scored)
    return Ranking(id=id, prompt=_ask(row, "instruction"), completions=ranked, meta=with_extra(meta, **extra))


def _pku(row: Columns, id: str, meta: Meta) -> Record:
    better = row.get("better_response_id")
    better = {"0": 0, "1": 1}.get(better, better) if isinstance(better, str) else better
    if isinstance(better, bool) or better not in (0, 1):
        raise RecordError("better_response_id", better, "0 or 1")
    answers = (text(row, "response_0"), text(row, "response_1"))
    return Comparison(
        id=id,
        prompt=_ask(row, "prompt"),
        chosen=answers[better],
        rejected=answers[1 - better],
        meta=with_extra(meta, better_response_id=better),
    )


def _rating(value: object, name: str) -> int | None:
    if value is None:
        return None
    if isinstance(value, bool) or value not in (-1, 0, 1):
        raise RecordError(name, value, "-1, 0, 1 or null")
    return int(value)


def _prm_rows(row: Columns, id: str, meta: Meta) -> Record:
    before = texts(row, "responses")
    return StepLabels(
        id=id,
        prompt=_ask(row, "instruction"),
        steps=(*before, text(row, "next_response")),
        labels=(*(None for _ in before), _rating(row.get("rating"), "rating")),
        meta=meta,
    )


def _prm_step(step: object, where: str) -> tuple[str, int | None]:
    """The step that the solution went on with: chosen, else the annotator's own, else the first."""
    if not isinstance(step, Mapping) or not isinstance(step.get("completions") or [], list):
        raise RecordError(where, step, "an object with completions")
    completions = step.get("completions") or []
    chosen, own = step.get("chosen_completion"), step.get("human_completion")
    if chosen is None and own is not None:
        body: object = own
    else:
        index = chosen if isinstance(chosen, int) and not isinstance(chosen, bool) else 0
        if not 0 <= index < len(completions):
            raise RecordError(f"{where}.chosen_completion", chosen, f"an index below {len(completions)}")
        body = completions[index]
    if not isinstance(body, Mapping):
        raise RecordError(where, body, "a completion with text")
    return text(body, "text"), _rating(body.get("rating"), f"{where}.rating")


def _prm_original(row: Columns, id: str, meta: Meta) -> Record:
    question, label = row.get("question"), row.get("label")
    if not isinstance(question, Mapping) or not isinstance(label, Mapping):
        raise RecordError("question", question, "objects in question and label")
    if not isinstance(label.get("steps"), list):
        raise RecordError("label.steps", label.get("steps"), "a list of steps")
    steps = [_prm_step(step, f"label.steps[{n}]") for n, step in enumerate(label["steps"])]
    extra = {
        "ground_truth_answer": question.get("ground_truth_answer"),
        "finish_reason": label.get("finish_reason"),
    }
    return StepLabels(
        id=id,
        prompt=_ask(question, "problem"),
        steps=tuple(step for step, _ in steps),
        labels=tuple(rating for _, rating in steps),
        meta=with_extra(meta, **extra),
    )


def _verl(row: Columns, id: str, meta: Meta) -> Record:
    reward = row.get("reward_model")
    if not isinstance(reward, Mapping) or "ground_truth" not in reward:
        raise RecordError("reward_model", reward, "an object with ground_truth")
    return Prompt(id=id, messages=conversation(row.get("prompt"), "prompt"), meta=meta)


def _is_list_of_objects(value: object) -> bool:
    return isinstance(value, list) and bool(value) and isinstance(value[0], Mapping)


FORMATS: Final = (
    Format(
        name="ultrafeedback",
        words="UltraFeedback (instruction, completions with overall_score)",
        kind="ranking",
        columns=frozenset({"instruction", "completions", "models"}),
        matches=lambda row: "instruction" in row and _is_list_of_objects(row.get("completions")),
        read=_ultrafeedback,
    ),
    Format(
        name="pku-saferlhf",
        words="PKU-SafeRLHF (two responses; chosen is the better, safety judgements are kept in meta.extra)",
        kind="comparison",
        columns=frozenset({"prompt", "response_0", "response_1", "better_response_id"}),
        matches=matches_columns("prompt", "response_0", "response_1", "better_response_id"),
        read=_pku,
    ),
    Format(
        name="prm800k-rows",
        words="PRM800K, one rated next step a row (instruction, responses, next_response, rating)",
        kind="steps",
        columns=frozenset({"instruction", "responses", "next_response", "rating"}),
        matches=matches_columns("instruction", "responses", "next_response", "rating"),
        read=_prm_rows,
    ),
    Format(
        name="prm800k",
        words="PRM800K (question, label with steps)",
        kind="steps",
        columns=frozenset({"question", "label"}),
        matches=lambda row: (
            isinstance(row.get("question"), Mapping) and isinstance(row.get("label"), Mapping)
        ),
        read=_prm_original,
    ),
    Format(
        name="verl",
        words="verl prompts (prompt, reward_model.ground_truth, kept in meta.extra)",
        kind="prompt",
        columns=frozenset({"prompt"}),
        matches=lambda row: "prompt" in row and isinstance(row.get("reward_model"), Mapping),
        read=_verl,
        verdicts=frozenset({"reward_model"}),
    ),
)
