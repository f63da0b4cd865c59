"""The lines of the performance page and how each is measured: pairs of runs in processes of their own.

Not here: what the processes do (vs_trl_ours, vs_trl_theirs, decode, ppo_roles, ablation, growth, cost,
tried).
"""

import dataclasses
from argparse import Namespace
from collections.abc import Callable, Iterator, Mapping
from statistics import median
from typing import Any, NamedTuple

import torch
from rich.console import Console

from benchmarks.ablation import ALL_ON, DECODING, TRAINING, AblationJob
from benchmarks.cost import AXES, CostJob, points
from benchmarks.decode import DecodeJob
from benchmarks.growth import STAGES, GrowthJob, write_rows
from benchmarks.ppo_roles import RolesJob, relative_difference, write_rewards
from benchmarks.process import command_s, run_module
from benchmarks.tried import TRIALS, TriedJob
from benchmarks.vs_trl import Case, measure
from benchmarks.vs_trl_table import Run, compare
from benchmarks.vs_trl_work import Job, Method, batch_of, groups_of
from benchmarks.workplace import Workplace
from trueward.models.bfloat16 import lacks_instructions
from trueward.models.packing import count_tokens

__all__ = ["PARTS", "Task", "tasks"]

GIB = float(1 << 30)


class Task(NamedTuple):
    """A line: its name, and what measures its values."""

    name: str
    measure: Callable[[Workplace], Mapping[str, Any]]


def tasks(asked: Namespace) -> Iterator[Task]:
    """The lines of the parts that are asked for."""
    for part in asked.parts:
        yield from PARTS[part](asked)


def _threads(count: int) -> str:
    return f"{count} thread" if count == 1 else f"{count} threads"


def _label(precision: str) -> str:
    """The precision, with what the processor has for it where that decides."""
    if precision == "bfloat16":
        return f"{precision}, no instructions" if lacks_instructions() else precision
    return f"{precision}, AVX-512" if _has_wide_registers() else precision


def _has_wide_registers() -> bool:
    return str(torch.backends.cpu.get_cpu_capability()) == "AVX512"


def _trl(asked: Namespace) -> Iterator[Task]:
    for size in asked.models:
        for method in asked.methods:
            for precision in asked.precisions:
                for threads in asked.threads:
                    for allocator in asked.allocators:
                        words = ["trl", size, method, _label(precision), _threads(threads), allocator]
                        if asked.peer_recomputes == "no":
                            words.append("TRL keeps activations")
                        if asked.recompute:
                            words.append("Trueward recomputes")
                        if asked.first_moment == "bfloat16":
                            words.append("first moment in bfloat16")
                        yield Task(
                            "/".join(words), _comparison(asked, size, method, precision, threads, allocator)
                        )


def _comparison(
    asked: Namespace, size: str, method: Method, precision: Any, threads: int, allocator: str
) -> Callable[[Workplace], Mapping[str, Any]]:
    def compared(place: Workplace) -> Mapping[str, Any]:
        folder = place.model(size)
        job = Job(
            method=method,
            work=str(folder),
            steps=asked.steps,
            batch=batch_of(method, asked.batch),
            max_length=asked.max_length,
            lr=5e-5,
            threads=threads,
            checkpointing=asked.recompute,
            precision=precision,
            new_tokens=asked.new_tokens,
            first_moment=asked.first_moment,
        )
        if asked.forward_tokens:
            # A group is never cut, so the largest one is the least a forward can take.
            drawn = job.completions * job.new_tokens if method == "grpo" else 0
            largest = max(map(count_tokens, groups_of(job))) + drawn
            job = job._replace(forward_tokens=max(asked.forward_tokens, largest))
        theirs = job._replace(checkpointing=asked.peer_recomputes == "yes")
        row, _ = measure(
            Case("", job, theirs, allocator), rounds=asked.rounds, folder=folder, console=Console(quiet=True)
        )
        return {
            **_figures(row),
            "steps": asked.steps,
            "batch": job.batch,
            "max_length": asked.max_length,
            "forward_tokens": job.forward_tokens,
            "parameters": place.parameters[size],
        }

    return compared


def _figures(row: Any) -> dict[str, Any]:
    values = dataclasses.asdict(row)
    del values["method"], values["setting"]
    return values


def _decode(asked: Namespace) -> Iterator[Task]:
    for size in asked.models:
        for precision in asked.precisions:
            for threads in asked.threads:
                words = [_label(precision), _threads(threads), f"{asked.batch} x {asked.new_tokens}"]
                yield Task("/".join(["decode", size, *words]), _decoding(asked, size, precision, threads))


def _decoding(
    asked: Namespace, size: str, precision: str, threads: int
) -> Callable[[Workplace], Mapping[str, Any]]:
    def decoded(place: Workplace) -> Mapping[str, Any]:
        folder = place.model(size)
        runs: dict[str, list[Run]] = {"trueward": [], "generate": []}
        ids: dict[str, Any] = {}
        for _ in range(asked.rounds):
            for side, found in runs.items():
                job = DecodeJob(side, str(folder), precision, asked.batch, asked.new_tokens, threads)
                # Each side as its own command starts.
                allocator = "kept" if side == "trueward" else "default"
                result = run_module(
                    "benchmarks.decode", job._asdict(), folder, threads=threads, allocator=allocator
                )
                ids[side] = result["ids"]
                # Decoding has no losses; the texts are compared instead.
                found.append(Run.of({**result, "losses": [0.0]}))
        row = compare("decode", "", runs["trueward"], runs["generate"], tokens=sum(map(len, ids["generate"])))
        values = _figures(row)
        for absent in ("loss_difference", "utilisation"):
            del values[absent]
        equal = [a == b for a, b in zip(ids["trueward"], ids["generate"], strict=True)]
        same = [_common(a, b) for a, b in zip(ids["trueward"], ids["generate"], strict=True)]
        return {
            **values,
            "rows": len(equal),
            "rows_equal": sum(equal),
            "equal_share": sum(same) / sum(map(len, ids["generate"])),
            "parameters": place.parameters[size],
        }

    return decoded


def _common(first: list[int], second: list[int]) -> int:
    """Tokens until the two differ."""
    return next(
        (n for n, (a, b) in enumerate(zip(first, second, strict=False)) if a != b),
        min(len(first), len(second)),
    )


def _ppo(asked: Namespace) -> Iterator[Task]:
    for size in asked.models:
        for policy in ("full", "lora"):
            yield Task(f"ppo/{size}/{policy}/1 thread", _four_roles(asked, size, policy))


def _four_roles(asked: Namespace, size: str, policy: str) -> Callable[[Workplace], Mapping[str, Any]]:
    def measured(place: Workplace) -> Mapping[str, Any]:
        folder = place.model(size)
        write_rewards(folder)
        job = RolesJob(
            layout="one backbone",
            policy=policy,
            work=str(folder),
            iterations=max(3, asked.steps),
            prompts=asked.batch,
            new_tokens=asked.new_tokens,
            forward_tokens=asked.forward_tokens or 16384,
        )
        jobs = {
            "one": job,
            "four": job._replace(layout="four models"),
            "alone": job._replace(layout="alone"),
            "lora alone": job._replace(layout="alone", policy="lora"),
        }
        runs: dict[str, list[dict[str, Any]]] = {name: [] for name in jobs}
        for _ in range(asked.rounds):
            for name, each in jobs.items():
                runs[name].append(run_module("benchmarks.ppo_roles", each._asdict(), folder))
        return {**_roles_figures(runs), "parameters": place.parameters[size], "prompts": asked.batch,
                "new_tokens": asked.new_tokens}  # fmt: skip

    return measured


def _roles_figures(runs: Mapping[str, list[dict[str, Any]]]) -> dict[str, Any]:
    """Ratios pair by pair, then medians. Time is that of the iterations after the first."""
    one, four = runs["one"], runs["four"]

    def each_s(run: Mapping[str, Any], clock: str) -> float:
        ends = run[clock]
        return float(ends[-1] - ends[0]) / (len(ends) - 1)

    def gib(run: Mapping[str, Any]) -> float:
        return float(run["peak_bytes"] - run["loaded_bytes"]) / GIB

    def memory(name: str) -> float:
        return median(gib(a) / gib(b) for a, b in zip(one, runs[name], strict=True))

    return {
        "pairs": len(one),
        "iteration_s": median(each_s(run, "ends_s") for run in one),
        "peer_iteration_s": median(each_s(run, "ends_s") for run in four),
        "speed": median(each_s(b, "ends_s") / each_s(a, "ends_s") for a, b in zip(one, four, strict=True)),
        "cpu_speed": median(
            each_s(b, "ends_cpu_s") / each_s(a, "ends_cpu_s") for a, b in zip(one, four, strict=True)
        ),
        "memory_gib": median(map(gib, one)),
        "peer_memory_gib": median(map(gib, four)),
        "alone_gib": median(map(gib, runs["alone"])),
        "lora_alone_gib": median(map(gib, runs["lora alone"])),
        "peer_memory": memory("four"),
        "alone_memory": memory("alone"),
        "memory": memory("lora alone"),
        "loss_difference": max(
            relative_difference(a["moved"], b["moved"]) for a, b in zip(one, four, strict=True)
        ),
        "texts_equal": all(a["ids"] == b["ids"] for a, b in zip(one, four, strict=True)),
    }


def _ablation(asked: Namespace) -> Iterator[Task]:
    for size in asked.models:
        for kind, variants in (("training", TRAINING), ("decoding", DECODING)):
            yield Task(f"ablation/{size}/{kind}", _ablated(asked, size, kind, list(variants)))


def _ablated(
    asked: Namespace, size: str, kind: str, variants: list[str]
) -> Callable[[Workplace], Mapping[str, Any]]:
    def ablated(place: Workplace) -> Mapping[str, Any]:
        folder = place.model(size)
        runs: dict[str, list[dict[str, Any]]] = {variant: [] for variant in variants}
        for _ in range(asked.rounds):
            for variant, found in runs.items():
                job = AblationJob(
                    kind, variant, str(folder), max(2, asked.steps), asked.batch, asked.new_tokens
                )
                allocator = "default" if "allocator" in variant else "kept"
                result = run_module("benchmarks.ablation", job._asdict(), folder, allocator=allocator)
                result["s"] = result["ends_s"][-1]
                result["cpu_s"] = result["ends_cpu_s"][-1]
                result["gib"] = (result["peak_bytes"] - result["loaded_bytes"]) / GIB
                found.append(result)
        whole = runs[ALL_ON]
        lines = [
            {
                "variant": variant,
                "seconds": median(run["s"] for run in found),
                "time": median(run["s"] / base["s"] for run, base in zip(found, whole, strict=True)),
                "cpu_time": median(
                    run["cpu_s"] / base["cpu_s"] for run, base in zip(found, whole, strict=True)
                ),
                "memory_gib": median(run["gib"] for run in found),
                "memory": median(run["gib"] / base["gib"] for run, base in zip(found, whole, strict=True)),
                "loss_difference": max(
                    (abs(a - b) for a, b in zip(found[0]["losses"], whole[0]["losses"], strict=True)),
                    default=0.0,
                ),
            }
            for variant, found in runs.items()
        ]
        return {"pairs": asked.rounds, "lines": lines, "parameters": place.parameters[size]}

    return ablated


def _growth(asked: Namespace) -> Iterator[Task]:
    records = 1000
    while records <= asked.most_records:
        for stage in STAGES:
            yield Task(f"growth/{stage}/{records:,}", _grown(stage, records))
        records *= 10


def _grown(stage: str, records: int) -> Callable[[Workplace], Mapping[str, Any]]:
    def grown(place: Workplace) -> Mapping[str, Any]:
        file = place.folder / f"growth-{records}.jsonl"
        if not file.exists():
            write_rows(file, records)
        job = GrowthJob(stage, str(file), str(place.folder), records)
        result = run_module("benchmarks.growth", job._asdict(), place.folder)
        seconds = result["ends_s"][-1]
        return {
            "records": records,
            "seconds": seconds,
            "records_per_s": records / seconds,
            "memory_mib": (result["peak_bytes"] - result["loaded_bytes"]) / 2**20,
        }

    return grown


def _cost(asked: Namespace) -> Iterator[Task]:
    for axis in AXES:

        def measured(place: Workplace, axis: str = axis) -> Mapping[str, Any]:
            jobs = [CostJob(axis, value, str(place.folder)) for value in points(axis, quick=asked.quick)]
            return {"points": [run_module("benchmarks.cost", job._asdict(), place.folder) for job in jobs]}

        yield Task(f"cost/{axis}", measured)


def _tried(asked: Namespace) -> Iterator[Task]:
    for trial in TRIALS:

        def measured(place: Workplace, trial: str = trial) -> Mapping[str, Any]:
            folder = place.model(asked.models[0])
            job = TriedJob(trial, str(folder), asked.batch, asked.quick)
            return run_module("benchmarks.tried", job._asdict(), folder)

        yield Task(f"tried/{trial}", measured)


def _start(asked: Namespace) -> Iterator[Task]:
    def started(place: Workplace) -> Mapping[str, Any]:
        modules = ("benchmarks.start_alone", "benchmarks.start")
        job = {"work": str(place.folder)}
        # In turn; the first of each also reads the files from the disk.
        found = [
            {
                **run_module(modules[0], job, place.folder),
                **run_module(modules[1], job, place.folder),
                "help_s": command_s("--help"),
            }
            for _ in range(3)
        ]
        return {name: median(run[name] for run in found) for name in found[0]}

    yield Task("start/tiny model" + (", AVX-512" if _has_wide_registers() else ""), started)


PARTS: Mapping[str, Callable[[Namespace], Iterator[Task]]] = {
    "trl": _trl,
    "decode": _decode,
    "ppo": _ppo,
    "ablation": _ablation,
    "growth": _growth,
    "cost": _cost,
    "tried": _tried,
    "start": _start,
}
