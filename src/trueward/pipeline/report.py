"""The report stage: everything on disk becomes summary.json, report.html and the table on the terminal."""

import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from trueward.core.errors import RunError
from trueward.core.files import read_json, read_jsonl, write_json
from trueward.core.run import now
from trueward.pipeline.workspace import Workspace
from trueward.reports import read_summary, render_report, stage_table

__all__ = ["build_summary", "report"]

_TITLES = {"testbed": "Alignment on the testbed", "files": "Alignment on real feedback"}


def report(workspace: Workspace) -> Path:
    """Write summary.json and report.html, and print the table of stages.

    Returns:
        Path of report.html.

    Raises:
        RunError: nothing has been evaluated.
    """
    summary = build_summary(workspace)
    read_summary(summary)
    write_json(workspace.out / "summary.json", summary)
    path = workspace.out / "report.html"
    render_report(summary, path)
    workspace.console.print(stage_table(summary))
    for note in summary["notes"]:
        workspace.say(note)
    workspace.say(f"report: {path}")
    return path


def build_summary(workspace: Workspace) -> dict[str, Any]:
    """The summary as JSON values; its schema is `trueward.reports.Summary`.

    Raises:
        RunError: nothing has been evaluated.
    """
    if not workspace.has("eval"):
        raise RunError(f"{workspace.out} holds no finished evaluation", remedy="run the eval stage first")
    figures = read_json(workspace.out / "eval" / "figures.json")
    recipe = workspace.recipe
    return {
        "schema": "trueward.summary/1",
        "title": f"{recipe.name}: {_TITLES[recipe.data.source]}",
        "kind": "testbed" if recipe.data.source == "testbed" else "real",
        "seed": recipe.seed,
        "created": now(),
        "charter": {"name": workspace.charter.name, "hash": workspace.charter.hash},
        "total_s": round(time.monotonic() - workspace.started_s, 1),
        "stages": [_stage(workspace, name, body) for name, body in figures["stages"].items()],
        "reward_model": figures.get("reward_model"),
        "curves": _curves(workspace),
        "win_matrix": figures["win_matrix"],
        "samples": list(_samples(workspace)),
        "lineage": _lineage(workspace),
        "gate": _gate(workspace),
        "notes": list(_notes(workspace, figures)),
    }


def _seconds(workspace: Workspace, stage: str) -> float:
    return float(workspace.run(stage).manifest["results"]["seconds"]) if workspace.has(stage) else 0.0


def _stage(workspace: Workspace, name: str, body: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "stage": name,
        "scores": body["scores"],
        "kl": body.get("kl"),
        "win_rate": body.get("win_rate"),
        "win_against": body.get("win_against", "sft"),
        "win_judge": body.get("win_judge", ""),
        "seconds": _seconds(workspace, name),
        "refusal": body.get("refusal"),
        "capability": body.get("capability"),
        "extra": body["extra"],
    }


def _rows(workspace: Workspace, stage: str) -> list[dict[str, Any]]:
    file = workspace.out / stage / "metrics.jsonl"
    return list(read_jsonl(file)) if file.is_file() else []


def _curves(workspace: Workspace) -> dict[str, Any]:
    curves: dict[str, Any] = {}
    for stage in ("ppo", "ppo_unbounded"):
        curves[stage] = [
            {
                "step": row["step"],
                "kl": row["objective/kl_k3"],
                "reward": row["reward"],
                "gold": row.get("gold"),
            }
            for row in _rows(workspace, stage)
            if row.get("objective/kl_k3") is not None and row.get("reward") is not None
        ]
    keys = {
        "margins": "rewards/margins",
        "chosen_per_token_change": "logps/chosen_per_token_change",
        "rejected_per_token_change": "logps/rejected_per_token_change",
    }
    curves["dpo"] = [
        {"step": row["step"], **{key: row[name] for key, name in keys.items()}}
        for row in _rows(workspace, "dpo")
        if all(row.get(name) is not None for name in keys.values())
    ]
    return curves


def _samples(workspace: Workspace) -> Iterator[dict[str, Any]]:
    """Prompts spread over the categories, in the order of evaluation."""
    wanted = workspace.recipe.eval.samples
    rows = list(read_jsonl(workspace.out / "eval" / "samples.jsonl"))
    categories = sorted({row["category"] for row in rows})
    picked: list[dict[str, Any]] = []
    for turn in range(len(rows)):
        for category in categories:
            members = [row for row in rows if row["category"] == category]
            if turn < len(members) and len(picked) < wanted:
                picked.append(members[turn])
        if len(picked) >= wanted:
            break
    yield from picked


def _lineage(workspace: Workspace) -> dict[str, Any]:
    verdict = _verdict(workspace)
    records = (
        workspace.registry.all("release")
        or workspace.registry.all("verdict")
        or workspace.registry.all("model")
    )
    if not records or verdict is None:
        return {"nodes": [], "edges": []}
    return workspace.registry.lineage(records[-1].id).to_json()


def _verdict(workspace: Workspace) -> dict[str, Any] | None:
    file = workspace.out / "verdict.json"
    return read_json(file) if file.is_file() else None


def _gate(workspace: Workspace) -> dict[str, Any] | None:
    verdict = _verdict(workspace)
    if verdict is None:
        return None
    return {
        "passed": verdict["passed"],
        "subject": verdict["subject_stage"],
        "criteria": verdict["criteria"],
        "release": verdict["release"],
    }


def _notes(workspace: Workspace, figures: Mapping[str, Any]) -> Iterator[str]:
    reward = figures.get("reward_model")
    if reward is not None:
        yield from (line for line in str(reward["verdict"]).splitlines() if line)
    for stage in ("sft", "reward", "dpo", "ppo", "ppo_unbounded"):
        if workspace.has(stage):
            results = workspace.run(stage).manifest["results"]
            if results.get("stopped"):
                yield f"{stage}: {results['stopped']}"
            yield from (f"{stage}: {warning}" for warning in results["warnings"])
    for stage, body in figures["stages"].items():
        if body["unfinished"]:
            done = f"{body['unfinished']} of {figures['prompts']} completions"
            yield f"{stage}: {done} ran into the length limit"
