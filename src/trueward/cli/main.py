"""Commands. Each names the Python function that does the work; that module is imported when the command runs.

Importing torch takes seconds, so nothing on the way to `--help` may reach it: hence `_call` by name in place
of an import.
A user's error ends in one sentence and exit code 2; a refused gate exits with 1; an interrupted run with 130.
"""

import os
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from trueward import __version__
from trueward.core.errors import TruewardError
from trueward.core.imports import import_at_rest

__all__ = ["app", "main"]

WRONG_INPUT = 2
INTERRUPTED = 130
_HELP = {"help_option_names": ["-h", "--help"]}
app = typer.Typer(
    name="trueward",
    help="Align language models with a written charter, and prove what was done.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings=_HELP,
    rich_markup_mode=None,
)
recipes_app = typer.Typer(
    help="Recipes that ship: list, show, copy.", no_args_is_help=True, rich_markup_mode=None
)
models_app = typer.Typer(help="Model folders.", no_args_is_help=True, rich_markup_mode=None)
testbed_app = typer.Typer(
    help="The embedded world whose true reward is known.", no_args_is_help=True, rich_markup_mode=None
)
data_app = typer.Typer(help="Data sets: import, export.", no_args_is_help=True, rich_markup_mode=None)
app.add_typer(recipes_app, name="recipes")
app.add_typer(models_app, name="models")
app.add_typer(testbed_app, name="testbed")
app.add_typer(data_app, name="data")

RecipeArgument = Annotated[str, typer.Argument(help="A recipe file, or the name of one that ships.")]
Overrides = Annotated[list[str] | None, typer.Argument(help="Values to set: section.key=value.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Print the resolved recipe and the plan, and stop.")]
Resume = Annotated[bool, typer.Option("--resume", help="Go on from what the run folder holds.")]


def _call(target: str, *arguments: Any, **options: Any) -> Any:
    """Import `module:function` and call it."""
    module, _, function = target.partition(":")
    try:
        return getattr(import_at_rest(module), function)(*arguments, **options)
    except KeyboardInterrupt as stop:
        typer.echo("trueward: interrupted; run the same command with --resume to go on", err=True)
        raise typer.Exit(INTERRUPTED) from stop


def _version(show: bool) -> None:
    if show:
        typer.echo(f"trueward {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    # The hub is asked only by those who name a hub id; progress bars of libraries would break ours.
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")


@app.command()
def quickstart(
    out: Annotated[Path, typer.Option(help="Folder of the run.")] = Path("runs/quickstart"),
    seed: Annotated[int, typer.Option(min=0, help="The one seed.")] = 0,
    stages: Annotated[str, typer.Option(help="Stages to run, separated by commas; empty is all.")] = "",
    dry_run: DryRun = False,
    resume: Resume = False,
) -> None:
    """The whole job on the embedded world: charter, data, SFT, reward, DPO, PPO, evaluation, gate, report."""
    overrides = [f"out={out}", f"seed={seed}", *([f"stages=[{stages}]"] if stages else [])]
    _run("trueward.pipeline.run:run", "quickstart", overrides, dry_run=dry_run, resume=resume)


@app.command()
def run(
    recipe: RecipeArgument, overrides: Overrides = None, dry_run: DryRun = False, resume: Resume = False
) -> None:
    """Every stage that the recipe lists."""
    _run("trueward.pipeline.run:run", recipe, overrides, dry_run=dry_run, resume=resume)


def _run(target: str, recipe: str, overrides: list[str] | None, *, dry_run: bool, resume: bool) -> None:
    code = _call(
        "trueward.pipeline.command:command", target, recipe, overrides or [], dry_run=dry_run, resume=resume
    )
    if code:
        raise typer.Exit(code)


@app.command()
def plan(
    recipe: RecipeArgument,
    overrides: Overrides = None,
    hardware: Annotated[
        str, typer.Option(help="here (this machine, measured for a second), h100, h200, a100 or rtx4090.")
    ] = "here",
    gpus: Annotated[int, typer.Option(help="GPUs of one FSDP2 group.")] = 1,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Memory and time of each training stage, before anything is loaded, and what to change."""
    _call(
        "trueward.pipeline.predict_report:plan_command",
        recipe,
        overrides or [],
        hardware=hardware,
        gpus=gpus,
        as_json=as_json,
    )


@app.command()
def doctor(
    path: Annotated[Path, typer.Argument(help="Folder of a run, of a stage, or of several.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """What looks wrong in a run's metrics, why it matters and what to try; exit code 1 if anything does."""
    code = _call("trueward.core.doctor:doctor", path, as_json=as_json)
    if code:
        raise typer.Exit(code)


def _stage_command(name: str, target: str, text: str) -> None:
    def command(
        recipe: RecipeArgument, overrides: Overrides = None, dry_run: DryRun = False, resume: Resume = False
    ) -> None:
        _run(target, recipe, overrides, dry_run=dry_run, resume=resume)

    app.command(name, help=text)(command)


for _name, _target, _text in (
    (
        "pretrain",
        "trueward.pipeline.pretrain:pretrain",
        "A small language model from scratch, with its own tokenizer.",
    ),
    ("sft", "trueward.pipeline.stages:sft", "Supervised fine-tuning on demonstrations."),
    ("reward", "trueward.pipeline.stages:reward", "A reward model from comparisons."),
    ("dpo", "trueward.pipeline.stages:dpo", "Direct preference optimisation."),
    ("kto", "trueward.pipeline.kto:kto", "KTO or BCO on answers labelled desirable or not."),
    ("ppo", "trueward.pipeline.ppo:ppo", "PPO against the reward model, under a KL budget."),
    ("grpo", "trueward.pipeline.group:grpo", "GRPO and its relatives against verifiers."),
    (
        "distill",
        "trueward.pipeline.distill:distill",
        "Distil a teacher into the SFT model, on its own answers.",
    ),
    (
        "weak-to-strong",
        "trueward.pipeline.weak_to_strong:weak_to_strong",
        "A strong model from a weak supervisor's labels, and how much of the gap it closes.",
    ),
    ("prm", "trueward.pipeline.process:prm", "A process reward model from labelled steps."),
    ("orm", "trueward.pipeline.process:orm", "An outcome reward model from labelled solutions."),
    (
        "best-of-n",
        "trueward.pipeline.best_of_n:best_of_n",
        "Choose among n completions by PRM, ORM, reward model or vote, and measure it.",
    ),
    ("eval", "trueward.pipeline.evaluate:evaluate", "Measure every stage that is there on held-out prompts."),
    (
        "gate",
        "trueward.pipeline.gate:gate",
        "Hold the charter's criteria against the evidence; exit code 0 or 1.",
    ),
    ("report", "trueward.pipeline.report:report", "Write summary.json and report.html."),
):
    _stage_command(_name, _target, _text)


@recipes_app.command("ls")
def recipes_ls() -> None:
    """List the recipes that ship."""
    _call("trueward.core.shipped:print_recipes")


@recipes_app.command("show")
def recipes_show(name: str) -> None:
    """Print a recipe."""
    typer.echo(_call("trueward.core.shipped:recipe_text", name), nl=False)


@recipes_app.command("cp")
def recipes_cp(name: str, target: Path) -> None:
    """Copy a recipe to a file of yours."""
    typer.echo(f"copied to {_call('trueward.core.shipped:copy_recipe', name, target)}")


@models_app.command("import-llama2c")
def models_import_llama2c(weights: Path, vocabulary: Path, out: Path) -> None:
    """Turn llama2.c weights (.bin) and vocabulary (tok*.bin) into a Hugging Face Llama folder."""
    _call("trueward.models.llama2c:import_llama2c", weights, vocabulary, out)
    typer.echo(f"wrote {out}")


@testbed_app.command("build")
def testbed_build(
    out: Annotated[Path, typer.Argument(help="New folder for the base model.")],
    steps: Annotated[
        int | None, typer.Option(help="Optimizer steps; empty is the number that shipped.")
    ] = None,
) -> None:
    """Train the testbed's base model again, as the one that ships was trained."""
    _call("trueward.pipeline.testbed_base:build_base", out, steps=steps)
    typer.echo(f"wrote {out}")


@data_app.command("import")
def data_import(
    path: Path,
    out: Annotated[Path, typer.Argument(help="Folder of data sets.")],
    name: Annotated[str, typer.Option(help="Name of the data set.")] = "imported",
    format: Annotated[str, typer.Option(help="Name of an importer, or auto.")] = "auto",
    licence: Annotated[str, typer.Option(help="Licence of the data.")] = "",
    max_bad: Annotated[float, typer.Option(help="Largest share of unusable rows.")] = 0.01,
) -> None:
    """Import a file as an immutable data set; unusable rows go to a quarantine file and are counted."""
    _call(
        "trueward.pipeline.data:import_command",
        path,
        out,
        name=name,
        format=format,
        licence=licence,
        max_bad=max_bad,
    )


@data_app.command("export")
def data_export(
    dataset: Path,
    out: Path,
    form: Annotated[
        str, typer.Option(help="trl-conversational, trl-standard or openai.")
    ] = "trl-conversational",
) -> None:
    """Write a data set as JSON lines that other toolkits read."""
    _call("trueward.pipeline.data:export_command", dataset, out, form=form)


def main() -> None:
    """Entry point: user errors become one sentence and exit code 2."""
    try:
        app()
    except TruewardError as error:
        typer.echo(f"trueward: {' '.join(str(error).split())}", err=True)
        sys.exit(WRONG_INPUT)


if __name__ == "__main__":
    main()
