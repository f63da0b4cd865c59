"""What autograd keeps, predicted from shapes, against the tensors that it really saves."""

from contextlib import nullcontext

import pytest
import torch
from torch import Tensor

from trueward.data.chat import Completion, TokenGroup
from trueward.models import activations, blockwise
from trueward.models.attention import Plan
from trueward.models.lora import LoraSettings, apply_lora
from trueward.models.packing import Packed, pack
from trueward.models.scoring import score_completions, supports_packing
from trueward.models.tiny import KINDS, Kind, tiny_model
from trueward.pipeline import predict_activations
from trueward.pipeline.predict_activations import (
    Arithmetic,
    Row,
    cast_weights,
    kept_per_layer,
    kept_rest,
    spared_last,
)
from trueward.pipeline.predict_shape import shape_of

FULL = Arithmetic(weight_bytes=4, autocast=False, lora=0)
AUTOCAST = Arithmetic(weight_bytes=4, autocast=True, lora=0)
LORA = Arithmetic(weight_bytes=4, autocast=False, lora=8)
HALF_LORA = Arithmetic(weight_bytes=2, autocast=True, lora=8)
HOWS = {"full": FULL, "autocast": AUTOCAST, "lora": LORA, "half-lora": HALF_LORA}


def packed_row(num_groups: int = 6) -> Packed:
    groups = []
    for number in range(num_groups):
        lengths = (10 + 3 * number % 17, 12 + 5 * number % 13)
        prompt = tuple(3 + (7 * i + number) % 200 for i in range(20 + 4 * number))
        answers = tuple(Completion(tuple(3 + (11 * i) % 200 for i in range(n)), (True,) * n) for n in lengths)
        groups.append(TokenGroup(prompt, answers))
    return pack(groups)


def row_of(packed: Packed) -> Row:
    """The layout as it is: only the count of bytes is predicted here."""
    plan = packed.attention("buckets")
    assert isinstance(plan, Plan)
    queries = sum(b.num_segments * b.num_queries for b in plan.buckets)
    keys = sum(b.num_segments * b.num_keys for b in plan.buckets)
    mask = sum(mask.numel() for mask in plan.masks.values())
    read = len(packed.predict_N.unique())
    return Row(packed.num_tokens, queries, keys, len(packed.labels_N), mask, read)


def saved_bytes(kind: Kind, how: Arithmetic) -> tuple[int, float]:
    """Bytes that autograd saved of one forward, parameters left out, and those that are predicted."""
    model = tiny_model(kind, width=64, layers=3, heads=4, kv_heads=2)
    model.to(torch.float32 if how.weight_bytes == 4 else torch.bfloat16)
    assert supports_packing(model)
    shape = shape_of(model.config.to_dict())
    trained = model if how.full else apply_lora(model, LoraSettings(r=how.lora), seed=0)
    trained.train()
    packed = packed_row()
    own = {parameter.untyped_storage().data_ptr() for parameter in trained.parameters()}
    kept: dict[int, Tensor] = {}

    def keep(tensor: Tensor) -> Tensor:
        # Views share a storage; holding the tensor keeps its address from being used again.
        kept.setdefault(tensor.untyped_storage().data_ptr(), tensor)
        return tensor

    scope = torch.autocast("cpu", dtype=torch.bfloat16) if how.autocast else nullcontext()
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor), scope:
        score_completions(trained, packed)
    row = row_of(packed)
    layers = shape.num_layers * kept_per_layer(shape, how, row) - spared_last(shape, how, row)
    predicted = layers + kept_rest(shape, how, row)
    found = sum(t.untyped_storage().nbytes() for at, t in kept.items() if at not in own)
    return found, predicted + cast_weights(shape, how, row)


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")
@pytest.mark.parametrize("least", [0, 1 << 60], ids=["computed again", "kept"])
@pytest.mark.parametrize("how", HOWS.values(), ids=HOWS.keys())
@pytest.mark.parametrize("kind", KINDS)
def test_kept_bytes_are_those_autograd_saves(
    kind: Kind, how: Arithmetic, least: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(activations, "_LEAST_ELEMENTS", least)
    monkeypatch.setattr(predict_activations, "LEAST_ELEMENTS", least)
    found, predicted = saved_bytes(kind, how)
    # Not counted: that the first layer's input needs no gradient under adapters, a few index tensors.
    assert predicted == pytest.approx(found, rel=0.05)


@pytest.mark.parametrize("kind", KINDS)
def test_parameters_are_counted_from_the_configuration(kind: Kind) -> None:
    model = tiny_model(kind, width=32, layers=2)
    shape = shape_of(model.config.to_dict())
    assert shape.num_parameters == model.num_parameters()
    adapted = apply_lora(model, LoraSettings(r=4), seed=0)
    assert shape.adapter_parameters(4) == sum(p.numel() for p in adapted.parameters() if p.requires_grad)


def test_constants_are_those_of_the_engine() -> None:
    assert predict_activations.LEAST_ELEMENTS == activations._LEAST_ELEMENTS
    assert predict_activations.BLOCK_QUERIES == blockwise._BLOCK
    assert predict_activations.BLOCK_SCORES == blockwise._SCORES
