"""From the start of a process to the end of its first optimizer step, on the tiny model.

    python -m benchmarks.start JOB.json RESULT.json
The time counts from the start of the interpreter, as the kernel knows it.
"""

import sys
import tempfile
from pathlib import Path

from benchmarks.process import age_s
from trueward.core.files import write_json
from trueward.data.chat import Completion, TokenGroup
from trueward.models.tiny import tiny_model
from trueward.trainers.settings import TrainSettings
from trueward.trainers.sft import train_sft


def main() -> None:
    """Take one step."""
    imported_s = age_s()
    groups = [TokenGroup((1, 5 + n), (Completion((9, 10, 2), (True,) * 3),)) for n in range(8)]
    settings = TrainSettings(lr=1e-3, batch_size=8, steps=1)
    with tempfile.TemporaryDirectory(dir=Path(sys.argv[1]).parent) as folder:
        train_sft(tiny_model("llama"), groups, settings=settings, folder=Path(folder))
    write_json(Path(sys.argv[2]), {"imported_s": imported_s, "first_step_s": age_s()})


if __name__ == "__main__":
    main()
