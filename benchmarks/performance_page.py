"""The tables and charts of docs/performance.md, from measured lines; the text around them is the page's own.

Each part stands between two markers, `<!-- performance:NAME -->` and `<!-- performance:end -->`; what lies
between is replaced, so no figure on the page is typed by hand.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.performance_charts import cost_chart, growth_chart
from benchmarks.performance_overview import dpo_on_a_gpu, overview, precision_of
from benchmarks.performance_targets import (
    DECODE_TARGETS,
    GPU_SPEED_TARGET,
    GPU_UTILISATION_TARGET,
    HELP_TARGET_S,
    PPO_TARGET,
    START_TARGET_S,
    TRL_TARGETS,
    UTILISATION_TARGETS,
    Target,
)
from benchmarks.results import Line
from trueward.core.errors import DataError
from trueward.core.files import write_text

__all__ = ["fill", "markdown", "sections", "write_page"]

_BLOCK = re.compile(r"<!-- performance:(?!end)([a-z ]+) -->\n.*?<!-- performance:end -->", re.DOTALL)


def markdown(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def _source(lines: Sequence[Line]) -> str:
    """When, where, with what and how the lines were measured; one sentence for each command on a machine."""
    found: dict[tuple[str, str], list[Line]] = {}
    for line in lines:
        found.setdefault((line.command, line.machine), []).append(line)
    sentences = []
    for (command, _), group in found.items():
        first = group[0]
        names = ("torch", "transformers", "trl")
        used = ", ".join(f"{name} {first.versions[name]}" for name in names if name in first.versions)
        dates = sorted({line.date[:10] for line in group})
        commit = f", commit {first.commit[:9]}" if first.commit else ""
        sentences.append(f"- {' and '.join(dates)}, {first.machine}; {used}{commit}: `{command}`")
    return "\n".join(sentences)


def _verdict(target: Target | None, values: Mapping[str, Any]) -> str:
    if target is None:
        return "none set"
    missed = target.missed(values)
    return f"{target}: {'met' if not missed else 'missed (' + ', '.join(missed) + ')'}"


def _trl(lines: Sequence[Line]) -> str:
    # What is compared with a target comes first: the table is wider than a screen.
    cells = (
        "model,method,precision,threads,allocator,speed,memory,loss diff,target,pairs x steps,"
        "largest forward,tokens/s,TRL,by CPU time,memory GiB,TRL,whole process,MFU"
    )
    rows = []
    for line in lines:
        _, size, method, precision, threads, *rest = line.name.split("/")
        v = line.values
        share = f"{v['utilisation']:.0%} of {v['matmul_gflops_per_s']:.0f} GFLOP/s"
        rows.append(
            [
                size,
                method,
                precision,
                threads.split()[0],
                ", ".join(rest),
                f"{v['speed']:.2f}x",
                f"{v['memory']:.3f}",
                f"{v['loss_difference']:.1e}",
                _verdict(TRL_TARGETS.get((size, method, precision_of(precision))), v),
                f"{v['pairs']} x {v['steps']}",
                f"{v['forward_tokens']:,}" if v["forward_tokens"] else "the batch",
                f"{v['tokens_per_s']:.0f}",
                f"{v['peer_tokens_per_s']:.0f}",
                f"{v['cpu_speed']:.2f}x",
                f"{v['training_gib']:.2f}",
                f"{v['peer_training_gib']:.2f}",
                f"{v['total_memory']:.2f}",
                share if v["utilisation"] else "-",
            ]
        )
    return markdown(cells.split(","), rows)


def _utilisation(lines: Sequence[Line]) -> str:
    rows = []
    for line in lines:
        _, size, method, precision, threads, *rest = line.name.split("/")
        target = UTILISATION_TARGETS[size, method, precision_of(precision)]
        got = line.values["utilisation"]
        where = f"{size}, {method}, {precision}, {', '.join([threads, *rest])}"
        peak = f"{line.values['matmul_gflops_per_s']:.0f}"
        rows.append([where, peak, f"{got:.0%}", f"{target:.0%}: {'met' if got >= target else 'missed'}"])
    return markdown(["run", "matrix peak GFLOP/s", "MFU", "target"], rows)


def _decode(lines: Sequence[Line]) -> str:
    cells = (
        "model,precision,threads,rows x tokens,pairs,tokens/s,generate,speed,by CPU time,memory GiB,generate"
    )
    head = [*cells.split(","), "ratio", "rows equal", "target"]
    rows = []
    for line in lines:
        _, size, precision, threads, shape = line.name.split("/")
        v = line.values
        rows.append(
            [
                size,
                precision,
                threads.split()[0],
                shape,
                str(v["pairs"]),
                f"{v['tokens_per_s']:.1f}",
                f"{v['peer_tokens_per_s']:.1f}",
                f"{v['speed']:.2f}x",
                f"{v['cpu_speed']:.2f}x",
                f"{v['training_gib']:.2f}",
                f"{v['peer_training_gib']:.2f}",
                f"{v['memory']:.2f}",
                f"{v['rows_equal']} of {v['rows']}; {v['equal_share']:.0%} of tokens",
                _verdict(DECODE_TARGETS.get(precision_of(precision)), v),
            ]
        )
    return markdown(head, rows)


def _ppo(lines: Sequence[Line]) -> str:
    cells = (
        "model,policy,threads,pairs,s an iteration,four models,speed,by CPU time,memory GiB,four models,ratio"
    )
    head = [
        *cells.split(","),
        "of LoRA alone",
        "of the policy alone",
        "first updates",
        "same texts",
        "target",
    ]
    rows = []
    for line in lines:
        _, size, policy, threads = line.name.split("/")
        v = line.values
        rows.append(
            [
                size,
                policy,
                threads.split()[0],
                str(v["pairs"]),
                f"{v['iteration_s']:.2f}",
                f"{v['peer_iteration_s']:.2f}",
                f"{v['speed']:.2f}x",
                f"{v['cpu_speed']:.2f}x",
                f"{v['memory_gib']:.2f}",
                f"{v['peer_memory_gib']:.2f}",
                f"{v['peer_memory']:.2f}",
                f"{v['memory']:.2f}",
                f"{v['alone_memory']:.2f}",
                f"{v['loss_difference']:.1e}",
                "yes" if v["texts_equal"] else "no",
                _verdict(PPO_TARGET if size == "135M" else None, v),
            ]
        )
    return markdown(head, rows)


def _ablation(lines: Sequence[Line]) -> str:
    tables = []
    for line in lines:
        _, size, kind = line.name.split("/")
        rows = [
            [
                each["variant"],
                f"{each['seconds']:.1f}",
                f"{each['time']:.2f}",
                f"{each['cpu_time']:.2f}",
                f"{each['memory_gib']:.2f}",
                f"{each['memory']:.2f}",
                f"{each['loss_difference']:.1e}" if kind == "training" else "-",
            ]
            for each in line.values["lines"]
        ]
        head = [f"{size}, {kind}", "s", "time", "CPU time", "memory GiB", "memory", "loss diff"]
        tables.append(f"{markdown(head, rows)}\n\nMedians of {line.values['pairs']} runs of each.")
    return "\n\n".join(tables)


def _growth(lines: Sequence[Line]) -> str:
    rows = []
    for line in sorted(lines, key=lambda each: (each.name.split("/")[1], each.values["records"])):
        v = line.values
        rows.append(
            [
                line.name.split("/")[1],
                f"{v['records']:,}",
                f"{v['seconds']:.2f}",
                f"{v['records_per_s']:,.0f}",
                f"{v['memory_mib']:.0f}",
            ]
        )
    return markdown(["stage", "records", "s", "records/s", "memory MiB"], rows)


def _cost(lines: Sequence[Line]) -> str:
    rows = [
        [
            line.name.split("/")[1],
            f"{point['value']:,}",
            f"{point['tokens']:,}",
            f"{point['seconds']:.2f}",
            f"{point['memory_mib']:.0f}",
        ]
        for line in lines
        for point in line.values["points"]
    ]
    return markdown(["axis", "value", "tokens of the step", "s", "memory MiB"], rows)


def _tried(lines: Sequence[Line]) -> str:
    rows = []
    for line in lines:
        figures = "; ".join(
            f"{name} {'not supported' if value is None else format(value, '.4g')}"
            for name, value in line.values["figures"].items()
        )
        rows.append([line.name.split("/")[1], figures, line.values["verdict"]])
    return markdown(["idea", "figures", "result"], rows)


def _start(lines: Sequence[Line]) -> str:
    rows = [
        [
            line.machine,
            _cell(line.values.get("alone_s"), ".1f"),
            f"{line.values['imported_s']:.1f}",
            f"{line.values['first_step_s']:.1f}",
            f"{START_TARGET_S:g} s: {_met(line.values['first_step_s'] < START_TARGET_S)}",
            _cell(answered := line.values.get("help_s"), ".2f"),
            "-" if answered is None else f"{HELP_TARGET_S:g} s: {_met(answered < HELP_TARGET_S)}",
        ]
        for line in lines
    ]
    alone = "torch and transformers alone s"
    head = ["machine", alone, "imports done s", "first step done s", "target", "`--help` s", "target"]
    return markdown(head, rows)


def _cell(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form)


def _gpu(lines: Sequence[Line]) -> str:
    cells = "model,method,side,answers x steps,step ms,Trueward is faster by,MFU,peak GiB,loss diff"
    rows = []
    for line in lines:
        _, size, method, side = line.name.split("/")
        v = line.values
        rows.append(
            [
                size,
                method,
                side,
                f"{v['sequences']} x {v['steps']}",
                v["failed"] or _cell(v["step_s"] and 1e3 * v["step_s"], ".0f"),
                _cell(v["speed"], ".2f"),
                _cell(v["utilisation"], ".0%"),
                _cell(v["peak_gib"], ".1f"),
                _cell(v["loss_difference"], ".0e"),
            ]
        )
    rates = sorted({round(line.values["matmul_flops_per_s"] / 1e12) for line in lines})
    measured = " to ".join(map(str, rates)) if len(rates) < 3 else f"{rates[0]} to {rates[-1]}"
    peaks = f"Matrix peak measured in the same runs: {measured} TFLOP/s."
    return "\n\n".join([markdown(cells.split(","), rows), peaks, *_gpu_verdicts(lines)])


def _gpu_verdicts(lines: Sequence[Line]) -> list[str]:
    """DPO of each size beside the fastest other side, and the utilisation of the largest model."""
    found = dpo_on_a_gpu(lines)
    said = [
        f"DPO, {size}: {speed:.2f} times as fast as the fastest other side ({side}); target "
        f"{GPU_SPEED_TARGET:g}: {_met(speed >= GPU_SPEED_TARGET)}."
        for size, (speed, side, _) in found.items()
        if speed is not None
    ]
    if (largest := found.get("1.5B")) is not None and (share := largest.share) is not None:
        target = f"target {GPU_UTILISATION_TARGET:.0%}: {_met(share >= GPU_UTILISATION_TARGET)}"
        said.append(f"MFU of DPO, 1.5B: {share:.0%}; {target}.")
    return said


def _met(is_met: bool) -> str:
    return "met" if is_met else "missed"


_SECTIONS: Mapping[str, tuple[str, Callable[[Sequence[Line]], str]]] = {
    "trl": ("trl", _trl),
    "utilisation": ("trl", _utilisation),
    "decode": ("decode", _decode),
    "ppo": ("ppo", _ppo),
    "ablation": ("ablation", _ablation),
    "growth": ("growth", _growth),
    "cost": ("cost", _cost),
    "tried": ("tried", _tried),
    "start": ("start", _start),
    "gpu": ("gpu", _gpu),
}


def _has_share(line: Line) -> bool:
    """Whether a share of the machine's peak is asked of the line."""
    size, method, precision = line.name.split("/")[1:4]
    return (size, method, precision_of(precision)) in UTILISATION_TARGETS


def sections(lines: Sequence[Line]) -> dict[str, str]:
    """Marker name -> what stands there: the table and how it was measured, or that it was not."""
    asked = ["work", "target", "lines that meet it", "lines that miss it"]
    found = {"targets": markdown(asked, overview(lines)) if lines else "Not measured yet."}
    for name, (part, table) in _SECTIONS.items():
        own = [line for line in lines if line.part == part]
        if name == "utilisation":
            own = list(filter(_has_share, own))
        found[name] = f"{table(own)}\n\n{_source(own)}" if own else "Not measured yet."
    return found


def fill(text: str, parts: Mapping[str, str]) -> str:
    """The page with what stands between its markers replaced.

    Raises:
        DataError: a marker without a part, or a part without a marker.
    """
    names = _BLOCK.findall(text)
    if sorted(names) != sorted(parts):
        raise DataError(
            "the page's markers are not the measured parts", value=names, expected=", ".join(parts)
        )

    def block(match: re.Match[str]) -> str:
        return f"<!-- performance:{match[1]} -->\n{parts[match[1]]}\n<!-- performance:end -->"

    return _BLOCK.sub(block, text)


def write_page(page: Path, lines: Sequence[Line]) -> None:
    """Fill the page and draw its charts into `assets` beside it."""
    write_text(page, fill(page.read_text(encoding="utf-8"), sections(lines)))
    assets = page.parent / "assets"
    for line in lines:
        if line.part == "cost":
            name = line.name.split("/")[1].replace(" ", "-")
            write_text(assets / f"performance-{name}.svg", cost_chart(line))
    growth = [line for line in lines if line.part == "growth"]
    if growth:
        write_text(assets / "performance-growth.svg", growth_chart(growth))
