"""What each stage of a recipe has to compute: tokens of a step and of one forward, numbers of steps, roles.

Lengths come from the first rows of the data (four characters a token; one where the vocabulary is of bytes),
never beyond `data.max_tokens`. Where there are none yet (the testbed), its usual lengths are taken.
"""

import math
import statistics
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Literal, NamedTuple

from trueward.core.errors import DataError
from trueward.data.convert import as_comparison, as_demonstration, as_prompt
from trueward.data.formats import detect, format_named
from trueward.data.read_rows import Row, read_rows
from trueward.data.records import Meta, Record, RecordError
from trueward.pipeline.inputs import data_files
from trueward.pipeline.recipe import Recipe
from trueward.trainers.group_settings import GroupSettings
from trueward.trainers.ppo_settings import PPOSettings
from trueward.trainers.sampling import num_steps
from trueward.trainers.settings import Precision, TrainSettings

__all__ = ["TRAINED", "Counted", "Lengths", "TrainedStage", "Work", "count_data", "work_of"]

TrainedStage = Literal["sft", "reward", "dpo", "ppo", "grpo"]
TRAINED: tuple[TrainedStage, ...] = ("sft", "reward", "dpo", "ppo", "grpo")
_SAMPLE_ROWS = 64
# Of English text under usual vocabularies.
_CHARACTERS_PER_TOKEN = 4.0
# A smaller vocabulary can hold little more than the 256 bytes.
_BYTE_VOCABULARY = 300
# What a chat template writes around a message: role, end of turn, line break.
_TOKENS_PER_MESSAGE = 4
# Deviations by which the longest of many batches lies above the mean one (one in 700 under a normal law).
_LONGEST = 3.0


class Lengths(NamedTuple):
    """Tokens of an item: mean of the prompt and of one completion, deviation of the whole item."""

    prompt: float
    completion: float
    deviation: float


# Demonstrations and replies of the testbed are one or two short sentences.
_TESTBED = Lengths(24.0, 12.0, 8.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Counted:
    """How much there is to train on, and in words. items: None on the testbed, where the recipe says it."""

    items: int | None
    words: str
    shown: Lengths
    """Of demonstrations."""
    compared: Lengths
    """Of pairs."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """One stage. Tokens are real tokens of packed rows, a shared prompt counted once.

    step_tokens: of the largest optimizer step.
    forward_tokens: of the largest forward with gradients.
    scoring_tokens: of the largest forward without gradients (reference, held-out, rollouts).
    completion_share: completion tokens / tokens.
    forwards: forwards with gradients in a step.
    item_tokens: of a mean item. sequence_tokens: of a mean prompt with one completion.
    completions: of one prompt. items: passed over in a step.
    prompts, rows, new_tokens: of one round of drawing; 0 where nothing is drawn.
    updates: optimizer steps of a round of drawing; else 1. steps: rounds of the run.
    scored_items: items scored without gradients, once in the run (reference of pairs) or in each round.
    scorers: models that score them, but for the reward model.
    """

    stage: TrainedStage
    step_tokens: float
    mean_step_tokens: float
    forward_tokens: float
    scoring_tokens: float
    completion_share: float
    forwards: int
    item_tokens: float
    sequence_tokens: float
    completions: int
    items: int
    steps: int | None
    precision: Precision
    first_moment: Precision
    checkpointing: bool
    max_tokens: int
    max_tokens_per_forward: int
    prompts: int = 0
    rows: int = 0
    new_tokens: int = 0
    updates: int = 1
    scored_items: int = 0
    scorers: int = 1


def _texts(record: Record) -> tuple[list[str], list[str]]:
    """Messages of the prompt, and completions."""
    prompt = [message.content for message in as_prompt(record).messages]
    try:
        pair = as_comparison(record)
        return prompt, [pair.chosen, pair.rejected]
    except RecordError:
        return prompt, [as_demonstration(record).messages[-1].content]


def _lengths(
    records: Iterable[Record], *, pairs: bool, max_tokens: int, tokens: Callable[[str], float]
) -> Lengths | None:
    sampled = []
    for record in records:
        try:
            prompt, answers = _texts(record)
        except RecordError:
            continue
        if pairs and len(answers) < 2:
            continue
        answers = answers if pairs else answers[:1]
        before = sum(tokens(text) + _TOKENS_PER_MESSAGE for text in prompt) + _TOKENS_PER_MESSAGE
        after = [tokens(text) + 1 for text in answers]
        # Longer records are dropped whole.
        if before + max(after) <= max_tokens:
            sampled.append((before, statistics.mean(after), before + sum(after)))
    if not sampled:
        return None
    before_, after_, whole = zip(*sampled, strict=True)
    return Lengths(statistics.mean(before_), statistics.mean(after_), statistics.pstdev(whole))


def _records(rows: Sequence[Row], form_name: str) -> list[Record]:
    values = [row.value for row in rows if row.fault is None and isinstance(row.value, dict)]
    try:
        form = detect(values) if form_name == "auto" else format_named(form_name)
    except (DataError, ValueError):
        return []
    records = []
    for value in values:
        try:
            records.append(form.read(value, "sample", Meta()))
        except RecordError:
            continue
    return records


def _characters(value: Any) -> int:
    if isinstance(value, str):
        return len(value)
    if isinstance(value, dict):
        return sum(map(_characters, value.values()))
    return sum(map(_characters, value)) if isinstance(value, list) else 0


def count_data(recipe: Recipe, *, vocab_size: int) -> Counted:
    """Rows of the files, counted, and lengths, estimated from the first rows.

    Raises:
        DataError, ConfigError: the data is missing or cannot be read.
    """
    if recipe.data.source == "testbed":
        amounts = recipe.testbed
        words = (
            f"the testbed ({amounts.demonstrations:,} demonstrations, {amounts.prompts:,} prompts for pairs)"
        )
        return Counted(items=None, words=words, shown=_TESTBED, compared=_TESTBED)
    files = data_files(recipe.data.path, key="data.path")
    per_token = 1.0 if vocab_size < _BYTE_VOCABULARY else _CHARACTERS_PER_TOKEN
    sample: list[Row] = []
    rows = 0
    for file in files:
        first, count = _first_rows(file)
        sample, rows = sample + first, rows + count
    characters = sum(_characters(row.value) for row in sample)
    tokens = rows * characters / max(1, len(sample)) / per_token
    items = round(rows * (1 - recipe.data.share_held_out))
    items = items if recipe.data.limit is None else min(items, recipe.data.limit)
    named = files[0].name if len(files) == 1 else f"{len(files)} files"
    words = (
        f"{named} ({rows:,} rows, about {items:,} of them to train on, roughly {tokens:,.0f} tokens of text)"
    )
    records, longest = _records(sample, recipe.data.format), recipe.data.max_tokens

    def of(*, pairs: bool) -> Lengths:
        found = _lengths(records, pairs=pairs, max_tokens=longest, tokens=lambda t: len(t) / per_token)
        # Nothing can be told from the rows: as long as they may be.
        return found or Lengths(longest / 2, longest / 2, 0.0)

    return Counted(items=items, words=words, shown=of(pairs=False), compared=of(pairs=True))


def _first_rows(file: Path) -> tuple[list[Row], int]:
    _, stream = read_rows(file)
    first = list(islice(stream, _SAMPLE_ROWS))
    return first, len(first) + sum(1 for _ in stream)


def _largest(count: int, mean: float, deviation: float, longest: float) -> float:
    """Tokens of the largest of many batches of `count` items."""
    return min(count * mean + _LONGEST * math.sqrt(count) * deviation, count * longest)


def _listed(
    stage: TrainedStage, train: TrainSettings, lengths: Lengths, *, items: int, recipe: Recipe
) -> Work:
    completions = 1 if stage == "sft" else 2
    mean = lengths.prompt + completions * lengths.completion
    longest = recipe.data.max_tokens * completions
    step = _largest(train.batch_size, mean, lengths.deviation, longest)
    budget = train.max_tokens_per_forward
    # A row is closed when the next item does not fit: half an item stays free on average.
    forwards = 1 if step <= budget else math.ceil(step / max(1.0, budget - mean / 2))
    # Held-out items, and for DPO the reference pass over all of them, fill whole rows.
    total = items * mean
    return Work(
        stage=stage,
        step_tokens=step,
        mean_step_tokens=train.batch_size * mean,
        forward_tokens=min(step, budget),
        scoring_tokens=min(total if stage == "dpo" else total * recipe.data.test_share, budget),
        completion_share=completions * lengths.completion / mean,
        forwards=forwards,
        item_tokens=mean,
        sequence_tokens=lengths.prompt + lengths.completion,
        completions=completions,
        items=train.batch_size,
        steps=num_steps(train, max(1, items)),
        precision=train.precision,
        first_moment=train.first_moment,
        checkpointing=train.activation_checkpointing,
        max_tokens=longest,
        max_tokens_per_forward=budget,
        scored_items=items if stage == "dpo" and recipe.dpo.objective.record().reference else 0,
    )


def _scorers(train: PPOSettings | GroupSettings) -> int:
    """Policy, with its values, and reference."""
    if not isinstance(train, GroupSettings):
        return 2
    return int(not train.scored_by_update) + int(train.reference)


def _drawn(
    stage: Literal["ppo", "grpo"], train: PPOSettings | GroupSettings, lengths: Lengths, recipe: Recipe
) -> Work:
    completions, prompts = train.completions_per_prompt, train.prompts_per_iteration
    mean = lengths.prompt + completions * train.max_new_tokens
    longest = recipe.data.max_tokens - train.max_new_tokens + completions * train.max_new_tokens
    batch = math.ceil(prompts / train.minibatches)
    step = _largest(batch, mean, lengths.deviation, longest)
    budget = train.max_tokens_per_forward
    return Work(
        stage=stage,
        step_tokens=step,
        mean_step_tokens=batch * mean,
        forward_tokens=min(step, budget),
        scoring_tokens=min(prompts * mean, budget),
        completion_share=completions * train.max_new_tokens / mean,
        forwards=1 if step <= budget else math.ceil(step / max(1.0, budget - mean / 2)),
        item_tokens=mean,
        sequence_tokens=lengths.prompt + train.max_new_tokens,
        completions=completions,
        items=batch,
        steps=train.iterations,
        precision=train.precision,
        first_moment=train.first_moment,
        checkpointing=train.activation_checkpointing,
        max_tokens=longest,
        max_tokens_per_forward=budget,
        prompts=prompts,
        rows=prompts * completions,
        new_tokens=train.max_new_tokens,
        updates=train.epochs * train.minibatches,
        scored_items=prompts,
        scorers=_scorers(train),
    )


def work_of(recipe: Recipe, counted: Counted, stages: Iterable[str]) -> list[Work]:
    """The training stages among `stages`, in order."""
    testbed, wanted = recipe.data.source == "testbed", set(stages)
    shown = recipe.testbed.demonstrations if testbed else counted.items or 0
    compared = recipe.testbed.prompts if testbed else counted.items or 0
    made: dict[TrainedStage, Work] = {
        "sft": _listed("sft", recipe.sft.train, counted.shown, items=shown, recipe=recipe),
        "reward": _listed("reward", recipe.reward.train, counted.compared, items=compared, recipe=recipe),
        "dpo": _listed("dpo", recipe.dpo.train, counted.compared, items=compared, recipe=recipe),
        "ppo": _drawn("ppo", recipe.ppo.train, counted.shown, recipe),
        "grpo": _drawn("grpo", recipe.grpo.train, counted.shown, recipe),
    }
    return [made[stage] for stage in TRAINED if stage in wanted]
