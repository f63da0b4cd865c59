"""The gate stage: the charter's criteria against the recorded evidence; what passes becomes a release."""

from typing import Any

from rich.table import Table
from rich.text import Text

from trueward.core.errors import RunError
from trueward.core.files import read_json, write_json
from trueward.models.checkpoint import model_hash
from trueward.pipeline.workspace import Workspace
from trueward.registry import CriterionResult, Verdict, decide, make_release

__all__ = ["gate", "subject_stage"]


def subject_stage(workspace: Workspace) -> str:
    """The stage whose model is brought before the gate.

    Raises:
        RunError: that stage, or any candidate, has not been run.
    """
    wanted = workspace.recipe.release
    if wanted != "best":
        workspace.model_path(wanted)
        return wanted
    candidates = [stage for stage in ("dpo", "ppo") if workspace.has(stage)]
    if not candidates:
        raise RunError(
            "there is no DPO or PPO model to choose from", remedy="run one of them, or set release=sft"
        )
    figures = read_json(workspace.out / "eval" / "figures.json")["stages"]
    return max(candidates, key=lambda stage: float(figures[stage]["win_rate"]["value"]))


def gate(workspace: Workspace) -> bool:
    """Decide; print every criterion; record the verdict; make a release of a model that passed.

    Returns:
        Whether the model passed.

    Raises:
        RunError: nothing has been evaluated.
    """
    if not workspace.has("eval"):
        raise RunError(f"{workspace.out} holds no finished evaluation", remedy="run the eval stage first")
    stage = subject_stage(workspace)
    loaded = workspace.load(stage)
    records = [
        r for r in workspace.registry.all("evidence") if r.body["subject"]["stage"] in (stage, "reward")
    ]
    verdict = decide(
        workspace.charter,
        workspace.recipe.profile,
        records,
        subject=loaded.hash,
        data=_data_in_force(workspace),
        template=loaded.template_hash,
        reward_model=workspace.load_reward().hash if workspace.has("reward") else None,
    )
    workspace.registry.put("verdict", verdict.body(), [*verdict.sources, workspace.record_of(stage, "model")])
    release = _release(workspace, stage, verdict) if verdict.passed else None
    write_json(workspace.out / "verdict.json", {**verdict.body(), "subject_stage": stage, "release": release})
    show_verdict(workspace, stage, verdict, release)
    return verdict.passed


def _data_in_force(workspace: Workspace) -> dict[str, str]:
    """Data sets as they lie on disk now: evidence about other versions is stale."""
    found: dict[str, str] = {}
    for manifest in sorted((workspace.out / "data").glob("*/*/manifest.json")):
        body = read_json(manifest)
        found[body["name"]] = body["hash"]
    return found


def _release(workspace: Workspace, stage: str, verdict: Verdict) -> str:
    made = make_release(
        workspace.registry,
        verdict,
        workspace.run(stage).model,
        workspace.out / "releases",
        charter=workspace.charter,
        hash_model=model_hash,
        stage=stage,
        parents=(workspace.record_of(stage, "model"),),
    )
    return made.id


def _asked(result: CriterionResult) -> str:
    return f"{result.bound} {result.comparison} {result.threshold:g}"


def _figure(result: CriterionResult) -> str:
    if result.value is None:
        return "–"
    interval = (
        f" [{result.low:.2f}, {result.high:.2f}]"
        if result.low is not None and result.high is not None
        else ""
    )
    return f"{result.value:.2f}{interval}"


def show_verdict(workspace: Workspace, stage: str, verdict: Verdict, release: str | None) -> None:
    """Print the verdict with each criterion's reason."""
    word = "PASSED" if verdict.passed else "REFUSED"
    table = Table(
        title=Text(f"gate: {stage} {word}", style="bold green" if verdict.passed else "bold red"),
        title_justify="left",
    )
    for column in ("criterion", "figure", "asked for", "n", "", "reason"):
        table.add_column(column)
    for result in verdict.criteria:
        mark = Text("met", style="green") if result.passed else Text("not met", style="red")
        cells: list[Any] = [
            Text(result.id),
            Text(_figure(result)),
            Text(_asked(result)),
            Text(str(result.n or "–")),
            mark,
        ]
        table.add_row(*cells, Text(result.reason))
    workspace.console.print(table)
    if release is not None:
        workspace.say(f"release {release[:16]} is in {workspace.out / 'releases' / release[:16]}")
