"""From verifiers, which judge texts, to the reward of the group trainer, which has tokens."""

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from trueward.core.errors import DataError
from trueward.data.chat import TokenGroup
from trueward.rewards import Case, Verdict, Verifier
from trueward.rollouts.engine import Rollout
from trueward.trainers.group_rollout import GroupReward

__all__ = ["Question", "verified_reward"]


class Question(NamedTuple):
    """What a verifier has to know of a prompt."""

    prompt: str
    answer: str


def verified_reward(
    verify: Verifier, questions: Mapping[str, Question], *, text: Callable[[Rollout], str]
) -> GroupReward:
    """The reward that a verifier gives.

    Args:
        questions: by the id of the prompt's group.
        text: a completion as the verifier reads it, without special tokens.

    Returns:
        A reward that raises DataError for a group that is not among the questions.
    """

    def reward(groups: Sequence[TokenGroup], rollouts: Sequence[Rollout]) -> list[Verdict]:
        missing = [group.id for group in groups if group.id not in questions]
        if missing:
            raise DataError("a prompt has no answer to verify against", value=missing[0])
        asked = [questions[groups[rollout.prompt].id] for rollout in rollouts]
        pairs = zip(rollouts, asked, strict=True)
        return verify([Case(text(rollout), question.answer, question.prompt) for rollout, question in pairs])

    return reward
