"""What trainers hold an engine and a reward to: completions as they were asked for, finite numbers as scores.

Not here: what is drawn for, or what scores are used for.
"""

import math
from collections.abc import Sequence

from trueward.core.errors import RunError
from trueward.data.chat import TokenGroup
from trueward.rollouts.engine import Engine, Rollout

__all__ = ["draw_completions", "finite_scores"]


def draw_completions(
    engine: Engine,
    prompts: Sequence[TokenGroup],
    *,
    num_completions: int,
    max_new_tokens: int,
    temperature: float,
    seed: int,
) -> list[Rollout]:
    """Completions of each prompt; see `Engine.generate`.

    Raises:
        RunError: another number or order of completions than asked for, one without tokens, or one whose
            log-probs are not one a token.
    """
    rollouts = engine.generate(
        [prompt.prompt_ids for prompt in prompts],
        num_completions=num_completions,
        max_new_tokens=max_new_tokens,
        temperature=temperature,
        seed=seed,
    )
    if [r.prompt for r in rollouts] != [p for p in range(len(prompts)) for _ in range(num_completions)]:
        raise RunError(
            "the engine returned other completions than it was asked for",
            value=f"{len(rollouts)} completions of {len({r.prompt for r in rollouts})} prompts",
            expected=f"{num_completions} of each of {len(prompts)} prompts, prompt by prompt",
            remedy="mend the engine: see rollouts.Engine",
        )
    for rollout in rollouts:
        if not rollout.ids:
            raise RunError(
                "the engine returned a completion without tokens",
                value=prompts[rollout.prompt].id,
                expected="at least the stop token",
                remedy="keep the stop token in what the engine returns",
            )
        if len(rollout.logps) != len(rollout.ids):
            raise RunError(
                "the engine returned another number of log-probs than of tokens",
                value=len(rollout.logps),
                expected=str(len(rollout.ids)),
                remedy="mend the engine: see rollouts.Engine",
            )
    return rollouts


def finite_scores(values: Sequence[object], rollouts: Sequence[Rollout], *, name: str, remedy: str) -> None:
    """Hold scores to one finite number a completion.

    Args:
        values: as a user's function returned them.
        name: of the function, for the error.

    Raises:
        RunError: another number of scores than rollouts, or one that is no finite number.
    """
    if len(values) != len(rollouts):
        raise RunError(
            f"{name} returned another number of scores", value=len(values), expected=str(len(rollouts))
        )
    bad = [i for i, value in enumerate(values) if not _finite(value)]
    if bad:
        raise RunError(
            f"{name} of {len(bad)} completions is not finite",
            value=f"{values[bad[0]]} for ids {rollouts[bad[0]].ids[:10]}",
            expected="one finite number a completion",
            remedy=remedy,
        )


def _finite(value: object) -> bool:
    try:
        return math.isfinite(float(value))  # type: ignore[arg-type]  # whatever is no number is caught
    except (TypeError, ValueError):
        return False
