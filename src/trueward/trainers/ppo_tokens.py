"""PPO looked at token by token: one completion now and then, with reward, KL, value and advantage of each
token."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from rich.table import Table
from rich.text import Text
from torch import Tensor

from trueward.trainers.experience import Experience

__all__ = ["token_row", "token_table"]

Decode = Callable[[Sequence[int]], str]
_COLUMNS = ("reward", "kl", "value", "advantage")


def token_row(
    experience: Experience, tables: Mapping[str, Tensor], *, step: int, score: float, decode: Decode | None
) -> dict[str, Any]:
    """The first completion of an iteration as one JSON line of ppo_tokens.jsonl.

    Args:
        tables: `reward`, `kl`, `value`, `advantage`, each [B, T].
        score: score of the whole completion.
        decode: text of ids; None leaves texts out.
    """
    group, rollout = experience.groups[0], experience.rollouts[0]
    columns = {name: tables[name][0, : len(rollout.ids)].tolist() for name in _COLUMNS}
    tokens = [
        {
            "id": token,
            **({"text": decode([token])} if decode else {}),
            **{name: _rounded(columns[name][t]) for name in _COLUMNS},
        }
        for t, token in enumerate(rollout.ids)
    ]
    return {
        "schema": "trueward.ppo_tokens/1",
        "step": step,
        "prompt": group.id,
        "prompt_ids": list(group.prompt_ids),
        **({"prompt_text": decode(group.prompt_ids)} if decode else {}),
        "score": score,
        "finished": rollout.finished,
        "tokens": tokens,
    }


def _rounded(value: float) -> float | None:
    """JSON has no NaN: what is not finite becomes null."""
    return round(value, 6) if math.isfinite(value) else None


def token_table(row: Mapping[str, Any]) -> Table:
    """A line of ppo_tokens.jsonl as a table for the terminal; texts are literal."""
    table = Table(title=Text(f"iteration {row['step']}, prompt {row['prompt']}, score {row['score']:.3f}"))
    table.add_column("token")
    for name in _COLUMNS:
        table.add_column(name, justify="right")
    for token in row["tokens"]:
        text = Text(repr(token.get("text", token["id"])))
        figures = ("not finite" if token[name] is None else f"{token[name]:.3f}" for name in _COLUMNS)
        table.add_row(text, *figures)
    return table
