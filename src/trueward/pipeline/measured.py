"""What one policy says to the held-out prompts, and how that scores: the part of evaluation with models.

Every policy draws with the same seed, so that a prompt meets the same noise and comparisons are sharper.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from trueward.core.stats import Estimate, bootstrap_mean
from trueward.data.chat import TokenGroup
from trueward.data.records import Prompt
from trueward.evals import HeldOut, KLReport, held_out, kl_to_ref
from trueward.models.load import LoadedModel
from trueward.pipeline.datasets import demonstrations, test_prompts
from trueward.pipeline.sampling import Drawn, draw, prompt_ids
from trueward.pipeline.training import tokenised
from trueward.pipeline.workspace import Workspace
from trueward.rollouts.engine import Rollout
from trueward.testbed import Measurement, Task, gold_reward, measure, task_of
from trueward.trainers.reward import reward_function

__all__ = ["HeldPrompts", "Measured", "held_prompts", "measure_policy", "reference_of", "rival_of"]

_ABILITIES = ("known", "sum", "story", "list")


@dataclass(frozen=True, slots=True, kw_only=True)
class HeldPrompts:
    """The held-out prompts of one evaluation.

    Attributes:
        name, hash, record: the data set they are from, and its registry id.
        tasks: their truth, on the testbed.
        answers: held-out good answers that abilities are measured on, on real data.
        too_long: prompts left out.
    """

    prompts: list[Prompt]
    groups: list[TokenGroup]
    name: str
    hash: str
    record: str
    tasks: list[Task] | None
    answers: list[TokenGroup]
    too_long: int


class Abilities(NamedTuple):
    """Right answers item by item, to compare with those of the base: one of the two."""

    greedy_right: list[int] | None
    held_out: HeldOut | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """One policy: what it said and how that scored. The model itself is not kept.

    Attributes:
        per_item: the score that policies are compared by, prompt by prompt: true reward on the testbed, else
            that of the reward model; empty without either.
    """

    stage: str
    hash: str
    template: str
    drawn: Drawn
    scores: dict[str, Estimate]
    per_item: NDArray[np.float64]
    true: Measurement | None
    kl: KLReport | None
    abilities: Abilities


def reference_of(stage: str) -> str:
    """The policy that the KL of `stage` is measured against: the one it started from."""
    return "base" if stage in ("base", "sft") else "sft"


def rival_of(stage: str) -> str:
    """The policy that `stage` has to win against."""
    return reference_of(stage)


def held_prompts(workspace: Workspace, loaded: LoadedModel) -> HeldPrompts:
    """The held-out prompts as tokens; those too long are counted and said."""
    found = test_prompts(workspace)
    recipe = workspace.recipe
    longest = recipe.data.max_tokens - recipe.eval.max_new_tokens
    kept, groups = prompt_ids(loaded, found.prompts, max_tokens=longest)
    too_long = len(found.prompts) - len(kept)
    if too_long:
        workspace.say(f"evaluation: {too_long:,} of {len(found.prompts):,} prompts are too long and left out")
    prompts = [found.prompts[i] for i in kept]
    testbed = recipe.data.source == "testbed"
    answers: list[TokenGroup] = []
    if not testbed:
        answers, _ = tokenised(loaded, demonstrations(workspace).test, max_tokens=recipe.data.max_tokens)
    return HeldPrompts(
        prompts=prompts,
        groups=groups,
        name=found.name,
        hash=found.hash,
        record=found.record,
        tasks=[task_of(p.meta) for p in prompts] if testbed else None,
        answers=answers[: recipe.eval.prompts],
        too_long=too_long,
    )


def _abilities(workspace: Workspace, loaded: LoadedModel, held: HeldPrompts) -> Abilities:
    section = workspace.recipe.eval
    if held.tasks is None:
        if not held.answers:
            return Abilities(None, None)
        return Abilities(
            None, held_out(loaded.model, held.answers, max_tokens=section.max_tokens_per_forward)
        )
    chosen = [i for i, task in enumerate(held.tasks) if task.kind in _ABILITIES]
    drawn = draw(
        loaded,
        [held.groups[i] for i in chosen],
        max_new_tokens=section.max_new_tokens,
        temperature=0.0,
        seed=0,
    )
    outcomes = [gold_reward(held.tasks[i], text).outcome for i, text in zip(chosen, drawn.texts, strict=True)]
    return Abilities([int(outcome == "right") for outcome in outcomes], None)


def _proxy(workspace: Workspace, scorer: LoadedModel, drawn: Drawn) -> NDArray[np.float64]:
    score = reward_function(scorer.model, max_tokens_per_forward=workspace.recipe.eval.max_tokens_per_forward)
    rollouts = [
        Rollout(index, group.completions[0].ids, (0.0,) * len(group.completions[0].ids), True)
        for index, group in enumerate(drawn.groups)
    ]
    return np.asarray(score(drawn.groups, rollouts), dtype=np.float64)


def _kl(
    workspace: Workspace, loaded: LoadedModel, ref: LoadedModel, held: HeldPrompts, drawn: Drawn
) -> KLReport:
    """KL to `ref` on completions drawn at temperature 1, drawn anew where the evaluation's are not."""
    section = workspace.recipe.eval
    if section.temperature != 1.0:
        seed = workspace.seed("eval", "kl")
        drawn = draw(loaded, held.groups, max_new_tokens=section.max_new_tokens, temperature=1.0, seed=seed)
    return kl_to_ref(loaded.model, ref.model, drawn.groups, max_tokens=section.max_tokens_per_forward)


def _scores(
    workspace: Workspace, held: HeldPrompts, scorer: LoadedModel | None, drawn: Drawn
) -> tuple[dict[str, Estimate], NDArray[np.float64], Measurement | None]:
    proxy = np.zeros(0) if scorer is None else _proxy(workspace, scorer, drawn)
    by_proxy = {} if scorer is None else {"reward": bootstrap_mean(proxy)}
    if held.tasks is None:
        return by_proxy, proxy, None
    true = measure(held.tasks, drawn.texts)
    by_truth = {"gold": true.gold, "helpful": true.helpful, "harmless": true.harmless, "honest": true.honest}
    return by_truth | by_proxy, true.totals, true


def measure_policy(
    workspace: Workspace,
    loaded: LoadedModel,
    stage: str,
    held: HeldPrompts,
    *,
    scorer: LoadedModel | None,
    ref: LoadedModel | None,
    done: Callable[[], object],
) -> Measured:
    """Draw, score and compare one policy.

    Args:
        scorer: the reward model, where there is one.
        ref: the policy to measure the KL to; None measures none.
        done: called when half of it is done.
    """
    section = workspace.recipe.eval
    drawn = draw(
        loaded,
        held.groups,
        max_new_tokens=section.max_new_tokens,
        temperature=section.temperature,
        seed=workspace.seed("eval"),
    )
    scores, per_item, true = _scores(workspace, held, scorer, drawn)
    done()
    return Measured(
        stage=stage,
        hash=loaded.hash,
        template=loaded.template_hash,
        drawn=drawn,
        scores=scores,
        per_item=per_item,
        true=true,
        kl=None if ref is None else _kl(workspace, loaded, ref, held, drawn),
        abilities=_abilities(workspace, loaded, held),
    )


def texts_of(prompts: Sequence[Prompt]) -> list[str]:
    """What the user asked last, prompt by prompt."""
    return [prompt.messages[-1].content for prompt in prompts]
