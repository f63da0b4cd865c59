"""Blocks of keys and values: what they attend to, held to a float64 softmax over each row's own tokens."""

import pytest
import torch
from torch import Tensor

from trueward.rollouts.cache import Block, OwnRows, SharedRows, cut_lengths

KV_HEADS, SHARED, WIDTH = 2, 3, 4


@pytest.mark.parametrize(
    ("lengths", "slot_bytes", "sizes"),
    [
        ([5], 1, [1]),
        # Two prompts of 100 and one of 1: padding it costs 99 slots, 99 * 2600 = 257,400 < 2 ** 18 bytes.
        ([1, 100, 100], 2600, [3]),
        # One byte more a slot than 2 ** 18 / 99 = 2647.9 allows.
        ([1, 100, 100], 2648, [1, 2]),
        # 40 fits nobody; 3 and 4 differ by one slot, 2 ** 18 bytes: just free.
        ([3, 4, 40], 1 << 18, [2, 1]),
        # Not sorted: the longest of a block need not come last. Padding 3 * 6 - 13 = 5 slots.
        ([6, 1, 6], (1 << 18) // 5, [3]),
    ],
    ids=["one", "padded", "too wide", "the free slot", "unsorted"],
)
def test_blocks_are_cut_where_padding_costs_more(
    lengths: list[int], slot_bytes: int, sizes: list[int]
) -> None:
    assert cut_lengths(lengths, slot_bytes) == sizes


def plain(query_Hd: Tensor, keys_TKd: Tensor, values_TKd: Tensor, window: int | None) -> Tensor:
    """[H, d] of one query at the last position, head by head."""
    first = 0 if window is None else max(0, len(keys_TKd) - window)
    rows = []
    for head, query_d in enumerate(query_Hd.double()):
        keys_Td = keys_TKd[first:, head // SHARED].double()
        probs_T = torch.softmax(keys_Td @ query_d * 0.5, 0)
        rows.append(probs_T @ values_TKd[first:, head // SHARED].double())
    return torch.stack(rows)


@pytest.mark.parametrize("window", [None, 1, 5, 40], ids=lambda window: f"window {window}")
@pytest.mark.parametrize("prompt_R", [[0, 1, 2], [0, 0, 1, 1, 2, 2], [0, 1, 1, 1, 2, 2]], ids=str)
def test_blocks_attend_to_what_their_rows_have_seen(prompt_R: list[int], window: int | None) -> None:
    draw = torch.Generator().manual_seed(len(prompt_R))
    lengths = [3, 9, 1]
    lengths_P = torch.tensor(lengths)
    starts_P = lengths_P.cumsum(0) - lengths_P + 2

    def states(count: int, heads: int = KV_HEADS) -> Tensor:
        return torch.randn(count, heads, WIDTH, generator=draw)

    # Two layers, and tokens in the packed row that belong to nobody here.
    keys, values = [[states(2 + sum(lengths)) for _ in range(2)] for _ in range(2)]
    shared = len(prompt_R) > len(lengths)
    block: Block = (
        SharedRows(starts_P, lengths_P, torch.tensor(prompt_R)) if shared else OwnRows(starts_P, lengths_P)
    )
    for layer in range(2):
        block.store(keys[layer], values[layer])

    def own(states_LKd: Tensor, prompt: int) -> Tensor:
        return states_LKd[int(starts_P[prompt]) :][: lengths[prompt]]

    seen = [[[own(part[layer], p) for part in (keys, values)] for layer in range(2)] for p in prompt_R]
    live = list(range(len(prompt_R)))
    # More steps than room that is made at a time, and rows that leave before and after.
    for step in range(36):
        if step in (2, 34):
            rest = [0, *range(2, len(live))] if step == 2 else [len(live) - 1]
            block.keep(torch.tensor(rest))
            live = [live[row] for row in rest]
            assert block.num_rows == len(live)
        block.advance()
        for layer in range(2):
            query = states(len(live), KV_HEADS * SHARED)
            key, value = states(len(live)), states(len(live))
            got = block.attend(layer, torch.cat([query, key, value], 1), scaling=0.5, window=window)
            for slot, row in enumerate(live):
                for part, new in enumerate((key, value)):
                    seen[row][layer][part] = torch.cat([seen[row][layer][part], new[slot : slot + 1]])
                expected = plain(query[slot], *seen[row][layer], window)
                torch.testing.assert_close(got[slot].double(), expected, atol=1e-5, rtol=0)
