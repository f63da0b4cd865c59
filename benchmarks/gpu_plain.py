"""The plain way, as a peer of Trueward in the GPU benchmark: padded batches through the unmodified model of
transformers, full logits, a frozen copy as reference.

Nothing of Trueward's engine or objectives is used here. Attention is flash-attention where its
package is installed, else SDPA. Axes: S sequences, T tokens, V vocabulary.
"""

import copy
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid
from transformers import PreTrainedModel, PreTrainedTokenizerFast
from transformers.utils.import_utils import is_flash_attn_2_available

from benchmarks.gpu_ours import advantages
from benchmarks.gpu_work import METHODS, Job, Step, make_model
from benchmarks.peak import training_flops
from trueward.data.chat import TokenGroup
from trueward.trainers.loop import checkpoint_activations

__all__ = ["start"]


class _Batch(NamedTuple):
    ids_ST: Tensor
    mask_ST: Tensor
    answer_ST: Tensor
    """Bool: the token belongs to the answer."""


def _padded(groups: Sequence[TokenGroup], device: torch.device, pad_id: int) -> _Batch:
    rows = [(g.prompt_ids + c.ids, len(g.prompt_ids)) for g in groups for c in g.completions]
    longest = max(len(ids) for ids, _ in rows)
    lengths_S1 = torch.tensor([[len(ids)] for ids, _ in rows])
    starts_S1 = torch.tensor([[start] for _, start in rows])
    steps_T = torch.arange(longest)
    ids_ST = torch.tensor([[*ids, *[pad_id] * (longest - len(ids))] for ids, _ in rows])
    inside_ST = steps_T < lengths_S1
    tensors = (ids_ST, inside_ST.long(), inside_ST & (steps_T >= starts_S1))
    return _Batch(*(tensor.to(device, non_blocking=True) for tensor in tensors))


def _logps(model: PreTrainedModel, batch: _Batch) -> tuple[Tensor, Tensor]:
    """Log-probs of all but the first token, and which of them belong to the answer."""
    logits_STV = model(input_ids=batch.ids_ST, attention_mask=batch.mask_ST, use_cache=False).logits
    logps_STV = torch.log_softmax(logits_STV[:, :-1].float(), dim=-1)
    return logps_STV.gather(-1, batch.ids_ST[:, 1:, None]).squeeze(-1), batch.answer_ST[:, 1:]


def _loss_sum(
    job: Job, model: PreTrainedModel, ref: PreTrainedModel | None, batch: _Batch, weights_S: Tensor
) -> Tensor:
    """Sum over pairs (reward, dpo) or tokens of answers (sft, grpo)."""
    if job.method == "reward":
        output = model(input_ids=batch.ids_ST, attention_mask=batch.mask_ST, use_cache=False)
        scores_B2 = output.logits.float().view(-1, 2)
        return -logsigmoid(scores_B2[:, 0] - scores_B2[:, 1]).sum()
    logps_ST, answer_ST = _logps(model, batch)
    if job.method == "dpo":
        with torch.no_grad():
            ref_ST, _ = _logps(ref or model, batch)
        change_B2 = ((logps_ST - ref_ST) * answer_ST).sum(1).view(-1, 2)
        return -logsigmoid(0.1 * (change_B2[:, 0] - change_B2[:, 1])).sum()
    if job.method == "grpo":
        ratio_ST = (logps_ST - logps_ST.detach()).exp()
        logps_ST = torch.minimum(ratio_ST * weights_S[:, None], ratio_ST.clamp(0.8, 1.2) * weights_S[:, None])
    return -(logps_ST * answer_ST).sum()


def _count(job: Job, groups: Sequence[TokenGroup]) -> int:
    """What a step's loss is the mean over."""
    if job.method in ("reward", "dpo"):
        return len(groups)
    return sum(len(c.ids) for group in groups for c in group.completions)


def _weights(job: Job, groups: Sequence[TokenGroup]) -> dict[int, Tensor]:
    """Advantages of a group's answers, by the group's identity; 1 where the method has none."""
    if job.method != "grpo":
        return {id(group): torch.ones(len(group.completions)) for group in groups}
    parts = advantages(groups, job.seed).split(METHODS[job.method])
    return dict(zip(map(id, groups), parts, strict=True))


def _parts(job: Job, groups: Sequence[TokenGroup]) -> list[Sequence[TokenGroup]]:
    """Groups of one forward, the longest first, so that a part is padded little."""
    if not job.per_forward:
        return [groups]
    size = max(1, job.per_forward // METHODS[job.method])
    ordered = sorted(groups, key=lambda g: -len(g.prompt_ids) - max(len(c.ids) for c in g.completions))
    return [ordered[start : start + size] for start in range(0, len(ordered), size)]


def start(
    job: Job, words: PreTrainedTokenizerFast, batches: Sequence[Sequence[TokenGroup]]
) -> tuple[Step, Callable[..., float]]:
    """The step of a job, and the operations of a batch (padding asks for none)."""
    device = torch.device(job.device)
    model = make_model(job, words)
    flash = device.type == "cuda" and is_flash_attn_2_available()
    model.set_attn_implementation("flash_attention_2" if flash else "sdpa")
    ref = copy.deepcopy(model).train(False).requires_grad_(False) if job.method == "dpo" else None
    if job.checkpointing:
        checkpoint_activations(model)
    model.train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=job.lr, weight_decay=0.0, fused=True)

    def precision() -> AbstractContextManager[object]:
        low = job.precision == "bfloat16"
        return torch.autocast(device.type, dtype=torch.bfloat16) if low else nullcontext()

    def step(groups: Sequence[TokenGroup]) -> float:
        weights = _weights(job, groups)
        total, count = torch.zeros((), device=device), _count(job, groups)
        for part in _parts(job, groups):
            batch = _padded(part, device, int(words.pad_token_id))
            weights_S = torch.cat([weights[id(group)] for group in part]).to(device)
            with precision():
                loss = _loss_sum(job, model, ref, batch, weights_S) / count
            loss.backward()  # type: ignore[no-untyped-call]  # untyped in torch
            total += loss.detach()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return float(total)

    def flops(groups: Sequence[TokenGroup]) -> float:
        rows = sum(len(g.prompt_ids) + len(c.ids) for g in groups for c in g.completions)
        factor = 8 if job.method == "dpo" else 6
        return training_flops(
            model, row_tokens=rows, scored_tokens=0 if job.method == "reward" else rows, factor=factor
        )

    return step, flops
