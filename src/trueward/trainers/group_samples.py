"""One group now and then as it was judged: what a reader looks at to see whether the verifier is gamed."""

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from trueward.rewards import Verdict
from trueward.trainers.group_experience import GroupExperience
from trueward.trainers.ppo_tokens import Decode

__all__ = ["sample_row"]


def sample_row(
    seen: GroupExperience,
    verdicts: Sequence[Verdict],
    advantages_BT: Tensor,
    *,
    step: int,
    each: int,
    decode: Decode | None,
) -> dict[str, Any]:
    """The first group of a round as one JSON line of group_samples.jsonl.

    Args:
        advantages_BT: of the round; shown is that of the first token.
        each: completions of a group.
        decode: text of ids; None leaves texts out.
    """
    group = seen.groups[0]
    rows = zip(seen.rollouts[:each], verdicts[:each], advantages_BT[:each, 0].tolist(), strict=True)
    return {
        "schema": "trueward.group_samples/1",
        "step": step,
        "prompt": group.id,
        **({"prompt_text": decode(group.prompt_ids)} if decode else {}),
        "completions": [
            {
                **({"text": decode(rollout.ids)} if decode else {"ids": list(rollout.ids)}),
                "score": verdict.score,
                "error": verdict.error,
                "detail": verdict.detail,
                "advantage": round(advantage, 6),
                "finished": rollout.finished,
            }
            for rollout, verdict, advantage in rows
        ],
    }
