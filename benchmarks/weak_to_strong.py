"""Weak-to-strong generalization of preference labels on the embedded world: how much of the gap is recovered.

    python -m benchmarks.weak_to_strong [--weak words tiny] [--seed 0] [--out runs/weak-to-strong]

A weak supervisor learns true labels of a few pairs and labels many others. The strong student, a reward model
on the testbed's base model, is trained on those labels, with and without the confidence loss; its ceiling on
the true ones. All are measured on the same pairs of held-out prompts. True is the order of the true reward.
"""

import argparse
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from transformers import PreTrainedModel

from trueward.core.files import write_json
from trueward.core.seed import derive_seed, generator
from trueward.core.stats import paired_difference
from trueward.data.chat import TokenGroup, tokenise_many
from trueward.data.records import Comparison, Prompt
from trueward.evals import GapRecovered, fit_bag_of_words, pair_outcomes, performance_gap_recovered
from trueward.models.heads import reward_from_causal
from trueward.models.load import LoadedModel, load_causal
from trueward.models.scratch import ScratchSettings, new_llama
from trueward.pipeline.testbed_base import shipped_base
from trueward.testbed import gold_reward, make_world, prompts, task_of
from trueward.testbed.responses import WEB, draw_author, respond
from trueward.trainers import (
    RewardPair,
    RewardSettings,
    TrainResult,
    TrainSettings,
    WeakToStrongSettings,
    score_pairs,
    train_reward,
    train_weak_to_strong,
)
from trueward.trainers.loop import json_figures

__all__ = ["SUPERVISORS", "Pairs", "main", "make_pairs"]

_SCHEMA = "trueward.weak_to_strong/1"
_BUDGET = 16384
STUDENT = TrainSettings(lr=1e-3, batch_size=32, steps=150, schedule="linear", adam_beta2=0.99, log_every=10)
TINY = TrainSettings(lr=3e-3, batch_size=32, steps=150, schedule="linear", adam_beta2=0.99, log_every=10)
TINY_SHAPE = ScratchSettings(
    hidden_size=32, num_layers=1, num_heads=2, num_kv_heads=2, intermediate_size=64, max_positions=256
)
STUDENTS = {
    "imitation": WeakToStrongSettings(alpha=0.0),
    "confidence loss": WeakToStrongSettings(alpha=0.5),
}


class Pairs(NamedTuple):
    """Pairs in no order. first_better: the truth, 0 or 1; ties: prompts whose replies are equally good."""

    records: list[Comparison]
    groups: list[TokenGroup]
    first_better: list[float]
    ties: int

    def labelled(self, probabilities: Sequence[float]) -> list[RewardPair]:
        rows = zip(self.groups, probabilities, strict=True)
        return [RewardPair(group, None, probability) for group, probability in rows]


Judge = Callable[[Pairs], list[float]]
"""Margins first - second, a log-odds."""


def make_pairs(loaded: LoadedModel, asked: Sequence[Prompt], seed: int) -> Pairs:
    """Two replies by authors of the web to each prompt; equally good ones are left out and counted."""
    rng = generator(seed, "replies")
    records, truth, ties = [], [], 0
    for prompt in asked:
        task = task_of(prompt.meta)
        first, second = (respond(task, draw_author(WEB, rng), rng) for _ in range(2))
        golds = gold_reward(task, first).total, gold_reward(task, second).total
        if golds[0] == golds[1]:
            ties += 1
            continue
        records.append(Comparison(id=prompt.id, prompt=prompt.messages, chosen=first, rejected=second))
        truth.append(float(golds[0] > golds[1]))
    groups = list(tokenise_many(loaded.tokenizer, records))
    assert all(isinstance(group, TokenGroup) for group in groups), "the testbed's own pairs tokenise"
    return Pairs(records, [group for group in groups if isinstance(group, TokenGroup)], truth, ties)


def _judge(model: PreTrainedModel) -> Judge:
    def margins(pairs: Pairs) -> list[float]:
        first, second = score_pairs(model, pairs.labelled(pairs.first_better), max_tokens_per_forward=_BUDGET)
        return [a - b for a, b in zip(first, second, strict=True)]

    return margins


def _finished(result: TrainResult) -> None:
    if result.interrupted:
        raise KeyboardInterrupt("half a training measures nothing")


def _words(loaded: LoadedModel, known: Pairs, folder: Path, seed: int) -> Judge:
    """Logistic regression on the words of the replies; it does not read the prompt."""
    first, second = [r.chosen for r in known.records], [r.rejected for r in known.records]
    score = fit_bag_of_words(first, second, soft_labels=known.first_better, l2=1.0)

    def margins(pairs: Pairs) -> list[float]:
        return [score("", r.chosen) - score("", r.rejected) for r in pairs.records]

    return margins


def _tiny(loaded: LoadedModel, known: Pairs, folder: Path, seed: int) -> Judge:
    """A reward model of one layer of width 32 that has read nothing before."""
    shape = TINY_SHAPE.model_copy(update={"seed": seed % 2**31})
    model = reward_from_causal(new_llama(loaded.tokenizer, shape), loaded.tokenizer, seed=seed)
    result = train_reward(
        model,
        known.labelled(known.first_better),
        settings=TINY.model_copy(update={"seed": seed}),
        reward=RewardSettings(),
        folder=folder,
    )
    _finished(result)
    return _judge(model)


SUPERVISORS: dict[str, Callable[[LoadedModel, Pairs, Path, int], Judge]] = {"words": _words, "tiny": _tiny}


def _student(
    loaded: LoadedModel, pairs: list[RewardPair], confidence: WeakToStrongSettings, folder: Path, seed: int
) -> Judge:
    model = reward_from_causal(loaded.model, loaded.tokenizer, seed=seed)
    settings = STUDENT.model_copy(update={"seed": seed})
    result = train_weak_to_strong(model, pairs, settings=settings, confidence=confidence, folder=folder)
    _finished(result)
    return _judge(model)


def _outcomes(judge: Judge, pairs: Pairs) -> list[float]:
    outcomes: list[float] = pair_outcomes(judge(pairs), pairs.first_better).tolist()
    return outcomes


def _line(name: str, gap: GapRecovered) -> str:
    return (
        f"{name:24s} weak {gap.weak.shown(3)}  student {gap.strong.shown(3)}  "
        f"ceiling {gap.ceiling.shown(3)}  PGR {gap.recovered.shown()}  n {gap.recovered.n}"
    )


def _json(gap: GapRecovered) -> dict[str, object]:
    estimates = {"pgr": gap.recovered, "weak": gap.weak, "student": gap.strong, "ceiling": gap.ceiling}
    return {name: json_figures(e._asdict()) for name, e in estimates.items()} | {"undefined": gap.undefined}


def main(arguments: Sequence[str] | None = None) -> None:
    """Train, measure, print, and write `results.json`."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--weak", nargs="+", choices=list(SUPERVISORS), default=list(SUPERVISORS))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--known", type=int, default=400, help="prompts whose truth the supervisor learns from"
    )
    parser.add_argument("--labelled", type=int, default=6000, help="prompts that the supervisor labels")
    parser.add_argument("--held-out", type=int, default=1200)
    parser.add_argument("--out", type=Path, default=Path("runs/weak-to-strong"))
    given = parser.parse_args(arguments)
    started_s, seed = time.monotonic(), derive_seed(given.seed, "weak to strong")
    loaded, world = load_causal(shipped_base()), make_world()
    asked = prompts(world, given.known + given.labelled, held_out=False, seed=seed)
    known = make_pairs(loaded, asked[: given.known], derive_seed(seed, "known"))
    labelled = make_pairs(loaded, asked[given.known :], derive_seed(seed, "labelled"))
    held = make_pairs(
        loaded, prompts(world, given.held_out, held_out=True, seed=seed), derive_seed(seed, "held")
    )
    print(f"{len(known.groups)} known, {len(labelled.groups)} labelled, {len(held.groups)} held-out pairs")

    def student(pairs: list[RewardPair], how: WeakToStrongSettings, name: str) -> list[float]:
        return _outcomes(_student(loaded, pairs, how, given.out / name, seed), held)

    ceiling = student(labelled.labelled(labelled.first_better), STUDENTS["imitation"], "ceiling")
    results = {}
    for weak in given.weak:
        judge = SUPERVISORS[weak](loaded, known, given.out / weak, seed)
        margins = torch.tensor(judge(labelled), dtype=torch.float64)
        right = np.mean(pair_outcomes(margins.numpy(), labelled.first_better))
        print(f"{weak}: {right:.3f} of its labels are right")
        taught: list[list[float]] = []
        for name, how in STUDENTS.items():
            outcomes = student(labelled.labelled(torch.sigmoid(margins).tolist()), how, f"{weak}, {name}")
            taught.append(outcomes)
            gap = performance_gap_recovered(_outcomes(judge, held), outcomes, ceiling, seed=seed)
            results[f"{weak}, {name}"] = gap
            print(_line(f"{weak}, {name}", gap), flush=True)
        print(f"confidence loss - imitation: {paired_difference(taught[1], taught[0], seed=seed).shown(3)}")
    seconds = time.monotonic() - started_s
    print(f"{seconds:.0f} s")
    rows = {name: _json(gap) for name, gap in results.items()}
    write_json(given.out / "results.json", {"schema": _SCHEMA, "seconds": seconds, "rows": rows})


if __name__ == "__main__":
    main()
