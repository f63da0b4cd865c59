"""Online (iterative) DPO: in rounds, the policy answers, the reward model scores, best trains against worst.

    <out>/dpo/rounds/1, 2, ...   a run folder each: drawn.json, pairs.jsonl, metrics.jsonl, model
The reference of a round is the policy at its start. What a killed run had finished of it is not done again.
"""

import shutil
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from trueward.core.errors import DataError
from trueward.core.files import read_json, read_jsonl, replace_folder, write_json, write_jsonl, write_text
from trueward.core.hashing import short
from trueward.core.stats import bootstrap_mean, win_rate
from trueward.data.chat import Completion, TokenGroup, stop_ids
from trueward.data.records import Comparison, Prompt
from trueward.models.checkpoint import model_hash
from trueward.models.load import LoadedModel
from trueward.pipeline.datasets import FeedbackData, decided, pairs, train_prompts
from trueward.pipeline.held_out import preference_looks
from trueward.pipeline.ppo import gold_of
from trueward.pipeline.recipe import OnlineSection
from trueward.pipeline.rewards import Asked, reward_hashes, summed_reward, uses_own
from trueward.pipeline.sampling import prompt_ids
from trueward.pipeline.training import (
    begin_stage,
    card,
    check,
    parents_of,
    save_policy,
    settings_of,
    tokenised,
    training_figures,
)
from trueward.pipeline.workspace import Begun, Workspace
from trueward.rollouts.local import LocalEngine
from trueward.trainers.best_worst import BestWorst, best_against_worst
from trueward.trainers.experience import RewardFunction
from trueward.trainers.groups import describe_group, rollout_groups
from trueward.trainers.loop import Evaluate, TrainResult
from trueward.trainers.preference import preference_pairs, train_preference
from trueward.trainers.reward import reward_function
from trueward.trainers.reward_sum import parts_of
from trueward.trainers.sampling import Sampler, num_steps
from trueward.trainers.settings import TrainSettings

__all__ = ["online_dpo"]

_SCHEMA = "trueward.online_round/1"


class _Asked(NamedTuple):
    """Usable prompts, and their tokens."""

    prompts: list[Prompt]
    groups: list[TokenGroup]


class _Run(NamedTuple):
    """What all rounds share."""

    online: OnlineSection
    begun: Begun
    asked: _Asked
    data: FeedbackData[Comparison]
    rewards: dict[str, str]
    """Name -> hash of the reward models that score."""

    def name(self, number: int) -> str:
        """The stage whose model round `number` made; 0 is the SFT model."""
        return f"dpo/rounds/{number}" if number else "sft"


def _asked(workspace: Workspace, policy: LoadedModel, online: OnlineSection) -> _Asked:
    prompts = train_prompts(workspace)
    longest = workspace.recipe.data.max_tokens - online.max_new_tokens
    kept, groups = prompt_ids(policy, prompts, max_tokens=longest)
    if len(kept) < len(prompts):
        workspace.say(
            f"online DPO: {len(prompts) - len(kept):,} of {len(prompts):,} prompts are too long and left out"
        )
    check(workspace, policy, groups, completions=False, quiet=True)
    return _Asked([prompts[index] for index in kept], groups)


def _of_round(workspace: Workspace, run: _Run, number: int) -> _Asked:
    """The prompts of a round: each once before any comes again."""
    total = len(run.asked.prompts)
    size = min(run.online.prompts or total, total)
    sampler = Sampler(
        total,
        batch_size=size,
        num_drawn=size * run.online.rounds,
        seed=workspace.seed("dpo", "online", "prompts"),
    )
    rows = sampler.batch(number - 1)
    return _Asked([run.asked.prompts[i] for i in rows], [run.asked.groups[i] for i in rows])


def _draw(
    workspace: Workspace, run: _Run, policy: LoadedModel, number: int
) -> tuple[BestWorst, dict[str, Any]]:
    """Answers of the policy as it is, their pairs, and figures; the reward model is there only meanwhile."""
    started_s, online, asked = time.monotonic(), run.online, _of_round(workspace, run, number)
    rollouts = LocalEngine(policy.model, stop_ids(policy.tokenizer)).generate(
        [group.prompt_ids for group in asked.groups],
        num_completions=online.completions,
        max_new_tokens=online.max_new_tokens,
        temperature=online.temperature,
        seed=workspace.seed("dpo", "online", number),
    )
    reward = _reward(workspace, run)
    scores = list(reward(asked.groups, rollouts))
    made = best_against_worst(rollout_groups(asked.groups, rollouts), scores)
    by_prompt = np.reshape(scores, (-1, online.completions)).mean(1)
    figures: dict[str, Any] = {
        "prompts": len(asked.groups),
        "completions": len(rollouts),
        "unfinished": sum(not rollout.finished for rollout in rollouts),
        "pairs": len(made.groups),
        "ties": made.ties,
        "reward": bootstrap_mean(by_prompt)._asdict(),
        "gap": float(np.mean(made.gaps)) if made.gaps else 0.0,
        **({"parts": dict(parts)} if (parts := parts_of(reward)) else {}),
    }
    if workspace.recipe.data.source == "testbed":
        # Reported, never trained on.
        gold = gold_of(policy, asked.prompts)(asked.groups, rollouts)
        figures |= _true_figures(np.reshape(gold, (-1, online.completions)), made)
    return made, {**figures, "seconds": time.monotonic() - started_s}


def _reward(workspace: Workspace, run: _Run) -> RewardFunction:
    """The run's reward model, or the sum that the recipe names; there only while it is needed."""
    section, budget = run.online.rewards, workspace.recipe.dpo.train.max_tokens_per_forward
    own = None
    if uses_own(section):
        own = reward_function(workspace.load_reward().model, max_tokens_per_forward=budget)
    if section is None:
        assert own is not None, "without a sum the run's own scores"
        return own
    asked = Asked(run.asked.prompts, run.asked.groups, run.online.max_new_tokens, budget)
    # Scales are those of the SFT model in every round, so that rounds maximise the same.
    return summed_reward(workspace, workspace.load("sft"), section, asked, own=own)


def _true_figures(gold_PG: np.ndarray[Any, np.dtype[np.float64]], made: BestWorst) -> dict[str, Any]:
    best, worst = ([float(gold_PG[row[0], row[side]]) for row in made.rows] for side in (1, 2))
    agreement = {"gold_agreement": win_rate(best, worst)._asdict()} if best else {}
    return {"gold": bootstrap_mean(gold_PG.mean(1))._asdict(), **agreement}


def _pairs(
    workspace: Workspace, run: _Run, begun: Begun, policy: LoadedModel, number: int
) -> tuple[list[TokenGroup], dict[str, Any]]:
    """The pairs of a round, and figures: drawn, or read where they have been drawn already.

    Raises:
        DataError: every prompt is a tie.
    """
    figures_file, pairs_file = begun.folder.path / "drawn.json", begun.folder.path / "pairs.jsonl"
    if not figures_file.is_file():
        made, figures = _draw(workspace, run, policy, number)
        rows = zip(made.groups, made.gaps, strict=True)
        write_jsonl(pairs_file, ({"schema": _SCHEMA, **describe_group(g), "gap": gap} for g, gap in rows))
        write_json(figures_file, {"schema": _SCHEMA, **figures})
    figures = {key: value for key, value in read_json(figures_file).items() if key != "schema"}
    _say(workspace, run, number, figures)
    if not figures["pairs"]:
        raise DataError(
            f"round {number}: the reward model finds all answers to each prompt alike",
            value=f"{figures['ties']} ties",
            remedy="raise dpo.online.completions or dpo.online.temperature",
        )
    return [_group(row) for row in read_jsonl(pairs_file)], figures


def _group(row: Mapping[str, Any]) -> TokenGroup:
    completions = tuple(
        Completion(tuple(c["ids"]), tuple(mark == "1" for mark in c["trained"])) for c in row["completions"]
    )
    return TokenGroup(tuple(row["prompt_ids"]), completions, row["id"])


def _say(workspace: Workspace, run: _Run, number: int, figures: Mapping[str, Any]) -> None:
    gold = f", gold {figures['gold']['value']:.3f}" if "gold" in figures else ""
    workspace.say(
        f"online DPO, round {number} of {run.online.rounds}: {figures['completions']:,} answers to "
        f"{figures['prompts']:,} prompts, reward {figures['reward']['value']:.3f}{gold}; "
        f"{figures['pairs']:,} pairs, {figures['ties']:,} ties left out, "
        f"{figures['unfinished']:,} answers hit the length limit"
    )


def _looks(
    workspace: Workspace, run: _Run, begun: Begun, policy: LoadedModel, settings: TrainSettings
) -> Evaluate | None:
    """Looks at the held-out comparisons of the data, against the reference of the round."""
    if settings.eval_every == 0:
        return None
    test = decided(run.data.test).records
    groups, _ = tokenised(policy, test, max_tokens=workspace.recipe.data.max_tokens)
    held = preference_pairs(
        policy.model,
        groups,
        preference=workspace.recipe.dpo.objective,
        ref_model=None,
        cache=begun.folder.path,
        max_tokens_per_forward=settings.max_tokens_per_forward,
        precision=settings.precision,
    )
    return preference_looks(held, settings, workspace.recipe.dpo.objective)


def _train(
    workspace: Workspace, run: _Run, begun: Begun, policy: LoadedModel, groups: Sequence[TokenGroup]
) -> TrainResult:
    number = begun.folder.manifest["config"]["round"]
    section, settings = (
        workspace.recipe.dpo,
        settings_of(workspace, run.name(number), workspace.recipe.dpo.train),
    )
    with workspace.bar(f"DPO round {number}", num_steps(settings, len(groups))) as bar:
        result = train_preference(
            policy.model,
            groups,
            settings=settings,
            preference=section.objective,
            folder=begun.folder.path,
            bar=bar,
            evaluate=_looks(workspace, run, begun, policy, settings),
            resume=begun.resume,
        )
    workspace.check_finished(begun.folder, result)
    return result


def _round(workspace: Workspace, run: _Run, number: int) -> None:
    """One round: the model of the one before becomes policy and reference."""
    before, name = run.name(number - 1), run.name(number)
    policy = workspace.load_to_train(before)
    parents = {**parents_of(workspace, policy, run.data), **run.rewards}
    begun = workspace.begin(
        "dpo_round",
        config={"round": number, "run": run.begun.folder.manifest["id"]},
        parents=parents,
        at=workspace.out / name,
    )
    groups, drawn = _pairs(workspace, run, begun, policy, number)
    result = _train(workspace, run, begun, policy, groups)
    text = f"Round {number} of online DPO: {len(groups):,} pairs of {before}'s own answers."
    _, digest = save_policy(policy, begun, card(workspace, "dpo", policy, text=text, made_from=parents))
    records = [workspace.record_of(before, "model"), *_reward_records(workspace, run)]
    workspace.finish(
        begun.folder,
        results={**training_figures(result), "drawn": drawn},
        model=digest,
        parents=[*run.data.records, *records],
    )


def _reward_records(workspace: Workspace, run: _Run) -> list[str]:
    """Registry id of the run's reward model, where it takes part."""
    return [workspace.record_of("reward", "model")] if "reward_model" in run.rewards else []


def _joined(workspace: Workspace, run: _Run, rounds: int) -> dict[str, Any]:
    """Figures of the rounds as those of one training; their metrics, one after the other, into its folder."""
    results = [workspace.run(run.name(n)).manifest["results"] for n in range(1, rounds + 1)]
    rows: list[dict[str, Any]] = []
    step, time_s = 0, 0.0
    for number, result in enumerate(results, 1):
        own = list(read_jsonl(workspace.out / run.name(number) / "metrics.jsonl"))
        rows += [{**row, "step": step + row["step"], "time_s": time_s + row["time_s"]} for row in own]
        step, time_s = step + result["steps"], time_s + own[-1]["time_s"]
    write_jsonl(run.begun.folder.path / "metrics.jsonl", rows)
    return {
        "seconds": sum(result["seconds"] + result["drawn"]["seconds"] for result in results),
        "steps": step,
        "skipped": sum(result["skipped"] for result in results),
        "stopped": "",
        "warnings": [f"round {n}: {w}" for n, result in enumerate(results, 1) for w in result["warnings"]],
        "rounds": [result["drawn"] for result in results],
    }


def _copy_model(source: Path, target: Path, text: str) -> str:
    with replace_folder(target) as folder:
        shutil.copytree(source, folder, dirs_exist_ok=True)
        write_text(folder / "README.md", text)
    return model_hash(target)


def online_dpo(workspace: Workspace) -> None:
    """Rounds of DPO, or of the method on pairs that the recipe names, on the policy's own answers.

    Raises:
        RunError: there is no reward model.
        DataError: no prompt can be used, or a round gives no pair.
    """
    section = workspace.recipe.dpo
    assert section.online is not None, "only called where the recipe asks for it"
    policy, data = workspace.load("sft"), pairs(workspace)
    rewards = reward_hashes(section.online.rewards)
    if uses_own(section.online.rewards):
        rewards["reward_model"] = model_hash(Path(workspace.model_path("reward")))
    parents = {**parents_of(workspace, policy, data), **rewards}
    begun = begin_stage(workspace, "dpo", section.model_dump(mode="json"), parents)
    if begun.done:
        return
    run = _Run(section.online, begun, _asked(workspace, policy, section.online), data, rewards)
    for number in range(1, section.online.rounds + 1):
        if not workspace.has(run.name(number)):
            _round(workspace, run, number)
        figures = _joined(workspace, run, number)
    last = run.name(section.online.rounds)
    text = (
        f"{section.online.rounds} rounds of online DPO ({section.objective.method}) against "
        f"{' + '.join(f'{name} {short(digest)}' for name, digest in rewards.items()) or 'verifiers'}."
    )
    readme = card(workspace, "dpo", policy, text=text, made_from=parents)
    digest = _copy_model(workspace.out / last / "model", begun.folder.model, readme)
    records = [workspace.record_of(last, "model"), *_reward_records(workspace, run)]
    workspace.finish(begun.folder, results=figures, model=digest, parents=[*data.records, *records])
