"""Which library multiplies in float32, and that it multiplies in float32."""

from collections.abc import Iterator, Sequence
from types import ModuleType
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from tests.models.rows import MIXED, random_groups
from trueward.data.chat import TokenGroup
from trueward.models import processor, routes
from trueward.models.packing import pack
from trueward.models.processor import model_products, multiplied_by_onednn
from trueward.models.scoring import score_completions
from trueward.models.tiny import tiny_model
from trueward.rollouts import decoding
from trueward.rollouts.cache import SharedRows
from trueward.rollouts.local import LocalEngine
from trueward.trainers.accumulate import LossSum, accumulate

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


def test_small_models_stay_with_the_library_that_makes_no_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    assert not processor._pays(tiny_model("llama", 3))
    assert processor._pays(tiny_model("llama", 3, width=256, layers=4, heads=4))
    assert not processor._pays(nn.Linear(4096, 4096))
    assert not processor._pays(tiny_model("llama", 3, width=256, layers=4, heads=4).to("meta"))


def _setting() -> str:
    return str(torch.backends.mkldnn.matmul.fp32_precision)


@pytest.mark.usefixtures("untouched")
def test_it_follows_from_the_model_and_not_from_what_ran_before(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processor, "_usable", lambda: True)
    small, large = tiny_model("llama", 3), tiny_model("llama", 3, width=256, layers=4, heads=4)
    with model_products(large):
        assert _setting() == "bf16"
        with model_products(small):
            assert _setting() == "none"
        assert _setting() == "bf16"
    assert _setting() == "none"
    with model_products(small), model_products(large):
        assert _setting() == "bf16"


class Watched:
    """Log-probs as a loss; the setting in the backward is noted."""

    name, settings = "watched", {}  # type: ignore[var-annotated]

    def __init__(self, seen: list[str]) -> None:
        self._seen = seen

    def describe(self, item: TokenGroup) -> dict[str, object]:
        return {}

    def count(self, items: Sequence[TokenGroup]) -> float:
        return len(items)

    def micro_batches(self, items: Sequence[TokenGroup], max_tokens: int) -> list[list[TokenGroup]]:
        return [list(items)]

    def loss(self, model: nn.Module, items: Sequence[TokenGroup]) -> LossSum:
        total = -score_completions(model, pack(items)).logps_N.sum()
        total.register_hook(lambda grad: self._seen.append(f"backward: {_setting()}"))
        return LossSum(total, len(items))


def _watch(monkeypatch: pytest.MonkeyPatch, owner: ModuleType | type, name: str) -> list[str]:
    """The setting at each call of a function, on a processor whose models are all large enough for it."""
    monkeypatch.setattr(processor, "_usable", lambda: True)
    monkeypatch.setattr(processor, "_LEAST", 1)
    seen: list[str] = []
    plain = getattr(owner, name)

    def watched(*args: Any, **kwargs: Any) -> Tensor:
        seen.append(_setting())
        return plain(*args, **kwargs)  # type: ignore[no-any-return]

    monkeypatch.setattr(owner, name, watched)
    return seen


@pytest.mark.usefixtures("untouched")
def test_scoring_training_steps_and_drawing_are_within_it(monkeypatch: pytest.MonkeyPatch) -> None:
    model, groups = tiny_model("llama", 3), random_groups(1, MIXED)
    seen = _watch(monkeypatch, routes, "run_backbone")
    score_completions(model, pack(groups))
    accumulate(model, Watched(seen), groups, max_tokens=100, precision="float32", seed=0)
    scored = len(seen)
    LocalEngine(model, [0]).generate([[3, 4]], num_completions=2, max_new_tokens=3, temperature=1.0, seed=0)
    assert len(seen) > scored
    assert set(seen) == {"bf16", "backward: bf16"}
    assert _setting() == "none"


@pytest.mark.usefixtures("untouched")
def test_in_steps_of_drawing_mkl_multiplies_by_keys_and_not_by_weights(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    by_keys, by_weights = (
        _watch(monkeypatch, SharedRows, "attend"),
        _watch(monkeypatch, decoding, "lean_step"),
    )
    engine = LocalEngine(tiny_model("llama", 3), [0])
    engine.generate([[3, 4]], num_completions=2, max_new_tokens=3, temperature=1.0, seed=0)
    assert set(by_keys) == {"none"}
    assert set(by_weights) == {"bf16"}
    torch.backends.mkldnn.matmul.fp32_precision = "ieee"
    by_keys.clear()
    engine.generate([[3, 4]], num_completions=2, max_new_tokens=3, temperature=1.0, seed=0)
    assert set(by_keys) == {"ieee"}


@pytest.mark.usefixtures("untouched")
def test_it_is_tried_outside_of_autocast(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processor, "_half_used", lambda *_: True)
    trials = processor._trials
    monkeypatch.setattr(processor, "_ASKED", "none")
    with torch.autocast("cpu", torch.bfloat16):
        assert not all(torch.equal(*trial) for trial in trials())
        assert processor._usable.__wrapped__()


@pytest.mark.usefixtures("untouched")
def test_whoever_has_set_it_decides(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processor, "_usable", lambda: True)
    torch.backends.mkldnn.matmul.fp32_precision = "ieee"
    with multiplied_by_onednn():
        assert _setting() == "ieee"
    assert _setting() == "ieee"


@pytest.mark.usefixtures("untouched")
def test_it_is_not_used_where_operands_are_rounded(monkeypatch: pytest.MonkeyPatch) -> None:
    trials = list(processor._trials())
    assert all(torch.equal(*trial) for trial in trials)
    monkeypatch.setattr(processor, "_half_used", lambda *_: True)
    usable = processor._usable.__wrapped__
    # As a processor would that rounds: each of the four kinds of product differs.
    for number in range(4):
        rounded = [*trials[:number], (trials[number][0].bfloat16().float(), trials[number][1])]
        monkeypatch.setattr(processor, "_trials", lambda rounded=rounded: iter(rounded))
        assert not usable()
    monkeypatch.setattr(processor, "_trials", lambda: iter(trials))
    assert usable()
    assert _setting() == "none"


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
