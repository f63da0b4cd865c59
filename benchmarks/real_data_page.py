"""docs/real-results.md from measured lines; no figure on it is typed by hand."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.performance_page import markdown
from benchmarks.results import Line, select
from trueward.core.files import write_text
from trueward.core.stats import Estimate

__all__ = ["PAGE", "page", "write_page"]

PAGE = Path(__file__).parent.parent / "docs" / "real-results.md"
_HEAD = """---
hide:
  - toc
---

# Real data, measured

Public collections through the recipes `hh` and `rlvr`, in the few steps that `benchmarks/real_data.py` names,
on a model of {parameters} parameters that `trueward pretrain novels` made of a million characters. **With so
little of both the figures say that the path from file to figure is whole, not that a method is good or bad.**
Everything below is written by the program, from `benchmarks/real_data.json`:

```
python -m benchmarks.real_data --data FOLDER --model MODEL
python -m benchmarks.real_data --write
```

Intervals are 95 %, over held-out prompts: pairs that share a prompt are resampled together. No prompt is on
both sides of a split. How a file is read is on [data formats](data-formats.md).
"""


def _shown(value: Mapping[str, Any], digits: int = 2) -> str:
    return Estimate(**value).shown(digits)


def _read(values: Mapping[str, Any]) -> str:
    counts = ", ".join(f"{count:,} {kind}s" for kind, count in values["counts"].items())
    return f"{counts}, {values['quarantined']:,} bad"


def _dropped(rows: Mapping[str, Any]) -> str:
    return ", ".join(f"{count:,} {reason}" for reason, count in rows["dropped"].items()) or "none"


def _pairs(lines: Sequence[Line]) -> str:
    rows, methods = [], []
    for line in lines:
        values, name = line.values, line.name.partition("/")[2]
        reward = values["reward"]
        baselines = {b["name"]: _shown(b["accuracy"]) for b in reward["baselines"]}
        rows.append(
            [
                name,
                values["format"],
                _read(values),
                f"{values['ties']:,}",
                _dropped(values["reward_rows"]),
                f"{reward['accuracy']['n']:,}",
                _shown(reward["accuracy"]),
                baselines["longer answer"],
                baselines["bag-of-words"],
            ]
        )
        for method, found in values["methods"].items():
            methods.append([name, method, _shown(found["accuracy"]), f"{found['accuracy']['n']:,}"])
    head = (
        "collection",
        "format",
        "read",
        "ties",
        "dropped in training",
        "held-out pairs",
        "reward model",
        "longer answer",
        "bag of words",
    )
    return (
        "## Pairs\n\nShare of held-out pairs whose better answer scores higher. Ties are learnt from as one "
        "half and are in no accuracy.\n\n"
        f"{markdown(head, rows)}\n\nThe policy against its reference on the held-out pairs (ORPO and SimPO: "
        "the policy alone):\n\n"
        f"{markdown(('collection', 'method', 'accuracy', 'pairs'), methods)}\n"
    )


def _labels(lines: Sequence[Line]) -> str:
    rows = []
    for line in lines:
        values = line.values
        rows.append(
            [
                line.name.partition("/")[2],
                values["format"],
                _read(values),
                f"{values['labels']['desirable']:,} of {values['labels']['all']:,}",
                _dropped(values["rows"]),
                f"{values['accuracy']['n']:,}",
                _shown(values["accuracy"]),
                *(
                    _shown(values["baselines"][name])
                    for name in ("majority", "length, best cut", "bag of words")
                ),
            ]
        )
    head = (
        "collection",
        "format",
        "read",
        "desirable",
        "dropped in training",
        "held-out labels",
        "KTO",
        "majority",
        "length",
        "bag of words",
    )
    return (
        "## Labels\n\nShare of held-out labels on whose side of the baseline the reward of KTO's policy "
        "lies. The three rules are fitted to the training labels, and are judged on all held-out ones, also "
        "those too long for the model.\n\n"
        f"{markdown(head, rows)}\n"
    )


def _maths(lines: Sequence[Line]) -> str:
    rows = []
    for line in lines:
        values = line.values
        for way in ("greedy", "sampled"):
            held = values["held_out"][way]
            if "gain" not in held:
                continue
            rows.append(
                [
                    line.name.partition("/")[2],
                    way,
                    f"{held['gain']['n']:,}",
                    f"{held['errors']:,}",
                    *(_shown(held[name], 3) for name in ("before", "after", "gain")),
                    *(_shown(baseline, 3) for baseline in values["baselines"].values()),
                ]
            )
    names = list(lines[0].values["baselines"])
    head = ("questions", "drawn", "held out", "without a score", "after SFT", "after GRPO", "gain", *names)
    return (
        "## Verified maths\n\nShare of held-out questions whose answer the verifier `maths` finds right. "
        "The baselines answer also questions that are too long for the model.\n\n"
        f"{markdown(head, rows)}\n"
    )


def _verifiers(lines: Sequence[Line]) -> str:
    rows = []
    for line in lines:
        for name, found in line.values.items():
            if name == "cpu_s":
                continue
            cells = [name, f"{found['cases']:,}", f"{found['right']:,}"]
            for verifier in ("maths", "math_verify"):
                seen = found[verifier]
                agrees = _shown(seen["agrees"], 3)
                cells.append(f"{agrees}; {seen['false_right']} / {seen['false_wrong']}; {seen['errors']}")
            rows.append([*cells, _shown(found["both_agree"], 3)])
    head = ("cases", "n", "right", "`maths`", "`math_verify`", "both agree")
    return (
        "## Verifiers\n\nAgreement with what the publisher says; wrongly called right / wrongly called "
        f"wrong; errors, which are no scores.\n\n{markdown(head, rows)}\n"
    )


_SECTIONS = {"pairs": _pairs, "labels": _labels, "maths": _maths, "verifiers": _verifiers}


def page(lines: Sequence[Line], *, parameters: str) -> str:
    """The whole page; a part without lines is left out."""
    parts = [_HEAD.format(parameters=parameters)]
    for part, section in _SECTIONS.items():
        if found := select(lines, [part]):
            parts.append(section(found))
    first = lines[0]
    used = ", ".join(
        f"{name} {first.versions[name]}" for name in ("torch", "transformers") if name in first.versions
    )
    minutes = sum(line.values["cpu_s"] for line in lines) / 60
    dates = ", ".join(sorted({line.date[:10] for line in lines}))
    parts.append(
        f"{dates}; {first.machine}, one thread; {used}; seed 0; {minutes:.0f} processor minutes together.\n"
    )
    return "\n".join(parts)


def write_page(lines: Sequence[Line]) -> None:
    """Write docs/real-results.md."""
    parameters = next(line.values["parameters"] for line in lines if "parameters" in line.values)
    write_text(PAGE, page(lines, parameters=f"{parameters / 1e6:.2f} million"))
