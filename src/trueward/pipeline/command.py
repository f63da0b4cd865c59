"""From a command line to a stage: find the recipe, apply overrides, plan or run, and the exit code."""

from collections.abc import Sequence

from rich.console import Console
from transformers.utils import logging

from trueward.charter import load_charter
from trueward.core.config import apply_overrides, build
from trueward.core.imports import import_at_rest
from trueward.core.shipped import recipe_mapping
from trueward.pipeline.advice import out_of_memory, ran_out
from trueward.pipeline.operating_point import named_point
from trueward.pipeline.plan import plan
from trueward.pipeline.recipe import Recipe
from trueward.pipeline.workspace import Interrupted, open_workspace, recipe_text

__all__ = ["command", "resolve"]

REFUSED = 1
INTERRUPTED = 130


def resolve(recipe: str, overrides: Sequence[str] = ()) -> Recipe:
    """A recipe by file or name with overrides applied.

    Args:
        overrides: `a.b=c`, as on the command line.

    Raises:
        ConfigError: no such recipe, an unknown key, or a value that does not fit.
    """
    mapping, source = recipe_mapping(recipe)
    return build(Recipe, apply_overrides(mapping, overrides), source=source)


def command(target: str, recipe: str, overrides: Sequence[str], *, dry_run: bool, resume: bool) -> int:
    """Run `module:function` on the resolved recipe.

    Raises:
        RunError: memory ran out; the sentence has the plan's advice.

    Returns:
        Exit code: 0, 1 when the gate refused as its own command, or 130 after a signal.
    """
    resolved = resolve(recipe, overrides)
    module, _, name = target.partition(":")
    if dry_run:
        named_point(load_charter(resolved.charter), resolved.operating_point)
        output = Console(soft_wrap=True)
        output.print(recipe_text(resolved), markup=False, highlight=False)
        output.print(plan(resolved, name), markup=False, highlight=False)
        return 0
    # The library's own bars, one for each file read or written, would tear ours apart.
    logging.disable_progress_bar()  # type: ignore[no-untyped-call]  # untyped in transformers
    function = getattr(import_at_rest(module), name)
    console = Console(stderr=True)
    workspace = open_workspace(resolved, console=console, resume=resume)
    try:
        result = function(workspace)
    except Interrupted as stop:
        console.print(str(stop), markup=False, highlight=False, soft_wrap=True)
        return INTERRUPTED
    except (RuntimeError, MemoryError) as error:
        if not ran_out(error):
            raise
        left = [s for s in (resolved.stages if name == "run" else [name]) if not workspace.has(s)]
        raise out_of_memory(resolved, left) from error
    return REFUSED if result is False else 0
