"""The processor's settings."""

import os
from pathlib import Path

import pytest
import torch

from trueward.core.errors import ModelError
from trueward.models.backend import bound_kernels, choose_device, keep_freed_memory, own_memory, prepare_cpu
from trueward.models.tiny import tiny_model


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


def test_device_is_a_gpu_only_where_torch_sees_one(monkeypatch: pytest.MonkeyPatch) -> None:
    for seen, expected in ((False, {"auto": "cpu", "cpu": "cpu"}), (True, {"auto": "cuda", "cpu": "cpu"})):
        monkeypatch.setattr(torch.cuda, "is_available", lambda seen=seen: seen)
        assert {name: choose_device(name) for name in expected} == expected
    assert choose_device("cuda") == "cuda"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ModelError, match=r"sees no GPU .* model\.device=cpu"):
        choose_device("cuda")


def test_weights_of_a_file_get_memory_of_their_own(tmp_path: Path) -> None:
    model = tiny_model("qwen3", 1, width=64)
    model.save_pretrained(str(tmp_path))
    mapped = type(model).from_pretrained(str(tmp_path))
    storage = mapped.model.embed_tokens.weight.untyped_storage()
    assert not storage.resizable(), "transformers maps weights; if it stops to, own_memory can go"
    own_memory(mapped)
    for (name, got), expected in zip(mapped.named_parameters(), model.parameters(), strict=True):
        assert torch.equal(got, expected), name
        assert got.untyped_storage().resizable()
        assert got.data_ptr() % 64 == 0
    # Still tied; and the file's pages can still be read by whoever holds a view of them.
    assert mapped.lm_head.weight is mapped.model.embed_tokens.weight
    left = torch.empty(0).set_(storage, 0, (263, 64))
    assert torch.equal(left, model.model.embed_tokens.weight)


def test_kernels_are_bounded_unless_somebody_has_said_how_many(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("LRU_CACHE_CAPACITY", raising=False)
    monkeypatch.setenv("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "7")
    bound_kernels()
    assert os.environ["LRU_CACHE_CAPACITY"] == "128"
    assert os.environ["ONEDNN_PRIMITIVE_CACHE_CAPACITY"] == "7"
