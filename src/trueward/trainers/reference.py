"""Summed log-probs of given completions, and those of the frozen reference, computed once and kept on disk.

Not here: what is made of them. Axes: S sequences (completions, group by group).
"""

from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import NamedTuple

import torch
from peft import PeftModel
from torch import Tensor, nn

from trueward.core.hashing import hash_json, short
from trueward.data.chat import TokenGroup
from trueward.models.packing import pack
from trueward.models.scoring import reference, score_completions
from trueward.trainers.accumulate import forward_precision
from trueward.trainers.groups import cut, groups_hash, sequence_sums, trained_counts
from trueward.trainers.optim import device_of
from trueward.trainers.settings import Precision
from trueward.trainers.state import fingerprint, load_tensors, save_tensors

__all__ = ["SequenceScores", "reference_logps", "sequence_scores"]


class SequenceScores(NamedTuple):
    """Log-probs summed over trained tokens, with gradient, nats; the number of those tokens; tokens of the
    forward."""

    logps_S: Tensor
    counts_S: Tensor
    num_tokens: int


def sequence_scores(model: nn.Module, groups: Sequence[TokenGroup]) -> SequenceScores:
    """Score the completions of groups in one packed forward."""
    packed = pack(groups, device_of(model))
    logps_S = sequence_sums(score_completions(model, packed).logps_N, packed)
    return SequenceScores(logps_S, trained_counts(packed), packed.num_tokens)


@torch.no_grad()
def reference_logps(
    model: nn.Module,
    groups: Sequence[TokenGroup],
    *,
    ref_model: nn.Module | None,
    cache: Path,
    max_tokens_per_forward: int,
    precision: Precision = "float32",
    together: Sequence[TokenGroup] | None = None,
) -> list[float]:
    """Log-probs of all completions under the reference, kept in `cache` by (model hash, data hash).

    Args:
        model: the policy before its first step.
        ref_model: the reference; None is the policy with its adapters off, or as it is now without adapters.
        cache: folder for `ref_logps-<key>.safetensors`.
        together: the same completions in the same order, some of them behind one prompt: what forwards are
            made of. It may follow from their size, on which what is kept does not depend.
    """
    if not groups:
        return []
    adapted = ref_model is None and isinstance(model, PeftModel)
    ref = model if ref_model is None else ref_model
    key = [fingerprint(ref, frozen_only=adapted), groups_hash(groups), precision, "logps_S"]
    file = cache / f"ref_logps-{short(hash_json(key))}.safetensors"
    if not file.exists():
        parts = []
        ref.eval()
        with reference(model) if adapted else nullcontext():
            for batch in cut(together or groups, lambda group: group, max_tokens_per_forward):
                with forward_precision(precision, device_of(ref)):
                    parts.append(sequence_scores(ref, batch).logps_S.cpu())
        cache.mkdir(parents=True, exist_ok=True)
        partial = file.with_suffix(".partial")
        save_tensors(partial, {"logps_S": torch.cat(parts)})
        partial.replace(file)
    logps: list[float] = load_tensors(file)["logps_S"].tolist()
    return logps
