"""Splits by prompt: where a record belongs depends on its first user message only, so no prompt leaks.

Nothing is stored: the answer is a hash of (seed, key), the same on every machine and for every order of
records.
"""

import hashlib
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from typing import Final

from trueward.core.errors import ConfigError
from trueward.core.seed import derive_seed
from trueward.data.records import Demonstration, Prompt, Record, Text

__all__ = ["check_fractions", "prompt_key", "split_of", "without_prompts_of"]

_SPAN: Final = 2**63


def prompt_key(record: Record) -> str:
    """What must not be in two splits: the first user message (a text's text), case and spacing ignored.

    Conversations that begin alike share a key even where they go on differently: one is a prefix of the
    other's prompt often enough that anything finer leaks.
    """
    if isinstance(record, Text):
        key = record.text
    else:
        messages = record.messages if isinstance(record, Prompt | Demonstration) else record.prompt
        key = next((m.content for m in messages if m.role == "user"), messages[0].content)
    return " ".join(key.casefold().split())


def check_fractions(fractions: Mapping[str, float]) -> None:
    """Check that `fractions` name at least one split and add up to 1.

    Raises:
        ConfigError: empty, a fraction outside [0, 1], or a sum that is not 1.
    """
    total = sum(fractions.values())
    if not fractions or any(not 0 <= value <= 1 for value in fractions.values()) or abs(total - 1) > 1e-9:
        raise ConfigError(
            "split fractions do not add up to 1",
            value=dict(fractions),
            expected="for example {train: 0.9, test: 0.1}",
        )


def without_prompts_of(
    records: Iterable[Record], held_out: Iterable[Record], *, left_out: Counter[str]
) -> Iterator[Record]:
    """The held-out records, then the others whose prompt none of them has: no prompt is on both sides.

    Args:
        records: to learn from; read after `held_out`.
        left_out: counts under `prompt` the records that are left out.
    """
    keys: set[bytes] = set()
    for record in held_out:
        keys.add(_digest(record))
        yield record
    for record in records:
        if _digest(record) in keys:
            left_out["prompt"] += 1
        else:
            yield record


def _digest(record: Record) -> bytes:
    return hashlib.blake2b(prompt_key(record).encode(), digest_size=16).digest()


def split_of(key: str, fractions: Mapping[str, float], *, seed: int) -> str:
    """The split of everything with this `prompt_key`.

    Args:
        key: from `prompt_key`.
        fractions: split name -> share in [0, 1], adding up to 1.
        seed: changes the assignment as a whole.

    Returns:
        One of the names in `fractions`.

    Raises:
        ConfigError: the fractions are unusable.
    """
    check_fractions(fractions)
    position = derive_seed(seed, "split", key) / _SPAN
    edge = 0.0
    for name, fraction in fractions.items():
        edge += fraction
        if position < edge:
            return name
    # Only rounding of the sum leads here; the last split with a share takes it.
    return [name for name, fraction in fractions.items() if fraction > 0][-1]
