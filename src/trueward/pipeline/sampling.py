"""Drawing completions for a stage: prompts to token ids, the engine, and texts back."""

from collections.abc import Sequence
from typing import NamedTuple

from trueward.core.errors import DataError
from trueward.core.progress import Bar
from trueward.data.chat import Completion, Dropped, TokenGroup, stop_ids, tokenise_prompts
from trueward.data.records import Prompt
from trueward.models.load import LoadedModel
from trueward.rollouts.engine import Rollout
from trueward.rollouts.local import LocalEngine

__all__ = ["Drawn", "draw", "prompt_ids", "text_of"]


class Drawn(NamedTuple):
    """Completions of one model, prompt by prompt.

    Attributes:
        texts: decoded without special tokens, stripped.
        groups: prompt and completion as tokens, for scoring.
        unfinished: how many ran into the length limit.
    """

    texts: list[str]
    groups: list[TokenGroup]
    unfinished: int


def prompt_ids(
    loaded: LoadedModel, prompts: Sequence[Prompt], *, max_tokens: int
) -> tuple[list[int], list[TokenGroup]]:
    """Indices of the usable prompts, and their token groups.

    Raises:
        DataError: no prompt is usable; names the first reason.
    """
    kept: list[int] = []
    groups: list[TokenGroup] = []
    reason = ""
    for index, group in enumerate(tokenise_prompts(loaded.tokenizer, prompts, max_tokens=max_tokens)):
        if isinstance(group, Dropped):
            reason = reason or f"{group.reason} ({group.detail})"
        else:
            kept.append(index)
            groups.append(group)
    if not groups:
        raise DataError(
            "no prompt can be used", value=reason, remedy="raise data.max_tokens or check the data"
        )
    return kept, groups


def text_of(loaded: LoadedModel, rollout: Rollout) -> str:
    """The completion as a person reads it."""
    return str(loaded.tokenizer.decode(list(rollout.ids), skip_special_tokens=True)).strip()


def draw(
    loaded: LoadedModel,
    groups: Sequence[TokenGroup],
    *,
    max_new_tokens: int,
    temperature: float,
    seed: int,
    num_completions: int = 1,
    bar: Bar | None = None,
) -> Drawn:
    """Draw `num_completions` for each prompt group, in order, prompt by prompt."""
    engine = LocalEngine(loaded.model, stop_ids(loaded.tokenizer))
    before = bar.done if bar else 0

    def progress(done: int, total: int) -> None:
        if bar is not None:
            bar.update(before + done)

    rollouts = engine.generate(
        [group.prompt_ids for group in groups],
        num_completions=num_completions,
        max_new_tokens=max_new_tokens,
        temperature=temperature,
        seed=seed,
        on_progress=progress,
    )
    return Drawn(
        texts=[text_of(loaded, rollout) for rollout in rollouts],
        groups=[
            TokenGroup(
                groups[r.prompt].prompt_ids, (Completion(r.ids, (True,) * len(r.ids)),), groups[r.prompt].id
            )
            for r in rollouts
        ],
        unfinished=sum(not r.finished for r in rollouts),
    )
