"""One optimizer step of SFT on the tiny model, and all that it imports (see start)."""

from pathlib import Path

from trueward.data.chat import Completion, TokenGroup
from trueward.models.tiny import tiny_model
from trueward.trainers.settings import TrainSettings
from trueward.trainers.sft import train_sft

__all__ = ["first_step"]


def first_step(folder: Path) -> None:
    """Train in a run folder."""
    groups = [TokenGroup((1, 5 + n), (Completion((9, 10, 2), (True,) * 3),)) for n in range(8)]
    train_sft(
        tiny_model("llama"),
        groups,
        settings=TrainSettings(lr=1e-3, batch_size=8, steps=1),
        folder=folder,
    )
