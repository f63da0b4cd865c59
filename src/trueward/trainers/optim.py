"""From a gradient to an update: AdamW, learning-rate schedules, clipping. Not here: where the gradient comes
from."""

import math
from collections.abc import Mapping

import torch
from torch import nn

from trueward.core.errors import RunError
from trueward.trainers.row_adamw import RowAdamW, gradient_values
from trueward.trainers.settings import OptimSettings, Schedule

__all__ = ["LR_SCALE", "build_optimizer", "device_of", "learning_rate", "trainable", "update"]

LR_SCALE = "lr_scale"
"""Key of an optimizer's group: factor on the learning rate of a step."""


def device_of(model: nn.Module) -> torch.device:
    """Device of the model's first parameter."""
    return next(model.parameters()).device


def trainable(model: nn.Module) -> dict[str, nn.Parameter]:
    """Name -> parameter of everything that is trained; tied parameters once.

    Raises:
        RunError: nothing is.
    """
    found = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    if not found:
        raise RunError("the model has no trainable parameter", remedy="unfreeze it, or add an adapter")
    return found


def build_optimizer(
    model: nn.Module, settings: OptimSettings, *, lr_scales: Mapping[str, float] | None = None
) -> RowAdamW:
    """AdamW (Loshchilov & Hutter 2019) over the trainable parameters.

    Args:
        lr_scales: first part of a parameter's name -> factor on its learning rate; 1 where it is not named.

    Raises:
        RunError: nothing is trainable, or a trainable parameter is not float32.
    """
    parameters = trainable(model)
    for name, parameter in parameters.items():
        if parameter.dtype != torch.float32:
            # A bfloat16 weight of size 1 cannot take an update below 0.004: training would stall without a
            # word.
            raise RunError(
                f"parameter {name} is trained in {parameter.dtype}",
                expected="torch.float32",
                remedy="load the model in float32; `precision: bfloat16` speeds up the forward pass",
            )
    scales = lr_scales or {}
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    # Matrices first, as they are most of the memory; a group has one decay and one learning rate.
    for name, parameter in sorted(parameters.items(), key=lambda item: item[1].ndim < 2):
        decay = settings.weight_decay if parameter.ndim >= 2 else 0.0
        groups.setdefault((decay, scales.get(name.partition(".")[0], 1.0)), []).append(parameter)
    betas = (settings.adam_beta1, settings.adam_beta2)
    return RowAdamW(
        [{"params": p, "weight_decay": decay, LR_SCALE: scale} for (decay, scale), p in groups.items()],
        lr=settings.lr,
        betas=betas,
        eps=settings.adam_eps,
        first_moment=torch.bfloat16 if settings.first_moment == "bfloat16" else torch.float32,
    )


def learning_rate(step: int, num_steps: int, settings: OptimSettings) -> float:
    """Learning rate of `step` (counted from 0) of `num_steps`; never 0, a step that moves nothing is a waste.

    Warm-up: (step + 1) / warm-up steps. After it, with x = share of the remaining steps already taken:
    constant 1, linear 1 - x, cosine (1 + cos(pi x)) / 2 (Loshchilov & Hutter 2017, eq. 5).
    """
    warmup = round(settings.warmup_ratio * num_steps)
    if step < warmup:
        return settings.lr * (step + 1) / warmup
    done = (step - warmup) / (num_steps - warmup)
    factors: dict[Schedule, float] = {
        "constant": 1.0,
        "linear": 1.0 - done,
        "cosine": 0.5 * (1.0 + math.cos(math.pi * done)),
    }
    return settings.lr * factors[settings.schedule]


def update(
    optimizer: torch.optim.Optimizer,
    parameters: Mapping[str, nn.Parameter],
    *,
    loss: float,
    lr: float,
    max_norm: float,
) -> float:
    """Clip, step and clear the gradient; a loss or norm that is not finite changes no weight.

    Args:
        loss: loss of the step.
        lr: learning rate of the step; a group's `lr_scale` multiplies it.
        max_norm: largest norm; 0 does not clip.

    Returns:
        The norm before clipping; where it or the loss is not finite, the step was skipped.
    """
    grads = [gradient_values(p) for p in parameters.values() if p.grad is not None]
    norm = float(torch.nn.utils.get_total_norm(grads))
    if math.isfinite(norm) and math.isfinite(loss):
        if max_norm > 0:
            # The factor of torch's clip_grads_with_norm_, which scales no rows of a gradient.
            factor = torch.clamp(max_norm / (torch.tensor(norm) + 1e-6), max=1.0)
            if factor < 1.0:
                torch._foreach_mul_(grads, factor)
        for group in optimizer.param_groups:
            group["lr"] = lr * group.get(LR_SCALE, 1.0)
        optimizer.step()
    return norm
