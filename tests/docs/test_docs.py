"""What the documentation says holds: commands parse, links resolve, snippets import what exists."""

import ast
import importlib.util
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import typer
import yaml

from trueward.cli.main import app
from trueward.core.config import apply_overrides, build
from trueward.pipeline.recipe import Recipe

ROOT = Path(__file__).parents[2]
PAGES = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    ROOT / "CHANGELOG.md",
    *sorted((ROOT / "docs").rglob("*.md")),
]
_FENCE = re.compile(r"^( *)```(\w*)[^\n]*\n(.*?)^\1```$", re.DOTALL | re.MULTILINE)
_LINK = re.compile(r"!?\[[^\]]*\]\(([^)\s]+)\)")
# Arguments of commands that take a recipe; what follows it are overrides.
_RECIPE_COMMANDS = {
    "run",
    "pretrain",
    "sft",
    "reward",
    "dpo",
    "kto",
    "ppo",
    "grpo",
    "distill",
    "weak-to-strong",
    "prm",
    "orm",
    "best-of-n",
    "eval",
    "gate",
    "report",
}


def name_of(page: Path) -> str:
    return str(page.relative_to(ROOT))


def fences(page: Path, language: str) -> Iterator[str]:
    for _, found, text in _FENCE.findall(page.read_text(encoding="utf-8")):
        if found == language:
            yield text


def command_lines(page: Path) -> Iterator[list[str]]:
    """The words of every `trueward ...` line in a shell block, comments taken off."""
    for text in fences(page, "bash"):
        for line in text.replace("\\\n", " ").splitlines():
            words = shlex.split(line, comments=True)
            if words[:1] == ["trueward"]:
                yield words[1:]


COMMANDS = [(page, words) for page in PAGES for words in command_lines(page)]
SNIPPETS = [(page, text) for page in PAGES for text in fences(page, "python")]


def parse(words: list[str]) -> dict[str, Any]:
    """Parse as the command line would, without running anything. Returns the arguments and their values."""
    command: Any = typer.main.get_command(app)
    context = command.make_context("trueward", [*words], resilient_parsing=False)
    while rest := [*context._protected_args, *context.args]:
        _, child, rest = context.command.resolve_command(context, rest)
        context = child.make_context(child.name, rest, parent=context)
        if not hasattr(child, "commands"):
            break
    values: dict[str, Any] = context.params
    return values


@pytest.mark.parametrize(
    ("page", "words"), COMMANDS, ids=[f"{name_of(p)}: {' '.join(w)}"[:90] for p, w in COMMANDS]
)
def test_command_lines_parse(page: Path, words: list[str]) -> None:
    values = parse(words)
    if words[0] in _RECIPE_COMMANDS:
        file = ROOT / "recipes" / f"{values['recipe']}.yaml"
        shipped = file if file.is_file() else ROOT / "recipes" / "hh.yaml"
        mapping = yaml.safe_load(shipped.read_text(encoding="utf-8"))
        build(Recipe, apply_overrides(mapping, values["overrides"] or []), source=name_of(page))


@pytest.mark.parametrize("words", [["sfft", "hh"], ["run", "hh", "--dry"], ["data", "import"]], ids=" ".join)
def test_a_wrong_command_line_does_not_parse(words: list[str]) -> None:
    with pytest.raises(Exception, match=r"(?i)no such|missing|did you mean"):
        parse(words)


def test_there_is_something_to_test() -> None:
    assert len(COMMANDS) > 30
    assert len(SNIPPETS) > 5


def anchor(heading: str) -> str:
    return re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-")


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_relative_links_resolve(page: Path) -> None:
    text = _FENCE.sub("", page.read_text(encoding="utf-8"))
    for target in _LINK.findall(text):
        if re.match(r"[a-z]+:", target):
            continue
        path, _, fragment = target.partition("#")
        file = (page.parent / path).resolve() if path else page
        assert file.exists(), f"{name_of(page)} links to {target}"
        if fragment:
            headings = re.findall(r"^#+ (.*)$", file.read_text(encoding="utf-8"), flags=re.MULTILINE)
            assert fragment in map(anchor, headings), f"{name_of(page)} links to {target}"


def exports(module: str) -> set[str]:
    """Names at the top level of a module of ours, read from its source."""
    spec = importlib.util.find_spec(module.partition(".")[0])
    assert spec is not None and spec.submodule_search_locations
    path = Path(spec.submodule_search_locations[0]).joinpath(*module.split(".")[1:])
    file = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
    assert file.is_file(), f"there is no module {module}"
    names: set[str] = set()
    for node in ast.parse(file.read_text(encoding="utf-8")).body:
        match node:
            case ast.FunctionDef(name=name) | ast.ClassDef(name=name):
                names.add(name)
            case ast.Assign(targets=targets):
                names |= {target.id for target in targets if isinstance(target, ast.Name)}
            case ast.AnnAssign(target=ast.Name(id=name)):
                names.add(name)
            case ast.ImportFrom(names=imported):
                names |= {item.asname or item.name for item in imported}
    return names


@pytest.mark.parametrize(
    ("page", "text"), SNIPPETS, ids=[f"{name_of(p)}-{n}" for n, (p, _) in enumerate(SNIPPETS)]
)
def test_snippets_compile_and_import_what_exists(page: Path, text: str) -> None:
    for node in ast.walk(ast.parse(text, filename=name_of(page))):
        if isinstance(node, ast.ImportFrom) and str(node.module).startswith("trueward"):
            assert {item.name for item in node.names} <= exports(str(node.module))


def generator() -> ModuleType:
    spec = importlib.util.spec_from_file_location("gen_reference", ROOT / "docs" / "gen_reference.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_reference_has_every_key_of_the_recipe() -> None:
    written = (ROOT / "docs" / "reference" / "recipe.md").read_text(encoding="utf-8")
    assert written == generator().page(), (
        "run `python docs/gen_reference.py`: a key, default or meaning changed"
    )


def test_every_page_is_in_the_navigation() -> None:
    text = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    for page in (ROOT / "docs").rglob("*.md"):
        assert f": {page.relative_to(ROOT / 'docs')}" in text
