"""The public names of the packages, frozen: a change of `public_names.txt` belongs in CHANGELOG.md.

Also what importing them costs: the parts that read and write records start without torch.
"""

import importlib
import inspect
import subprocess
import sys
from pathlib import Path

import pytest

import trueward

NAMES = Path(__file__).with_name("public_names.txt")
# Their `__init__` exports nothing: users import from the modules, whose own `__all__` says what is public.
BY_MODULE = {"cli", "core", "data"}
WITHOUT_TORCH = ("charter", "cli.main", "core", "data", "registry", "reports", "testbed")


def packages() -> list[str]:
    folder = Path(trueward.__file__).parent
    return sorted(path.parent.name for path in folder.glob("*/__init__.py"))


def modules() -> list[str]:
    folder = Path(trueward.__file__).parent
    return sorted(
        ".".join(path.relative_to(folder.parent).with_suffix("").parts).removesuffix(".__init__")
        for path in folder.rglob("*.py")
    )


def public_names() -> list[str]:
    exported = []
    for package in packages():
        module = importlib.import_module(f"trueward.{package}")
        exported += [f"{package}.{name}" for name in getattr(module, "__all__", ())]
    return sorted(exported)


def test_public_names_are_frozen() -> None:
    assert public_names() == NAMES.read_text().split()


def test_every_package_says_what_it_exports() -> None:
    silent = {p for p in packages() if not hasattr(importlib.import_module(f"trueward.{p}"), "__all__")}
    assert silent == BY_MODULE


@pytest.mark.parametrize("name", modules())
def test_what_a_module_exports_is_there(name: str) -> None:
    module = importlib.import_module(name)
    exported = getattr(module, "__all__", [])
    assert len(exported) == len(set(exported))
    assert [entry for entry in exported if not hasattr(module, entry)] == []


@pytest.mark.parametrize("package", sorted({*packages()} - BY_MODULE))
def test_what_a_package_exports_is_documented(package: str) -> None:
    module = importlib.import_module(f"trueward.{package}")
    values = {name: getattr(module, name) for name in module.__all__}
    silent = [n for n, v in values.items() if (inspect.isclass(v) or inspect.isroutine(v)) and not v.__doc__]
    assert silent == []


def test_what_handles_records_starts_without_torch() -> None:
    imports = "; ".join(f"import trueward.{name}" for name in WITHOUT_TORCH)
    heavy = "{'torch', 'transformers', 'peft'}"
    code = f"import sys; {imports}; sys.exit(', '.join({heavy} & sys.modules.keys()) or 0)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")
