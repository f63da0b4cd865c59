"""`trueward plan` against the kernel: peak memory and step time of 12 stages, each in a process of its own.

    python -m benchmarks.plan_check [--only 1 8] [--docs]
Models are random and small, data is random text of known lengths. A stage runs as `trueward STAGE RECIPE`
would; its peak is the kernel's high-water mark (VmHWM) of the process, imports and loading included.
Ends with 0 if every peak is predicted within 15 %.
"""

import argparse
import importlib
import platform
import shutil
import string
import sys
import tempfile
from collections.abc import Sequence
from datetime import date
from pathlib import Path
from typing import Any, NamedTuple

import torch
from rich.console import Console
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM, PreTrainedModel

from benchmarks.process import run_module
from benchmarks.vs_trl_watch import memory_bytes
from trueward.core.files import read_json, read_jsonl, write_json, write_jsonl, write_text
from trueward.core.seed import generator
from trueward.models.checkpoint import save_causal
from trueward.models.tiny import tiny_tokenizer
from trueward.pipeline.command import command, resolve
from trueward.pipeline.hardware import THIS_MACHINE, Device, device_named
from trueward.pipeline.predict import predict

__all__ = ["CASES", "Case", "main", "write_docs"]

TARGET = 0.15
_GIB = 2**30
_ROWS = 160
_MODULE = "benchmarks.plan_check"
_QUICK = "{steps: 1, batch_size: 1, max_tokens_per_forward: 512}"
_TARGETS = {
    "run": "trueward.pipeline.run:run",
    "sft": "trueward.pipeline.stages:sft",
    "reward": "trueward.pipeline.stages:reward",
    "dpo": "trueward.pipeline.stages:dpo",
    "ppo": "trueward.pipeline.ppo:ppo",
}


class Case(NamedTuple):
    """One stage of one model. settings: of its training. overrides: further ones."""

    model: str
    stage: str
    settings: str
    overrides: tuple[str, ...] = ()


_LORA = ("model.lora.r=16",)
_HALF_LORA = ("model.lora.r=16", "model.dtype=bfloat16")
CASES = (
    Case("llama-16m", "sft", "batch_size: 8"),
    Case("llama-16m", "sft", "batch_size: 8, activation_checkpointing: true"),
    Case("llama-16m", "sft", "batch_size: 8, precision: bfloat16"),
    Case("llama-16m", "sft", "batch_size: 8", _LORA),
    Case("gpt2-13m", "sft", "batch_size: 8"),
    Case("llama-16m", "reward", "batch_size: 8"),
    Case("gpt2-13m", "reward", "batch_size: 8, precision: bfloat16, activation_checkpointing: true"),
    Case("llama-16m", "dpo", "batch_size: 8"),
    Case("llama-16m", "dpo", "batch_size: 8, max_tokens_per_forward: 700"),
    Case("llama-16m", "dpo", "batch_size: 8, precision: bfloat16", _HALF_LORA),
    Case("wide-21m", "dpo", "batch_size: 8"),
    Case(
        "wide-21m",
        "ppo",
        "prompts_per_iteration: 12, minibatches: 2, epochs: 1, max_new_tokens: 16, kl_budget: 100.0",
    ),
)


def _model(name: str) -> PreTrainedModel:
    ids: dict[str, Any] = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
    torch.manual_seed(0)
    if name == "gpt2-13m":
        dropout: dict[str, Any] = {"attn_pdrop": 0.0, "embd_pdrop": 0.0, "resid_pdrop": 0.0}
        return GPT2LMHeadModel(
            GPT2Config(vocab_size=16384, n_embd=320, n_layer=6, n_head=5, n_positions=1024, **ids, **dropout)
        )
    wide = name == "wide-21m"
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=49152 if wide else 8192,
            hidden_size=192 if wide else 384,
            intermediate_size=512 if wide else 1024,
            num_hidden_layers=5 if wide else 8,
            num_attention_heads=3 if wide else 6,
            num_key_value_heads=3 if wide else 2,
            tie_word_embeddings=not wide,
            max_position_embeddings=1024,
            **ids,
        )
    )


def _write_data(file: Path) -> None:
    rng = generator(0, "plan check")
    letters = list(string.ascii_lowercase + " ")

    def text(low: int, high: int) -> str:
        return "a" + "".join(rng.choice(letters, int(rng.integers(low, high)))).strip()

    rows = [
        {"prompt": text(60, 140), "chosen": text(30, 110), "rejected": text(30, 110)} for _ in range(_ROWS)
    ]
    write_jsonl(file, rows)


class Checked(NamedTuple):
    """One line of the table; bytes and seconds."""

    case: Case
    predicted: float
    measured: float
    process: float
    moment: str
    predicted_s: float
    measured_s: float

    @property
    def error(self) -> float:
        return self.predicted / self.measured - 1

    @property
    def own_error(self) -> float:
        """Of what the stage takes beyond the process."""
        return (self.predicted - self.process) / (self.measured - self.process) - 1


def _overrides(model: str, folder: Path, *more: str) -> list[str]:
    return [
        f"out={folder / model}",
        f"model.path={folder / f'model-{model}'}",
        f"data.path={folder / 'rows.jsonl'}",
        "data.max_tokens=320",
        "data.test_share=0.1",
        *more,
    ]


def _prepare(model: str, folder: Path) -> None:
    """Model, data, and one step of each stage that others start from."""
    stages = "stages=[data,sft,reward]" if _needs_reward(model) else "stages=[data,sft]"
    quick = (f"{stage}.train={_QUICK}" for stage in ("sft", "reward"))
    job = {"stage": "run", "name": model, "folder": str(folder / f"model-{model}")}
    run_module(_MODULE, {**job, "overrides": _overrides(model, folder, stages, *quick)}, folder)


def _needs_reward(model: str) -> bool:
    return any(case.model == model and case.stage == "ppo" for case in CASES)


def _of(case: Case, folder: Path) -> list[str]:
    steps = "iterations: 2" if case.stage == "ppo" else "steps: 2"
    train = f"{case.stage}.train={{{steps}, {case.settings}}}"
    return _overrides(case.model, folder, train, f"stages=[{case.stage}]", *case.overrides)


def check(case: Case, predicted: dict[str, Any], folder: Path) -> Checked:
    """Run a stage and compare."""
    # Another case may have left the same stage.
    shutil.rmtree(folder / case.model / case.stage, ignore_errors=True)
    job = {"stage": case.stage, "overrides": _of(case, folder)}
    seen = run_module(_MODULE, job, folder, allocator="kept")
    return Checked(case=case, **predicted, measured=seen["peak_bytes"], measured_s=seen["step_s"])


def _predicted(overrides: Sequence[str], device: Device) -> dict[str, Any]:
    (stage,) = predict(resolve("hh", overrides), device).stages
    assert stage.duration is not None, "the device was measured"
    peak = stage.memory.peak
    process = next(part.size for part in peak.parts if part.name == "process")
    figures = {"predicted": peak.size, "process": process, "moment": peak.name}
    return {**figures, "predicted_s": stage.duration.step_s}


def _work(asked: Path, result: Path) -> None:
    """In a process of its own: predict all cases, prepare a model, or run a stage and tell its peak."""
    job = read_json(asked)
    # A stage's command imports all of it; the plan is made from the process as it is then.
    importlib.import_module(_TARGETS["run"].partition(":")[0])
    if job["stage"] == "predict":
        device = device_named(THIS_MACHINE)
        write_json(result, {"cases": [_predicted(overrides, device) for overrides in job["cases"]]})
        return
    if job["stage"] == "run":
        save_causal(_model(job["name"]), tiny_tokenizer(), Path(job["folder"]), "Random weights.")
    code = command(_TARGETS[job["stage"]], "hh", job["overrides"], dry_run=False, resume=False)
    assert code == 0, "the stage runs to its end"
    if job["stage"] == "run":
        write_json(result, {})
        return
    recipe = resolve("hh", job["overrides"])
    rows = read_jsonl(recipe.out / job["stage"] / "metrics.jsonl")
    # The first step also reads in the code of the kernels.
    seconds = [float(row["step_s"]) for row in rows]
    write_json(result, {"peak_bytes": memory_bytes("VmHWM"), "step_s": seconds[-1]})


def table(rows: Sequence[Checked]) -> list[str]:
    """The comparison as Markdown."""
    lines = [
        "| # | model | stage | settings | predicted GiB | measured GiB | error | without the process "
        "| widest moment | predicted s/step | measured |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        number = CASES.index(row.case) + 1
        settings = ", ".join([row.case.settings, *row.case.overrides])
        lines.append(
            f"| {number} | {row.case.model} | {row.case.stage} | {settings} | {row.predicted / _GIB:.2f} "
            f"| {row.measured / _GIB:.2f} | {row.error:+.1%} | {row.own_error:+.1%} | {row.moment} "
            f"| {row.predicted_s:.2f} | {row.measured_s:.2f} |"
        )
    worst = max(abs(row.error) for row in rows)
    lines += [
        "",
        f"Largest error of the peak: {worst:.1%}; of what a stage takes beyond the process: "
        f"{max(abs(row.own_error) for row in rows):.1%}.",
    ]
    return lines


def main() -> int:
    """Check the cases and print the table.

    Returns:
        0 if every peak is within the target, else 1.
    """
    if len(sys.argv) == 3 and sys.argv[1].endswith(".json"):
        _work(*map(Path, sys.argv[1:]))
        return 0
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--only", type=int, nargs="*", default=[], help="numbers of cases; all if none is given"
    )
    parser.add_argument("--docs", action="store_true", help="write the table into docs/plan.md")
    asked = parser.parse_args()
    cases = [case for n, case in enumerate(CASES, 1) if not asked.only or n in asked.only]
    rows: list[Checked] = []
    console = Console(soft_wrap=True, highlight=False)
    with tempfile.TemporaryDirectory() as at:
        folder = Path(at)
        _write_data(folder / "rows.jsonl")
        for model in dict.fromkeys(case.model for case in cases):
            _prepare(model, folder)
        asked_of = {"stage": "predict", "cases": [_of(case, folder) for case in cases]}
        predicted = run_module(_MODULE, asked_of, folder, allocator="kept")["cases"]
        for case, figures in zip(cases, predicted, strict=True):
            rows.append(check(case, figures, folder))
            console.print(table(rows)[len(rows) + 1], markup=False)
    console.print("\n".join(table(rows)), markup=False)
    if asked.docs:
        versions = f"torch {torch.__version__}, Python {platform.python_version()}, {platform.machine()}"
        said = f"Written by `python -m benchmarks.plan_check --docs` on {date.today()} with {versions}"
        write_docs("plan_check", f"{said}, one thread.", table(rows))
    return 0 if all(abs(row.error) <= TARGET for row in rows) else 1


def write_docs(name: str, said: str, lines: Sequence[str]) -> None:
    """Put a sentence and a table between the marks `<!-- NAME: begin -->` and `<!-- NAME: end -->` of
    docs/plan.md."""
    page = Path(__file__).resolve().parents[1] / "docs" / "plan.md"
    begin, end = (f"<!-- {name}: {side} -->" for side in ("begin", "end"))
    before, _, rest = page.read_text(encoding="utf-8").partition(begin)
    _, _, after = rest.partition(end)
    write_text(page, "\n".join([f"{before}{begin}", "", said, "", *lines, "", f"{end}{after}"]))


if __name__ == "__main__":
    sys.exit(main())
