"""A run folder: what was asked, on what, with what, and what came out. Made once, never edited by another
run.

<folder>/manifest.json   schema, stage, resolved config, parents (name -> hash), seed, versions, code hash,
status <folder>/metrics.jsonl   declared metrics
<folder>/checkpoints/    what the trainers save to resume
<folder>/model/          the result, where the stage makes one
"""

import importlib.metadata
import platform
import subprocess
import sys
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import trueward
from trueward.core.errors import RunError
from trueward.core.files import read_json, write_json
from trueward.core.hashing import hash_file, hash_json

__all__ = ["RunFolder", "code_version", "create_run", "now", "open_run", "versions"]

SCHEMA = "trueward.run/1"
_PACKAGES = ("torch", "transformers", "tokenizers", "safetensors", "peft", "numpy", "pydantic")


def now() -> str:
    """The present time in UTC, ISO 8601, to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def versions() -> dict[str, str]:
    """Versions of Python and of the installed packages that decide numbers; missing ones are left out."""
    found = {"python": platform.python_version(), "trueward": trueward.__version__}
    for name in _PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def code_version() -> dict[str, Any]:
    """Hash of the package's own source, and the git commit where that source is tracked."""
    root = Path(trueward.__file__).parent
    sources = sorted(root.rglob("*.py"))
    result: dict[str, Any] = {
        "source": hash_json([[str(p.relative_to(root)), hash_file(p)] for p in sources])
    }
    # An installed package may lie below somebody else's repository, which knows nothing of it.
    tracked = _git(root, "ls-files", "--error-unmatch", "__init__.py")
    commit = _git(root, "rev-parse", "HEAD") if tracked else ""
    return {**result, "commit": commit} if commit else result


def _git(folder: Path, *arguments: str) -> str:
    """What git prints, stripped; empty where it fails or is not installed."""
    try:
        command = ["git", "-C", str(folder), *arguments]
        done = subprocess.run(command, capture_output=True, text=True, timeout=5, check=True)
    except (OSError, subprocess.SubprocessError):
        return ""
    return done.stdout.strip()


class RunFolder:
    """One run on disk. `finish` closes the manifest; until then its status is `running`."""

    def __init__(self, path: Path, manifest: dict[str, Any]) -> None:
        self.path = path
        self.manifest = manifest

    @property
    def model(self) -> Path:
        return self.path / "model"

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    def finish(self, *, status: str = "done", results: Mapping[str, Any] | None = None) -> None:
        """Write the final status and figures into the manifest."""
        self.manifest = {**self.manifest, "status": status, "finished": now(), "results": dict(results or {})}
        write_json(self.path / "manifest.json", self.manifest)


def create_run(
    path: Path, *, stage: str, config: Mapping[str, Any], parents: Mapping[str, str], seed: int
) -> RunFolder:
    """Make a run folder.

    Args:
        path: the folder; must not exist, or hold nothing.
        stage: name of the stage.
        config: the resolved configuration, JSON values.
        parents: name -> content hash of everything the result depends on (model, data, charter, template).
        seed: the run's seed.

    Raises:
        RunError: the folder exists and holds something.
    """
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise RunError(
            f"run folder {path} exists already",
            remedy="choose another `out`, remove it, or pass resume=true to go on from its last checkpoint",
        )
    manifest = {
        "schema": SCHEMA,
        "id": hash_json([stage, dict(config), dict(parents), seed])[:16],
        "stage": stage,
        "status": "running",
        "started": now(),
        "seed": seed,
        "config": dict(config),
        "parents": dict(parents),
        "versions": versions(),
        "code": code_version(),
        "command": sys.argv[1:],
    }
    write_json(path / "manifest.json", manifest)
    return RunFolder(path, manifest)


def open_run(path: Path) -> RunFolder:
    """Open an existing run folder.

    Raises:
        RunError: no manifest of a known schema.
    """
    file = path / "manifest.json"
    if not file.is_file():
        raise RunError(f"{path} is no run folder: manifest.json is missing", remedy="check the path")
    manifest = read_json(file)
    if not isinstance(manifest, dict) or manifest.get("schema") != SCHEMA:
        raise RunError(f"{file} has another schema", value=manifest, expected=SCHEMA)
    return RunFolder(path, manifest)
