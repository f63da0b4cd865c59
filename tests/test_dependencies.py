"""What the package needs: what pyproject names, and no tool that pins what others need."""

import ast
import sys
import tomllib
from pathlib import Path

import trueward

ROOT = Path(__file__).parents[1]
# Name on the registry -> name in Python, where they differ.
_MODULES = {"pyyaml": "yaml", "vl_convert_python": "vl_convert"}
# Named by their own requirements, without which they do not import.
_COME_WITH = {"huggingface_hub": "transformers", "markupsafe": "jinja2"}
# They pin one another out (transformers, litellm, openai): they run as commands in environments of their own.
_FOREIGN = {
    "garak",
    "pyrit",
    "lm_eval",
    "inspect_ai",
    "vllm",
    "deepspeed",
    "flash_attn",
    "ray",
    "trl",
    "datasets",
}


def imported() -> dict[str, str]:
    """Package -> a module of ours that imports it."""
    found: dict[str, str] = {}
    for path in sorted(Path(trueward.__file__).parent.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = [item.name for item in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            found |= {name.partition(".")[0]: path.name for name in names}
    return {name: path for name, path in found.items() if name not in {*sys.stdlib_module_names, "trueward"}}


def declared() -> set[str]:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    names = {
        line.partition(">")[0].partition("=")[0].strip().replace("-", "_") for line in project["dependencies"]
    }
    return {_MODULES.get(name, name) for name in names}


def test_what_is_imported_is_declared() -> None:
    known = declared()
    known |= {name for name, owner in _COME_WITH.items() if owner in known}
    assert {name: path for name, path in imported().items() if name not in known} == {}


def test_no_tool_that_pins_others_is_imported() -> None:
    assert imported().keys() & _FOREIGN == set()
    assert declared() & _FOREIGN == set()
