"""The tables of docs/methods/table.md, from measured lines; the text around them is the page's own.

What lies between `<!-- methods:NAME -->` and `<!-- methods:end -->` is replaced, so no figure there is typed
by hand. An interval over seeds: each seed's own interval is that of its trained model over held-out prompts;
the mean of independent figures has the root of the sum of their squared half-widths, over their number.
"""

import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from benchmarks.methods_runs import BEST_OF, METHODS, RATES
from benchmarks.performance_page import markdown
from benchmarks.results import Line
from trueward.core.errors import DataError
from trueward.core.files import read_jsonl, write_text
from trueward.core.stats import Estimate

__all__ = ["BEST", "NAMES", "combined", "line_name", "read_measured", "sections", "write_page"]

BEST = {f"best_of_{n}": n for n in BEST_OF}
NAMES = ("sft", *METHODS, *BEST)
"""Rows of the table: the model that all start from, every method, and best-of-n sampling from that model."""

_BLOCK = re.compile(r"<!-- methods:(?!end)([a-z]+) -->\n.*?<!-- methods:end -->", re.DOTALL)


def line_name(method: str, seed: int, scale: float = 1.0) -> str:
    """Name of a measured line; those of other learning rates than the family's are kept apart."""
    part = "methods" if scale == 1 else f"methods at {scale:g} x rate"
    return f"{part}/seed {seed}/{method}"


def read_measured(file: Path) -> dict[str, Line]:
    """Measured lines by name, the newest of each; none where there is no file."""
    if not file.exists():
        return {}
    return {row["name"]: Line(**row) for row in read_jsonl(file)}


def combined(estimates: Sequence[Estimate]) -> Estimate:
    """The mean of independent estimates with its interval, each side by itself; n is their sum."""
    num = len(estimates)
    value = sum(e.value for e in estimates) / num
    below = math.sqrt(sum((e.value - e.low) ** 2 for e in estimates)) / num
    above = math.sqrt(sum((e.high - e.value) ** 2 for e in estimates)) / num
    return Estimate(value, value - below, value + above, sum(e.n for e in estimates))


def _of(lines: Mapping[str, Line], name: str, seeds: Sequence[int]) -> list[Line]:
    return [lines[key] for seed in seeds if (key := line_name(name, seed)) in lines]


def _shown(lines: Sequence[Line], key: str, *, signed: bool = False) -> str:
    if not all(key in line.values for line in lines):
        return "–"
    found = combined([Estimate(**line.values[key]) for line in lines])
    sign = "+" if signed else ""
    return f"{found.value:{sign}.2f} [{found.low:{sign}.2f}, {found.high:{sign}.2f}]"


def _mean(lines: Sequence[Line], key: str) -> float:
    return sum(float(line.values[key]) for line in lines) / len(lines)


def _kl(lines: Sequence[Line]) -> str:
    if "kl_bound" in lines[0].values:
        return f"at most {_mean(lines, 'kl_bound'):.2f}"
    return _shown(lines, "kl")


def _row(name: str, lines: Sequence[Line]) -> list[str]:
    head = [f"`{name}`", METHODS[name].family if name in METHODS else "–"]
    if not lines:
        return [*head, *["not measured"] * 10]
    scores = [_shown(lines, key) for key in ("gold", "helpful", "harmless", "honest")]
    gains = [line.values["gain"]["value"] for line in lines if "gain" in line.values]
    spread = f"{min(gains):+.2f} to {max(gains):+.2f}" if gains else "–"
    spent = f"{_mean(lines, 'passes') / 1000:.0f}" if "passes" in lines[0].values else "–"
    seconds = f"{_mean(lines, 'cpu_s'):.0f}" if "cpu_s" in lines[0].values else "–"
    gain, won = _shown(lines, "gain", signed=True), _shown(lines, "win_rate")
    return [*head, scores[0], gain, spread, *scores[1:], _kl(lines), won, spent, seconds]


def _table(lines: Mapping[str, Line], seeds: Sequence[int]) -> str:
    head = ["method", "family", "gold", "gold - SFT", "by seed", "helpful", "harmless", "honest"]
    head += ["KL, nats", "win rate", "thousand passes", "s"]
    return markdown(head, [_row(name, _of(lines, name, seeds)) for name in NAMES])


def _notes(lines: Mapping[str, Line], seeds: Sequence[int]) -> str:
    rows = []
    for name, method in METHODS.items():
        own = _of(lines, name, seeds)
        settings = ", ".join(f"{k} {v:g}" if isinstance(v, float) else f"{k} {v}" for k, v in _settings(own))
        length = own[0].values["length_of_run"] if own else "not measured"
        rows.append([f"`{name}`", length, settings or "–", method.note or "–"])
    return markdown(["method", f"what the passes paid for (seed {seeds[0]})", "settings", ""], rows)


def _settings(lines: Sequence[Line]) -> list[tuple[str, object]]:
    return list(lines[0].values["settings"].items()) if lines else []


def _rates(lines: Mapping[str, Line]) -> str:
    """Gold gain over SFT at each learning rate that was tried, on the seed that the table does not show."""
    found: dict[tuple[str, float], Line] = {}
    for name, line in lines.items():
        _, seed, method = name.split("/")
        if method in METHODS and seed == "seed 3":
            found[method, line.values["lr"]] = line
    rates = sorted({rate for _, rate in found})
    rows = []
    for method in dict.fromkeys(method for method, _ in found):
        cells = [
            _shown([found[method, rate]], "gain", signed=True) if (method, rate) in found else "–"
            for rate in rates
        ]
        family = METHODS[method].family
        rows.append([f"`{method}`", family, f"{RATES[family]:g}", *cells])
    return markdown(["method", "family", "chosen", *(f"{rate:g}" for rate in rates)], rows)


def _said(lines: Mapping[str, Line], seeds: Sequence[int]) -> str:
    """What the runs said of themselves: warnings, and why they ended early."""
    said: dict[str, list[str]] = {}
    for name in METHODS:
        for line in _of(lines, name, seeds):
            for text in [*line.values["warnings"], line.values["stopped"]]:
                if text:
                    said.setdefault(f"`{name}`", []).append(f"seed {line.values['seed']}: {text}")
    return "\n".join(f"- {name}: {'; '.join(texts)}" for name, texts in said.items()) or "Nothing."


def _source(lines: Mapping[str, Line], seeds: Sequence[int]) -> str:
    own = [line for name in NAMES for line in _of(lines, name, seeds)]
    dates = sorted({line.date[:10] for line in own})
    first, number = own[0], sorted({line.values["gold"]["n"] for line in own})
    used = f"torch {first.versions['torch']}, transformers {first.versions['transformers']}"
    prompts = " or ".join(str(n) for n in number)
    return (
        f"Measured on {' and '.join(dates)}, {first.machine}, one thread; {used}; "
        f"seeds {', '.join(map(str, seeds))}, {prompts} held-out prompts "
        f"each, {first.values['budget']:,} passes a training."
    )


def sections(lines: Mapping[str, Line], seeds: Sequence[int]) -> dict[str, str]:
    """Markdown of each part of the page.

    Raises:
        DataError: nothing is measured on these seeds.
    """
    if not any(_of(lines, name, seeds) for name in NAMES):
        raise DataError("no method is measured on these seeds", value=list(seeds))
    return {
        "table": _table(lines, seeds),
        "notes": _notes(lines, seeds),
        "rates": _rates(lines),
        "said": _said(lines, seeds),
        "source": _source(lines, seeds),
    }


def write_page(page: Path, lines: Mapping[str, Line], seeds: Sequence[int]) -> None:
    """Put the tables between the page's markers.

    Raises:
        DataError: nothing is measured, or a marker names no part.
    """
    made = sections(lines, seeds)

    def block(match: re.Match[str]) -> str:
        if match[1] not in made:
            raise DataError("the page asks for an unknown part", value=match[1], expected=", ".join(made))
        return f"<!-- methods:{match[1]} -->\n{made[match[1]]}\n<!-- methods:end -->"

    write_text(page, _BLOCK.sub(block, page.read_text(encoding="utf-8")))
