"""The evaluation stage: every model that is there, on the same held-out prompts; figures and evidence."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from trueward.core.errors import RunError
from trueward.core.files import write_json, write_jsonl
from trueward.core.seed import generator
from trueward.core.stats import Estimate, bootstrap_mean, paired_difference, win_rate
from trueward.data.chat import TokenGroup
from trueward.data.records import Prompt
from trueward.evals import (
    BagOfWordsJudge,
    ScoreJudge,
    accuracy_ratio,
    compare_held_out,
    fit_bag_of_words,
    held_out,
    kl_to_ref,
    win_rate_report,
)
from trueward.models.load import LoadedModel
from trueward.pipeline.datasets import FeedbackData, pairs, test_prompts
from trueward.pipeline.reward_report import measure_reward
from trueward.pipeline.sampling import Drawn, draw, prompt_ids
from trueward.pipeline.stages import tokenised
from trueward.pipeline.workspace import Workspace
from trueward.registry import Subject, evidence_body
from trueward.rollouts.engine import Rollout
from trueward.testbed import Measurement, Task, gold_reward, measure, task_of
from trueward.trainers.reward import reward_function

__all__ = ["POLICIES", "evaluate"]

POLICIES = ("base", "sft", "dpo", "ppo", "ppo_unbounded")
# Share of unknown over known is taken with half an item added to each count, so that no count of 0 divides.
_HALF = 0.5


@dataclass(frozen=True, slots=True, kw_only=True)
class _Held:
    """The held-out prompts of one evaluation."""

    prompts: list[Prompt]
    groups: list[TokenGroup]
    name: str
    hash: str
    tasks: list[Task] | None


@dataclass(slots=True, kw_only=True)
class _Measured:
    """One policy: what it said and how that scored."""

    loaded: LoadedModel
    drawn: Drawn
    scores: dict[str, Estimate]
    per_item: np.ndarray
    true: Measurement | None
    greedy_right: list[int] | None


def _held(workspace: Workspace, loaded: LoadedModel) -> _Held:
    prompts, name, digest = test_prompts(workspace)
    longest = workspace.recipe.data.max_tokens
    kept, groups = prompt_ids(loaded, prompts, max_tokens=longest - workspace.recipe.eval.max_new_tokens)
    if len(kept) < len(prompts):
        workspace.say(
            f"evaluation: {len(prompts) - len(kept)} of {len(prompts)} prompts are too long and left out"
        )
    prompts = [prompts[i] for i in kept]
    testbed = workspace.recipe.data.source == "testbed"
    tasks = [task_of(p.meta) for p in prompts] if testbed else None
    return _Held(prompts=prompts, groups=groups, name=name, hash=digest, tasks=tasks)


def _greedy_right(workspace: Workspace, loaded: LoadedModel, held: _Held) -> list[int] | None:
    """1 for each ability question answered rightly by greedy decoding, on the testbed."""
    if held.tasks is None:
        return None
    chosen = [i for i, t in enumerate(held.tasks) if t.kind in ("known", "sum", "story", "list")]
    drawn = draw(
        loaded,
        [held.groups[i] for i in chosen],
        max_new_tokens=workspace.recipe.eval.max_new_tokens,
        temperature=0.0,
        seed=0,
    )
    from_truth = _outcomes([held.tasks[i] for i in chosen], drawn.texts)
    return [int(outcome == "right") for outcome in from_truth]


def _outcomes(tasks: Sequence[Task], texts: Sequence[str]) -> list[str]:
    """What each reply does, by the testbed's truth."""
    return [gold_reward(task, text).outcome for task, text in zip(tasks, texts, strict=True)]


def _proxy(workspace: Workspace, scorer: LoadedModel, drawn: Drawn) -> np.ndarray:
    score = reward_function(scorer.model, max_tokens_per_forward=workspace.recipe.eval.max_tokens_per_forward)
    rollouts = [
        Rollout(i, group.completions[0].ids, (0.0,) * len(group.completions[0].ids), True)
        for i, group in enumerate(drawn.groups)
    ]
    return np.asarray(score(drawn.groups, rollouts))


def _measure(
    workspace: Workspace, stage: str, held: _Held, scorer: LoadedModel | None, advance: Any
) -> _Measured:
    section = workspace.recipe.eval
    loaded = workspace.load(stage)
    # The same seed for every policy: a prompt draws the same noise, which makes comparisons sharper.
    drawn = draw(
        loaded,
        held.groups,
        max_new_tokens=section.max_new_tokens,
        temperature=section.temperature,
        seed=workspace.seed("eval"),
    )
    scores: dict[str, Estimate] = {}
    true = None
    per_item = np.zeros(0)
    if scorer is not None:
        per_item = _proxy(workspace, scorer, drawn)
        scores["reward"] = bootstrap_mean(per_item)
    if held.tasks is not None:
        true = measure(held.tasks, drawn.texts)
        scores = {
            "gold": true.gold,
            "helpful": true.helpful,
            "harmless": true.harmless,
            "honest": true.honest,
            **scores,
        }
        per_item = true.totals
    advance()
    greedy = _greedy_right(workspace, loaded, held) if stage != "ppo_unbounded" else None
    return _Measured(
        loaded=loaded, drawn=drawn, scores=scores, per_item=per_item, true=true, greedy_right=greedy
    )


def _abstention_ratio(true: Measurement, tasks: Sequence[Task]) -> Estimate:
    """How much more often `i do not know` comes about unknown people, with a bootstrap interval."""
    said = {
        kind: np.array(
            [o == "abstain" for t, o in zip(tasks, true.outcomes, strict=True) if t.kind == kind], dtype=float
        )
        for kind in ("known", "unknown")
    }
    rng = generator(0, "abstention")

    def ratio(known: np.ndarray, unknown: np.ndarray) -> float:
        share = [(x.sum() + _HALF) / (x.size + 2 * _HALF) for x in (unknown, known)]
        return float(share[0] / share[1])

    draws = [
        ratio(*(rng.choice(said[kind], said[kind].size) for kind in ("known", "unknown")))
        for _ in range(1000)
    ]
    low, high = np.quantile(draws, [0.025, 0.975])
    return Estimate(
        ratio(said["known"], said["unknown"]),
        float(low),
        float(high),
        min(said["known"].size, said["unknown"].size),
    )


def evaluate(workspace: Workspace) -> None:
    """Draw completions of every policy for the held-out prompts, measure them, and put evidence into the
    registry.

    Raises:
        RunError: there is no SFT model to compare with.
    """
    if not workspace.has("sft"):
        raise RunError(
            f"{workspace.out} holds no finished SFT stage to compare with", remedy="run the sft stage first"
        )
    stages = [stage for stage in POLICIES if stage == "base" or workspace.has(stage)]
    scorer = workspace.load_reward() if workspace.has("reward") else None
    held = _held(workspace, workspace.load("sft"))
    parents = {
        "data": held.hash,
        "charter": workspace.charter.hash,
        **{s: workspace.load(s).hash for s in stages},
    }
    begun = workspace.begin(
        "eval", config={"section": workspace.recipe.eval.model_dump(mode="json")}, parents=parents
    )
    if begun.done:
        return
    with workspace.bar("evaluation", 2 * len(stages) + 1) as bar:
        measured: dict[str, _Measured] = {}
        for stage in stages:
            measured[stage] = _measure(workspace, stage, held, scorer, bar.advance)
            bar.advance(figure=_figure(stage, measured[stage]))
        data = pairs(workspace) if scorer is not None else None
        reward = measure_reward(workspace, scorer, data) if scorer is not None and data is not None else None
        bar.advance()
    judge = _judge(workspace, data)
    results: dict[str, Any] = {"stages": {}, "prompts": len(held.prompts), "data": {held.name: held.hash}}
    if reward is not None:
        results["reward_model"] = reward.body
    for stage in stages:
        results["stages"][stage] = _figures(workspace, stage, measured, held, scorer, judge)
    results["win_matrix"] = _matrix(workspace, measured, held)
    write_jsonl(begun.folder.path / "samples.jsonl", _samples(held, measured))
    write_json(begun.folder.path / "figures.json", results)
    ids = _put_evidence(workspace, results, measured, held, reward)
    workspace.finish(begun.folder, results={"evidence": ids, "figures": "figures.json"}, parents=[])


def _figure(stage: str, measured: _Measured) -> str:
    name = "gold" if "gold" in measured.scores else "reward"
    return f"{stage} {name} {measured.scores[name].value:.2f}" if name in measured.scores else stage


def _judge(workspace: Workspace, data: FeedbackData | None) -> BagOfWordsJudge | None:
    """On real data: a judge fitted to the training pairs, which shares nothing with the reward model."""
    if data is None or workspace.recipe.data.source == "testbed":
        return None
    return fit_bag_of_words([r.chosen for r in data.train], [r.rejected for r in data.train])


def _reference(stage: str) -> str:
    return "base" if stage in ("base", "sft") else "sft"


def _figures(
    workspace: Workspace,
    stage: str,
    measured: Mapping[str, _Measured],
    held: _Held,
    scorer: LoadedModel | None,
    judge: BagOfWordsJudge | None,
) -> dict[str, Any]:
    """Everything about one policy, as JSON values."""
    mine = measured[stage]
    figures: dict[str, Any] = {"scores": _json(mine.scores), "unfinished": mine.drawn.unfinished}
    extra: dict[str, Estimate] = {}
    if stage != "base":
        ref = measured[_reference(stage)]
        kl = kl_to_ref(mine.loaded.model, ref.loaded.model, mine.drawn.groups)
        figures["kl"], extra["kl_k1"], extra["kl_k3"] = kl.exact._asdict(), kl.k1, kl.k3
        figures["kl_ref"] = _reference(stage)
    against = "base" if stage == "sft" else "sft"
    if stage != "base" and mine.per_item.size:
        rival = measured[against]
        figures["win_rate"] = win_rate(mine.per_item, rival.per_item)._asdict()
        figures["win_against"] = against
        figures["win_judge"] = "gold" if held.tasks is not None else "rm"
        name = "gold" if held.tasks is not None else "reward"
        extra[f"{name}_gain_over_{against}"] = paired_difference(mine.per_item, rival.per_item)
        if judge is not None:
            report = win_rate_report(
                ScoreJudge(name="bag-of-words", score=judge),
                [p.messages[-1].content for p in held.prompts],
                mine.drawn.texts,
                rival.drawn.texts,
            )
            extra["win_rate_judge"] = report.estimate
            figures["judge"] = {
                "name": report.judge,
                "ties": report.ties,
                "inconsistent": report.inconsistent,
                "empty": [report.empty_first, report.empty_second],
            }
    if mine.true is not None and held.tasks is not None:
        figures["refusal"] = _refusal(mine.true)
        extra |= {
            "jailbreak_success": mine.true.jailbreak_success,
            "known_abstention": mine.true.known_abstention,
            "unknown_abstention": mine.true.unknown_abstention,
            "abstention_ratio": _abstention_ratio(mine.true, held.tasks),
        }
    base = measured["base"]
    if mine.greedy_right is not None and base.greedy_right is not None:
        figures["capability"] = accuracy_ratio(base.greedy_right, mine.greedy_right)._asdict()
    elif held.tasks is None and stage != "base":
        figures["capability"] = _retained(workspace, base.loaded, mine.loaded)
    lengths = [len(group.completions[0].ids) for group in mine.drawn.groups]
    extra["completions/mean_length"] = bootstrap_mean(lengths)
    figures["extra"] = _json(extra)
    return figures


def _retained(workspace: Workspace, base: LoadedModel, tuned: LoadedModel) -> dict[str, Any]:
    """Greedy token accuracy on held-out chosen answers over that of the base."""
    data = pairs(workspace)
    texts, _ = tokenised(base, data.test, max_tokens=workspace.recipe.data.max_tokens)
    chosen = [TokenGroup(g.prompt_ids, g.completions[:1], g.id) for g in texts]
    report = compare_held_out(held_out(base.model, chosen), held_out(tuned.model, chosen))
    return report.accuracy_ratio._asdict()


def _refusal(true: Measurement) -> dict[str, Any]:
    return {
        "harmful": true.harmful_refusal._asdict(),
        "benign": true.benign_refusal._asdict(),
        "by_category": [
            {"category": c.category, "kind": c.kind, **c.rate._asdict()} for c in true.categories
        ],
    }


def _json(estimates: Mapping[str, Estimate]) -> dict[str, Any]:
    return {name: estimate._asdict() for name, estimate in estimates.items()}


def _matrix(workspace: Workspace, measured: Mapping[str, _Measured], held: _Held) -> list[dict[str, Any]]:
    judge = "gold" if held.tasks is not None else "rm"
    return [
        {
            "row": a,
            "column": b,
            "judge": judge,
            **win_rate(measured[a].per_item, measured[b].per_item)._asdict(),
        }
        for a in measured
        for b in measured
        if a != b and measured[a].per_item.size
    ]


def _samples(held: _Held, measured: Mapping[str, _Measured]) -> list[dict[str, Any]]:
    rows = []
    for index, prompt in enumerate(held.prompts):
        turns = "\n".join(f"{m.role}: {m.content}" for m in prompt.messages)
        category = held.tasks[index].kind if held.tasks is not None else ""
        row: dict[str, Any] = {
            "prompt": turns,
            "category": category,
            "completions": {stage: m.drawn.texts[index] for stage, m in measured.items()},
            "scores": {s: float(m.per_item[index]) for s, m in measured.items() if m.per_item.size} or None,
        }
        rows.append(row)
    return rows


def _gate_metrics(figures: Mapping[str, Any]) -> dict[str, Estimate]:
    """The figures of one policy under the names that charters use."""
    found: dict[str, Estimate] = {}
    extra = {name: Estimate(**value) for name, value in figures["extra"].items()}
    if "win_rate" in figures and figures["win_against"] == "sft":
        found[f"win_rate_{figures['win_judge']}"] = Estimate(**figures["win_rate"])
    for name in ("win_rate_judge", "gold_gain_over_sft", "jailbreak_success", "abstention_ratio"):
        if name in extra:
            found[name] = extra[name]
    if "refusal" in figures:
        found["harmful_refusal"] = Estimate(**figures["refusal"]["harmful"])
        found["benign_refusal"] = Estimate(**figures["refusal"]["benign"])
    if "kl" in figures:
        found["kl"] = Estimate(**figures["kl"])
    if "capability" in figures:
        found["capability_retention"] = Estimate(**figures["capability"])
    return found


def _put_evidence(
    workspace: Workspace,
    results: Mapping[str, Any],
    measured: Mapping[str, _Measured],
    held: _Held,
    reward: Any,
) -> dict[str, str]:
    ids: dict[str, str] = {}
    for stage, mine in measured.items():
        metrics = _gate_metrics(results["stages"][stage])
        if not metrics or stage == "base":
            continue
        body = evidence_body(
            "policy",
            subject=Subject(stage=stage, model=mine.loaded.hash),
            charter=workspace.charter.hash,
            data={held.name: held.hash},
            template=mine.loaded.template_hash,
            source="eval/figures.json",
            metrics=metrics,
        )
        ids[stage] = workspace.registry.put("evidence", body, [workspace.record_of(stage, "model")])
    if reward is not None:
        body = evidence_body(
            "reward_model",
            subject=Subject(stage="reward", model=reward.model),
            charter=workspace.charter.hash,
            data={reward.data.name: reward.data.hash},
            template=reward.template,
            source="eval/figures.json",
            metrics=reward.metrics,
        )
        ids["reward"] = workspace.registry.put("evidence", body, [workspace.record_of("reward", "model")])
    return ids
