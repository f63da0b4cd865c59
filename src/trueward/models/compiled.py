"""Layers of a model under torch.compile, for rows whose attention is flex-attention: on a GPU.

Eagerly a layer is some sixty small kernels forward, and a processor that starts them is slower than the GPU
that runs them: the card waits. Compiled, it is about a dozen. One compilation serves all layers of a model
and rows of any length. Not here: whether a model is compiled, and the trial before it (see routes).
"""

from collections.abc import Iterator, MutableMapping
from contextlib import contextmanager
from functools import cache
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import nn
from transformers import PreTrainedModel

from trueward.models.attention import KEYWORD
from trueward.models.flex import FlexPlan, allow_compilations
from trueward.models.last_layer import layers_of

__all__ = ["LEAST_TOKENS", "compile_layers", "windows_of"]

LEAST_TOKENS = 1024
"""Rows with fewer tokens are computed as they come: they would not win back the compilation."""


_WINDOWS: MutableMapping[nn.Module, frozenset[int | None]] = WeakKeyDictionary()


def _call(layer: nn.Module, *args: Any, **kwargs: Any) -> Any:
    return type(layer).forward(layer, *args, **kwargs)


@cache
def _compiled_call(backend: str) -> Any:
    """`_call` compiled. `fullgraph`: a layer that cannot be compiled whole raises, and is not compiled."""
    allow_compilations()
    return torch.compile(_call, backend=backend, dynamic=True, fullgraph=True)


class _Chosen:
    """The forward of a layer: compiled where the row's plan says so, else as it is."""

    def __init__(self, layer: nn.Module, backend: str) -> None:
        self._layer, self._backend = layer, backend

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        step = kwargs.get(KEYWORD)
        asked = isinstance(step, FlexPlan) and step.compiled
        # A layer that the backward computes again is a checkpoint inside its own forward.
        if not asked or getattr(self._layer, "gradient_checkpointing", False):
            return _call(self._layer, *args, **kwargs)
        with _one_mode(self._layer):
            return _compiled_call(self._backend)(self._layer, *args, **kwargs)


@contextmanager
def _one_mode(layer: nn.Module) -> Iterator[None]:
    """A layer without dropout computes the same in both modes: it need not be compiled for each."""
    training = [module for module in layer.modules() if module.training]
    # Into the dictionaries: what `Module.__setattr__` looks at would take longer than a small layer.
    changed = [] if any(map(_drops, training)) else [vars(module) for module in training]
    for values in changed:
        values["training"] = False
    try:
        yield
    finally:
        for values in changed:
            values["training"] = True


def _drops(module: nn.Module) -> bool:
    rate = module.p if isinstance(module, nn.Dropout) else getattr(module, "attention_dropout", 0.0)
    return bool(rate)


def compile_layers(backbone: PreTrainedModel, *, backend: str = "inductor") -> bool:
    """Let the layers of a backbone be compiled where a row's plan asks for it; all other calls are as before.

    Nothing is compiled yet: that happens at the first call. Hooks around a layer are outside of what is
    compiled.

    Args:
        backend: of torch.compile.

    Returns:
        Whether the layers are known, and none has a forward of its own that would be lost.
    """
    layers = layers_of(backbone)
    own = [vars(layer)["forward"] for layer in layers if "forward" in vars(layer)]
    if not all(isinstance(forward, _Chosen) for forward in own):
        return False
    for layer in layers:
        layer.forward = _Chosen(layer, backend)
    return bool(layers)


def windows_of(backbone: PreTrainedModel) -> frozenset[int | None]:
    """The sliding windows of a backbone's layers, None (all tokens) included; looked for once."""
    if backbone not in _WINDOWS:
        found = {getattr(module, "sliding_window", None) for module in backbone.modules()}
        _WINDOWS[backbone] = frozenset({None, *(window for window in found if isinstance(window, int))})
    return _WINDOWS[backbone]
