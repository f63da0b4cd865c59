"""Import, dataset and tokens of a file of comparisons, in a process of its own, as files grow.

    python -m benchmarks.growth JOB.json RESULT.json
The rows are made up (short questions with two answers), so that a file of any length can be written.
"""

import sys
from collections import deque
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from benchmarks.vs_trl_watch import Watch
from trueward.core.files import read_json, write_json, write_jsonl
from trueward.data.chat import tokenise_many
from trueward.data.dataset import open_dataset, write_dataset
from trueward.data.importers import import_file
from trueward.models.tiny import tiny_tokenizer

__all__ = ["STAGES", "GrowthJob", "write_rows"]

STAGES = ("import", "dataset", "tokens")
_WORDS = ("river", "copper", "window", "garden", "letter", "engine", "winter", "bridge", "silver", "market")


class GrowthJob(NamedTuple):
    """One stage: `import` reads the file, `dataset` imports it into a version, `tokens` tokenises that."""

    stage: str
    file: str
    work: str
    records: int


def write_rows(file: Path, records: int) -> None:
    """A file of `records` different comparisons of about 250 bytes."""

    def sentence(number: int) -> str:
        return " ".join(_WORDS[(number // 10**place) % 10] for place in range(6))

    rows = (
        {
            "prompt": f"Question {number}: what do you know of {sentence(number)}?",
            "chosen": f"I know that {sentence(number + 7)} comes first, and then {sentence(number + 1)}.",
            "rejected": f"I do not know {sentence(number + 3)}.",
        }
        for number in range(records)
    )
    write_jsonl(file, rows)


def _exhaust(items: Iterable[object]) -> None:
    deque(items, maxlen=0)


def run_stage(job: GrowthJob, watch: Watch) -> None:
    """Run one stage; every record is read and none is kept."""
    work = Path(job.work)
    folder, name = work / "growth", f"rows-{job.records}"
    bad = work / "growth-bad.jsonl"
    if job.stage == "tokens" and not (folder / name).is_dir():
        write_dataset(folder, name, import_file(Path(job.file), quarantine=bad, kind="comparison"))
    watch.loaded()
    watch.start()
    if job.stage == "import":
        _exhaust(import_file(Path(job.file), quarantine=bad, kind="comparison"))
    elif job.stage == "dataset":
        result = import_file(Path(job.file), quarantine=bad, kind="comparison")
        write_dataset(folder, name, result, imports=[result])
    else:
        records = open_dataset(folder / name).records()
        _exhaust(tokenise_many(tiny_tokenizer(), records, max_tokens=512))  # type: ignore[arg-type]  # all comparisons
    watch.update(1)


def main() -> None:
    """Run the stage that a job names."""
    asked, result = map(Path, sys.argv[1:])
    watch = Watch()
    run_stage(GrowthJob(**read_json(asked)), watch)
    write_json(result, watch.figures())


if __name__ == "__main__":
    main()
