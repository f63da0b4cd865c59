"""Fewer activations: what is cheap to compute again is not kept for the backward.

Of a layer autograd keeps some 21 numbers for every one of the hidden state. Half of them are normalised
states and activations of the MLP: each is one element-wise pass over something that is kept anyway, and most
of them only feed products with weights. Here they are computed again, and the products keep where their input
comes from instead of the input (`models.products`). The model stays unmodified: a forward within
`few_activations` runs other `forward`s of its norms, MLPs and linear layers.
Not here: activation checkpointing, which computes whole layers again; its layers are left alone.
"""

from collections.abc import Callable, Iterator, MutableMapping
from contextlib import contextmanager, nullcontext
from functools import partial
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers import activations as transformers_activations

from trueward.models.inner import evaluating
from trueward.models.memory import current_memory
from trueward.models.norms import is_rms_norm, rms_norm
from trueward.models.products import product, recomputed

__all__ = ["few_activations"]

# Elements of the hidden states of all layers from which memory matters more than the calls that save it.
_LEAST_ELEMENTS = 1 << 18
_GATED = ("gate_proj", "up_proj", "down_proj", "act_fn")
_Forward = Callable[[Tensor], Tensor]

# Whether an MLP computes down(act(gate(x)) * up(x)): tried once.
_TRIED: MutableMapping[nn.Module, bool] = WeakKeyDictionary()


def _is_norm(module: nn.Module) -> bool:
    return isinstance(module, nn.LayerNorm | nn.RMSNorm) or type(module).__name__.endswith("RMSNorm")


def _is_activation(module: nn.Module) -> bool:
    known = isinstance(module, nn.SiLU | nn.GELU | nn.ReLU)
    return known or type(module).__module__ == transformers_activations.__name__


def _is_gated(module: nn.Module) -> bool:
    """Whether the module computes `down(act(gate(x)) * up(x))` and nothing else."""
    if tuple(sorted(name for name, _ in module.named_children())) != tuple(sorted(_GATED)):
        return False
    weight = getattr(module.get_submodule("gate_proj"), "weight", None)
    if not isinstance(weight, Tensor) or weight.dim() != 2 or not weight.is_floating_point():
        return False
    if module not in _TRIED:
        # Without dropout of adapters, which would also draw from the step's random numbers.
        with evaluating(module):
            states = torch.linspace(-2, 2, 3 * weight.shape[1], dtype=weight.dtype).reshape(1, 3, -1)
            _TRIED[module] = torch.equal(_gated(module, states, keep=True), module.forward(states))
    return _TRIED[module]


def _gated(module: nn.Module, states: Tensor, *, keep: bool = False) -> Tensor:
    gate, up, down, act = (module.get_submodule(name) for name in _GATED)

    def step(gate_states: Tensor, up_states: Tensor) -> Tensor:
        result: Tensor = act(gate_states) * up_states
        return result

    parts = gate(states), up(states)
    result: Tensor = down(step(*parts) if keep else recomputed(step, *parts))
    return result


def _forwards(backbone: PreTrainedModel, *, only_norms: bool) -> Iterator[tuple[nn.Module, _Forward]]:
    """Modules of the backbone, each with the forward that takes its place.

    Args:
        only_norms: those alone whose sums are in another order; the others compute the same and keep less.
    """
    for layer in _layers(backbone):
        within_gated: set[nn.Module] = set()
        kept: set[nn.Module] = set()
        for module in layer.modules():
            if "forward" in module.__dict__ or module in within_gated:
                continue
            if is_rms_norm(module):
                yield module, partial(_norm, module, _module_again(module))
            elif only_norms:
                continue
            elif _is_gated(module):
                within_gated.add(module.get_submodule("act_fn"))
                kept |= {module.get_submodule("gate_proj"), module.get_submodule("up_proj")}
                yield module, partial(_gated, module)
            elif _is_norm(module) or _is_activation(module):
                yield module, _module_again(module)
            elif type(module) is nn.Linear:
                yield module, partial(product, module, kept=module in kept)


def _norm(module: nn.Module, plain: Callable[[Tensor], Tensor], states: Tensor) -> Tensor:
    # States of another precision than the weights' are cast within the module.
    return rms_norm(module, states) if states.dtype == module.weight.dtype else plain(states)


def _module_again(module: nn.Module) -> Callable[[Tensor], Tensor]:
    plain = module.forward
    weights = tuple(parameter for parameter in module.parameters() if parameter.requires_grad)
    return lambda states: recomputed(plain, states, weights=weights)


def _layers(backbone: PreTrainedModel) -> Iterator[nn.Module]:
    num_layers = getattr(backbone.config.get_text_config(), "num_hidden_layers", None)
    for stack in backbone.children():
        if isinstance(stack, nn.ModuleList) and len(stack) == num_layers:
            yield from (layer for layer in stack if not getattr(layer, "gradient_checkpointing", False))


@contextmanager
def few_activations(backbone: PreTrainedModel, num_tokens: int) -> Iterator[None]:
    """Within, a forward of the backbone keeps half of what its backward would need. On a processor only,
    where it was measured. Those too small to matter keep what they want; with a gradient or without, and
    however small, norms are computed in one way, so that policy and reference of one weight score alike.
    The backward may run after the end of it.

    Args:
        num_tokens: tokens of the forward.
    """
    config = backbone.config.get_text_config()
    if backbone.device.type != "cpu":
        yield
        return
    elements = num_tokens * config.hidden_size * config.num_hidden_layers
    fewer = torch.is_grad_enabled() and elements >= _LEAST_ELEMENTS
    replaced = list(_forwards(backbone, only_norms=not fewer))
    memory = current_memory() if fewer else None
    for module, forward in replaced:
        module.forward = forward
    try:
        with nullcontext() if memory is None else memory.keeping(backbone.parameters()):
            yield
    finally:
        for module, _ in replaced:
            del module.forward
