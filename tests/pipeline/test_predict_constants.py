"""Bounds of the engine that the plan counts with: one changed in the engine alone would make the plan lie."""

import pytest

from trueward.models import head
from trueward.pipeline import predict_memory
from trueward.rollouts import cache, local


@pytest.mark.parametrize(
    ("module", "name"),
    [
        (head, "_CHUNK_ELEMENTS"),
        (head, "_CHUNK_BYTES_GPU"),
        (local, "_KV_BYTES"),
        (local, "_KV_SHARE_GPU"),
        (local, "_LOGITS_ELEMENTS"),
        (local, "_LOGITS_ELEMENTS_GPU"),
        (local, "_LAY_STEPS"),
        (cache, "_ROOM"),
    ],
    ids=lambda value: value if isinstance(value, str) else value.__name__.rpartition(".")[2],
)
def test_the_plan_counts_with_the_engines_own_bounds(module: object, name: str) -> None:
    assert getattr(predict_memory, name) == getattr(module, name)


def test_what_the_head_keeps_lies_where_its_chunk_lay() -> None:
    assert head._KEPT_ELEMENTS == head._CHUNK_ELEMENTS
