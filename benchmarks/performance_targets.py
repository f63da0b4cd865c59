"""What is asked of the figures; nothing is measured here."""

from collections.abc import Mapping
from typing import Any, NamedTuple

__all__ = [
    "DECODE_TARGETS",
    "GPU_SPEED_TARGET",
    "GPU_UTILISATION_TARGET",
    "HELP_TARGET_S",
    "PPO_TARGET",
    "START_TARGET_S",
    "TRL_TARGETS",
    "UTILISATION_TARGETS",
    "Target",
]


class Target(NamedTuple):
    """At least `speed` times the peer's tokens per second, at most `memory` of its memory, losses no further
    apart than `loss` (None: texts are compared instead, and all rows must be equal).
    """

    speed: float
    memory: float
    loss: float | None

    def missed(self, values: Mapping[str, Any]) -> list[str]:
        """What the figures of a line miss, in words."""
        wrong = {
            "speed": values["speed"] < self.speed,
            "memory": values["memory"] > self.memory,
            "loss": self.loss is not None and values.get("loss_difference", 0.0) > self.loss,
            "text": self.loss is None and values.get("rows_equal") != values.get("rows"),
        }
        return [name for name, is_wrong in wrong.items() if is_wrong]

    def __str__(self) -> str:
        last = "equal text" if self.loss is None else f"{self.loss:.0e}"
        return f"{self.speed:g}x, {self.memory:g}, {last}"


_SFT, _SFT_16 = Target(4.0, 0.4, 1e-5), Target(4.0, 0.4, 1e-4)
_REWARD, _REWARD_16 = Target(5.0, 0.45, 1e-5), Target(5.0, 0.45, 1e-4)
_OTHER, _OTHER_16 = Target(4.0, 0.4, 1e-5), Target(4.0, 0.4, 1e-4)
TRL_TARGETS: Mapping[tuple[str, str, str], Target] = {
    ("135M", "dpo", "float32"): Target(6.0, 0.3, 1e-5),
    ("135M", "dpo", "bfloat16"): Target(6.0, 0.5, 1e-4),
    ("135M", "sft", "float32"): _SFT,
    ("small", "sft", "float32"): _SFT,
    ("135M", "sft", "bfloat16"): _SFT_16,
    ("small", "sft", "bfloat16"): _SFT_16,
    ("135M", "reward", "float32"): _REWARD,
    ("small", "reward", "float32"): _REWARD,
    ("135M", "reward", "bfloat16"): _REWARD_16,
    ("small", "reward", "bfloat16"): _REWARD_16,
    ("135M", "grpo", "float32"): Target(3.0, 0.8, 1e-5),
    ("small", "grpo", "float32"): Target(4.0, 0.45, 1e-5),
    **{(size, method, "float32"): _OTHER for size in ("135M", "small") for method in ("orpo", "kto")},
    **{(size, method, "bfloat16"): _OTHER_16 for size in ("135M", "small") for method in ("orpo", "kto")},
}
"""(model, method, precision) -> target."""

DECODE_TARGETS: Mapping[str, Target] = {"float32": Target(2.0, 1.0, None), "bfloat16": Target(4.0, 1.0, None)}
"""Precision -> target against `generate`."""

PPO_TARGET = Target(2.0, 1.3, 1e-4)
"""135M: speed against four models, memory against LoRA training of the policy alone, and how far the first
updates may lie apart (norm of the difference over norm)."""

UTILISATION_TARGETS: Mapping[tuple[str, str, str], float] = {
    ("135M", "dpo", "float32"): 0.65,
    ("135M", "dpo", "bfloat16"): 0.25,
}
"""Share of the measured matrix peak."""

START_TARGET_S = 5.0
"""From import to the first step of a tiny model."""

HELP_TARGET_S = 0.5
"""`trueward --help`, from its start to its end."""

GPU_SPEED_TARGET, GPU_UTILISATION_TARGET = 1.5, 0.5
"""DPO beside the fastest other side on one GPU; share of the measured matrix peak with 1.5B parameters."""
