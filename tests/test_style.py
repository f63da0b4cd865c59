"""Rules about the text of the sources that no linter holds."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "src" / "trueward"
MODULES = sorted(PACKAGE.rglob("*.py"))
FOLDERS = ("src", "tests", "benchmarks", "recipes", "docs", ".ci")
SUFFIXES = {"", ".md", ".py", ".toml", ".txt", ".yaml", ".yml"}
MAX_MODULE_LINES = 450
MAX_FUNCTION_LINES = 60
LONG_FUNCTIONS: dict[str, str] = {}  # "path:function" -> why it is better long
MACHINE = re.compile(
    r"(?<![\w.$}~])/(?:work|home|root|tmp|Users|usr/local)/"  # a folder of somebody's machine
    r"|pypi\.|pythonhosted\.|artifactory|download\.pytorch\.|index[-_]url|extra[-_]index",  # a registry
    re.IGNORECASE,
)


def short(path: Path) -> str:
    return str(path.relative_to(ROOT))


def texts() -> Iterator[Path]:
    """Every text file of the project that people wrote."""
    yield from (path for path in ROOT.iterdir() if path.is_file() and path.suffix in SUFFIXES)
    for folder in FOLDERS:
        for path in (ROOT / folder).rglob("*"):
            # This file holds the patterns themselves.
            if path.is_file() and path.suffix in SUFFIXES and path != Path(__file__):
                yield path


def functions(tree: ast.AST) -> Iterator[ast.FunctionDef]:
    return (node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef))


def num_code_lines(function: ast.FunctionDef) -> int:
    """Lines of a function without its docstring."""
    first = function.body[0]
    docstring = first if isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant) else None
    skipped = (docstring.end_lineno or 0) - docstring.lineno + 1 if docstring else 0
    return (function.end_lineno or 0) - function.lineno + 1 - skipped


def test_there_is_something_to_check() -> None:
    assert len(MODULES) > 100
    names = {short(path) for path in texts()}
    assert {"README.md", "Makefile", "src/trueward/__init__.py", ".ci/run", "docs/index.md"} <= names


def test_modules_are_short() -> None:
    lines = {short(path): path.read_text().count("\n") for path in MODULES}
    assert {name: count for name, count in lines.items() if count > MAX_MODULE_LINES} == {}


def test_functions_are_short() -> None:
    lengths = {
        f"{short(path)}:{function.name}": num_code_lines(function)
        for path in MODULES
        for function in functions(ast.parse(path.read_text()))
    }
    too_long = {name for name, count in lengths.items() if count > MAX_FUNCTION_LINES}
    # Equal, so that an exception goes when its reason does.
    assert too_long == LONG_FUNCTIONS.keys()


def test_modules_say_what_they_are() -> None:
    silent = [short(path) for path in MODULES if not ast.get_docstring(ast.parse(path.read_text()))]
    assert silent == []


def test_nothing_is_called_utils() -> None:
    vague = re.compile(r"(^|_)(utils?|helpers?|misc|common)($|_)")
    assert [
        short(path) for path in MODULES if vague.search(path.stem) or vague.search(path.parent.name)
    ] == []


def test_imports_stand_at_the_top() -> None:
    inner = [
        f"{short(path)}:{node.lineno}"
        for path in MODULES
        for outer in ast.walk(ast.parse(path.read_text()))
        if isinstance(outer, ast.FunctionDef | ast.ClassDef | ast.If | ast.Try | ast.With)
        for node in ast.walk(outer)
        if isinstance(node, ast.Import | ast.ImportFrom)
    ]
    assert inner == []


def test_few_modules_import_by_name() -> None:
    # The command line must answer --help before torch is loaded, so it names what it calls; trackers and
    # math-verify are not installed by default; a verifier may be a function of the user.
    users = [short(path) for path in MODULES if "import_module" in path.read_text()]
    assert users == [
        "src/trueward/cli/start.py",
        "src/trueward/core/imports.py",
        "src/trueward/core/trackers.py",
        "src/trueward/rewards/_worker.py",
        "src/trueward/rewards/symbolic.py",
    ]


def test_imports_are_absolute() -> None:
    relative = [
        f"{short(path)}:{node.lineno}"
        for path in MODULES
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.ImportFrom) and node.level > 0
    ]
    assert relative == []


def test_no_pickle_and_nothing_executed() -> None:
    dangerous = re.compile(
        r"\bpickle\.\w|import pickle|torch\.load\(|(?<![\w.])(?:eval|exec)\("
        r"|trust_remote_code=True|shell=True|extractall\("
    )
    found = [
        f"{short(path)}:{number}"
        for path in MODULES
        for number, line in enumerate(path.read_text().splitlines(), 1)
        if dangerous.search(line.partition("#")[0]) and "weights_only=True" not in line
    ]
    assert found == []


def test_nothing_names_a_machine_or_a_registry() -> None:
    found = [
        f"{short(path)}:{number}: {line.strip()}"
        for path in texts()
        for number, line in enumerate(path.read_text().splitlines(), 1)
        if MACHINE.search(line)
    ]
    assert found == []


@pytest.mark.parametrize("line", ["see '/home/me/a'", "pip --index-url x"])
def test_the_pattern_for_machines_finds_them(line: str) -> None:
    assert MACHINE.search(line)
