"""From the start of a process to the end of its first optimizer step, on the tiny model.

    python -m benchmarks.start JOB.json RESULT.json
What is slow is imported as the command imports it. The time counts from the start of the interpreter, as the
kernel knows it.
"""

import sys
import tempfile
from pathlib import Path

from benchmarks.process import age_s
from trueward.core.files import write_json
from trueward.core.imports import import_at_rest


def main() -> None:
    """Take one step."""
    first_step = import_at_rest("benchmarks.start_step").first_step
    imported_s = age_s()
    with tempfile.TemporaryDirectory(dir=Path(sys.argv[1]).parent) as folder:
        first_step(Path(folder))
    write_json(Path(sys.argv[2]), {"imported_s": imported_s, "first_step_s": age_s()})


if __name__ == "__main__":
    main()
