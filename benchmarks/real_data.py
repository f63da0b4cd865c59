"""Real feedback through the recipes on a small model: what was read, what was learnt, beside its baselines.

    python -m benchmarks.real_data --data FOLDER --model MODEL [--out runs/real-data] [--only WORD ...]
    python -m benchmarks.real_data --write

FOLDER holds public collections, each in a folder of its own: llama-factory-demos (kto_en_demo, dpo_en_demo),
llms-from-scratch (instruction-data-with-preference), pandalm, prometheus-eval (hhh_alignment_eval,
autoj_pairwise), xstest, gsm8k, math. MODEL is any causal language model; the page was made with one of
`trueward pretrain novels`. Each task is one line of benchmarks/real_data.json (`--results`), measured once:
what is there is kept, and an interrupted stage goes on. `--write` makes docs/real-results.md of the lines and
measures nothing.

Few steps on few records: on so small a model the figures say that the path is whole, and little else.
"""

import argparse
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.real_data_page import write_page
from benchmarks.real_data_verifiers import agreement, last_number_rate, most_common_rate
from benchmarks.results import read_lines, record
from trueward.core.files import read_json
from trueward.core.stats import Estimate, bootstrap_mean
from trueward.data.records import Label
from trueward.evals import fit_bag_of_words
from trueward.models import load_causal
from trueward.pipeline import Workspace, open_workspace, resolve, run
from trueward.pipeline.datasets import asked_records, decided, pairs
from trueward.pipeline.kto import labels_of
from trueward.pipeline.reward_report import measure_reward

__all__ = ["TASKS", "main"]

_COMMAND = "python -m benchmarks.real_data --data FOLDER --model MODEL"
_SMALL = (
    "data.test_share=0.3",
    "sft.train={steps: 15, batch_size: 8, lr: 1.0e-3}",
    "reward.train={steps: 30, batch_size: 8, lr: 1.0e-3}",
    "dpo.train={steps: 20, batch_size: 8, lr: 3.0e-4}",
    "kto.train={steps: 20, batch_size: 16, lr: 3.0e-4}",
)
_MATHS = (
    "data.max_tokens=512",
    "sft.train={steps: 60, batch_size: 16, lr: 1.0e-3}",
    "grpo.train={iterations: 8, prompts_per_iteration: 16, completions_per_prompt: 8, lr: 1.0e-4}",
    "grpo.train.minibatches=2",
    "grpo.train.max_new_tokens=160",
    "eval.prompts=400",
)


@dataclass(frozen=True, slots=True)
class Source:
    """Files of a collection below FOLDER, and the overrides that a user would write for them.

    methods: of the preference family, each from the same SFT model.
    held_out: the collection's own test file, where it has one.
    """

    files: str
    overrides: tuple[str, ...] = ()
    methods: tuple[str, ...] = ("dpo",)
    held_out: str | None = None


_PAIRS = {
    "instruction-data": Source(
        "llms-from-scratch/instruction-data-with-preference.json.gz",
        ("data.max_tokens=512",),
        ("dpo", "ipo", "simpo", "orpo"),
    ),
    "pandalm": Source("pandalm/testset-v1.json.gz", ("data.max_tokens=768", "data.max_bad=0.07")),
    "hhh": Source("prometheus-eval/hhh_alignment_eval.json.gz", ("data.max_tokens=1024",)),
    "xstest": Source("xstest/xstest_v2_completions_*", ("data.max_tokens=1024", "data.pair_labels=true")),
    "dpo-demo": Source("llama-factory-demos/dpo_en_demo.json.gz", ("data.max_tokens=4096",)),
    "autoj": Source(
        "prometheus-eval/autoj_pairwise.jsonl.gz", ("data.max_tokens=4096", "data.test_share=0.2")
    ),
}
_LABELS = {
    "kto-demo": Source("llama-factory-demos/kto_en_demo.json.gz", ("data.max_tokens=2048",)),
    "xstest": Source("xstest/xstest_v2_completions_*", ("data.max_tokens=768", "data.test_share=0.2")),
    "instruction-data": Source(
        "llms-from-scratch/instruction-data-with-preference.json.gz", ("data.max_tokens=512",)
    ),
}
_QUESTIONS = {
    "gsm8k": Source("gsm8k/train.jsonl.gz", held_out="gsm8k/test.jsonl.gz"),
    "math": Source("math/math-test.jsonl.gz"),
}


@dataclass(frozen=True, slots=True)
class Place:
    """Where the collections and the model are, and where runs go."""

    data: Path
    model: Path
    out: Path

    def workspace(self, recipe: str, source: Source, *overrides: str, out: Path) -> Workspace:
        """The workspace of a run on a collection; an unfinished one goes on."""
        files = sorted(self.data.glob(source.files))
        paths = ", ".join(file.as_posix() for file in files)
        given = [f"data.path=[{paths}]", f"model.path={self.model}", f"out={out}", *overrides]
        if source.held_out is not None:
            given.append(f"data.test_path={self.data / source.held_out}")
        return open_workspace(resolve(recipe, given), resume=True)


def _shown(estimate: Estimate) -> dict[str, float]:
    return dict(estimate._asdict())


def _imported(workspace: Workspace) -> dict[str, Any]:
    (file,) = (workspace.out / "data" / "feedback").glob("*/manifest.json")
    manifest = read_json(file)
    return {
        "counts": manifest["counts"],
        "quarantined": manifest["quarantined"],
        "format": manifest["sources"][0]["format"],
        "splits": manifest["splits"],
    }


def _left_out(workspace: Workspace, stage: str) -> dict[str, Any]:
    """Rows that training used, and those that it dropped with the reason."""
    preflight = workspace.run(stage).manifest["results"]["preflight"]
    return {"rows": preflight["rows"], "dropped": preflight["dropped"]}


def _pairs_task(name: str) -> Callable[[Place], dict[str, Any]]:
    def measure(place: Place) -> dict[str, Any]:
        source, folder = _PAIRS[name], place.out / f"pairs-{name}"
        base = place.workspace(
            "hh", source, *_SMALL, *source.overrides, "stages=[data, sft, reward]", out=folder / "base"
        )
        run(base)
        found = pairs(base)
        train, test = decided(found.train), decided(found.test)
        reward = measure_reward(base, base.load_reward(), found).body
        values: dict[str, Any] = {
            **_imported(base),
            "ties": train.ties + test.ties,
            "reward": {key: reward[key] for key in ("accuracy", "baselines", "ece", "verdict")},
            "reward_rows": _left_out(base, "reward"),
            "methods": {},
        }
        for method in source.methods:
            values["methods"][method] = _policy(place, source, folder, method)
        return values

    return measure


def _policy(place: Place, source: Source, folder: Path, method: str) -> dict[str, Any]:
    """Held-out accuracy of a policy tuned from the SFT model that is there."""
    out = folder / method
    if not out.exists():
        shutil.copytree(folder / "base", out, ignore=shutil.ignore_patterns("reward"))
    overrides = (*_SMALL, *source.overrides, f"dpo.objective.method={method}", "stages=[dpo]")
    workspace = place.workspace("hh", source, *overrides, out=out)
    run(workspace)
    held = workspace.run("dpo").manifest["results"]["held_out"]
    return {"accuracy": held["accuracy"], **_left_out(workspace, "dpo")}


def _labels_task(name: str) -> Callable[[Place], dict[str, Any]]:
    def measure(place: Place) -> dict[str, Any]:
        source = _LABELS[name]
        overrides = (*_SMALL, *source.overrides, "stages=[data, sft, kto]")
        workspace = place.workspace("hh", source, *overrides, out=place.out / f"labels-{name}")
        run(workspace)
        results = workspace.run("kto").manifest["results"]
        records = asked_records(workspace)
        return {
            **_imported(workspace),
            "labels": results["labels"],
            "accuracy": results["held_out"]["accuracy"],
            "rows": _left_out(workspace, "kto"),
            "baselines": _label_baselines(labels_of(records.train).labels, labels_of(records.test).labels),
        }

    return measure


def _label_baselines(train: Sequence[Label], test: Sequence[Label]) -> dict[str, dict[str, float]]:
    """Rules fitted to the training labels, on all held-out ones: majority, the best length, words."""
    usual = 2 * sum(label.label for label in train) >= len(train)
    rules: dict[str, Callable[[str], bool]] = {"majority": lambda text: usual}
    cuts = sorted({len(label.completion) for label in train})
    best = max(
        ((cut, longer) for cut in cuts for longer in (True, False)),
        key=lambda rule: sum(((len(x.completion) >= rule[0]) == rule[1]) == x.label for x in train),
    )
    rules["length, best cut"] = lambda text: (len(text) >= best[0]) == best[1]
    # A text against an empty one: logistic regression on the words of single answers.
    sides = [(x.completion, "") if x.label else ("", x.completion) for x in train]
    judge = fit_bag_of_words([side[0] for side in sides], [side[1] for side in sides])
    rules["bag of words"] = lambda text: judge("", text) > 0
    asked = [x.prompt for x in test]
    hits = {name: [rule(x.completion) == x.label for x in test] for name, rule in rules.items()}
    return {name: _shown(bootstrap_mean(values, groups=asked)) for name, values in hits.items()}


def _questions_task(name: str) -> Callable[[Place], dict[str, Any]]:
    def measure(place: Place) -> dict[str, Any]:
        workspace = place.workspace("rlvr", _QUESTIONS[name], *_MATHS, out=place.out / f"maths-{name}")
        run(workspace)
        results = workspace.run("grpo").manifest["results"]
        records = asked_records(workspace)
        held = records.test[: workspace.recipe.eval.prompts]
        return {
            **_imported(workspace),
            "held_out": results["held_out"],
            "sft_rows": _left_out(workspace, "sft"),
            "baselines": {
                "most common training answer": _shown(most_common_rate(records.train, held)),
                "last number of the question": _shown(last_number_rate(held)),
            },
        }

    return measure


def _model(place: Place) -> dict[str, Any]:
    loaded = load_causal(str(place.model))
    return {"parameters": loaded.model.num_parameters(), "hash": loaded.hash}


TASKS: dict[str, Callable[[Place], dict[str, Any]]] = {
    "model/base": _model,
    "labels/kto-demo": _labels_task("kto-demo"),
    **{f"pairs/{name}": _pairs_task(name) for name in ("xstest", "hhh", "pandalm")},
    "maths/gsm8k": _questions_task("gsm8k"),
    "verifiers/agreement": lambda place: agreement(place.data),
    "pairs/instruction-data": _pairs_task("instruction-data"),
    "labels/xstest": _labels_task("xstest"),
    "labels/instruction-data": _labels_task("instruction-data"),
    "maths/math": _questions_task("math"),
    "pairs/dpo-demo": _pairs_task("dpo-demo"),
    "pairs/autoj": _pairs_task("autoj"),
}
"""What is measured, in this order."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure what has not been measured, or write the page."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--data", type=Path)
    parser.add_argument("--model", type=Path)
    parser.add_argument("--out", type=Path, default=Path("runs/real-data"))
    parser.add_argument("--results", type=Path, default=Path(__file__).with_name("real_data.json"))
    parser.add_argument("--only", nargs="*", default=[""], help="tasks whose name holds one of these words")
    parser.add_argument("--write", action="store_true", help="write the page from the lines, and no more")
    given = parser.parse_args(arguments)
    file = given.results
    if given.write:
        write_page(read_lines(file))
        return 0
    if given.data is None or given.model is None:
        parser.error("--data and --model are needed to measure")
    place = Place(given.data.resolve(), given.model.resolve(), given.out)
    done = {line.name for line in read_lines(file)}
    for name, task in TASKS.items():
        if name in done or not any(word in name for word in given.only):
            continue
        started_s = time.process_time()
        values = task(place)
        record(file, name, {**values, "cpu_s": time.process_time() - started_s}, command=_COMMAND)
        print(f"{name}: {values}", flush=True)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
