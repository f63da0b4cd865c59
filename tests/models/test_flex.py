"""Flex-attention over packed rows against the buckets and against transformers' padded forward.

On a CPU torch runs it densely (which proves what is seen) or compiled without gradients (which proves the
blocks)."""

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn.attention import flex_attention as torch_flex

from tests.models.rows import MIXED, plain_copy, plain_logps, random_groups
from trueward.models.attention import Segment, Unsupported, build_plan
from trueward.models.flex import BLOCK, FlexKernel, build_flex_plan, compile_kernel, num_blocks
from trueward.models.packing import Packed, pack
from trueward.models.scoring import run_backbone, score_completions, supports_packing
from trueward.models.tiny import KINDS, Kind, tiny_model

SHAPES = st.lists(
    st.tuples(st.integers(1, 90), st.lists(st.integers(1, 60), min_size=1, max_size=4)),
    min_size=1,
    max_size=5,
)
# The compiler looks at the gradient of whatever it is handed, and hides torch's warning from itself.
pytestmark = pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor")
WINDOWS = st.sampled_from([None, 1, 2, 7, 64, 400])


@pytest.fixture(scope="module")
def dense() -> Any:
    """flex-attention without a compiler, also for gradients: torch refuses those on a CPU at its door, not
    for want of a formula."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch_flex, "_validate_device", lambda query, key, value: None)
        yield compile_kernel("eager")


def seen_cells(packed: Packed, window: int | None) -> Tensor:
    """seen_LL, worked out token by token from the segments."""
    seen = torch.zeros(packed.num_tokens, packed.num_tokens, dtype=torch.bool)
    for s in packed.segments:
        keys = [*range(s.prefix_start, s.prefix_start + s.prefix_length), *range(s.start, s.start + s.length)]
        for place in range(s.length):
            position = s.prefix_length + place
            first = 0 if window is None else max(0, position - window + 1)
            seen[s.start + place, keys[first : position + 1]] = True
    return seen


def on(packed: Packed, kernel: FlexKernel) -> Any:
    return build_flex_plan(packed.segments, num_tokens=packed.num_tokens, device="cpu", kernel=kernel)


def listed_blocks(counts_11R: Tensor, columns_11RC: Tensor, size: int) -> Tensor:
    """The blocks that a mask lists row by row, as a table of bools."""
    table = torch.zeros(size, size, dtype=torch.bool)
    for row, count in enumerate(counts_11R[0, 0].tolist()):
        table[row, columns_11RC[0, 0, row, :count].long()] = True
    return table


@settings(max_examples=60, deadline=None)
@given(SHAPES, WINDOWS)
def test_the_mask_and_its_blocks_are_what_the_segments_say(shapes: Any, window: int | None) -> None:
    packed = pack(random_groups(0, shapes))
    mask = on(packed, torch_flex.flex_attention).mask(window)
    slots = mask.seq_lengths[0]
    steps = torch.arange(slots)
    zero = torch.zeros((), dtype=torch.int64)
    cells = mask.mask_mod(zero, zero, steps[:, None], steps[None, :])
    length = packed.num_tokens
    assert cells[:length, :length].equal(seen_cells(packed, window))
    # Padding sees itself, nothing sees padding.
    assert cells[length:].equal(torch.eye(slots, dtype=torch.bool)[length:])
    assert not cells[:length, length:].any()
    counts = cells.unflatten(0, (-1, BLOCK)).unflatten(2, (-1, BLOCK)).sum((1, 3))
    some = listed_blocks(mask.kv_num_blocks, mask.kv_indices, len(counts))
    whole = listed_blocks(mask.full_kv_num_blocks, mask.full_kv_indices, len(counts))
    assert (some | whole).equal(counts > 0)
    assert not (some & whole).any()
    assert not (whole & (counts < BLOCK * BLOCK)).any()


def test_blocks_that_are_seen_whole_are_told_from_the_others() -> None:
    row = [Segment(0, 5 * BLOCK, 0, 0), Segment(5 * BLOCK, 2 * BLOCK, 0, 3 * BLOCK)]
    mask = build_flex_plan(row, num_tokens=7 * BLOCK, device="cpu", kernel=torch_flex.flex_attention).mask(
        None
    )
    assert mask.full_kv_num_blocks[0, 0, :7].tolist() == [0, 1, 2, 3, 4, 3, 4]
    assert mask.kv_num_blocks[0, 0, :7].tolist() == [1] * 7


@pytest.mark.parametrize("tokens", [1, 127, 128, 129, 900, 1024, 5000, 70_000])
def test_rows_come_in_few_lengths(tokens: int) -> None:
    assert tokens <= num_blocks(tokens) * BLOCK <= max(8 * BLOCK, 1.25 * (tokens + BLOCK))
    assert len({num_blocks(n) for n in range(1, 128 * 64, 64)}) <= 7 + 4 * 4


def states(seed: int, length: int, heads: int, width: int) -> Tensor:
    rng = torch.Generator().manual_seed(seed)
    return torch.randn(1, length, heads, width, generator=rng).transpose(1, 2).requires_grad_()


@settings(max_examples=25, deadline=None)
@given(SHAPES, WINDOWS, st.sampled_from([(4, 4), (4, 2), (6, 1)]), st.sampled_from([None, 0.7]))
def test_both_ways_agree_forward_and_backward(
    dense: FlexKernel, shapes: Any, window: int | None, heads: tuple[int, int], scaling: float | None
) -> None:
    packed = pack(random_groups(0, shapes))
    inputs = [states(i, packed.num_tokens, heads[i > 0], 16) for i in range(3)]
    weights = torch.randn(1, packed.num_tokens, heads[0], 16, generator=torch.Generator().manual_seed(9))
    plans = (on(packed, dense), packed.attention("buckets"))
    results = []
    for plan in plans:
        out = plan.attend(nn.Module(), *inputs, scaling=scaling, dropout=0.0, window=window)
        results.append((out, *torch.autograd.grad((out * weights).sum(), inputs)))
    for got, expected in zip(*results, strict=True):
        # Float32 rounds by the size of what is summed: gradients of shared keys add those of many queries.
        scale = max(1.0, float(expected.detach().abs().max()))
        torch.testing.assert_close(got, expected, atol=1e-5 * scale, rtol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_log_probs_and_gradients_are_those_of_the_padded_forward(dense: FlexKernel, kind: Kind) -> None:
    model = tiny_model(kind, 3, width=64, scale=2.0)
    reference = plain_copy(model)
    groups = random_groups(1, [*MIXED, (70, (60, 33))])
    packed = pack(groups)
    assert supports_packing(model)
    hidden_LD = run_backbone(model, packed.input_ids_1L, packed.position_ids_1L, on(packed, dense))
    got_N = score_completions(model, packed, hidden_ND=hidden_LD[packed.predict_N]).logps_N
    expected_N = torch.cat(plain_logps(reference, groups))
    torch.testing.assert_close(got_N, expected_N, atol=1e-5, rtol=1e-5)
    got_N.sum().backward()
    expected_N.sum().backward()
    for got, expected in zip(model.parameters(), reference.parameters(), strict=True):
        scale = float(expected.grad.abs().max())
        torch.testing.assert_close(got.grad, expected.grad, atol=1e-4 * scale, rtol=1e-4)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:`torch.jit.script:DeprecationWarning")
def test_the_compiled_kernel_skips_no_block_that_is_seen() -> None:
    kernel = compile_kernel()
    for seed, window in ((0, None), (1, 7), (2, 100)):
        rng = np.random.default_rng(seed)
        shapes = [(int(rng.integers(1, 300)), [int(n) for n in rng.integers(1, 200, 3)]) for _ in range(2)]
        packed = pack(random_groups(seed, shapes))
        inputs = [states(i, packed.num_tokens, 4 if i == 0 else 2, 32).detach() for i in range(3)]
        asked = {"scaling": 0.3, "dropout": 0.0, "window": window}
        with torch.no_grad():
            got = on(packed, kernel).attend(nn.Module(), *inputs, **asked)
            expected = packed.attention("buckets").attend(nn.Module(), *inputs, **asked)
        torch.testing.assert_close(got, expected, atol=1e-5, rtol=1e-5)


def test_dropout_of_attention_weights_is_refused() -> None:
    packed = pack(random_groups(0, MIXED))
    with pytest.raises(Unsupported, match="dropout"):
        inputs = [states(i, packed.num_tokens, 4, 16) for i in range(3)]
        plan = on(packed, torch_flex.flex_attention)
        plan.attend(nn.Module(), *inputs, scaling=None, dropout=0.1, window=None)


def test_the_layout_of_a_row_is_made_once() -> None:
    packed = pack(random_groups(0, MIXED))
    assert packed.attention("buckets") is packed.attention("buckets")
    assert isinstance(
        packed.attention("buckets"), type(build_plan(packed.segments, num_tokens=9, device="cpu"))
    )
