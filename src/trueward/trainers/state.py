"""Checkpoints of a run: what it takes to go on as if nothing had happened. Safetensors and JSON, no pickle.

    <folder>/checkpoints/step-00000200/weights.safetensors     trainable parameters
                                       optimizer.safetensors   "<parameter>/<state>" of AdamW
                                       <section>.safetensors   what a trainer adds
                                       state.json              step, identity, counters
The order of the items and dropout are functions of (seed, step), so no random state needs keeping.
A folder appears by one rename: if it is there, it is whole.
"""

import os
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from trueward.core.errors import RunError, StorageError
from trueward.core.files import new_folder, read_json, read_jsonl, write_json, write_jsonl
from trueward.core.hashing import canonical_json, hash_bytes, hash_json
from trueward.trainers.optim import trainable

__all__ = [
    "Checkpoint",
    "assign",
    "check_identity",
    "fingerprint",
    "latest_checkpoint",
    "load_tensors",
    "restore",
    "save_checkpoint",
    "save_tensors",
    "trim_rows",
]

SCHEMA = "trueward.checkpoint/1"
_NAME = re.compile(r"step-(\d{8})")


class Checkpoint(NamedTuple):
    """A checkpoint on disk and its `state.json`."""

    path: Path
    step: int
    state: dict[str, Any]


def save_tensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write a safetensors file through to the disk.

    Raises:
        StorageError: the disk is full or refuses.
    """
    try:
        save_file({name: tensor.detach().contiguous() for name, tensor in tensors.items()}, path)
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
    except (SafetensorError, OSError) as error:
        raise StorageError(
            f"cannot write {path.name} of {path.parent.name.strip('.')}: {error}",
            remedy="free space and resume; earlier checkpoints are untouched",
        ) from error


def load_tensors(path: Path) -> dict[str, Tensor]:
    """Read a safetensors file.

    Raises:
        RunError: missing or damaged.
    """
    try:
        return load_file(path)
    except (SafetensorError, OSError) as error:
        raise RunError(
            f"cannot read {path}: {error}", remedy="delete this checkpoint to go on from the one before"
        ) from error


def save_checkpoint(
    folder: Path,
    *,
    step: int,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    state: Mapping[str, object],
    keep: int,
    sections: Mapping[str, Mapping[str, Tensor]] | None = None,
) -> Path:
    """Write one checkpoint atomically, then delete all but the newest `keep`.

    Args:
        folder: the run folder.
        step: optimizer steps (PPO: iterations) done.
        state: JSON values; must hold `identity`.
        sections: further tensors, one file each.

    Raises:
        StorageError: the disk is full or refuses; earlier checkpoints are untouched.
    """
    parameters = trainable(model)
    path = folder / "checkpoints" / f"step-{step:08d}"
    if path.exists():
        return path
    with new_folder(path) as staging:
        save_tensors(staging / "weights.safetensors", parameters)
        save_tensors(staging / "optimizer.safetensors", _optimizer_tensors(optimizer, parameters))
        for name, tensors in (sections or {}).items():
            save_tensors(staging / f"{name}.safetensors", tensors)
        write_json(staging / "state.json", {"schema": SCHEMA, "step": step, **state})
    for old in _checkpoints(folder)[:-keep]:
        shutil.rmtree(old, ignore_errors=True)
    return path


def _optimizer_tensors(
    optimizer: torch.optim.Optimizer, parameters: Mapping[str, nn.Parameter]
) -> dict[str, Tensor]:
    return {
        f"{name}/{key}": value
        for name, parameter in parameters.items()
        for key, value in optimizer.state.get(parameter, {}).items()
    }


def _checkpoints(folder: Path) -> list[Path]:
    parent = folder / "checkpoints"
    return (
        sorted(path for path in parent.glob("step-*") if _NAME.fullmatch(path.name))
        if parent.is_dir()
        else []
    )


def latest_checkpoint(folder: Path) -> Checkpoint | None:
    """The newest checkpoint of a run folder, or None.

    Raises:
        RunError: its schema is not ours.
    """
    found = _checkpoints(folder)
    if not found:
        return None
    state = read_json(found[-1] / "state.json")
    if not isinstance(state, dict) or state.get("schema") != SCHEMA:
        raise RunError(f"{found[-1]} has another schema", value=state, expected=SCHEMA, remedy="delete it")
    return Checkpoint(found[-1], int(state["step"]), state)


def check_identity(checkpoint: Checkpoint, identity: Mapping[str, object]) -> None:
    """Refuse to go on with other data, settings or frozen weights than the checkpoint was made with.

    Raises:
        RunError: names the first difference.
    """
    saved = checkpoint.state["identity"]
    for key in sorted({*saved, *identity}):
        before, now = saved.get(key), identity.get(key)
        if canonical_json(before) != canonical_json(now):
            raise RunError(
                f"cannot resume: {key} differs from the one that {checkpoint.path} was made with",
                value=now,
                expected=str(before),
                remedy="restore it, or start a new run in another folder",
            )


def restore(checkpoint: Checkpoint, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """Put weights and optimizer state back.

    Raises:
        RunError: a file is missing or damaged, or the model has other parameters.
    """
    parameters = trainable(model)
    assign(parameters, load_tensors(checkpoint.path / "weights.safetensors"), source=checkpoint.path)
    states: dict[str, dict[str, Tensor]] = {}
    for key, value in load_tensors(checkpoint.path / "optimizer.safetensors").items():
        name, _, entry = key.rpartition("/")
        # Fused AdamW keeps its step counts where the parameter is.
        states.setdefault(name, {})[entry] = value.to(parameters[name].device)
    optimizer.state.clear()
    for name, entries in states.items():
        optimizer.state[parameters[name]] = entries


def assign(parameters: Mapping[str, nn.Parameter], tensors: Mapping[str, Tensor], *, source: Path) -> None:
    """Copy tensors into parameters of the same names and shapes.

    Raises:
        RunError: names or shapes differ.
    """
    shapes = {name: tuple(p.shape) for name, p in parameters.items()}
    seen = {name: tuple(t.shape) for name, t in tensors.items()}
    if shapes != seen:
        odd = sorted(name for name in {*shapes, *seen} if shapes.get(name) != seen.get(name))
        raise RunError(
            f"{source} holds other parameters than the model",
            value=f"{odd[0]} {seen.get(odd[0])}",
            expected=f"{odd[0]} {shapes.get(odd[0])}",
            remedy="resume with the same model and adapter settings",
        )
    with torch.no_grad():
        for name, parameter in parameters.items():
            parameter.copy_(tensors[name])


def fingerprint(model: nn.Module, *, frozen_only: bool = False) -> str:
    """SHA-256 over names, types, shapes and bytes of the parameters.

    Args:
        frozen_only: leave out what is trained.
    """
    return hash_json(
        [
            [name, str(p.dtype), list(p.shape), hash_bytes(_raw(p))]
            for name, p in sorted(model.named_parameters())
            if not (frozen_only and p.requires_grad)
        ]
    )


def _raw(tensor: Tensor) -> memoryview:
    """A tensor's bytes, where they lie: a copy of every weight would cost as much as hashing it."""
    return tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data


def trim_rows(path: Path, step: int) -> None:
    """Drop the lines of a JSON-lines file after `step`, so that steps taken again after a kill appear
    once."""
    if path.exists():
        write_jsonl(path, [row for row in read_jsonl(path) if row["step"] <= step])
