"""Where measurements work: a temporary folder with a model and its pairs for each size, made when asked."""

from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.vs_trl_work import SIZES, data_file, make_model, write_pairs

__all__ = ["Workplace"]


@dataclass(slots=True)
class Workplace:
    """Models and pairs under one temporary folder.

    data: HH-RLHF comparisons; None takes them from the folder of public data sets.
    num_pairs, max_length: of `pairs.jsonl`; longer pairs are not drawn.
    """

    folder: Path
    data: Path | None
    num_pairs: int
    max_length: int
    parameters: dict[str, int] = field(default_factory=dict)

    def model(self, size: str) -> Path:
        """Folder with `causal/`, `reward/` and `pairs.jsonl` of a size in `SIZES`."""
        folder = self.folder / size
        if size not in self.parameters:
            folder.mkdir()
            self.parameters[size] = make_model(folder, path=None, size=SIZES[size], seed=0)
            write_pairs(
                folder, data_file(self.data), count=self.num_pairs, max_length=self.max_length, seed=0
            )
        return folder
