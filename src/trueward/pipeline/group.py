"""The GRPO stage: the SFT model against verifiers of its answers, measured on held-out questions before and
after."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from trueward.core.stats import Estimate, bootstrap_mean, paired_difference, wilson
from trueward.data.chat import stop_ids
from trueward.data.records import Record
from trueward.models.checkpoint import model_hash
from trueward.models.load import LoadedModel
from trueward.pipeline.datasets import asked_records
from trueward.pipeline.ppo import decode_with, gold_of
from trueward.pipeline.questions import AskedQuestions, asked_questions
from trueward.pipeline.rewards import Asked, reward_hashes, summed_reward, uses_own
from trueward.pipeline.sampling import draw, text_of
from trueward.pipeline.training import card, check, save_policy, settings_of, training_figures
from trueward.pipeline.workspace import Begun, Workspace
from trueward.rewards import Case, Verdict, Verifier, all_of
from trueward.rollouts.local import LocalEngine
from trueward.trainers.group import train_group
from trueward.trainers.group_experience import group_models
from trueward.trainers.group_rollout import GroupReward
from trueward.trainers.loop import TrainResult
from trueward.trainers.ppo import PPOHooks
from trueward.trainers.reward import reward_function
from trueward.trainers.reward_sum import RewardPart, VerdictSum
from trueward.trainers.verified import verified_reward

__all__ = ["grpo", "mean_score"]


def _asked(
    workspace: Workspace, policy: LoadedModel, records: Sequence[Record], split: str
) -> AskedQuestions:
    section = workspace.recipe.grpo
    return asked_questions(
        workspace,
        policy,
        records,
        split=split,
        section=section,
        key="grpo",
        max_new_tokens=section.train.max_new_tokens,
        who="GRPO",
    )


def _verdicts(
    workspace: Workspace, policy: LoadedModel, asked: AskedQuestions, verify: Verifier, *, temperature: float
) -> list[Verdict]:
    """Verdicts of one completion for each held-out question, drawn with the same noise before and after."""
    section = workspace.recipe.grpo.train
    drawn = draw(
        policy,
        asked.groups,
        max_new_tokens=section.max_new_tokens,
        temperature=temperature,
        seed=workspace.seed("grpo", "held out"),
    )
    pairs = zip(drawn.texts, (asked.questions[group.id] for group in asked.groups), strict=True)
    return verify([Case(text, question.answer, question.prompt) for text, question in pairs])


def _gain(before: Sequence[Verdict], after: Sequence[Verdict]) -> dict[str, Any]:
    """Mean scores with intervals, and the paired gain; questions without a score are counted and left out."""
    pairs = zip(before, after, strict=True)
    both = [(b.score, a.score) for b, a in pairs if b.score is not None and a.score is not None]
    if not both:
        return {"errors": len(before)}
    first, last = np.array(both).T
    return {
        "before": mean_score(first)._asdict(),
        "after": mean_score(last)._asdict(),
        "gain": mean_gain(first, last)._asdict(),
        "errors": len(before) - len(both),
    }


def mean_score(scores: NDArray[np.float64]) -> Estimate:
    """Mean score; a pass rate by Wilson's interval, since resampling 200 failures says 0 for certain."""
    if np.isin(scores, (0.0, 1.0)).all():
        return wilson(int(scores.sum()), scores.size)
    return bootstrap_mean(scores)


def mean_gain(first: NDArray[np.float64], last: NDArray[np.float64]) -> Estimate:
    """Paired gain. Where no verdict of n changed, one in 1 / n may: resampling would say 0 for certain."""
    gain = paired_difference(last, first)
    if not np.array_equal(first, last) or not np.isin(first, (0.0, 1.0)).all():
        return gain
    edge = wilson(0, first.size).high
    return gain._replace(low=-edge, high=edge)


class _HeldOut(NamedTuple):
    """Verdicts on the held-out questions, greedy and sampled."""

    greedy: list[Verdict]
    sampled: list[Verdict]


def _held_out(workspace: Workspace, policy: LoadedModel, held: AskedQuestions, verify: Verifier) -> _HeldOut:
    temperature = workspace.recipe.grpo.train.temperature
    return _HeldOut(
        greedy=_verdicts(workspace, policy, held, verify, temperature=0.0),
        sampled=_verdicts(workspace, policy, held, verify, temperature=temperature),
    )


def _reward(
    workspace: Workspace, policy: LoadedModel, asked: AskedQuestions, verify: Verifier
) -> GroupReward:
    """The verifiers, and what the recipe adds to them."""
    section, budget = workspace.recipe.grpo, workspace.recipe.grpo.train.max_tokens_per_forward
    verified = verified_reward(verify, asked.questions, text=lambda rollout: text_of(policy, rollout))
    if section.rewards is None:
        return verified
    own = None
    if uses_own(section.rewards):
        own = reward_function(workspace.load_reward().model, max_tokens_per_forward=budget)
    scored = Asked(asked.prompts, asked.groups, section.train.max_new_tokens, budget)
    first = [RewardPart("verifiers", verified, 1.0)]
    return VerdictSum(summed_reward(workspace, policy, section.rewards, scored, own=own, first=first))


def _train(
    workspace: Workspace, begun: Begun, policy: LoadedModel, asked: AskedQuestions, verify: Verifier
) -> TrainResult:
    settings = settings_of(workspace, "grpo", workspace.recipe.grpo.train)
    with workspace.bar(settings.method, settings.iterations) as bar:
        return train_group(
            group_models(policy.model, settings),
            asked.groups,
            engine=LocalEngine(policy.model, stop_ids(policy.tokenizer)),
            reward=_reward(workspace, policy, asked, verify),
            settings=settings,
            folder=begun.folder.path,
            hooks=PPOHooks(
                gold=gold_of(policy, asked.prompts) if _testbed(workspace) else None,
                decode=decode_with(policy),
                bar=bar,
            ),
            resume=begun.resume,
        )


def grpo(workspace: Workspace) -> None:
    """GRPO, or the method that the recipe names, of the SFT model, which is also the reference.

    Raises:
        DataError: no record says what is right.
        ConfigError: a verifier cannot be made.
    """
    recipe, section = workspace.recipe, workspace.recipe.grpo
    policy, data, verify = workspace.load_to_train("sft"), asked_records(workspace), all_of(section.verifiers)
    parents = {
        "model": policy.hash,
        "data": data.hash,
        "charter": workspace.charter.hash,
        "template": policy.template_hash,
        **reward_hashes(section.rewards),
    }
    own = section.rewards is not None and uses_own(section.rewards)
    if own:
        parents["reward_model"] = model_hash(Path(workspace.model_path("reward")))
    config = {
        "section": section.model_dump(mode="json"),
        "model": recipe.model.model_dump(mode="json", exclude={"path"}),
        "max_tokens": recipe.data.max_tokens,
        "limit": recipe.data.limit,
        "held_out": recipe.eval.prompts,
    }
    begun = workspace.begin("grpo", config=config, parents=parents)
    if begun.done:
        return
    train = _asked(workspace, policy, data.train, "training")
    held = _asked(
        workspace, policy, data.test[: None if _testbed(workspace) else recipe.eval.prompts], "test"
    )
    check(workspace, policy, train.groups, completions=False, quiet=True)
    before = _held_out(workspace, policy, held, verify)
    result = _train(workspace, begun, policy, train, verify)
    workspace.check_finished(begun.folder, result)
    after = _held_out(workspace, policy, held, verify)
    gains = {"greedy": _gain(before.greedy, after.greedy), "sampled": _gain(before.sampled, after.sampled)}
    _say(workspace, gains)
    names = " + ".join(verifier.name for verifier in section.verifiers)
    text = (
        f"{section.train.method} against {names}, {result.step} iterations, {len(train.groups):,} questions."
    )
    _, digest = save_policy(policy, begun, card(workspace, "grpo", policy, text=text, made_from=parents))
    workspace.finish(
        begun.folder,
        results={**training_figures(result), "held_out": gains},
        model=digest,
        parents=[
            *data.records,
            workspace.record_of("sft", "model"),
            *([workspace.record_of("reward", "model")] if own else []),
        ],
    )


def _testbed(workspace: Workspace) -> bool:
    return workspace.recipe.data.source == "testbed"


def _say(workspace: Workspace, gains: Mapping[str, Mapping[str, Any]]) -> None:
    for name, figures in gains.items():
        head = f"{workspace.recipe.grpo.train.method}, held out, {name}"
        if "gain" not in figures:
            workspace.say(f"{head}: the verifier has no score for any question")
            continue
        before, after, gain = (figures[key] for key in ("before", "after", "gain"))
        workspace.say(
            f"{head}: {before['value']:.3f} before, {after['value']:.3f} after, gain {gain['value']:+.3f} "
            f"[{gain['low']:+.3f}, {gain['high']:+.3f}] over {gain['n']} questions, "
            f"{figures['errors']} without a score"
        )
