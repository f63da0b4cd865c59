"""Root-mean-square norms in few passes: y = w x / rms(x) (Zhang & Sennrich 2019, eq. 4), with its gradient.

As transformers writes it, a norm is five passes over the states and fifteen more in the backward, and keeps
two tensors of their size. With u = x / rms(x) and g the gradient of y, its gradient is
    (g w - u mean(g w u)) / rms(x)   for x,   and   sum over tokens of g u   for w;
u is computed again from x. Sums are in the precision of the states, as those of the modules are.
Axes: L tokens (any leading axes), D width.
"""

from collections.abc import MutableMapping
from typing import Any
from weakref import WeakKeyDictionary, ref

import torch
from torch import Tensor, nn

from trueward.models.products import comes_from

__all__ = ["is_rms_norm", "rms_norm"]

# Whether a module computes this formula with the epsilon it names: tried once.
_TRIED: MutableMapping[nn.Module, bool] = WeakKeyDictionary()


def _unit(states_LD: Tensor, epsilon: float) -> tuple[Tensor, Tensor]:
    """u_LD and 1 / rms as scale_L1."""
    norm_L1 = torch.linalg.vector_norm(states_LD, dim=-1, keepdim=True)
    scale_L1 = norm_L1.square_().div_(states_LD.shape[-1]).add_(epsilon).rsqrt_()
    return states_LD * scale_L1, scale_L1


class _Norm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, states_LD: Tensor, weight_D: Tensor, epsilon: float, source: "_Unit") -> Tensor:
        ctx.save_for_backward(states_LD, weight_D)
        ctx.epsilon, ctx.source = epsilon, source
        source.node = ref(ctx)
        unit_LD, _ = _unit(states_LD, epsilon)
        return unit_LD.mul_(weight_D)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, Tensor | None, None, None]:
        (grad_LD,) = grads
        _, weight_D = ctx.saved_tensors
        unit_LD, scale_L1 = ctx.source.unit()
        ctx.source.forget()
        product_LD = grad_LD * unit_LD
        grad_weight_D = product_LD.flatten(0, -2).sum(0) if ctx.needs_input_grad[1] else None
        grad_states_LD: Tensor | None = None
        if ctx.needs_input_grad[0]:
            mean_L1 = (product_LD @ weight_D).unsqueeze(-1).div_(-grad_LD.shape[-1])
            grad_states_LD = torch.mul(grad_LD, weight_D, out=product_LD)
            grad_states_LD.addcmul_(unit_LD, mean_L1).mul_(scale_L1)
        return grad_states_LD, grad_weight_D, None, None


class _Unit:
    """The normalised states of one norm, computed once in the backward for all that ask."""

    __slots__ = ("_found", "_result", "node")

    def __init__(self) -> None:
        self.node: ref[Any] | None = None
        self._found: tuple[Tensor, Tensor] | None = None
        self._result: Tensor | None = None

    def _kept(self) -> Any:
        node = None if self.node is None else self.node()
        assert node is not None, "a product's backward runs before that of its input"
        return node

    def unit(self) -> tuple[Tensor, Tensor]:
        """u_LD and 1 / rms."""
        if self._found is None:
            node = self._kept()
            self._found = _unit(node.saved_tensors[0], node.epsilon)
        return self._found

    def result(self) -> Tensor:
        """y_LD."""
        if self._result is None:
            self._result = self.unit()[0] * self._kept().saved_tensors[1]
        return self._result

    def forget(self) -> None:
        self._found = self._result = None


def _epsilon(module: nn.Module) -> float | None:
    value = getattr(module, "variance_epsilon", getattr(module, "eps", None))
    return value if isinstance(value, float) else None


def is_rms_norm(module: nn.Module) -> bool:
    """Whether `rms_norm` computes what the module does."""
    weight, epsilon = getattr(module, "weight", None), _epsilon(module)
    if not isinstance(weight, nn.Parameter) or weight.dim() != 1 or epsilon is None:
        return False
    # In float64 transformers' norms compute in float32: they are left what they are.
    if weight.dtype != torch.float32 or not type(module).__name__.endswith("RMSNorm"):
        return False
    if module not in _TRIED:
        with torch.no_grad():
            states_LD = torch.linspace(-2, 3, 3 * len(weight), dtype=weight.dtype).reshape(1, 3, -1)
            expected = module.forward(states_LD)
            _TRIED[module] = torch.allclose(rms_norm(module, states_LD), expected, rtol=1e-5, atol=1e-6)
    return _TRIED[module]


def rms_norm(module: nn.Module, states_LD: Tensor) -> Tensor:
    """What the module computes of states in its own precision."""
    epsilon = _epsilon(module)
    source = _Unit()
    result: Tensor = _Norm.apply(  # type: ignore[no-untyped-call]  # untyped in torch
        states_LD, module.weight, epsilon, source
    )
    comes_from(result, source)
    return result
