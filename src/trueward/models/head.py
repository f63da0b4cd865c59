"""The vocabulary head on completion tokens, in chunks: log-prob, entropy and greedy match without N x V
logits.

The formulas are those of `objectives.logprobs`; what is added here is a backward that recomputes the logits
of a chunk instead of keeping them. Log-softmax is in float32 also where the matrices are bfloat16.
Axes: N tokens, V vocabulary, D width.
"""

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import linear
from torch.utils.checkpoint import checkpoint

from trueward.models.head_passes import Passes, compiled_passes
from trueward.models.products import Owner, owner_of
from trueward.objectives.logprobs import token_entropy, token_logps

__all__ = ["Head", "TokenScores", "score_tokens"]

# Elements of the logits of one chunk; 2 ** 24 float32 are 64 MiB. Every chunk reads the whole weight, so the
# products of small chunks wait for memory: 83 tokens of 49,152 words 117 GFLOP/s, 332 tokens 190 (bfloat16).
_CHUNK_ELEMENTS = 1 << 24
# Up to this many logits in all, their softmax is kept: cheaper than computing the logits again.
_KEPT_ELEMENTS = 1 << 24
# What the means of entropies are made of, 4 MiB at a time.
_MEAN_ELEMENTS = 1 << 20
# A GPU needs products of thousands of tokens to be busy; compiled passes keep logits in the precision of the
# products, so that half the bits are twice the tokens.
_CHUNK_BYTES_GPU = 1 << 29


class TokenScores(NamedTuple):
    """What a model says about the completion tokens of a row."""

    logps_N: Tensor
    """Log-probability of each completion token, nats, float32."""
    entropy_N: Tensor | None
    """Entropy of the distribution each token was drawn from, nats, float32; None unless asked for."""
    greedy_N: Tensor
    """Bool: the token is the most likely one."""


class Head(NamedTuple):
    """How a model turns hidden states into logits."""

    module: nn.Module
    softcap: float | None

    def logits(self, hidden_ND: Tensor) -> Tensor:
        """Logits in the model's own precision."""
        logits_NV: Tensor = self.module(hidden_ND)
        return logits_NV if self.softcap is None else torch.tanh(logits_NV / self.softcap) * self.softcap

    @property
    def fused(self) -> nn.Linear | None:
        """The plain linear layer the head is, if it is nothing more."""
        plain = type(self.module) is nn.Linear and not self.module._forward_hooks and self.softcap is None
        return self.module if plain else None  # type: ignore[return-value]  # narrowed by `plain`


def _chunks(
    num_tokens: int, num_words: int, device: torch.device, dtype: torch.dtype = torch.float32
) -> Iterator[slice]:
    """Tokens of a chunk after the other.

    Args:
        dtype: the widest in which its logits exist.
    """
    elements = _CHUNK_ELEMENTS if device.type == "cpu" else _CHUNK_BYTES_GPU // dtype.itemsize
    size = max(1, elements // num_words)
    for start in range(0, num_tokens, size):
        yield slice(start, min(start + size, num_tokens))


def _scores(
    logits_NV: Tensor, labels_N: Tensor, temperature: float, entropy: bool
) -> tuple[Tensor, Tensor, Tensor]:
    greedy_N = logits_NV.argmax(-1) == labels_N
    logits_1NV = _full(logits_NV).unsqueeze(0)
    if temperature != 1.0:
        logits_1NV = logits_1NV / temperature
    logps_N = token_logps(logits_1NV, labels_N.unsqueeze(0))[0]
    return logps_N, token_entropy(logits_1NV)[0] if entropy else logps_N.new_empty(0), greedy_N


class _Softmax(NamedTuple):
    """A softmax over the vocabulary before its division: probabilities are `exps_nV / sums_n1`."""

    exps_nV: Tensor
    sums_n1: Tensor
    labels_n1: Tensor
    """Logit of each label minus the largest logit."""


class _Linear(NamedTuple):
    """The head's matrix, and room for the logits of one chunk, used again by every chunk.

    With room of their own the chunks would grow the heap: small results of one land where the next no longer
    fits.
    """

    weight_VD: Tensor
    bias_V: Tensor | None
    logits_CV: Tensor
    full_CV: Tensor

    @classmethod
    def of(cls, hidden_ND: Tensor, weight_VD: Tensor, bias_V: Tensor | None) -> "_Linear":
        size = next(_chunks(hidden_ND.shape[0], weight_VD.shape[0], hidden_ND.device), slice(0, 0)).stop
        logits_CV = hidden_ND.new_empty(size, weight_VD.shape[0])
        full = hidden_ND.dtype in (torch.float32, torch.float64)
        full_CV = logits_CV if full else torch.empty_like(logits_CV, dtype=torch.float32)
        return cls(weight_VD, bias_V, logits_CV, full_CV)

    def logits(self, hidden_nD: Tensor) -> Tensor:
        """Logits of a chunk in float32 or better, in the room for them."""
        logits_nV = self.logits_CV[: len(hidden_nD)]
        if self.bias_V is None:
            torch.mm(hidden_nD, self.weight_VD.T, out=logits_nV)
        else:
            torch.addmm(self.bias_V, hidden_nD, self.weight_VD.T, out=logits_nV)
        if self.full_CV is self.logits_CV:
            return logits_nV
        return self.full_CV[: len(hidden_nD)].copy_(logits_nV)


def _softmax(room: _Linear, hidden_nD: Tensor, labels_n: Tensor, temperature: float) -> _Softmax:
    """Logits of a chunk, turned in place: four passes over them and no copy (bfloat16: one)."""
    values_nV = room.logits(hidden_nD)
    if temperature != 1.0:
        values_nV.div_(temperature)
    values_nV.sub_(values_nV.amax(-1, keepdim=True))
    labels_n1 = values_nV.gather(1, labels_n.unsqueeze(1))
    values_nV.exp_()
    return _Softmax(values_nV, values_nV.sum(-1, keepdim=True), labels_n1)


def _mean_logs(part: _Softmax) -> Tensor:
    """Mean of the exponents under the softmax; some rows at a time, or the products would need as much room
    as the logits."""
    size = max(1, _MEAN_ELEMENTS // part.exps_nV.shape[1])
    sums = [torch.xlogy(exps_nV, exps_nV).sum(-1) for exps_nV in torch.split(part.exps_nV, size)]
    return torch.cat(sums) / part.sums_n1.squeeze(1)


class _Sums(NamedTuple):
    """Gradients of what a head computes from, gathered chunk by chunk; None where none is asked for."""

    hidden_ND: Tensor
    weight_VD: Tensor
    bias_V: Tensor | None
    grad_hidden_ND: Tensor | None
    grad_weight_VD: Tensor | None
    grad_bias_V: Tensor | None
    owner: Owner | None

    @classmethod
    def of(
        cls,
        ctx: Any,
        hidden_ND: Tensor,
        weight_VD: Tensor,
        bias_V: Tensor | None,
        *,
        dtype: torch.dtype,
        owner: Owner | None = None,
    ) -> "_Sums":
        """dtype: full precision: long sums in bfloat16 lose their terms."""
        needs_hidden, needs_weight, needs_bias = ctx.needs_input_grad[:3]
        return cls(
            hidden_ND,
            weight_VD,
            bias_V,
            torch.empty_like(hidden_ND) if needs_hidden else None,
            torch.zeros_like(weight_VD, dtype=dtype) if needs_weight else None,
            torch.zeros_like(bias_V, dtype=dtype) if bias_V is not None and needs_bias else None,
            owner,
        )

    def add(self, at: slice, grad_nV: Tensor) -> None:
        """Take the gradient of the logits of a chunk, in the precision of the hidden states."""
        hidden_nD, total_VD = self.hidden_ND[at], self.grad_weight_VD
        if self.grad_hidden_ND is not None:
            torch.mm(grad_nV, self.weight_VD, out=self.grad_hidden_ND[at])
        if self.owner is not None:
            self.owner.add(grad_nV, hidden_nD)
        elif total_VD is not None and grad_nV.dtype == total_VD.dtype:
            total_VD.addmm_(grad_nV.T, hidden_nD)
        elif total_VD is not None:
            total_VD.add_(grad_nV.T @ hidden_nD)
        if self.grad_bias_V is not None:
            self.grad_bias_V.add_(grad_nV.sum(0))

    def found(self) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        """Gradients of hidden states, weight and bias, each in its own precision."""
        weight_VD, bias_V = self.grad_weight_VD, self.grad_bias_V
        return (
            self.grad_hidden_ND,
            None if weight_VD is None else weight_VD.to(self.weight_VD.dtype),
            None if bias_V is None or self.bias_V is None else bias_V.to(self.bias_V.dtype),
        )


def _asked(grads: tuple[Tensor | None, ...]) -> tuple[Tensor, Tensor | None]:
    """Gradients of log-probs, and of entropies; None where these were only looked at, which costs nothing."""
    grad_logps_N, grad_entropy_N, _ = grads
    if grad_logps_N is None:
        assert grad_entropy_N is not None, "there is no backward without a gradient"
        grad_logps_N = torch.zeros_like(grad_entropy_N)
    return grad_logps_N, grad_entropy_N


class _Compiled(torch.autograd.Function):
    """What `_Fused` does, with compiled passes over the logits, which are computed again in the backward."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden_ND: Tensor,
        weight_VD: Tensor,
        bias_V: Tensor | None,
        labels_N: Tensor,
        temperature: float,
        entropy: bool,
        owner: Owner | None,
        passes: Passes,
    ) -> tuple[Tensor, Tensor, Tensor]:
        parts = [
            passes.scores(linear(hidden_ND[at], weight_VD, bias_V), labels_N[at], temperature, entropy)
            for at in _chunks(len(hidden_ND), len(weight_VD), hidden_ND.device, hidden_ND.dtype)
        ]
        logps_N, greedy_N, entropy_N, log_sums_N = (torch.cat(values) for values in zip(*parts, strict=True))
        ctx.temperature, ctx.passes, ctx.owner = temperature, passes, owner
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(hidden_ND, weight_VD, bias_V, labels_N, entropy_N, log_sums_N)
        ctx.mark_non_differentiable(greedy_N, *([] if entropy else [entropy_N]))
        return logps_N, entropy_N, greedy_N

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        hidden_ND, weight_VD, bias_V, labels_N, entropy_N, log_sums_N = ctx.saved_tensors
        grad_logps_N, grad_entropy_N = _asked(grads)
        sums = _Sums.of(ctx, hidden_ND, weight_VD, bias_V, dtype=grad_logps_N.dtype, owner=ctx.owner)
        for at in _chunks(len(hidden_ND), len(weight_VD), hidden_ND.device, hidden_ND.dtype):
            grad_nV = ctx.passes.gradient(
                linear(hidden_ND[at], weight_VD, bias_V),
                labels_N[at],
                ctx.temperature,
                log_sums_N[at],
                grad_logps_N[at],
                entropy_N[at],
                None if grad_entropy_N is None else grad_entropy_N[at],
            )
            sums.add(at, grad_nV)
        return *sums.found(), None, None, None, None, None


class _Fused(torch.autograd.Function):
    """Log-probs and entropies from hidden states; the backward goes chunk by chunk.

    With p the softmax, the gradient with respect to the logits of a token is g (onehot - p) for its
    log-prob and -g p (log p + H) for its entropy H.
    """

    @staticmethod
    def forward(
        ctx: Any,
        hidden_ND: Tensor,
        weight_VD: Tensor,
        bias_V: Tensor | None,
        labels_N: Tensor,
        temperature: float,
        entropy: bool,
        owner: Owner | None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        num_words = weight_VD.shape[0]
        keep = any(ctx.needs_input_grad) and hidden_ND.shape[0] * num_words <= _KEPT_ELEMENTS
        room = _Linear.of(hidden_ND, weight_VD, bias_V)
        logps_N = room.full_CV.new_empty(hidden_ND.shape[0])
        greedy_N = torch.empty_like(logps_N, dtype=torch.bool)
        entropy_N = torch.empty_like(logps_N) if entropy else logps_N.new_empty(0)
        kept: list[_Softmax | None] = []
        for at in _chunks(hidden_ND.shape[0], num_words, hidden_ND.device):
            if kept and keep:
                # What is kept for the backward still lies in the room of the chunk before.
                room = _Linear.of(hidden_ND, weight_VD, bias_V)
            part = _softmax(room, hidden_ND[at], labels_N[at], temperature)
            log_sums_n1 = part.sums_n1.log()
            logps_N[at] = (part.labels_n1 - log_sums_n1).squeeze(1)
            greedy_N[at] = (part.labels_n1 == 0).squeeze(1)
            if entropy:
                entropy_N[at] = log_sums_n1.squeeze(1) - _mean_logs(part)
            kept.append(part if keep else None)
        ctx.temperature, ctx.kept, ctx.owner = temperature, kept, owner
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(hidden_ND, weight_VD, bias_V, labels_N, entropy_N)
        ctx.mark_non_differentiable(greedy_N, *([] if entropy else [entropy_N]))
        return logps_N, entropy_N, greedy_N

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        hidden_ND, weight_VD, bias_V, labels_N, entropy_N = ctx.saved_tensors
        grad_logps_N, grad_entropy_N = _asked(grads)
        sums = _Sums.of(ctx, hidden_ND, weight_VD, bias_V, dtype=grad_logps_N.dtype, owner=ctx.owner)
        room: _Linear | None = None
        for index, at in enumerate(_chunks(hidden_ND.shape[0], weight_VD.shape[0], hidden_ND.device)):
            # Used up in place; a second backward through the same graph computes it again.
            part, ctx.kept[index] = ctx.kept[index], None
            if part is None:
                room = room or _Linear.of(hidden_ND, weight_VD, bias_V)
                part = _softmax(room, hidden_ND[at], labels_N[at], ctx.temperature)
            grad_n1 = grad_logps_N[at].unsqueeze(1)
            if grad_entropy_N is not None:
                grad_nV = part.exps_nV.div_(part.sums_n1)
                surprise_nV = grad_nV.clamp_min(torch.finfo(grad_nV.dtype).tiny).log_()
                weights_n1 = -grad_entropy_N[at].unsqueeze(1)
                grad_nV.mul_(surprise_nV.add_(entropy_N[at].unsqueeze(1)).mul_(weights_n1).sub_(grad_n1))
            else:
                grad_nV = part.exps_nV.mul_(-grad_n1 / part.sums_n1)
            grad_nV.scatter_add_(1, labels_N[at].unsqueeze(1), grad_n1)
            if ctx.temperature != 1.0:
                grad_nV.div_(ctx.temperature)
            sums.add(at, grad_nV.to(hidden_ND.dtype))
        return *sums.found(), None, None, None, None


def _passes(device: str, entropy: bool) -> Passes | None:
    """Compiled passes over the logits; None where passes in place are better, or there are none."""
    return compiled_passes(entropy=entropy) if device == "cuda" else None


def _full(logits_NV: Tensor) -> Tensor:
    return logits_NV if logits_NV.dtype == torch.float64 else logits_NV.float()


def score_tokens(
    head: Head, hidden_ND: Tensor, labels_N: Tensor, *, temperature: float = 1.0, entropy: bool = False
) -> TokenScores:
    """Log-probability (and entropy) of each label under the head.

    Args:
        hidden_ND: hidden state that predicts each token.
        labels_N: int64 token ids.
        temperature: > 0; divides the logits.
        entropy: also compute the entropy of each distribution.
    """
    fused = head.fused
    if fused is not None:
        device = hidden_ND.device.type
        owner = owner_of(fused.weight, hidden_ND)
        weight_VD: Tensor = fused.weight if owner is None else fused.weight.detach()
        bias_V: Tensor | None = fused.bias
        if torch.is_autocast_enabled(device):
            dtype = torch.get_autocast_dtype(device)
            hidden_ND, weight_VD = hidden_ND.to(dtype), weight_VD.to(dtype)
            bias_V = None if bias_V is None else bias_V.to(dtype)
        passes = _passes(device, entropy)
        function, means = (_Fused, (owner,)) if passes is None else (_Compiled, (owner, passes))
        with torch.autocast(device, enabled=False):
            logps_N, entropy_N, greedy_N = function.apply(  # type: ignore[no-untyped-call]  # untyped in torch
                hidden_ND, weight_VD, bias_V, labels_N, temperature, entropy, *means
            )
        return TokenScores(logps_N, entropy_N if entropy else None, greedy_N)

    def one(hidden_nD: Tensor, labels_n: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return _scores(head.logits(hidden_nD), labels_n, temperature, entropy)

    num_words = getattr(head.module, "out_features", 1 << 15)
    step: Callable[..., tuple[Tensor, Tensor, Tensor]] = one
    parts = [
        checkpoint(step, hidden_ND[at], labels_N[at], use_reentrant=False)
        if torch.is_grad_enabled()
        else step(hidden_ND[at], labels_N[at])
        for at in _chunks(hidden_ND.shape[0], num_words, hidden_ND.device)
    ]
    logps_N, entropy_N, greedy_N = (torch.cat(values) for values in zip(*parts, strict=True))
    return TokenScores(logps_N, entropy_N if entropy else None, greedy_N)
