"""Each target with the measured lines that meet it and those that miss it; nothing is measured or formatted
here."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from benchmarks.performance_targets import (
    DECODE_TARGETS,
    GPU_SPEED_TARGET,
    GPU_UTILISATION_TARGET,
    HELP_TARGET_S,
    PPO_TARGET,
    START_TARGET_S,
    TRL_TARGETS,
    UTILISATION_TARGETS,
)
from benchmarks.results import Line

__all__ = ["dpo_on_a_gpu", "overview", "precision_of"]


class _Asked(NamedTuple):
    """What is asked of one line. where: what tells the line from others of this work."""

    work: str
    target: str
    where: str
    missed: Sequence[str]


def precision_of(label: str) -> str:
    """The precision that a line's label begins with; after it may stand what the processor has."""
    return label.partition(",")[0]


def overview(lines: Sequence[Line]) -> list[list[str]]:
    """Rows of work, target, how many lines meet it, and the others with what they miss."""
    found: dict[tuple[str, str], list[_Asked]] = {}
    for asked in (*(each for line in lines for each in _asked(line)), *_asked_of_a_gpu(lines)):
        found.setdefault((asked.work, asked.target), []).append(asked)
    rows = []
    for (work, target), group in found.items():
        missing = [f"{asked.where}: {', '.join(asked.missed)}" for asked in group if asked.missed]
        rows.append([work, target, f"{len(group) - len(missing)} of {len(group)}", "; ".join(missing) or "-"])
    return rows


def _asked(line: Line) -> Iterator[_Asked]:
    _, *words = line.name.split("/")
    values = line.values
    if line.part == "trl":
        size, method, label, *where = words
        key = size, method, precision_of(label)
        work, place = f"{method}, {size}, {key[2]}", ", ".join([*label.split(", ")[1:], *where])
        if target := TRL_TARGETS.get(key):
            yield _Asked(work, str(target), place, target.missed(values))
        if share := UTILISATION_TARGETS.get(key):
            got = values["utilisation"]
            yield _Asked(f"share of peak: {work}", f"{share:.0%}", place, _short(got < share, f"{got:.0%}"))
    elif line.part == "decode":
        size, label, threads, _ = words
        target = DECODE_TARGETS[precision_of(label)]
        place = ", ".join([*label.split(", ")[1:], threads])
        yield _Asked(f"decoding, {size}, {precision_of(label)}", str(target), place, target.missed(values))
    elif line.part == "ppo" and words[0] == "135M":
        yield _Asked("PPO on one backbone, 135M", str(PPO_TARGET), words[1], PPO_TARGET.missed(values))
    elif line.part == "start":
        took = values["first_step_s"]
        short = _short(took >= START_TARGET_S, f"{took:.1f} s")
        yield _Asked("from import to the first step", f"{START_TARGET_S:g} s", words[0], short)
        if (answered := values.get("help_s")) is not None:
            short = _short(answered >= HELP_TARGET_S, f"{answered:.2f} s")
            yield _Asked("`trueward --help`", f"{HELP_TARGET_S:g} s", words[0], short)


class GpuDpo(NamedTuple):
    """DPO of one size on a GPU; None and "" where the side in question was not measured.

    speed: Trueward's beside `side`, the fastest of the others.
    share: Trueward's, of the measured matrix peak.
    """

    speed: float | None
    side: str
    share: float | None


def dpo_on_a_gpu(lines: Sequence[Line]) -> dict[str, GpuDpo]:
    """Size -> DPO of Trueward beside the fastest other side."""
    others: dict[str, list[tuple[float, str]]] = {}
    shares: dict[str, float | None] = {}
    for line in lines:
        if line.part != "gpu":
            continue
        _, size, method, side = line.name.split("/")
        if method == "dpo" and side == "Trueward":
            shares[size] = line.values["utilisation"]
        elif method == "dpo" and not side.startswith("Trueward") and line.values["speed"] is not None:
            others.setdefault(size, []).append((line.values["speed"], side))
    found = {}
    for size in {**others, **shares}:
        speed, side = min(others.get(size, []), default=(None, ""))
        found[size] = GpuDpo(speed, side, shares.get(size))
    return found


def _asked_of_a_gpu(lines: Sequence[Line]) -> Iterator[_Asked]:
    found = dpo_on_a_gpu(lines)
    for size, (speed, _, _) in found.items():
        if speed is not None:
            short = _short(speed < GPU_SPEED_TARGET, f"{speed:.2f}x")
            yield _Asked("dpo on a GPU", f"{GPU_SPEED_TARGET:g}x the fastest other side", size, short)
    if (largest := found.get("1.5B")) is not None and (share := largest.share) is not None:
        short = _short(share < GPU_UTILISATION_TARGET, f"{share:.0%}")
        yield _Asked("share of peak: dpo, 1.5B, on a GPU", f"{GPU_UTILISATION_TARGET:.0%}", "bfloat16", short)


def _short(is_missed: bool, got: str) -> list[str]:
    return [got] if is_missed else []
