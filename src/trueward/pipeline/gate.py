"""The gate stage: the charter's criteria against the recorded evidence; what passes becomes a release."""

from typing import Any

from rich.table import Table
from rich.text import Text

from trueward.core.errors import RunError
from trueward.core.files import read_json, write_json
from trueward.models.checkpoint import model_hash
from trueward.pipeline.datasets import data_in_force
from trueward.pipeline.evaluate import POLICIES
from trueward.pipeline.workspace import Workspace
from trueward.registry import CriterionResult, Verdict, decide, make_release

__all__ = ["CANDIDATES", "gate", "subject_stage"]

# A run without a KL budget is there to show what goes wrong.
CANDIDATES = tuple(stage for stage in POLICIES if stage not in ("base", "sft", "ppo_unbounded"))


def subject_stage(workspace: Workspace) -> str:
    """The stage whose model is brought before the gate.

    Raises:
        RunError: that stage has not been run, nothing can be compared, or a candidate has not been measured
            as it is now.
    """
    wanted = workspace.recipe.release
    if wanted != "best":
        workspace.model_path(wanted)
        return wanted
    return _best(workspace)


def _best(workspace: Workspace) -> str:
    """Of every policy that was trained on SFT, the one that the newest evaluation saw beat SFT most often."""
    ran = [stage for stage in CANDIDATES if workspace.has(stage)]
    evaluation = workspace.evaluation()
    figures, seen = read_json(evaluation.path / "figures.json")["stages"], evaluation.manifest["parents"]
    if not any("win_rate" in figures.get(stage, {}) for stage in ran):
        raise RunError(
            "the newest evaluation has no win rate of a policy trained on SFT to choose the best by",
            value=", ".join(ran) or "no such policy",
            remedy=f"run one of {', '.join(CANDIDATES)}, reward and then eval, or name the stage, such as "
            "release=sft",
        )
    for stage in ran:
        made = str(workspace.registry.get(workspace.record_of(stage, "model")).body["hash"])
        if seen.get(stage) != made or "win_rate" not in figures.get(stage, {}):
            raise RunError(
                f"stage {stage} has made a model that the newest evaluation has no win rate of, so the best "
                "cannot be chosen",
                remedy=f"run eval again, or name the stage, such as release={stage}",
            )
    return max(ran, key=lambda stage: float(figures[stage]["win_rate"]["value"]))


def gate(workspace: Workspace) -> bool:
    """Decide; print every criterion; record the verdict; make a release of a model that passed.

    Returns:
        Whether the model passed.

    Raises:
        RunError: nothing has been evaluated.
    """
    evaluation = workspace.evaluation()
    stage = subject_stage(workspace)
    loaded = workspace.load(stage)
    # Only the newest evaluation speaks: the figures of an older one, with other prompts, may differ.
    ids = evaluation.manifest["results"]["evidence"]
    verdict = decide(
        workspace.charter,
        workspace.recipe.profile,
        [workspace.registry.get(ids[name]) for name in (stage, "reward") if name in ids],
        subject=loaded.hash,
        data=data_in_force(workspace),
        template=loaded.template_hash,
        reward_model=workspace.load_reward().hash if workspace.has("reward") else None,
        operating_point=workspace.recipe.operating_point or "",
    )
    parents = [*verdict.sources, workspace.record_of(stage, "model")]
    record = workspace.registry.put("verdict", verdict.body(), parents)
    release = _release(workspace, stage, verdict) if verdict.passed else None
    made = {"subject_stage": stage, "release": release, "record": record, "evaluation": evaluation.path.name}
    write_json(workspace.out / "verdict.json", {**verdict.body(), **made})
    show_verdict(workspace, stage, verdict, release)
    return verdict.passed


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
        table.add_column(column, overflow="fold")
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
