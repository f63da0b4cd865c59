"""Engines that draw completions: the protocol, and the one that runs in this process."""

from trueward.rollouts.engine import Engine, Progress, Rollout
from trueward.rollouts.local import LocalEngine

__all__ = ["Engine", "LocalEngine", "Progress", "Rollout"]
