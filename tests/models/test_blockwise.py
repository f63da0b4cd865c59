"""Attention by blocks of queries, against sums over keys written out in float64."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from trueward.models import blockwise
from trueward.models.attention import Plan, Segment, build_plan
from trueward.models.blockwise import Reach, attend, takes


def oracle(q: Tensor, k: Tensor, v: Tensor, seen: Tensor, scale: float) -> Tensor:
    """[n, Q, H, d] in float64: each query alone, over the keys it sees ([n, Q, K])."""
    n, num_queries, num_heads, _ = q.shape
    shared = num_heads // k.shape[2]
    result = torch.empty(q.shape, dtype=torch.float64)
    for s in range(n):
        for i in range(num_queries):
            at = seen[s, i].nonzero().flatten()
            for h in range(num_heads):
                keys, values = k[s, at, h // shared].double(), v[s, at, h // shared].double()
                weights = torch.exp(scale * keys @ q[s, i, h].double())
                result[s, i, h] = weights @ values / weights.sum()
    return result


def inputs(
    n: int, num_queries: int, num_keys: int, dtype: torch.dtype, *, heads: int = 4, groups: int = 2
) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(n + num_queries + num_keys)
    made = (
        torch.randn(n, length, count, 6, dtype=torch.float64, generator=generator).to(dtype)
        for length, count in ((num_queries, heads), (num_keys, groups), (num_keys, groups))
    )
    q, k, v = made
    return q, k, v


def visible(prefixes: list[int], num_queries: int, num_keys: int, window: int | None = None) -> Tensor:
    distance = (
        torch.tensor(prefixes)[:, None, None] + torch.arange(num_queries)[:, None] - torch.arange(num_keys)
    )
    return (distance >= 0) & (distance < (window or num_keys + num_queries))


def as_mask(seen: Tensor, dtype: torch.dtype) -> Tensor:
    return torch.zeros(seen.shape, dtype=dtype).masked_fill_(~seen, -math.inf).unsqueeze(1)


def test_equal_scores_give_means_of_what_is_seen() -> None:
    # Queries of zeros weigh all keys alike: the second sees both of its own and the one before them.
    q = torch.zeros(1, 2, 1, 1)
    v = torch.tensor([1.0, 2.0, 6.0]).view(1, 3, 1, 1)
    result = attend(q, v, v, scale=1.0, reach=Reach(1, 1), mask=None)
    assert result.flatten().tolist() == [1.5, 3.0]


def test_one_score_weighs_by_its_exponential() -> None:
    # softmax(0.5 * [0, 2 ln 3]) = [1/4, 3/4]; values 0 and 4.
    q, k = torch.tensor([1.0]).view(1, 1, 1, 1), torch.tensor([0.0, 2 * math.log(3)]).view(1, 2, 1, 1)
    v = torch.tensor([0.0, 4.0]).view(1, 2, 1, 1)
    result = attend(q, k, v, scale=0.5, reach=Reach(1, 1), mask=None)
    assert float(result) == pytest.approx(3.0)


@pytest.mark.parametrize("block", [1, 5, 96])
@pytest.mark.parametrize("groups", [1, 2, 4])
@pytest.mark.parametrize("prefix", [0, 7])
def test_plain_causality(block: int, groups: int, prefix: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(blockwise, "_BLOCK", block)
    q, k, v = inputs(2, 13, 13 + prefix, torch.float64, groups=groups)
    got = attend(q, k, v, scale=0.7, reach=Reach(prefix, prefix), mask=None)
    expected = oracle(q, k, v, visible([prefix, prefix], 13, 13 + prefix), 0.7)
    torch.testing.assert_close(got, expected, atol=1e-12, rtol=0)


@pytest.mark.parametrize("block", [4, 96])
@pytest.mark.parametrize("window", [None, 3])
def test_segments_with_prefixes_of_their_own(
    block: int, window: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(blockwise, "_BLOCK", block)
    prefixes, num_queries = [2, 9, 5], 11
    q, k, v = inputs(3, num_queries, 20, torch.float64)
    seen = visible(prefixes, num_queries, 20, window)
    reach = Reach(2, 9) if window is None else Reach(-num_queries, 9)
    got = attend(q, k, v, scale=0.5, reach=reach, mask=as_mask(seen, torch.float64))
    torch.testing.assert_close(got, oracle(q, k, v, seen, 0.5), atol=1e-12, rtol=0)


@pytest.mark.parametrize("masked", [False, True])
def test_gradients(masked: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(blockwise, "_BLOCK", 2)
    q, k, v = (each.requires_grad_() for each in inputs(2, 5, 8, torch.float64))
    seen = visible([1, 3], 5, 8)
    reach, mask = (Reach(1, 3), as_mask(seen, torch.float64)) if masked else (Reach(3, 3), None)

    def run(*tensors: Tensor) -> Tensor:
        return attend(*tensors, scale=0.6, reach=reach, mask=mask)

    assert torch.autograd.gradcheck(run, (q, k, v))
    assert torch.autograd.gradcheck(run, (q, k, v[..., :3].detach().requires_grad_()))


def test_float32_and_bfloat16_are_near_the_oracle() -> None:
    for dtype, tolerance in ((torch.float32, 1e-5), (torch.bfloat16, 0.02)):
        q, k, v = inputs(2, 40, 60, dtype)
        got = attend(q, k, v, scale=0.5, reach=Reach(20, 20), mask=None)
        assert got.dtype == dtype
        expected = oracle(q, k, v, visible([20, 20], 40, 60), 0.5)
        torch.testing.assert_close(got.double(), expected, atol=tolerance, rtol=0)


def test_scores_in_bfloat16_are_not_rounded() -> None:
    # Two keys whose scores are 100 and 100.25, which bfloat16 does not tell apart: weights 0.44 and 0.56.
    q = torch.tensor([8.0, 0.25], dtype=torch.bfloat16).view(1, 1, 1, 2)
    k = torch.tensor([[12.5, 0.0], [12.5, 1.0]], dtype=torch.bfloat16).view(1, 2, 1, 2)
    v = torch.tensor([0.0, 1.0], dtype=torch.bfloat16).view(1, 2, 1, 1)
    got = attend(q, k, v, scale=1.0, reach=Reach(1, 1), mask=None)
    assert float(got) == pytest.approx(1 / (1 + math.exp(-0.25)), abs=2e-3)


def test_autocast_rounds_nothing() -> None:
    q, k, v = (each.requires_grad_() for each in inputs(1, 9, 9, torch.float32))

    def run() -> list[Tensor]:
        result = attend(q, k, v, scale=0.5, reach=Reach(0, 0), mask=None)
        return [result, *torch.autograd.grad(result.sum(), (q, k, v))]

    expected = run()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        got = run()
    assert all(torch.equal(a, b) for a, b in zip(got, expected, strict=True))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_query_does_not_feel_what_lies_beside_it(dtype: torch.dtype) -> None:
    q, k, v = inputs(1, 70, 90, dtype)
    alone = attend(q, k, v, scale=0.5, reach=Reach(20, 20), mask=None)
    more = [torch.cat([each, each[:, :50].flip(1)], 1).repeat(3, 1, 1, 1) for each in (q, k, v)]
    among = attend(more[0], more[1], more[2], scale=0.5, reach=Reach(20, 20), mask=None)
    assert torch.equal(among[:1, :70], alone)


def test_many_segments_make_small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    q, k, v = inputs(3, 50, 60, torch.float64)
    monkeypatch.setattr(blockwise, "_SCORES", 3 * 4 * 60 * 20)
    sizes: list[int] = []
    plain = blockwise._Work.probabilities

    def watched(work: Any, block: Any) -> Tensor:
        sizes.append(block.end - block.start)
        return plain(work, block)

    monkeypatch.setattr(blockwise._Work, "probabilities", watched)
    got = attend(q, k, v, scale=0.5, reach=Reach(10, 10), mask=None)
    assert sizes == [17, 17, 16]
    torch.testing.assert_close(got, oracle(q, k, v, visible([10] * 3, 50, 60), 0.5), atol=1e-12, rtol=0)


def test_only_queries_keys_and_values_are_kept() -> None:
    q, k, v = (each.requires_grad_() for each in inputs(1, 30, 30, torch.float32))
    kept: list[Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):  # type: ignore[func-returns-value]
        attend(q, k, v, scale=0.5, reach=Reach(0, 0), mask=None)
    assert {t.data_ptr() for t in kept} == {t.data_ptr() for t in (q, k, v)}


def test_dropout_and_other_precisions_are_left_to_torch() -> None:
    q = torch.zeros(1)
    assert takes(q, q, dropout=0.0)
    assert not takes(q, q, dropout=0.1)
    assert not takes(q, q.half(), dropout=0.0)
    assert not takes(q.to("meta"), q, dropout=0.0)


@pytest.mark.parametrize("window", [None, 4])
def test_both_ways_of_a_plan_agree(window: int | None, monkeypatch: pytest.MonkeyPatch) -> None:
    segments = [Segment(0, 9, 0, 0), Segment(9, 2, 0, 9), Segment(11, 14, 0, 1), Segment(25, 3, 0, 4)]
    plan = build_plan(segments, num_tokens=28, device="cpu")
    assert isinstance(plan, Plan)
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(1, heads, 28, 8, generator=generator).requires_grad_() for heads in (4, 2, 2))

    def run() -> list[Tensor]:
        result = plan.attend(torch.nn.Module(), q, k, v, scaling=None, dropout=0.0, window=window)
        return [result, *torch.autograd.grad(result.square().sum(), (q, k, v))]

    got = run()
    monkeypatch.setattr("trueward.models.attention.takes", lambda *_, **__: False)
    for one, other in zip(got, run(), strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-5)
