"""One round of the group trainer up to the update: draw groups, judge them, and turn scores into advantages.

A completion that the verifier has no score for takes no part: its group is compared without it, and its own
advantage is 0.
Axes: P prompts, G completions per prompt, B = P x G completions, T tokens.
"""

import math
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from types import MappingProxyType
from typing import NamedTuple

import torch
from torch import Tensor

from trueward.core.errors import RunError
from trueward.core.seed import derive_seed
from trueward.data.chat import TokenGroup
from trueward.models.packing import count_tokens
from trueward.objectives import (
    group_relative,
    kl,
    leave_one_out,
    masked_sum_B,
    reinforce_plus_plus,
    token_mean,
)
from trueward.rewards import Verdict, scored
from trueward.rollouts.engine import Engine, Rollout
from trueward.trainers.drawing import draw_completions, finite_scores
from trueward.trainers.experience import RewardFunction, scores_of
from trueward.trainers.group_experience import GroupExperience, GroupModels, gather, score_policy
from trueward.trainers.group_settings import Choices, GroupSettings
from trueward.trainers.reward_sum import parts_of

__all__ = [
    "ADVANTAGES",
    "Drawn",
    "GroupReward",
    "Surroundings",
    "advantages_of",
    "draw",
    "scored_figures",
]

GroupReward = Callable[[Sequence[TokenGroup], Sequence[Rollout]], Sequence[float | Verdict]]
"""Scores or verdicts of rollouts, in their order; every `RewardFunction` is one."""


class Surroundings(NamedTuple):
    """Where prompts, completions and scores come from.

    batch: prompts of the n-th draw of the run.
    gold: true scores, only reported.
    """

    batch: Callable[[int], Sequence[TokenGroup]]
    engine: Engine
    reward: GroupReward
    gold: RewardFunction | None


class _Group(NamedTuple):
    prompt: TokenGroup
    rollouts: tuple[Rollout, ...]
    verdicts: tuple[Verdict, ...]

    @property
    def teaches(self) -> bool:
        """Whether scores differ."""
        return len({v.score for v in self.verdicts if v.score is not None}) > 1


class Drawn(NamedTuple):
    """A round before its update.

    scores_B: raw scores; 0 where there is none.
    scored_B: bool, False where the verifier failed.
    num_draws: batches of prompts that were drawn.
    figures: declared metrics of what was drawn.
    seconds: wall-clock time of drawing and judging.
    """

    experience: GroupExperience
    scores_B: Tensor
    scored_B: Tensor
    verdicts: tuple[Verdict, ...]
    num_draws: int
    figures: dict[str, float]
    seconds: float


def draw(
    models: GroupModels,
    surroundings: Surroundings,
    settings: GroupSettings,
    choices: Choices,
    *,
    first_draw: int,
) -> Drawn:
    """Groups of completions under the present policy, judged.

    With dynamic sampling, groups whose scores are all equal are left out and further prompts drawn, up to
    `max_draws` batches; where none teaches anything, the last batch is returned as it is.

    Args:
        first_draw: draws of the run before this round; decides prompts and randomness.

    Raises:
        RunError: sampler and trainer disagree, a score is not finite, or too many verdicts are errors.
    """
    start_s = time.monotonic()
    wanted = settings.prompts_per_iteration
    seen: list[_Group] = []
    batch: list[_Group] = []
    parts: list[Mapping[str, float]] = []
    for number in range(settings.max_draws if choices.dynamic_sampling else 1):
        batch = _groups(surroundings, settings, number=first_draw + number)
        seen += batch
        parts.append(parts_of(surroundings.reward))
        if sum(group.teaches for group in seen) >= wanted:
            break
    kept = [group for group in seen if group.teaches][:wanted] if choices.dynamic_sampling else seen
    kept = kept or batch
    _check_errors(seen, settings)
    prompts = [group.prompt for group in kept]
    rollouts = [r._replace(prompt=index) for index, group in enumerate(kept) for r in group.rollouts]
    drawn_s = time.monotonic() - start_s
    experience = gather(models, prompts, rollouts, settings)
    if not settings.scored_by_update:
        score_policy(models, experience, settings)
    verdicts = tuple(verdict for group in kept for verdict in group.verdicts)
    figures = {
        **_judged_figures(seen),
        **_mean_figures(parts),
        "group/kept": float(len(kept)),
        "group/draws": float(number + 1),
        "time/rollout_s": drawn_s,
    }
    if surroundings.gold is not None:
        gold_B = scores_of(surroundings.gold, prompts, rollouts, name="the gold reward")
        figures["gold"] = float(gold_B.mean())
    device = experience.mask_BT.device
    return Drawn(
        experience=experience,
        scores_B=torch.tensor([v.score or 0.0 for v in verdicts], device=device),
        scored_B=torch.tensor([v.score is not None for v in verdicts], device=device),
        verdicts=verdicts,
        num_draws=number + 1,
        figures=figures,
        seconds=time.monotonic() - start_s,
    )


def _mean_figures(draws: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Means over draws, all of as many completions."""
    names = dict.fromkeys(name for figures in draws for name in figures)
    columns = {name: [figures[name] for figures in draws if name in figures] for name in names}
    return {name: sum(values) / len(values) for name, values in columns.items()}


def _groups(surroundings: Surroundings, settings: GroupSettings, *, number: int) -> list[_Group]:
    prompts, each = surroundings.batch(number), settings.completions_per_prompt
    rollouts = draw_completions(
        surroundings.engine,
        prompts,
        num_completions=each,
        max_new_tokens=settings.max_new_tokens,
        temperature=settings.temperature,
        seed=derive_seed(settings.seed, "rollouts", number),
    )
    verdicts = _verdicts(surroundings.reward(prompts, rollouts), rollouts)
    return [
        _Group(prompt, tuple(rollouts[first : first + each]), tuple(verdicts[first : first + each]))
        for prompt, first in zip(prompts, range(0, len(rollouts), each), strict=True)
    ]


def _verdicts(values: Sequence[float | Verdict], rollouts: Sequence[Rollout]) -> list[Verdict]:
    finite_scores(
        [0.0 if isinstance(value, Verdict) else value for value in values],
        rollouts,
        name="the reward",
        remedy="mend the reward function; what cannot be scored is a verdict with an error",
    )
    return [value if isinstance(value, Verdict) else scored(float(value)) for value in values]


def _check_errors(groups: Sequence[_Group], settings: GroupSettings) -> None:
    verdicts = [verdict for group in groups for verdict in group.verdicts]
    errors = [verdict for verdict in verdicts if verdict.score is None]
    if len(errors) > settings.max_error_share * len(verdicts):
        raise RunError(
            f"the verifier has no score for {len(errors)} of {len(verdicts)} completions, the first "
            f"{errors[0].error}: {errors[0].detail}",
            expected=f"at most {settings.max_error_share:.0%} (max_error_share)",
            remedy="mend the verifier or the data's answers, or raise its time_s",
        )


def _judged_figures(groups: Sequence[_Group]) -> dict[str, float]:
    """Figures of everything that was drawn, kept or not."""
    verdicts = [verdict for group in groups for verdict in group.verdicts]
    scores_B = torch.tensor([v.score for v in verdicts if v.score is not None], dtype=torch.float64)
    known = len(scores_B) > 0
    return {
        "reward": float(scores_B.mean()) if known else math.nan,
        "reward_std": float(scores_B.std(correction=0)) if known else math.nan,
        "group/zero_variance_share": sum(not group.teaches for group in groups) / len(groups),
        "verifier/error_share": 1 - len(scores_B) / len(verdicts),
    }


def scored_figures(seen: GroupExperience) -> dict[str, float]:
    """Declared metrics of a round that the policy's log-probs are needed for, and its lengths."""
    lengths_B = seen.mask_BT.sum(dim=1).float()
    mean = partial(token_mean, denominator=float(lengths_B.sum()))
    figures = {
        "objective/entropy": float(mean(seen.entropy_BT, seen.mask_BT)),
        "completions/mean_length": float(lengths_B.mean()),
        "completions/clipped_ratio": sum(not r.finished for r in seen.rollouts) / len(seen.rollouts),
        "sampler_gap/max": seen.sampler_gap,
        "mismatch/kl_k1": float(mean(kl.k1(seen.sampler_logps_BT, seen.old_logps_BT), seen.mask_BT)),
        "mismatch/kl_k3": float(mean(kl.k3(seen.sampler_logps_BT, seen.old_logps_BT), seen.mask_BT)),
        "tokens": float(sum(map(count_tokens, seen.groups))),
    }
    if seen.ref_logps_BT is not None:
        for name, estimate in (("objective/kl", kl.k1), ("objective/kl_k3", kl.k3)):
            kl_BT = estimate(seen.old_logps_BT, seen.ref_logps_BT)
            figures[name] = float(masked_sum_B(kl_BT, seen.mask_BT).mean())
    return figures


def advantages_of(drawn: Drawn, settings: GroupSettings, choices: Choices) -> Tensor:
    """advantages_BT of a round; 0 where padded, and for completions without a score."""
    seen, mask_BT = drawn.experience, drawn.experience.mask_BT
    kl_BT = torch.zeros_like(seen.old_logps_BT)
    if settings.kl_in == "reward" and seen.ref_logps_BT is not None:
        kl_BT = kl.KL_ESTIMATORS[choices.kl_estimator](seen.old_logps_BT, seen.ref_logps_BT)
    scores_B = drawn.scores_B - overlong_B(mask_BT.sum(dim=1), settings, choices)
    compared = _Compared(scores_B, drawn.scored_B, kl_BT, mask_BT, settings)
    return ADVANTAGES[choices.method.advantage](compared)


def overlong_B(lengths_B: Tensor, settings: GroupSettings, choices: Choices) -> Tensor:
    """What is taken off the scores of long completions: 0 up to the buffer, then linearly to the penalty.

    Source:
        Yu et al. 2025 (DAPO), eq. 13; no completion is longer than max_new_tokens.
    """
    if choices.overlong_buffer == 0:
        return torch.zeros_like(lengths_B, dtype=torch.float32)
    start = settings.max_new_tokens - choices.overlong_buffer
    return settings.overlong_penalty * (lengths_B - start).clamp(min=0) / choices.overlong_buffer


class _Compared(NamedTuple):
    """What an advantage is computed from. kl_BT is 0 where no KL is paid in the reward."""

    scores_B: Tensor
    scored_B: Tensor
    kl_BT: Tensor
    mask_BT: Tensor
    settings: GroupSettings


def _in_groups(compare: Callable[[Tensor], Tensor], given: _Compared) -> Tensor:
    """One advantage a completion, the same for each of its tokens; the KL of a completion is paid in full."""
    each = given.settings.completions_per_prompt
    paid_B = given.scores_B - given.settings.kl_coef * masked_sum_B(given.kl_BT, given.mask_BT)
    rewards_PG, scored_PG = paid_B.view(-1, each), given.scored_B.view(-1, each)
    counts_P = scored_PG.sum(dim=1)
    advantages_PG = torch.zeros_like(rewards_PG)
    # Groups with as many scores as each other make a table without gaps; fewer than two compare nothing.
    for count in range(2, each + 1):
        chosen_PG = scored_PG & (counts_P == count).unsqueeze(1)
        if bool(chosen_PG.any()):
            advantages_PG[chosen_PG] = compare(rewards_PG[chosen_PG].view(-1, count)).flatten()
    return advantages_PG.view(-1, 1) * given.mask_BT


def _over_step(given: _Compared) -> Tensor:
    """An advantage a token, against all tokens of the step."""
    advantages_BT = torch.zeros_like(given.kl_BT)
    rows = given.scored_B
    scores_B, kl_BT = given.scores_B[rows], given.kl_BT[rows]
    # Equal returns are whitened to rounding errors, which would be taken for something to learn from.
    if bool((scores_B != scores_B[:1]).any()) or bool(kl_BT.any()):
        advantages_BT[rows] = reinforce_plus_plus(
            scores_B, kl_BT, mask_BT=given.mask_BT[rows], beta=given.settings.kl_coef
        )
    return advantages_BT


ADVANTAGES: Mapping[str, Callable[[_Compared], Tensor]] = MappingProxyType(
    {
        "group_mean": partial(_in_groups, partial(group_relative, scale="none")),
        "group_std": partial(_in_groups, partial(group_relative, scale="std")),
        "leave_one_out": partial(_in_groups, leave_one_out),
        "reinforce_plus_plus": _over_step,
    }
)
"""Advantages by name, over all completions of a round."""
