"""The rewards that a recipe sums: models loaded, verifiers given what is right, scales measured once."""

import re
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from trueward.core.errors import ConfigError, DataError
from trueward.core.seed import derive_seed
from trueward.data.chat import TokenGroup, stop_ids
from trueward.data.records import Prompt
from trueward.models.checkpoint import model_hash
from trueward.models.load import LoadedModel, load_reward, locate_model
from trueward.pipeline.answers import reference_of_record
from trueward.pipeline.recipe import RewardPartSection, RewardSumSection
from trueward.pipeline.sampling import text_of
from trueward.pipeline.workspace import Workspace
from trueward.rewards import VerifierSettings, verifier_named
from trueward.rollouts.local import LocalEngine
from trueward.testbed import task_of
from trueward.trainers.experience import RewardFunction
from trueward.trainers.reward import reward_function
from trueward.trainers.reward_sum import PartFunction, RewardPart, WeightedReward
from trueward.trainers.verified import Question, verified_reward

__all__ = ["Asked", "reward_hashes", "same_tokens", "summed_reward", "uses_own"]

# Prompts that the scale of a part is measured on: its standard deviation is then known to about 4 %.
_SCALE_PROMPTS = 256
# Verifiers that judge the text alone; the others compare it with what is right.
_TEXT_ALONE = ("format", "length")


class Asked(NamedTuple):
    """The prompts that are scored, their tokens, and how long an answer may be."""

    prompts: Sequence[Prompt]
    groups: Sequence[TokenGroup]
    max_new_tokens: int
    max_tokens_per_forward: int


def uses_own(section: RewardSumSection | None) -> bool:
    """Whether the run's own reward model takes part."""
    return section is None or any(part.kind == "own" for part in section.parts)


def reward_hashes(section: RewardSumSection | None) -> dict[str, str]:
    """Hashes of the reward models that a sum names, by the names of its parts."""
    if section is None:
        return {}
    return {
        f"reward {_name(part, n)}": model_hash(locate_model(part.model).folder)
        for n, part in enumerate(section.parts, 1)
        if part.model is not None
    }


def _name(part: RewardPartSection, number: int) -> str:
    return part.name or f"{number}-{part.kind}"


def same_tokens(scorer: LoadedModel, policy: LoadedModel, *, what: str) -> None:
    """Refuse a model that would read other tokens than were drawn.

    Raises:
        ConfigError: another vocabulary or chat template.
    """
    same = scorer.tokenizer.get_vocab() == policy.tokenizer.get_vocab()
    if not same or scorer.template_hash != policy.template_hash:
        raise ConfigError(
            f"{what} {scorer.path} reads other tokens than the policy",
            expected="the same vocabulary and chat template",
            remedy=f"train {what} on the base or SFT model of this policy",
        )


def summed_reward(
    workspace: Workspace,
    policy: LoadedModel,
    section: RewardSumSection,
    asked: Asked,
    *,
    own: RewardFunction | None,
    first: Sequence[RewardPart] = (),
) -> WeightedReward:
    """The sum that a recipe describes.

    Args:
        policy: as it is before training: its answers set the scales.
        own: the run's reward model.
        first: parts that come before those of the recipe, in their raw unit.

    Raises:
        ConfigError: a model of other tokens, or a name twice.
        DataError: a verifier that compares with what is right, and a prompt without it, or a part whose
            scores of the SFT model's answers are all alike while they are to be scaled.
    """
    parts = [
        RewardPart(_name(part, n), _score(workspace, policy, part, asked, own=own), part.weight)
        for n, part in enumerate(section.parts, 1)
    ]
    names = [part.name for part in (*first, *parts)]
    if len(set(names)) < len(names):
        raise ConfigError("two parts of the reward have the same name", value=names, remedy="name them apart")
    if section.scale == "reference":
        parts = _scaled(workspace, policy, parts, asked)
    return WeightedReward([*first, *parts])


def _score(
    workspace: Workspace,
    policy: LoadedModel,
    part: RewardPartSection,
    asked: Asked,
    *,
    own: RewardFunction | None,
) -> PartFunction:
    if part.verifier is not None:
        questions = _questions(workspace, part, part.verifier, asked)
        return verified_reward(
            verifier_named(part.verifier), questions, text=lambda rollout: text_of(policy, rollout)
        )
    if part.model is None:
        assert own is not None, "the stage loads the run's reward model where it takes part"
        return own
    loaded = load_reward(part.model, device=workspace.device)
    same_tokens(loaded, policy, what="the reward model")
    return reward_function(loaded.model, max_tokens_per_forward=asked.max_tokens_per_forward)


def _questions(
    workspace: Workspace, part: RewardPartSection, verifier: VerifierSettings, asked: Asked
) -> dict[str, Question]:
    """What the verifier has to know of every prompt, by its id."""
    compares = verifier.name not in _TEXT_ALONE and not (
        verifier.name == "regex" and re.compile(verifier.pattern or "").groups == 0
    )
    answers = {prompt.id: _answer(workspace, part, prompt) for prompt in asked.prompts}
    without = sum(not answer for answer in answers.values())
    # A function of the user's own may look at the text alone; it is given what there is.
    if compares and without and verifier.name != "function":
        raise DataError(
            f"verifier {verifier.name} compares with what is right, and {without:,} of {len(answers):,} "
            "prompts do not say it",
            remedy="name the column with `answer`, take prompts that have one, or a verifier of the text",
        )
    return {p.id: Question(p.messages[-1].content, answers[p.id]) for p in asked.prompts}


def _answer(workspace: Workspace, part: RewardPartSection, prompt: Prompt) -> str:
    if workspace.recipe.data.source == "testbed":
        return task_of(prompt.meta).answer
    return "" if part.answer is None else reference_of_record(prompt, part.answer).strip()


def _scaled(
    workspace: Workspace, policy: LoadedModel, parts: Sequence[RewardPart], asked: Asked
) -> list[RewardPart]:
    """The parts with mean and standard deviation of their scores of the policy's own answers, which are said.

    A resumed stage begins with the same model and draws the same answers.
    """
    groups = list(asked.groups[:_SCALE_PROMPTS])
    rollouts = LocalEngine(policy.model, stop_ids(policy.tokenizer)).generate(
        [group.prompt_ids for group in groups],
        num_completions=1,
        max_new_tokens=asked.max_new_tokens,
        temperature=1.0,
        seed=derive_seed(workspace.seed("rewards"), "scale"),
    )
    found = []
    for part in parts:
        raw = WeightedReward([part._replace(weight=1.0)])(groups, rollouts)
        shift, scale = float(np.mean(raw)), float(np.std(raw))
        if scale <= 1e-6 * max(1.0, abs(shift)):
            raise DataError(
                f"reward {part.name} gives all answers of the SFT model the same score, so its scale is 0",
                value=f"{shift:.4g} for {len(raw)} answers",
                remedy="leave this part out, or set scale to raw",
            )
        found.append(part._replace(shift=shift, scale=scale))
    said = ", ".join(f"{p.name} ({p.shift:.4g}, {p.scale:.4g})" for p in found)
    workspace.say(
        f"rewards are summed in units of the SFT model's answers (mean, standard deviation): {said}"
    )
    return found
