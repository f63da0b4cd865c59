"""The report stage: everything on disk becomes summary.json, report.html and the table on the terminal."""

import time
from collections.abc import Iterator, Mapping
from itertools import islice, zip_longest
from pathlib import Path
from typing import Any

from trueward.core.files import read_json, read_jsonl, write_json
from trueward.core.run import RunFolder, now
from trueward.pipeline.workspace import Workspace
from trueward.reports import read_summary, render_report, stage_table

__all__ = ["build_summary", "report"]

TRAINED = ("sft", "reward", "dpo", "kto", "ppo", "grpo", "distill", "ppo_unbounded", "prm", "orm")
_JUDGES = ("prm", "orm")
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
    evaluation = workspace.evaluation()
    figures = read_json(evaluation.path / "figures.json")
    verdict = _verdict(workspace, evaluation)
    recipe = workspace.recipe
    return {
        "schema": "trueward.summary/1",
        "title": f"{recipe.name}: {_TITLES[recipe.data.source]}",
        "kind": "testbed" if recipe.data.source == "testbed" else "real",
        "seed": recipe.seed,
        "created": now(),
        "charter": {"name": workspace.charter.name, "hash": workspace.charter.hash},
        "total_s": _total_s(workspace),
        "stages": [_stage(workspace, name, body) for name, body in figures["stages"].items()],
        "reward_model": figures.get("reward_model"),
        "solution_judges": [_solution_judge(workspace, s) for s in _JUDGES if workspace.has(s)],
        "best_of_n": _best_of_n(workspace),
        "curves": _curves(workspace),
        "win_matrix": figures["win_matrix"],
        "samples": list(_samples(evaluation, workspace.recipe.eval.samples)),
        "lineage": _lineage(workspace, evaluation, verdict),
        "gate": _gate(verdict),
        "notes": list(_notes(workspace, figures, verdict)),
    }


def _solution_judge(workspace: Workspace, stage: str) -> dict[str, Any]:
    held = workspace.run(stage).manifest["results"]["held_out"]
    return {
        "stage": stage,
        "problems": held["problems"],
        "majority": held["majority"],
        "judges": [{"name": name, **body} for name, body in held["judges"].items()],
        "verdict": held["verdict"],
    }


def _best_of_n(workspace: Workspace) -> dict[str, Any] | None:
    if not workspace.has("best_of_n"):
        return None
    body = read_json(workspace.run("best_of_n").path / "figures.json")
    return {key: body[key] for key in ("on", "policy", "prompts", "completions", "rows")}


def _seconds(workspace: Workspace, stage: str) -> float:
    return float(workspace.run(stage).manifest["results"]["seconds"]) if workspace.has(stage) else 0.0


def _total_s(workspace: Workspace) -> float:
    """Seconds of this command; of the trainings alone where they were commands of their own."""
    elapsed_s = time.monotonic() - workspace.started_s
    return round(max(elapsed_s, sum(_seconds(workspace, stage) for stage in TRAINED)), 1)


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
                "cost": row.get("cost"),
                "slack": row.get("constraint/slack"),
                "price": row.get("constraint/lambda"),
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
    curves["looks"] = list(_looks(workspace))
    return curves


def _looks(workspace: Workspace) -> Iterator[dict[str, Any]]:
    """Held-out figures on the way, where `eval_every` asked for them."""
    for stage in TRAINED:
        for row in _rows(workspace, stage):
            figure = next((name for name in ("loss", "reward") if row.get(f"eval/{name}") is not None), None)
            if figure is not None:
                yield {
                    "stage": stage,
                    "step": row["step"],
                    "figure": figure,
                    "training": row.get(figure),
                    "held_out": row[f"eval/{figure}"],
                }


def _samples(evaluation: RunFolder, wanted: int) -> Iterator[dict[str, Any]]:
    """Prompts spread over the categories, in the order of evaluation."""
    waiting: dict[str, list[dict[str, Any]]] = {}
    for row in read_jsonl(evaluation.path / "samples.jsonl"):
        waiting.setdefault(row["category"], []).append(row)
    turns = zip_longest(*(waiting[category] for category in sorted(waiting)))
    yield from islice((row for turn in turns for row in turn if row is not None), wanted)


def _lineage(workspace: Workspace, evaluation: RunFolder, verdict: dict[str, Any] | None) -> dict[str, Any]:
    """Where the release, or else the verdict, or else every piece of evidence, came from."""
    if verdict is not None:
        return workspace.registry.lineage(verdict["release"] or verdict["record"]).to_json()
    ids = evaluation.manifest["results"]["evidence"].values()
    parts = [workspace.registry.lineage(identifier).to_json() for identifier in ids]
    nodes = {node["id"]: node for part in parts for node in part["nodes"]}
    edges = {tuple(edge): edge for part in parts for edge in part["edges"]}
    return {"nodes": list(nodes.values()), "edges": list(edges.values())}


def _verdict(workspace: Workspace, evaluation: RunFolder) -> dict[str, Any] | None:
    """The gate's verdict, if it is on the newest evaluation."""
    file = workspace.out / "verdict.json"
    verdict: dict[str, Any] | None = read_json(file) if file.is_file() else None
    return verdict if verdict is not None and verdict["evaluation"] == evaluation.path.name else None


def _gate(verdict: dict[str, Any] | None) -> dict[str, Any] | None:
    if verdict is None:
        return None
    return {
        "passed": verdict["passed"],
        "subject": verdict["subject_stage"],
        "criteria": verdict["criteria"],
        "release": verdict["release"],
    }


def _notes(workspace: Workspace, figures: Mapping[str, Any], verdict: dict[str, Any] | None) -> Iterator[str]:
    if verdict is None and (workspace.out / "verdict.json").is_file():
        yield "gate: the verdict on disk is older than this evaluation; run the gate again"
    reward = figures.get("reward_model")
    if reward is not None:
        yield from (line for line in str(reward["verdict"]).splitlines() if line)
    for stage in _JUDGES:
        if workspace.has(stage):
            yield str(workspace.run(stage).manifest["results"]["held_out"]["verdict"])
    for stage in TRAINED:
        if workspace.has(stage):
            results = workspace.run(stage).manifest["results"]
            if results.get("stopped"):
                yield f"{stage}: {results['stopped']}"
            yield from (f"{stage}: {warning}" for warning in results["warnings"])
    yield from figures["notes"]
