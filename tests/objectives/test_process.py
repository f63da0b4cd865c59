"""Process and outcome reward models: labels on step ends, three classes, aggregation of steps."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.oracles import process as oracle
from trueward.objectives import (
    STEP_AGGREGATIONS,
    STEP_CLASSES,
    min_of_steps,
    outcome,
    product_of_steps,
    step_binary,
    step_classes,
    token_mean,
)

ENDS = torch.tensor([[False, True, False, True, True], [True, False, False, False, False]])


def scores(seed: int = 0, classes: int = 0) -> Tensor:
    shape = (2, 5, classes) if classes else (2, 5)
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


LABELS = torch.tensor([[9.0, 1.0, 9.0, 0.0, 0.25], [1.0, 9.0, 9.0, 9.0, 9.0]], dtype=torch.float64)
CLASSES = torch.tensor([[9, 2, 9, 0, 1], [2, 9, 9, 9, 9]])


def test_hand_values() -> None:
    # z = log 3: p = 3/4. Right: log(4/3). Wrong: log 4. A rollout share of 1/2: their mean.
    logits = torch.full((1, 3), math.log(3), dtype=torch.float64)
    labels = torch.tensor([[1.0, 0.0, 0.5]], dtype=torch.float64)
    result = step_binary(logits, labels, torch.ones(1, 3, dtype=torch.bool))
    expected = [math.log(4 / 3), math.log(4), (math.log(4 / 3) + math.log(4)) / 2]
    torch.testing.assert_close(result.loss_BT.tolist(), [expected])
    torch.testing.assert_close(result.correct_logps_BT.exp().tolist(), [[0.75] * 3])
    # Logits log 1, log 2, log 5 are probabilities 1/8, 2/8, 5/8.
    three = torch.tensor([[[1.0, 2.0, 5.0]] * 3], dtype=torch.float64).log()
    ends = torch.ones(1, 3, dtype=torch.bool)
    found = step_classes(three, torch.tensor([[0, 1, 2]]), ends, neutral_is_correct=True)
    torch.testing.assert_close(found.loss_BT.tolist(), [[math.log(8), math.log(4), math.log(8 / 5)]])
    torch.testing.assert_close(found.correct_logps_BT.exp().tolist(), [[7 / 8] * 3])
    strict = step_classes(three, torch.tensor([[0, 1, 2]]), ends, neutral_is_correct=False)
    torch.testing.assert_close(strict.correct_logps_BT.exp().tolist(), [[5 / 8] * 3])
    assert STEP_CLASSES == ("negative", "neutral", "positive")


def test_oracles() -> None:
    logits, three = scores(), scores(1, 3)
    binary = step_binary(logits, LABELS, ENDS)
    classes = step_classes(three, CLASSES, ENDS, neutral_is_correct=True)
    for b, t in ENDS.nonzero().tolist():
        assert binary.loss_BT[b, t].item() == pytest.approx(
            oracle.binary(float(logits[b, t]), float(LABELS[b, t]))
        )
        assert classes.loss_BT[b, t].item() == pytest.approx(
            oracle.classes(three[b, t].tolist(), int(CLASSES[b, t]))
        )
        assert classes.correct_logps_BT[b, t].exp().item() == pytest.approx(
            oracle.correct(three[b, t].tolist(), True)
        )
    for result in (binary, classes):
        assert (result.loss_BT[~ENDS] == 0).all() and (result.correct_logps_BT[~ENDS] == 0).all()


@pytest.mark.parametrize("garbage", [math.nan, math.inf], ids=str)
def test_only_step_ends_count(garbage: float) -> None:
    logits = torch.where(ENDS, scores(), garbage).requires_grad_()
    result = step_binary(logits, torch.where(ENDS, LABELS, garbage), ENDS)
    assert torch.equal(result.loss_BT, step_binary(scores(), LABELS, ENDS).loss_BT)
    (gradient,) = torch.autograd.grad(result.loss_BT.sum(), logits)
    assert torch.isfinite(gradient).all() and (gradient[~ENDS] == 0).all() and (gradient[ENDS] != 0).all()
    three = torch.where(ENDS.unsqueeze(2), scores(1, 3), garbage).requires_grad_()
    classes = step_classes(three, CLASSES, ENDS, neutral_is_correct=True)
    (gradient,) = torch.autograd.grad(classes.loss_BT.sum(), three)
    assert torch.isfinite(gradient).all() and (gradient[~ENDS] == 0).all()
    assert not classes.correct_logps_BT.requires_grad and not result.correct_logps_BT.requires_grad


def test_gradcheck() -> None:
    live, three = scores().requires_grad_(), scores(1, 3).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: step_binary(x, LABELS, ENDS).loss_BT, (live,))
    assert torch.autograd.gradcheck(
        lambda x: step_classes(x, CLASSES, ENDS, neutral_is_correct=True).loss_BT, (three,)
    )
    labels = torch.tensor([0.0, 0.3, 1.0], dtype=torch.float64)
    assert torch.autograd.gradcheck(
        lambda x: outcome(x, labels).loss_B, (live[0, :3].detach().requires_grad_(),)
    )


def test_extremes_are_finite_and_wrong_certainty_is_dear() -> None:
    logits = torch.tensor([1e4, -1e4, 1e4, -1e4], requires_grad=True)
    result = outcome(logits, torch.tensor([1.0, 0.0, 0.0, 1.0]))
    assert result.loss_B.tolist() == [0.0, 0.0, 1e4, 1e4]
    assert torch.autograd.grad(result.loss_B.sum(), logits)[0].tolist() == [0.0, 0.0, 1.0, -1.0]
    assert outcome(torch.tensor([math.inf]), torch.tensor([1.0])).loss_B.item() == 0.0


def test_outcome_is_the_oracle() -> None:
    logits, labels = scores()[0], torch.tensor([1.0, 0.0, 0.5, 0.1, 1.0], dtype=torch.float64)
    expected = [oracle.binary(z, y) for z, y in zip(logits.tolist(), labels.tolist(), strict=True)]
    torch.testing.assert_close(outcome(logits, labels).loss_B.tolist(), expected)


def test_permutation_and_split() -> None:
    logits = scores()
    whole = step_binary(logits, LABELS, ENDS).loss_BT
    parts = [step_binary(logits[b : b + 1], LABELS[b : b + 1], ENDS[b : b + 1]).loss_BT for b in (1, 0)]
    assert torch.equal(torch.cat(parts), whole.flip(0))
    shares = [token_mean(part, ENDS[b : b + 1], denominator=4) for part, b in zip(parts, (1, 0), strict=True)]
    torch.testing.assert_close(torch.stack(shares).sum(), token_mean(whole, ENDS, denominator=4))


def test_aggregation() -> None:
    # Steps right with 1/2, 1/4, 1 and with 1/8: products 1/8 and 1/8, minima 1/4 and 1/8.
    steps = torch.tensor([[9.0, 0.5, 9.0, 0.25, 1.0], [0.125, 9.0, 9.0, 9.0, 9.0]], dtype=torch.float64).log()
    torch.testing.assert_close(product_of_steps(steps, ENDS).exp().tolist(), [1 / 8, 1 / 8])
    torch.testing.assert_close(min_of_steps(steps, ENDS).exp().tolist(), [1 / 4, 1 / 8])
    assert dict(STEP_AGGREGATIONS) == {"min": min_of_steps, "product": product_of_steps}
    # An impossible step makes the completion impossible, as it is.
    assert product_of_steps(torch.tensor([[-math.inf]]), torch.tensor([[True]])).item() == -math.inf


@pytest.mark.parametrize("name", list(STEP_AGGREGATIONS))
def test_aggregation_wrong_input_raises(name: str) -> None:
    function = STEP_AGGREGATIONS[name]
    with pytest.raises(ValueError, match="every row of ends_BT needs a step to score, row 1 has none"):
        function(-torch.ones(2, 2), torch.tensor([[True, False], [False, False]]))
    for value in (0.5, math.nan):
        with pytest.raises(ValueError, match="correct_logps_BT must be log-probabilities <= 0"):
            function(torch.full((1, 1), value), torch.tensor([[True]]))


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"labels_BT": torch.full((2, 5), 1.5)}, ValueError, r"labels_BT must be finite and in \[0, 1\]"),
        ({"labels_BT": torch.full((2, 5), math.nan)}, ValueError, "labels_BT must be finite"),
        ({"labels_BT": torch.ones(2, 5, dtype=torch.int64)}, TypeError, "labels_BT must be float16"),
        ({"labels_BT": torch.ones(2, 4)}, ValueError, "labels_BT must have the shape of logits_BT"),
        ({"ends_BT": ENDS.long()}, TypeError, "ends_BT must be bool"),
        ({"logits_BT": torch.zeros(5)}, ValueError, "logits_BT must have 2 axes"),
    ],
    ids=["range", "nan", "int", "shape", "mask", "axes"],
)
def test_binary_wrong_input_raises(change: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        step_binary(**{"logits_BT": scores(), "labels_BT": LABELS, "ends_BT": ENDS, **change})


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (
            {"labels_BT": torch.full((2, 5), 3)},
            ValueError,
            r"0, 1 or 2 \(negative, neutral, positive\).*got 3",
        ),
        ({"labels_BT": torch.full((2, 5), -1)}, ValueError, "got -1"),
        ({"labels_BT": torch.ones(2, 5)}, TypeError, "labels_BT must be int64, got torch.float32"),
        ({"logits_BTC": torch.zeros(2, 5, 2)}, ValueError, "must have 3 classes"),
        ({"labels_BT": torch.ones(2, 4, dtype=torch.int64)}, ValueError, "labels_BT must have the shape"),
    ],
    ids=["high", "low", "float", "classes", "shape"],
)
def test_classes_wrong_input_raises(change: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        step_classes(
            **{"logits_BTC": scores(1, 3), "labels_BT": CLASSES, "ends_BT": ENDS, **change},
            neutral_is_correct=True,
        )
