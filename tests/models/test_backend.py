"""The processor's settings."""

import os

import pytest
import torch

from trueward.models.backend import keep_freed_memory, prepare_cpu


def test_denormals_become_zero_and_threads_stay() -> None:
    threads = torch.get_num_threads()
    if not prepare_cpu():
        return
    assert float(torch.tensor(1e-30) * torch.tensor(1e-12)) == 0.0
    assert torch.get_num_threads() == threads


def test_freed_memory_is_kept_unless_the_environment_decides(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("MALLOC_")]:
        monkeypatch.delenv(name)
    monkeypatch.delenv("GLIBC_TUNABLES", raising=False)
    if not keep_freed_memory():
        pytest.skip("no glibc here")
    monkeypatch.setenv("MALLOC_ARENA_MAX", "2")
    assert not keep_freed_memory()
    monkeypatch.delenv("MALLOC_ARENA_MAX")
    monkeypatch.setenv("GLIBC_TUNABLES", "glibc.malloc.trim_threshold=1")
    assert not keep_freed_memory()
