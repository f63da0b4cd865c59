"""Sections of the recipe that say what there is: base model, data, the testbed's amounts, text to pretrain,
held-out prompts. What is done with it is in `recipe`.
"""

from pathlib import Path
from typing import Literal

from pydantic import Field

from trueward.core.config import Config
from trueward.models.lora import LoraSettings
from trueward.models.scratch import ScratchSettings
from trueward.trainers.settings import TrainSettings

__all__ = ["DataSection", "EvalSection", "ModelSection", "PretrainSection", "TestbedSection"]


class ModelSection(Config):
    """The base model."""

    path: str | None = None
    """Folder, or hub id (`owner/name`), of a causal language model; null is the testbed's own base model."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Precision of the weights. Trained weights are float32 whatever this says of frozen ones."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where models lie; `auto` is a GPU where torch sees one. A run goes on only where it began."""
    lora: LoraSettings | None = None
    """Train adapters in place of all weights (SFT, DPO and PPO; the reward model has `reward.lora`)."""


class DataSection(Config):
    """Where feedback comes from."""

    source: Literal["files", "testbed"] = "files"
    """`files` imports `path`; `testbed` simulates prompts, demonstrators and annotators."""
    path: tuple[Path, ...] | Path | None = None
    """File, list of files, or folder (every data file in it)."""
    format: str = "auto"
    """Name of an importer; `auto` detects it and says what it found."""
    max_bad: float = Field(0.01, ge=0, le=1)
    """Largest share of unusable rows; above it the import fails. All of them are quarantined and counted."""
    pair_labels: bool = False
    """Make comparisons of labelled answers to one prompt: good over bad, every answer at most once."""
    licence: str = ""
    """Licence of the data, kept with every record."""
    max_tokens: int = Field(512, ge=8)
    """Longest prompt with completion; a longer record is dropped whole and counted."""
    test_share: float = Field(0.15, gt=0, lt=1)
    """Share of the prompts held out for evaluation; no prompt is on both sides."""
    test_path: tuple[Path, ...] | Path | None = None
    """File, list of files, or folder to hold out whole, in place of `test_share`; records of `path` that
    share a prompt with it are left out and counted."""
    limit: int | None = Field(None, ge=10)
    """Use only so many records of the training split (and a tenth of it for the test split); null is all."""

    @property
    def share_held_out(self) -> float:
        """Share of the records of `path` that are held out."""
        return self.test_share if self.test_path is None else 0.0


class TestbedSection(Config):
    """Amounts of simulated feedback."""

    __test__ = False  # pytest would otherwise take the name for a test class

    demonstrations: int = Field(1200, ge=10)
    """Demonstrations for SFT."""
    prompts: int = Field(4000, ge=10)
    """Prompts for which the SFT model draws two replies, to be compared by an annotator."""


class PretrainSection(Config):
    """A small language model from scratch."""

    text: tuple[Path, ...] | Path | None = None
    """Running text: JSON lines with `text`, or plain text files."""
    vocab_size: int = Field(4096, ge=300)
    """Size of the byte-level BPE vocabulary, special tokens included."""
    chat_share: float = Field(0.3, ge=0, lt=1)
    """Share of the training tokens that are chats (from `data.path`), so that the chat template is known."""
    max_characters: int | None = Field(None, ge=1000)
    """Read at most so many characters of running text."""
    window_tokens: int = Field(256, ge=8)
    """Tokens of a window of running text."""
    shape: ScratchSettings = ScratchSettings()
    train: TrainSettings = TrainSettings()


class EvalSection(Config):
    """Evaluation on held-out prompts."""

    prompts: int = Field(300, ge=10)
    """Held-out prompts; fewer exist in small data, and then all are used."""
    max_new_tokens: int = Field(64, ge=1)
    """Longest completion; those that hit it are counted."""
    temperature: float = Field(1.0, ge=0)
    """Sampling temperature; 0 is greedy."""
    samples: int = Field(12, ge=0)
    """Prompts shown side by side in the report."""
    max_tokens_per_forward: int = Field(16384, ge=64)
    """Real tokens in one forward pass."""
