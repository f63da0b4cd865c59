"""Rows: what stands where, cut points, tables, and what is refused."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.models.rows import MIXED, random_groups
from trueward.core.errors import DataError
from trueward.data.chat import Completion, TokenGroup
from trueward.models.attention import Plan, Segment, build_plan
from trueward.models.flex import FlexPlan
from trueward.models.packing import (
    Packed,
    batches_by_tokens,
    completion_mask,
    count_tokens,
    pack,
    unflatten,
)


def test_a_row_by_hand() -> None:
    group = TokenGroup((10, 11), (Completion((20, 21), (True, False)), Completion((30,), (True,))))
    packed = pack([group, TokenGroup((12,), (Completion((40,), (True,)),))])
    assert packed.input_ids_1L.tolist() == [[10, 11, 20, 21, 30, 12, 40]]
    assert packed.position_ids_1L.tolist() == [[0, 1, 2, 3, 2, 0, 1]]
    assert packed.labels_N.tolist() == [20, 21, 30, 40]
    # The first token of every completion is predicted by the last token of its prompt.
    assert packed.predict_N.tolist() == [1, 2, 1, 5]
    assert packed.position_N.tolist() == [2, 3, 4, 6]
    assert packed.sequence_N.tolist() == [0, 0, 1, 2]
    assert packed.last_S.tolist() == [3, 4, 6]
    assert packed.lengths_S.tolist() == [2, 1, 1]
    assert (packed.num_sequences, packed.num_tokens, packed.longest) == (3, 7, 4)
    assert completion_mask(packed).tolist() == [[True, False], [True, False], [True, False]]
    values = torch.tensor([1.0, 2.0, 3.0, 4.0], requires_grad=True)
    table = unflatten(values, packed)
    assert table.tolist() == [[1.0, 2.0], [3.0, 0.0], [4.0, 0.0]]
    table.sum().backward()
    assert values.grad.tolist() == [1.0] * 4


def test_rows_are_cut_by_tokens_in_order() -> None:
    groups = random_groups(0, [(2, (2,)), (2, (1, 1)), (4, (4,)), (1, (1,))])
    assert batches_by_tokens(groups, 8) == [[0, 1], [2], [3]]
    assert batches_by_tokens(groups, 9) == [[0, 1], [2], [3]] or count_tokens(groups[2]) == 8
    assert batches_by_tokens([], 8) == []
    with pytest.raises(DataError, match="more tokens than fit"):
        batches_by_tokens(groups, 7)


@pytest.mark.parametrize(
    ("group", "message"),
    [
        (TokenGroup((), (Completion((1,), (True,)),)), "no prompt"),
        (TokenGroup((1,), ()), "no completion"),
        (TokenGroup((1,), (Completion((), ()),)), "without tokens"),
        (TokenGroup((1,), (Completion((1, 2), (True,)),)), "trained flags"),
    ],
    ids=["prompt", "completions", "empty", "flags"],
)
def test_what_cannot_be_packed_is_refused(group: TokenGroup, message: str) -> None:
    with pytest.raises(DataError, match=message):
        pack([group])
    with pytest.raises(DataError, match="no groups"):
        pack([])


def test_a_table_needs_one_value_a_token() -> None:
    with pytest.raises(ValueError, match="must have shape"):
        unflatten(torch.zeros(3), pack(random_groups(0, MIXED)))


@settings(max_examples=50, deadline=None)
@given(
    st.lists(
        st.tuples(st.integers(1, 40), st.lists(st.integers(1, 40), min_size=1, max_size=5)),
        min_size=1,
        max_size=12,
    )
)
def test_every_token_has_one_home(shapes: list[tuple[int, list[int]]]) -> None:
    packed = pack(random_groups(0, shapes))
    plan = build_plan(packed.segments, num_tokens=packed.num_tokens, device="cpu")
    everyone = list(range(packed.num_tokens))
    assert plan.query_tokens[plan.query_home].tolist() == everyone
    assert plan.key_tokens[plan.key_home].tolist() == everyone
    assert plan.key_tokens[plan.extra_slots].equal(plan.extra_tokens)
    pads = set(plan.query_pads.tolist())
    assert sorted({*plan.query_home.tolist(), *pads}) == list(range(len(plan.query_tokens)))
    assert not pads & set(plan.query_home.tolist())


def test_one_segment_needs_no_gathering() -> None:
    assert build_plan([Segment(0, 9, 0, 0)], num_tokens=9, device="cpu").identity


def test_a_row_lives_on_its_device() -> None:
    # No memory and no arithmetic there: anything left on the CPU, or read from the device, would raise.
    packed = pack(random_groups(0, MIXED), "meta")
    buckets, flex = packed.attention("buckets"), packed.attention("flex")
    assert isinstance(buckets, Plan)
    assert isinstance(flex, FlexPlan)
    tables = [getattr(packed, name) for name in Packed.__slots__]
    tables += [getattr(buckets, name) for name in Plan.__slots__]
    tables += [flex.mask(3).kv_indices, flex.mask(3).full_q_indices]
    found = [table.device.type for table in tables if isinstance(table, torch.Tensor)]
    assert len(found) > 15
    assert set(found) == {"meta"}
    assert unflatten(torch.zeros(len(packed.labels_N), device="meta"), packed).device.type == "meta"
