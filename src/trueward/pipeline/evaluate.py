"""The evaluation stage: every model that is there, on the same held-out prompts; figures and evidence.

An evaluation is a folder of its own, named by what was measured and how: another stage or setting makes a new
folder, and the old one stays as it is. `eval/newest.json` names the one that gate and report read.
"""

from typing import Any

from trueward.core.errors import RunError
from trueward.core.files import write_json, write_jsonl
from trueward.evals import BagOfWordsJudge, fit_bag_of_words
from trueward.models.load import LoadedModel
from trueward.pipeline.datasets import decided, has_comparisons, pairs
from trueward.pipeline.evidence import put_evidence
from trueward.pipeline.measured import HeldPrompts, Measured, held_prompts, measure_policy, reference_of
from trueward.pipeline.policy_figures import figures_of, notes_of, samples, win_matrix
from trueward.pipeline.reward_report import RewardMeasured, measure_reward
from trueward.pipeline.workspace import Begun, Workspace, hub_origin

__all__ = ["POLICIES", "evaluate"]

POLICIES = ("base", "sft", "dpo", "kto", "ppo", "grpo", "distill", "ppo_unbounded")


def evaluate(workspace: Workspace) -> None:
    """Draw completions of every policy for the held-out prompts, measure them, and put evidence into the
    registry. The same models with the same settings are measured once.

    Raises:
        RunError: there is no SFT model to compare with.
    """
    if not workspace.has("sft"):
        raise RunError(
            f"{workspace.out} holds no finished SFT stage to compare with", remedy="run the sft stage first"
        )
    stages = [stage for stage in POLICIES if stage == "base" or workspace.has(stage)]
    compared = {stage: workspace.load(stage) for stage in ("base", "sft")}
    scorer = workspace.load_reward() if workspace.has("reward") else None
    held = held_prompts(workspace, compared["sft"])
    begun = _begin(workspace, stages, compared["base"], scorer, held)
    if begun.done:
        workspace.say(f"evaluation: these models have been measured already, in {begun.folder.path}")
        workspace.set_newest_evaluation(begun.folder)
        return
    measured: dict[str, Measured] = {}
    with workspace.bar("evaluation", 2 * len(stages) + 1) as bar:
        for stage in stages:
            measured[stage] = measure_policy(
                workspace,
                compared[stage] if stage in compared else workspace.load(stage),
                stage,
                held,
                scorer=scorer,
                ref=None if stage == "base" else compared[reference_of(stage)],
                done=bar.advance,
            )
            bar.advance(figure=_figure(measured[stage]))
        reward = None if scorer is None else measure_reward(workspace, scorer, pairs(workspace))
        bar.advance()
    _write(workspace, begun, measured, held, reward)


def _begin(
    workspace: Workspace, stages: list[str], base: LoadedModel, scorer: LoadedModel | None, held: HeldPrompts
) -> Begun:
    made = {stage: workspace.record_of(stage, "model") for stage in stages if stage != "base"}
    parents = {
        "data": held.hash,
        "charter": workspace.charter.hash,
        "base": base.hash,
        "reward_model": "" if scorer is None else scorer.hash,
        **{stage: str(workspace.registry.get(record).body["hash"]) for stage, record in made.items()},
    }
    recipe = workspace.recipe
    config = {
        "section": recipe.eval.model_dump(mode="json"),
        "dtype": recipe.model.dtype,
        "max_tokens": recipe.data.max_tokens,
        "limit": recipe.data.limit,
        **hub_origin(base),
    }
    return workspace.begin_evaluation(config=config, parents=parents)


def _write(
    workspace: Workspace,
    begun: Begun,
    measured: dict[str, Measured],
    held: HeldPrompts,
    reward: RewardMeasured | None,
) -> None:
    judge = _judge(workspace)
    stages = {stage: figures_of(stage, measured, held, judge) for stage in measured}
    results: dict[str, Any] = {
        "stages": stages,
        "prompts": len(held.prompts),
        "data": {held.name: held.hash},
        "win_matrix": win_matrix(measured, held),
        "notes": [*_point_note(workspace), *notes_of(measured, held)],
    }
    if reward is not None:
        results["reward_model"] = reward.body
    folder = begun.folder.path
    write_jsonl(folder / "samples.jsonl", samples(held, measured))
    write_json(folder / "figures.json", results)
    source = (folder / "figures.json").relative_to(workspace.out).as_posix()
    ids = put_evidence(workspace, stages, measured, held, reward, source=source)
    begun.folder.finish(results={"evidence": ids})
    workspace.set_newest_evaluation(begun.folder)


def _point_note(workspace: Workspace) -> list[str]:
    name = workspace.recipe.operating_point
    return (
        [f"operating point {name}: its system prompt was sent with every prompt"] if workspace.system else []
    )


def _figure(measured: Measured) -> str:
    name = next((name for name in ("gold", "reward") if name in measured.scores), None)
    return measured.stage if name is None else f"{measured.stage} {name} {measured.scores[name].value:.2f}"


def _judge(workspace: Workspace) -> BagOfWordsJudge | None:
    """On real data: an independent judge fitted to the training pairs, which shares nothing with the reward
    model."""
    if workspace.recipe.data.source == "testbed" or not has_comparisons(workspace):
        return None
    train = decided(pairs(workspace).train).records
    return fit_bag_of_words([r.chosen for r in train], [r.rejected for r in train])
