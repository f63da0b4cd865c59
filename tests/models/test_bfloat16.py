"""Products in bfloat16 without instructions for them: the right numbers, on every way a model is run."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from trueward.data.chat import Completion, TokenGroup
from trueward.models import bfloat16, exact_kl_N, pack, score_completions
from trueward.models.bfloat16 import bfloat16_products
from trueward.models.tiny import KINDS, Kind, tiny_model
from trueward.rollouts.local import LocalEngine
from trueward.trainers.accumulate import accumulate
from trueward.trainers.sft import SFTObjective

LOW = torch.bfloat16
GROUPS = [
    TokenGroup((3, 4, 5), (Completion((6, 7, 8), (True,) * 3), Completion((9, 10), (True,) * 2))),
    TokenGroup((11, 12), (Completion((13, 14, 15, 16), (True,) * 4),)),
]


class Products(TorchDispatchMode):
    """Which matrix products reach the processor's own kernels, by precision."""

    def __init__(self) -> None:
        super().__init__()
        self.dtypes: list[torch.dtype] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.overloadpacket.__name__ in ("mm", "addmm", "addmm_", "bmm", "baddbmm", "baddbmm_"):
            self.dtypes.append(args[0].dtype)
        return func(*args, **(kwargs or {}))


@pytest.fixture(params=[True, False], ids=["without instructions", "with instructions"])
def missing(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    monkeypatch.setattr(bfloat16, "lacks_instructions", lambda: request.param)
    return bool(request.param)


@pytest.fixture
def within(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(bfloat16, "lacks_instructions", lambda: True)
    with bfloat16_products(nn.Linear(2, 2, dtype=LOW)):
        yield


def low(*shape: int) -> Tensor:
    generator = torch.Generator().manual_seed(sum(shape))
    return torch.randn(*shape, generator=generator).to(LOW)


def assert_rounded_once(got: Tensor, exact: Tensor) -> None:
    """The neighbour of the exact number: half a step of 2 ** -8, and sums of float32 beside it."""
    assert got.dtype == LOW
    torch.testing.assert_close(got.double(), exact, rtol=2**-8, atol=1e-5)


# M, K, N with each of the three the longest; the block of 64 elements cuts all of them.
@pytest.mark.parametrize("shape", [(40, 7, 5), (5, 40, 7), (7, 5, 40), (1, 1, 1), (0, 3, 4), (3, 0, 4)])
@pytest.mark.parametrize("turned", [False, True])
@pytest.mark.usefixtures("within")
def test_a_product_is_rounded_once(
    shape: tuple[int, int, int], turned: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bfloat16, "_BLOCK_ELEMENTS", 64)
    rows, depth, columns = shape
    a_MK = low(depth, rows).T if turned else low(rows, depth)
    b_KN = low(columns, depth).T if turned else low(depth, columns)
    exact_MN = a_MK.double() @ b_KN.double()
    room_MN = torch.empty(rows, columns, dtype=LOW)
    assert_rounded_once(a_MK @ b_KN, exact_MN)
    assert torch.mm(a_MK, b_KN, out=room_MN) is room_MN
    assert_rounded_once(room_MN, exact_MN)
    bias_N = low(columns)
    assert_rounded_once(nn.functional.linear(a_MK, b_KN.T, bias_N), exact_MN + bias_N.double())


@pytest.mark.usefixtures("within")
def test_sums_and_batches_of_products_are_rounded_once() -> None:
    start, a, b = low(3, 4, 6), low(3, 4, 5), low(3, 5, 6)
    exact = a.double() @ b.double()
    assert_rounded_once(torch.bmm(a, b), exact)
    scaled = 0.5 * start.double() + 2 * exact
    assert_rounded_once(torch.baddbmm(start, a, b, beta=0.5, alpha=2), scaled)
    assert_rounded_once(start.clone().baddbmm_(a, b, beta=0.5, alpha=2), scaled)
    assert_rounded_once(torch.addmm(start[0], a[0], b[0], beta=0.5, alpha=2), scaled[0])
    assert_rounded_once(start[0].clone().addmm_(a[0], b[0], beta=0.5, alpha=2), scaled[0])


@pytest.mark.usefixtures("within")
def test_other_products_are_left_alone() -> None:
    a, b = low(3, 4), low(4, 5)
    for dtype in (torch.float32, torch.float64):
        assert (a.to(dtype) @ b.to(dtype)).dtype == dtype
    with pytest.raises(RuntimeError, match="dtype"):
        _ = a @ b.float()


def drawing(model: nn.Module) -> None:
    LocalEngine(model, [0]).generate(
        [[3, 4, 5], [6, 7]], num_completions=2, max_new_tokens=4, temperature=1.0, seed=0
    )


def scoring(model: nn.Module) -> None:
    score_completions(model, pack(GROUPS), entropy=True)
    exact_kl_N(model=model, ref_model=model, packed=pack(GROUPS))


def training(model: nn.Module) -> None:
    for parameter in model.parameters():
        parameter.grad = None
    got = accumulate(model, SFTObjective(), GROUPS, max_tokens=64, precision="bfloat16", seed=0)
    assert got.loss > 0


def adapters(model: nn.Module) -> nn.Module:
    return get_peft_model(model, LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM"))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("run", [drawing, scoring, training])
def test_no_product_of_a_model_is_in_bfloat16_without_instructions(
    kind: Kind, run: Callable[[nn.Module], None], missing: bool
) -> None:
    # A full model trains in float32 weights, under autocast.
    model = tiny_model(kind, 1).to(torch.float32 if run is training else LOW)
    run(model)
    with Products() as products:
        run(model)
    assert (LOW in products.dtypes) != missing
    assert products.dtypes


def test_adapters_on_weights_in_bfloat16(missing: bool) -> None:
    model = adapters(tiny_model("llama", 1).to(LOW))
    with Products() as products:
        training(model)
    assert (LOW in products.dtypes) != missing


def test_gradients_are_those_of_float32_up_to_rounding(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bfloat16, "lacks_instructions", lambda: True)
    gradients = {}
    for precision in ("float32", "bfloat16"):
        model = tiny_model("llama", 1)
        accumulate(model, SFTObjective(), GROUPS, max_tokens=64, precision=precision, seed=0)
        gradients[precision] = torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])
    apart = (gradients["bfloat16"] - gradients["float32"]).norm() / gradients["float32"].norm()
    # A few roundings of 2 ** -9 each, in five products one after the other.
    assert 0 < float(apart) < 0.02


@pytest.mark.parametrize("dtype", [torch.float32, LOW])
def test_what_needs_nothing_pays_nothing(dtype: torch.dtype, missing: bool) -> None:
    model = tiny_model("llama", 1).to(dtype)
    with bfloat16_products(model):
        modes = torch.utils._python_dispatch._get_current_dispatch_mode_stack()
        assert len(modes) == (1 if missing and dtype == LOW else 0)
        with bfloat16_products(model):
            assert torch.utils._python_dispatch._get_current_dispatch_mode_stack() == modes
    assert not torch.utils._python_dispatch._get_current_dispatch_mode_stack()


def test_it_is_said_once(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(bfloat16, "lacks_instructions", lambda: True)
    bfloat16._say_once.cache_clear()
    model = tiny_model("llama", 1).to(LOW)
    scoring(model)
    scoring(model)
    assert capsys.readouterr().err.count("has no bfloat16 products") == 1
