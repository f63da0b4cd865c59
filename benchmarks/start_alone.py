"""What any program pays that trains a model of transformers: the time until torch and a class are there.

python -m benchmarks.start_alone JOB.json RESULT.json
"""

import sys
from pathlib import Path

from transformers import LlamaForCausalLM

from benchmarks.process import age_s
from trueward.core.files import write_json


def main() -> None:
    """Tell how old the process is once all is imported."""
    assert LlamaForCausalLM.__name__
    write_json(Path(sys.argv[2]), {"alone_s": age_s()})


if __name__ == "__main__":
    main()
