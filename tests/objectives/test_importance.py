"""Weights for another sampler's completions: truncated and masked, per token and per sequence."""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.oracles import importance as oracle
from trueward.objectives import ImportanceWeights, masked_importance, truncated_importance

LENGTHS = [6, 2, 4, 1]
MASK = torch.arange(6) < torch.tensor(LENGTHS).unsqueeze(1)
Weights = Callable[..., ImportanceWeights]
BOTH = pytest.mark.parametrize(
    ("function", "arguments", "expected"),
    [
        (truncated_importance, {"cap": 1.2}, lambda ratio: oracle.truncated(ratio, 1.2)),
        (masked_importance, {"low": 0.7, "high": 1.4}, lambda ratio: oracle.masked(ratio, 0.7, 1.4)),
    ],
    ids=["truncated", "masked"],
)


def batch() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    sampler = -1 - torch.rand(4, 6, generator=generator, dtype=torch.float64)
    return sampler + 0.3 * torch.randn(4, 6, generator=generator, dtype=torch.float64), sampler


def test_hand_value() -> None:
    # Ratios 3 and 1/2. Cap 2: 2 and 1/2. Mask [0.8, 2]: both outside. Their product 1.5 is inside either.
    trainer = torch.tensor([[3.0, 0.5]], dtype=torch.float64).log()
    sampler = torch.zeros_like(trainer)
    token = truncated_importance(trainer, sampler, cap=2.0, level="token")
    torch.testing.assert_close(token.weights_BT.tolist(), [[2.0, 0.5]])
    torch.testing.assert_close(token.ratio_BT.tolist(), [[3.0, 0.5]])
    assert token.corrected_BT.tolist() == [[True, False]]
    masked = masked_importance(trainer, sampler, low=0.8, high=2.0, level="token")
    assert masked.weights_BT.tolist() == [[0.0, 0.0]] and masked.corrected_BT.all()
    for whole in (
        truncated_importance(trainer, sampler, cap=2.0, level="sequence"),
        masked_importance(trainer, sampler, low=0.8, high=2.0, level="sequence"),
    ):
        torch.testing.assert_close(whole.weights_BT.tolist(), [[1.5, 1.5]])
        assert not whole.corrected_BT.any()


@pytest.mark.parametrize("level", ["token", "sequence"])
@BOTH
def test_oracle(function: Weights, arguments: dict[str, Any], expected: Any, level: str) -> None:
    trainer, sampler = batch()
    result = function(trainer, sampler, mask_BT=MASK, level=level, **arguments)
    for b, length in enumerate(LENGTHS):
        ratios = oracle.ratios(trainer[b, :length].tolist(), sampler[b, :length].tolist(), level)
        torch.testing.assert_close(result.ratio_BT[b, :length].tolist(), ratios)
        wanted = [expected(ratio) for ratio in ratios]
        torch.testing.assert_close(result.weights_BT[b, :length].tolist(), wanted)
        differs = [weight != ratio for weight, ratio in zip(wanted, ratios, strict=True)]
        assert result.corrected_BT[b, :length].tolist() == differs
    assert (result.weights_BT[~MASK] == 0).all() and (result.ratio_BT[~MASK] == 1).all()
    assert not result.corrected_BT[~MASK].any()


@pytest.mark.parametrize("level", ["token", "sequence"])
@BOTH
def test_garbage_padding_permutation_and_no_mask(
    function: Weights, arguments: dict[str, Any], expected: Any, level: str
) -> None:
    trainer, sampler = batch()
    clean = function(trainer, sampler, mask_BT=MASK, level=level, **arguments)
    dirty = function(
        torch.where(MASK, trainer, math.nan),
        torch.where(MASK, sampler, -math.inf),
        mask_BT=MASK,
        level=level,
        **arguments,
    )
    order = torch.tensor([2, 0, 3, 1])
    moved = function(trainer[order], sampler[order], mask_BT=MASK[order], level=level, **arguments)
    alone = function(trainer[1:2, :2], sampler[1:2, :2], level=level, **arguments)
    for field in range(3):
        assert torch.equal(dirty[field], clean[field])
        assert torch.equal(moved[field], clean[field][order])
        assert torch.equal(alone[field], clean[field][1:2, :2])


def test_equal_programs_need_no_correction() -> None:
    logps, _ = batch()
    for level in ("token", "sequence"):
        result = truncated_importance(logps, logps, mask_BT=MASK, cap=1.0, level=level)
        assert torch.equal(result.weights_BT, MASK.double()) and not result.corrected_BT.any()


def test_extremes() -> None:
    zeros = torch.zeros(1, 2)
    far = torch.tensor([[-1e4, 1e4]])
    truncated = truncated_importance(zeros, far, cap=2.0, level="token")
    assert truncated.weights_BT.tolist() == [[2.0, 0.0]]
    masked = masked_importance(zeros, far, low=0.5, high=2.0, level="token")
    assert masked.weights_BT.tolist() == [[0.0, 0.0]]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"level": "word"}, "level must be 'token' or 'sequence', got 'word'"),
        ({"cap": 0.0}, r"cap must be finite and in \(0, inf\], got 0.0"),
        ({"sampler_logps_BT": torch.full((1, 2), -math.inf)}, "sampler_logps_BT must be finite"),
        ({"trainer_logps_BT": torch.full((1, 2), math.nan)}, "trainer_logps_BT must be finite"),
        ({"trainer_logps_BT": torch.zeros(1, 2, requires_grad=True)}, "trainer_logps_BT must not require"),
        ({"sampler_logps_BT": torch.zeros(1, 1)}, "sampler_logps_BT must have the shape of trainer_logps_BT"),
    ],
    ids=["level", "cap", "sampler", "trainer", "gradient", "shape"],
)
def test_wrong_input_raises(change: dict[str, Any], message: str) -> None:
    arguments = {"trainer_logps_BT": torch.zeros(1, 2), "sampler_logps_BT": torch.zeros(1, 2)}
    with pytest.raises(ValueError, match=message):
        truncated_importance(**{**arguments, "cap": 2.0, "level": "token", **change})


def test_wrong_range_raises() -> None:
    for low, high in ((1.5, 2.0), (0.5, 0.9)):
        with pytest.raises(ValueError, match="must be finite and in"):
            masked_importance(torch.zeros(1, 1), torch.zeros(1, 1), low=low, high=high, level="token")
