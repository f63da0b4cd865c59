"""A process reward model of PRM800K's steps on a small model: what it reaches, beside its baselines.

    python -m benchmarks.prm800k --data path/to/prm800k [--rows 10000] [--held 5000] [--steps 150]

`path/to/prm800k` holds the step-wise files of PRM800K phase 1 (`*train*` and `*test*`), one rated candidate
step a row. The model is a Llama of half a million weights: it is trained on the solutions as text first, then
on the steps. It is far too small to check mathematics; the figures say what so small a model finds. No
problem is in both splits.
"""

import argparse
import random
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from trueward.core.errors import DataError
from trueward.core.files import write_json
from trueward.data.bpe import train_bpe
from trueward.data.chat import Completion, Dropped, TokenGroup
from trueward.data.importers import import_file
from trueward.data.records import StepLabels
from trueward.data.steps import StepGroup, tokenise_steps
from trueward.models.scratch import ScratchSettings, new_llama
from trueward.trainers import TrainSettings, train_sft
from trueward.trainers.process import (
    ProcessSettings,
    score_steps,
    step_scorer,
    train_process,
)
from trueward.trainers.process_judge import ProcessEvaluation, evaluate_process

__all__ = ["Split", "main"]

_MAX_TOKENS, _BUDGET = 160, 8192
SHAPE = ScratchSettings(
    hidden_size=96,
    num_layers=2,
    num_heads=4,
    num_kv_heads=4,
    intermediate_size=256,
    max_positions=_MAX_TOKENS,
)
TEXT = TrainSettings(lr=3e-3, batch_size=16, steps=100, schedule="cosine", save_every=1000)
STEPS = TrainSettings(lr=1e-3, batch_size=16, schedule="linear", save_every=1000)


class Split(NamedTuple):
    """Solutions with a rated last step. problems: of each. dropped: rows that were rated but are too long."""

    items: list[StepGroup]
    problems: list[str]
    dropped: int


def _records(file: Path, out: Path, count: int, seed: int) -> list[StepLabels]:
    """`count` different rated rows, drawn at random."""
    rows = import_file(file, quarantine=out / f"{file.name}.bad.jsonl", format="auto", max_bad=0.2)
    found: dict[tuple[object, ...], StepLabels] = {}
    for record in rows:
        if isinstance(record, StepLabels) and record.labels[-1] is not None:
            found.setdefault((record.prompt, record.steps), record)
    kept = list(found.values())
    random.Random(seed).shuffle(kept)
    return kept[:count]


def _split(tokenizer: PreTrainedTokenizerBase, records: Sequence[StepLabels]) -> Split:
    made = list(tokenise_steps(tokenizer, records, max_tokens=_MAX_TOKENS))
    pairs = [
        (item, record) for item, record in zip(made, records, strict=True) if not isinstance(item, Dropped)
    ]
    problems = [record.prompt[-1].content for _, record in pairs]
    return Split([item for item, _ in pairs], problems, len(made) - len(pairs))


def _as_text(items: Sequence[StepGroup]) -> list[TokenGroup]:
    """The same tokens as running text: every token of the solution trained."""
    return [
        TokenGroup(
            i.group.prompt_ids, tuple(Completion(c.ids, (True,) * len(c.ids)) for c in i.group.completions)
        )
        for i in items
    ]


def _by_length(items: Sequence[StepGroup]) -> list[tuple[float, ...]]:
    """Scores of the last step from the length of its solution alone."""
    lengths = [len(item.group.completions[0].ids) for item in items]
    return [
        (*([0.0] * (len(item.labels) - 1)), -length / _MAX_TOKENS)
        for item, length in zip(items, lengths, strict=True)
    ]


def _line(name: str, found: ProcessEvaluation) -> str:
    shown = (found.accuracy.shown(3), found.balanced_accuracy.shown(3), found.auc.shown(3))
    return f"| {name} | {' | '.join(shown)} |"


def _file(folder: Path, word: str) -> Path:
    files = sorted(folder.glob(f"*{word}*.jsonl*"))
    if len(files) != 1:
        raise DataError(f"{folder} holds {len(files)} files named *{word}*.jsonl*", expected="one")
    return files[0]


def main(arguments: Sequence[str] | None = None) -> int:
    """Train both kinds of head and print the table; exit code 1 unless one beats chance on held-out steps."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--rows", type=int, default=10000)
    parser.add_argument("--held", type=int, default=5000)
    parser.add_argument("--steps", type=int, default=150)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("runs/prm800k"))
    given = parser.parse_args(arguments)
    started_s, out = time.monotonic(), given.out
    out.mkdir(parents=True)
    train = _records(_file(given.data, "train"), out, given.rows, given.seed)
    test = _records(_file(given.data, "test"), out, given.held, given.seed)
    texts = (text for r in train[:1000] for text in (r.prompt[-1].content, *r.steps))
    train_bpe(texts, vocab_size=2048, folder=out / "tokenizer", max_positions=_MAX_TOKENS)
    tokenizer = AutoTokenizer.from_pretrained(out / "tokenizer")
    learnt, held = _split(tokenizer, train), _split(tokenizer, test)
    assert not set(learnt.problems) & set(held.problems), "no problem is in both splits"
    for name, split in (("to learn from", learnt), ("held out", held)):
        num_problems = len(set(split.problems))
        print(f"{name}: {len(split.items)} steps of {num_problems} problems, {split.dropped} too long")
    base = new_llama(tokenizer, SHAPE)
    train_sft(base, _as_text(learnt.items), settings=TEXT, folder=out / "text")
    lines, best = [], 0.0
    for method in ("binary", "classes"):
        process = ProcessSettings(method=method)
        model = step_scorer(base, tokenizer, process, seed=given.seed)
        settings = STEPS.model_copy(update={"steps": given.steps, "seed": given.seed})
        train_process(model, learnt.items, settings=settings, process=process, folder=out / method)
        logps = score_steps(model, held.items, process=process, max_tokens_per_forward=_BUDGET)
        found = evaluate_process(logps, held.items, clusters=held.problems)
        lines.append(_line(f"PRM, {method}", found))
        best = max(best, found.auc.low)
    baselines = {
        "always right": [(-0.1,) * len(item.labels) for item in held.items],
        "shorter solution is right": _by_length(held.items),
    }
    for name, logps in baselines.items():
        lines.append(_line(name, evaluate_process(logps, held.items, clusters=held.problems)))
    print("| judge | accuracy | balanced accuracy | AUC |\n|---|---|---|---|")
    print("\n".join(lines))
    right = np.mean([(item.labels[-1] or 0) >= 0 for item in held.items])
    print(f"share of right (or neutral) steps held out {right:.3f}; {time.monotonic() - started_s:.0f} s")
    write_json(out / "result.json", {"lines": lines, "held_out": len(held.items)})
    return 0 if best > 0.5 else 1


if __name__ == "__main__":
    raise SystemExit(main())
