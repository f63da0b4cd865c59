"""Reading a charter from YAML. The default one ships beside this module."""

from pathlib import Path

from trueward.charter.model import Charter
from trueward.core.config import build, read_yaml

__all__ = ["default_charter_path", "load_charter"]


def default_charter_path() -> Path:
    """The charter that ships with the package."""
    return Path(__file__).with_name("default.yaml")


def load_charter(path: Path | None = None) -> Charter:
    """Read and validate a charter.

    Args:
        path: a YAML file; None reads the default that ships.

    Raises:
        ConfigError: missing, not YAML, an unknown key, or a value that does not fit.
    """
    path = default_charter_path() if path is None else path
    return build(Charter, read_yaml(path), source=str(path))
