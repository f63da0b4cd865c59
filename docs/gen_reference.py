"""Writes docs/reference/recipe.md from the code: every key of a recipe with default, range and meaning.

python docs/gen_reference.py        write the page
A test compares the page with what this prints, so a changed default cannot go unnoticed.
"""

import ast
import inspect
import textwrap
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from trueward.core.config import Config
from trueward.pipeline.recipe import Recipe
from trueward.trainers.settings import TrainSettings

PAGE = Path(__file__).parent / "reference" / "recipe.md"

# Keys whose name says enough for the code, and not for a reader of the reference.
_MEANINGS = {
    "name": "Name of the run, in titles and model cards: lower-case letters, digits, `_` and `-`.",
    "hidden_size": "Width of the model.",
    "num_layers": "Layers.",
    "intermediate_size": "Width of the feed-forward part.",
    "seed": "Seed of the first weights; every stage derives its own from the recipe's `seed`.",
}
_INTRO = """# The recipe

<!-- Written by docs/gen_reference.py; edit the docstrings in the code, not this page. -->

A recipe is one nested YAML file. Unknown keys are errors that name the nearest known one. On the command line
`section.key=value` sets any key; the value is read as YAML, so `null`, `true`, `3` and `[data,sft]` mean what
they say. `trueward run RECIPE --dry-run` prints the resolved recipe, defaults included; the run keeps it as
`recipe.yaml`.

Only `name` and `out` have no default. A stage reads its own section, `model`, `data`, `seed` and `out`.
"""


class Section(NamedTuple):
    """One table: the dotted path of its keys and the model that holds them."""

    path: str
    model: type[BaseModel]


def docstrings(model: type[BaseModel]) -> dict[str, str]:
    """Field -> the string that stands below it in the source."""
    body = ast.parse(textwrap.dedent(inspect.getsource(model))).body[0]
    assert isinstance(body, ast.ClassDef)
    found = {}
    for field, text in zip(body.body, body.body[1:], strict=False):
        match field, text:
            case ast.AnnAssign(target=ast.Name(id=name)), ast.Expr(value=ast.Constant(value=str(words))):
                found[name] = " ".join(words.split())
    return found


def inner(annotation: Any) -> type[BaseModel] | None:
    """The section that a field holds, if it holds one."""
    candidates = [annotation, *typing.get_args(annotation)]
    return next((c for c in candidates if isinstance(c, type) and issubclass(c, Config)), None)


def sections(model: type[BaseModel] = Recipe, path: str = "") -> Iterator[Section]:
    """The recipe and every section in it, parents first."""
    yield Section(path, model)
    for name, field in model.model_fields.items():
        if (child := inner(field.annotation)) is not None:
            yield from sections(child, f"{path}.{name}" if path else name)


def allowed(field: FieldInfo) -> str:
    """Range or choices in words."""
    choices = [c for a in (field.annotation, *typing.get_args(field.annotation)) for c in _literals(a)]
    if choices:
        return ", ".join(f"`{c}`" for c in dict.fromkeys(choices))
    signs = {"ge": "≥", "gt": ">", "le": "≤", "lt": "<"}
    bounds = [
        f"{sign} {getattr(m, key):g}"
        for m in field.metadata
        for key, sign in signs.items()
        if hasattr(m, key)
    ]
    if bool in (field.annotation, *typing.get_args(field.annotation)):
        return "`true`, `false`"
    return ", ".join(bounds)


def _literals(annotation: Any) -> tuple[Any, ...]:
    return typing.get_args(annotation) if typing.get_origin(annotation) is typing.Literal else ()


def default(field: FieldInfo) -> str:
    """The default as YAML has it."""
    value = field.default
    if value is PydanticUndefined:
        return "required"
    if isinstance(value, tuple):
        return f"`[{', '.join(map(str, value))}]`"
    texts = {None: "null", True: "true", False: "false", "": "''"}
    return f"`{texts[value] if isinstance(value, str | bool | None) and value in texts else value}`"


def rows(section: Section) -> Iterator[str]:
    """The rows of a table; a field that is a section itself has a table of its own."""
    texts = docstrings(section.model)
    for name, field in section.model.model_fields.items():
        child = inner(field.annotation)
        if child is not None and field.default is not None:
            continue
        meaning = texts.get(name) or _MEANINGS[name]
        if child is not None:
            meaning += f" Its keys: `{section.path}.{name}`, below."
        dotted = f"{section.path}.{name}" if section.path else name
        yield f"| `{dotted}` | {default(field)} | {allowed(field)} | {_cell(meaning)} |"


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


def page() -> str:
    """The whole page."""
    parts = [_INTRO]
    trains = [s.path for s in sections() if s.model is TrainSettings]
    seen_train = False
    for section in sections():
        if section.model is TrainSettings:
            if seen_train:
                continue
            seen_train = True
            heading = " and ".join([", ".join(f"`{p}`" for p in trains[:-1]), f"`{trains[-1]}`"])
            section = Section("*.train", section.model)
        else:
            heading = f"`{section.path}`" if section.path else "The run"
        lines = list(rows(section))
        about = " ".join((inspect.getdoc(section.model) or "").split())
        text = f"\n## {heading}\n\n{about}\n"
        if lines:
            text += "\n| key | default | range | meaning |\n|---|---|---|---|\n" + "\n".join(lines) + "\n"
        parts.append(text)
    return "".join(parts)


if __name__ == "__main__":
    PAGE.parent.mkdir(exist_ok=True)
    PAGE.write_text(page(), encoding="utf-8")
