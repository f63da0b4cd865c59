"""Memory that runs out in the middle of a run: one sentence with the plan's advice, and a checkpoint to go on
from."""

from pathlib import Path
from typing import Any

import pytest
import torch

from tests.pipeline.toy import call, hh_arguments, refusal
from trueward.core.errors import RunError
from trueward.pipeline.advice import ran_out

ALLOCATOR = "[enforce fail at alloc_cpu.cpp] err == 0. DefaultCPUAllocator: can't allocate memory: you tried"


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (RuntimeError(ALLOCATOR), True),
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"), True),
        (MemoryError(), True),
        (RuntimeError("shapes cannot be multiplied"), False),
        (RunError("a batch of the data is out of memory of man"), False),
    ],
    ids=["cpu", "cuda", "python", "another", "ours"],
)
def test_allocation_failures_are_told_apart(error: BaseException, expected: bool) -> None:
    assert ran_out(error) is expected


def test_a_failed_allocation_in_a_step_ends_in_one_sentence_and_can_be_resumed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = [*hh_arguments(tmp_path), "stages=[data,sft]"]
    taken = torch.optim.AdamW.step
    steps = 0

    def failing(self: torch.optim.AdamW, *given: Any, **options: Any) -> Any:
        nonlocal steps
        steps += 1
        if steps == 2:
            raise RuntimeError(ALLOCATOR)
        return taken(self, *given, **options)

    with monkeypatch.context() as patched:
        patched.setattr(torch.optim.AdamW, "step", failing)
        said = refusal(capsys, "run", *arguments)
    assert said.startswith("memory ran out in stage sft, for which the plan expects ")
    # A model this small is outweighed by its activations.
    assert "brings it from" in said and "sft.train.max_tokens_per_forward=256" in said
    assert "checkpoint is intact" in said
    checkpoints = tmp_path / "run" / "sft" / "checkpoints"
    assert [path.name for path in checkpoints.iterdir()] == ["step-00000001"]
    said = refusal(capsys, "run", *arguments, "sft.train.lr=0.5", "--resume")
    assert "was made with other config, so it cannot be resumed" in said
    assert call("run", *arguments, "sft.train.max_tokens_per_forward=300", "--resume") == 0
    assert (tmp_path / "run" / "sft" / "model" / "model.safetensors").is_file()
