"""The recipes that ship, beside the sources in a checkout and inside the package when installed.

Here and not in the pipeline, so that listing and copying them does not wait for torch.
"""

from pathlib import Path
from typing import Any

from rich.console import Console

from trueward.core.config import read_yaml
from trueward.core.errors import ConfigError, StorageError, nearest
from trueward.core.files import write_text

__all__ = ["copy_recipe", "print_recipes", "recipe_mapping", "recipe_text", "recipes_folder"]


def recipes_folder() -> Path:
    """The folder that holds them.

    Raises:
        ConfigError: the installation has none.
    """
    package = Path(__file__).parents[1]
    for folder in (package / "recipes", package.parents[1] / "recipes"):
        if folder.is_dir():
            return folder
    raise ConfigError("the installation has no recipes", remedy="install the package again")


def _names() -> list[str]:
    return sorted(path.stem for path in recipes_folder().glob("*.yaml"))


def _file(name: str) -> Path:
    path = recipes_folder() / f"{Path(name).stem}.yaml"
    if not path.is_file():
        raise ConfigError(f"there is no recipe {name!r}", remedy=nearest(Path(name).stem, _names()))
    return path


def recipe_mapping(name_or_path: str) -> tuple[dict[str, Any], str]:
    """The recipe's values and where they come from; a file wins over a name.

    Raises:
        ConfigError: neither a file nor a name.
    """
    given = Path(name_or_path)
    path = given if given.is_file() else _file(name_or_path)
    return read_yaml(path), str(path)


def recipe_text(name: str) -> str:
    """The text of a recipe that ships."""
    return _file(name).read_text(encoding="utf-8")


def copy_recipe(name: str, target: Path) -> Path:
    """Copy a recipe to `target`, a new file or a folder.

    Raises:
        StorageError: the file exists.
    """
    path = target / _file(name).name if target.is_dir() else target
    if path.exists():
        raise StorageError(f"{path} exists already", remedy="choose another name")
    write_text(path, recipe_text(name))
    return path


def print_recipes() -> None:
    """One line each: name and what its first comment says."""
    console = Console()
    for name in _names():
        first = next(
            (line[1:].strip() for line in recipe_text(name).splitlines() if line.startswith("#")), ""
        )
        console.print(f"{name:<14} {first}", markup=False, highlight=False)
