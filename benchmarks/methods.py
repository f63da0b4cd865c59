"""Every method of the package on the embedded world, with equal compute: `docs/methods/table.md`.

    python -m benchmarks.methods [--seeds 0 1 2] [--only dpo ppo] [--passes 300000] [--out runs/methods]
    python -m benchmarks.methods --list      # the methods, and what is measured already
    python -m benchmarks.methods --tables    # write the page from the measured lines

Each seed has one SFT model and one reward model, the quickstart's; each method trains the SFT model for the
same number of passes (see methods_work), on the same pairs, their prompts, or their answers one by one. A
line for each method and seed is kept in `--results` as soon as it is measured, and one that is there is not
measured again. `--scale 2` doubles the learning rates and keeps its lines apart: so they were chosen, on
seed 3.
"""

import argparse
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from transformers.utils import logging

from benchmarks.methods_page import BEST, NAMES, line_name, read_measured, write_page
from benchmarks.methods_runs import METHODS, RATES, Budget
from benchmarks.methods_work import Shared, counting, prepare
from benchmarks.results import measured
from trueward.core.errors import nearest
from trueward.core.files import append_jsonl
from trueward.core.stats import Estimate, paired_difference, win_rate
from trueward.evals import kl_to_ref
from trueward.models import LoadedModel
from trueward.pipeline.sampling import Drawn, draw
from trueward.rollouts import Rollout
from trueward.testbed import measure
from trueward.trainers import reward_function
from trueward.trainers.loop import json_figures

__all__ = ["main", "measure_seed"]

PASSES = 300_000
RESULTS = Path(__file__).parent / "methods.jsonl"
PAGE = Path(__file__).parents[1] / "docs" / "methods" / "table.md"
_MAX_TOKENS = 16384


def _figures(shared: Shared, drawn: Drawn, rival: NDArray[np.float64] | None) -> dict[str, Any]:
    """True scores of the answers, and against those of the SFT model to the same prompts."""
    assert shared.held.tasks is not None, "the testbed knows its tasks"
    true = measure(shared.held.tasks, drawn.texts)
    found = {name: getattr(true, name) for name in ("gold", "helpful", "harmless", "honest")}
    if rival is not None:
        found["gain"] = paired_difference(true.totals, rival)
        found["win_rate"] = win_rate(true.totals, rival)
    lengths = [len(group.completions[0].ids) for group in drawn.groups]
    return {
        **{name: _json(estimate) for name, estimate in found.items()},
        "length": float(np.mean(lengths)),
        "unfinished": drawn.unfinished,
    }


def _json(estimate: Estimate) -> dict[str, Any]:
    return dict(json_figures(estimate._asdict()))


def _draw(shared: Shared, policy: LoadedModel, completions: int = 1) -> Drawn:
    """Answers to the held-out prompts, with the noise of the evaluation stage."""
    section, seed = shared.workspace.recipe.eval, shared.workspace.seed("eval")
    return draw(
        policy,
        shared.held.groups,
        max_new_tokens=section.max_new_tokens,
        temperature=1.0,
        seed=seed,
        num_completions=completions,
    )


def _trained(
    shared: Shared, name: str, *, passes: float, scale: float, rival: NDArray[np.float64]
) -> dict[str, Any]:
    method = METHODS[name]
    policy, scorer, lr = shared.policy(), shared.workspace.load_reward(), RATES[method.family] * scale
    start_s, start_cpu_s = time.monotonic(), time.process_time()
    with TemporaryDirectory() as folder, counting(policy.model, scorer.model) as tally:
        done = method.train(shared, policy, scorer, Budget(passes, lr, Path(folder)))
    seconds, cpu_s = time.monotonic() - start_s, time.process_time() - start_cpu_s
    if done.result.interrupted:
        raise KeyboardInterrupt("half a training measures nothing")
    drawn = _draw(shared, policy)
    away = kl_to_ref(policy.model, shared.policy().model, drawn.groups, max_tokens=_MAX_TOKENS)
    return {
        **_figures(shared, drawn, rival),
        "kl": _json(away.exact),
        "kl_k1": _json(away.k1),
        "lr": lr,
        "passes": tally.passes,
        "trained_tokens": tally.trained,
        "forward_tokens": tally.forward,
        "length_of_run": done.length,
        "settings": done.settings,
        "stopped": done.result.stopped,
        "warnings": list(done.result.warnings),
        "skipped": done.result.skipped,
        "seconds": seconds,
        "cpu_s": cpu_s,
    }


def _best_of(shared: Shared, num: int, *, rival: NDArray[np.float64]) -> dict[str, Any]:
    """The best of `num` answers of the SFT model by the reward model: compute in use, none before."""
    policy, scorer = shared.policy(), shared.workspace.load_reward()
    start_s, start_cpu_s = time.monotonic(), time.process_time()
    with counting(policy.model, scorer.model) as tally:
        drawn = _draw(shared, policy, num)
        rollouts = [
            Rollout(row // num, group.completions[0].ids, (), True) for row, group in enumerate(drawn.groups)
        ]
        scores = reward_function(scorer.model, max_tokens_per_forward=_MAX_TOKENS)(
            shared.held.groups, rollouts
        )
    best = [first + int(np.argmax(scores[first : first + num])) for first in range(0, len(scores), num)]
    chosen = Drawn([drawn.texts[i] for i in best], [drawn.groups[i] for i in best], drawn.unfinished)
    return {
        **_figures(shared, chosen, rival),
        "kl_bound": float(np.log(num) - (num - 1) / num),
        "passes_per_prompt": tally.passes / len(best),
        "seconds": time.monotonic() - start_s,
        "cpu_s": time.process_time() - start_cpu_s,
    }


def measure_seed(
    shared: Shared,
    names: Sequence[str],
    *,
    seed: int,
    passes: float,
    scale: float,
    results: Path,
    command: str,
) -> None:
    """Measure what is not in `results` yet, a line at a time, and keep each line."""
    before = _draw(shared, shared.policy())
    assert shared.held.tasks is not None, "the testbed knows its tasks"
    rival = measure(shared.held.tasks, before.texts).totals
    for name in names:
        key = line_name(name, seed, scale)
        there = read_measured(results).get(key)
        if there and there.values["budget"] == passes:
            continue
        if name == "sft":
            values = _figures(shared, before, None)
        elif name in BEST:
            values = _best_of(shared, BEST[name], rival=rival)
        else:
            values = _trained(shared, name, passes=passes, scale=scale, rival=rival)
        line = measured(key, {**values, "budget": passes, "seed": seed}, command=command)
        append_jsonl(results, asdict(line))
        gain = f", against SFT {values['gain']['value']:+.3f}" if "gain" in values else ""
        spent = f", {values['passes']:,} passes" if "passes" in values else ""
        took = f", {values['cpu_s']:.0f} s" if "cpu_s" in values else ""
        print(f"{key}: gold {values['gold']['value']:.3f}{gain}{spent}{took}", flush=True)


def _list(seeds: Sequence[int], results: Path) -> None:
    there = read_measured(results)
    for name in NAMES:
        family = METHODS[name].family if name in METHODS else "no training"
        marks = " ".join(f"seed {s}" for s in seeds if line_name(name, s) in there) or "nothing"
        print(f"{name:20s} {family:12s} measured: {marks}")


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, list, or write the page."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--only", nargs="+", default=list(NAMES), metavar="METHOD")
    parser.add_argument("--passes", type=int, default=PASSES, help="compute of each training, token passes")
    parser.add_argument("--scale", type=float, default=1.0, help="of every family's learning rate")
    parser.add_argument("--out", type=Path, default=Path("runs/methods"))
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--set", nargs="*", default=[], metavar="KEY=VALUE", help="overrides of the recipe")
    parser.add_argument("--list", action="store_true")
    parser.add_argument("--tables", action="store_true")
    given = parser.parse_args(arguments)
    for name in given.only:
        if name not in NAMES:
            parser.error(f"unknown method {name!r}; {nearest(name, NAMES)} (--list shows them all)")
    if given.list:
        _list(given.seeds, given.results)
        return 0
    if not given.tables:
        command = " ".join(
            ["python -m benchmarks.methods", *(sys.argv[1:] if arguments is None else arguments)]
        )
        torch.set_num_threads(1)
        logging.disable_progress_bar()  # its bars would tear the lines apart
        for seed in given.seeds:
            shared = prepare(given.out, seed, tuple(given.set))
            measure_seed(
                shared,
                given.only,
                seed=seed,
                passes=given.passes,
                scale=given.scale,
                results=given.results,
                command=command,
            )
        return 0
    write_page(PAGE, read_measured(given.results), given.seeds)
    print(f"wrote {PAGE}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
