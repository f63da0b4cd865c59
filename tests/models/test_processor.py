"""Which library multiplies in float32, and that it multiplies in float32."""

import os
from collections.abc import Iterator

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from trueward.models import processor, routes
from trueward.models.processor import bound_kernels, multiplied_by_onednn, multiply_by_onednn, pays
from trueward.models.scoring import supports_packing
from trueward.models.tiny import tiny_model

ZEN = "processor\t: 0\nvendor_id\t: AuthenticAMD\nflags\t\t: fpu avx2 avx512f avx512_bf16\n"
XEON = ZEN.replace("AuthenticAMD", "GenuineIntel")


@pytest.fixture
def untouched() -> Iterator[None]:
    """As a process begins."""
    setting = torch.backends.mkldnn.matmul
    before = setting.fp32_precision
    setting.fp32_precision = "none"
    yield
    setting.fp32_precision = before


@pytest.mark.parametrize(
    ("description", "capability", "expected"),
    [
        (ZEN, "AVX512", True),
        (ZEN, "AVX2", False),
        (XEON, "AVX512", False),
        (ZEN.replace("avx512_bf16", "amx_tile"), "AVX512", False),
        ("", "AVX512", False),
    ],
)
def test_where_it_is_asked(description: str, capability: str, expected: bool) -> None:
    assert processor._half_used(description, capability) is expected


def test_small_models_stay_with_the_library_that_makes_no_kernels() -> None:
    assert pays(576, 30)
    assert pays(256, 4)
    assert not pays(64, 2)


@pytest.mark.usefixtures("untouched")
def test_within_and_afterwards(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processor, "_half_used", lambda *_: True)
    monkeypatch.setattr(processor, "_trials", lambda: iter(()))
    with multiplied_by_onednn():
        assert torch.backends.mkldnn.matmul.fp32_precision == "bf16"
    assert torch.backends.mkldnn.matmul.fp32_precision == "none"


def test_kernels_are_bounded_unless_somebody_has_said_how_many(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("LRU_CACHE_CAPACITY", raising=False)
    monkeypatch.setenv("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "7")
    bound_kernels()
    assert os.environ["LRU_CACHE_CAPACITY"] == "128"
    assert os.environ["ONEDNN_PRIMITIVE_CACHE_CAPACITY"] == "7"


@pytest.mark.usefixtures("untouched")
def test_only_models_that_gain_ask_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    monkeypatch.setattr(routes, "multiply_by_onednn", lambda: asked.append("asked"))
    assert supports_packing(tiny_model("llama", 3))
    assert asked == []
    monkeypatch.setattr(processor, "_LEAST", 1)
    assert supports_packing(tiny_model("llama", 4))
    assert asked == ["asked"]


@pytest.mark.usefixtures("untouched")
def test_whoever_has_set_it_decides(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processor, "_half_used", lambda *_: True)
    torch.backends.mkldnn.matmul.fp32_precision = "ieee"
    assert not multiply_by_onednn()
    assert torch.backends.mkldnn.matmul.fp32_precision == "ieee"


@pytest.mark.usefixtures("untouched")
def test_it_is_put_back_where_operands_are_rounded(monkeypatch: pytest.MonkeyPatch) -> None:
    trials = list(processor._trials())
    assert all(torch.equal(*trial) for trial in trials)
    # As a processor would that rounds: each of the four kinds of product differs.
    monkeypatch.setattr(processor, "_half_used", lambda *_: True)
    for number in range(4):
        rounded = [*trials[:number], (trials[number][0].bfloat16().float(), trials[number][1])]
        monkeypatch.setattr(processor, "_trials", lambda rounded=rounded: iter(rounded))
        assert not multiply_by_onednn()
        assert torch.backends.mkldnn.matmul.fp32_precision == "none"


def test_the_trial_would_notice_bfloat16() -> None:
    generator = torch.Generator().manual_seed(0)
    a = torch.randint(-processor._LARGEST, processor._LARGEST + 1, (8, 64), generator=generator)
    assert not torch.equal((a.bfloat16().float() @ a.T.bfloat16().float()), (a @ a.T).float())


@given(
    st.integers(1, 300), st.integers(1, 80), st.integers(1, 300), st.sampled_from(["mm", "nt", "tn", "bmm"])
)
def test_products_are_exact_in_every_shape(rows: int, inner: int, columns: int, kind: str) -> None:
    """Whichever library multiplies in this process: sums of at most 2 ** 24 have no rounding."""
    generator = torch.Generator().manual_seed(rows)

    def numbers(*shape: int) -> Tensor:
        return torch.randint(-450, 451, shape, generator=generator)

    a, b = numbers(rows, inner), numbers(inner, columns)
    x, y = a.float(), b.float()
    if kind == "nt":
        y = y.T.contiguous().T
    elif kind == "tn":
        x = x.T.contiguous().T
    with multiplied_by_onednn():
        got = torch.bmm(x.expand(2, -1, -1), y.expand(2, -1, -1))[1] if kind == "bmm" else x @ y
    assert torch.equal(got, (a @ b).float())
