"""The registered attention function: what it refuses, and masks that leave no query without a key."""

import pytest
import torch
from torch import nn
from transformers import AttentionInterface

from trueward.models.attention import KEYWORD, NAME, Segment, Unsupported, build_plan

# A short completion of a long prompt beside a long completion of a short one: padding reaches beyond all
# keys.
SEGMENTS = [Segment(0, 9, 0, 0), Segment(9, 2, 0, 9), Segment(11, 14, 0, 1), Segment(25, 3, 0, 4)]


@pytest.mark.parametrize(
    "asked", [{"softcap": 30.0}, {"s_aux": torch.zeros(2)}, {"position_bias": torch.zeros(1)}]
)
def test_arguments_that_change_attention_are_refused(asked: dict[str, object]) -> None:
    plan = build_plan(SEGMENTS, num_tokens=28, device="cpu")
    states = torch.zeros(1, 2, 28, 4)
    attend = AttentionInterface()[NAME]
    attend(nn.Module(), states, states, states, None, **{KEYWORD: plan})
    with pytest.raises(Unsupported, match=next(iter(asked))):
        attend(nn.Module(), states, states, states, None, **{KEYWORD: plan}, **asked)


@pytest.mark.parametrize("window", [None, 1, 3])
def test_every_query_sees_a_key_and_never_a_later_one(window: int | None) -> None:
    plan = build_plan(SEGMENTS, num_tokens=28, device="cpu")
    for number, bucket in enumerate(plan.buckets):
        mask = plan.mask(number, window, torch.float32)
        if mask is None:
            assert not bucket.shared
            assert window is None
            continue
        seen = (mask == 0).sum(-1)
        assert int(seen.min()) >= 1, "a query without keys is nan in some kernels"
        assert window is None or int(seen.max()) <= window
