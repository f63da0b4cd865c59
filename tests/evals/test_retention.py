"""Held-out loss and accuracy, and their comparison with the base."""

import numpy as np
import pytest
import torch

from tests.models.rows import MIXED, plain_copy, plain_logps, random_groups
from trueward.core.errors import EvidenceError
from trueward.core.stats import Estimate
from trueward.data.chat import Completion, TokenGroup
from trueward.evals.retention import HeldOut, accuracy_ratio, compare_held_out, held_out
from trueward.models.tiny import tiny_model


def test_loss_equals_a_plain_forward_over_trained_tokens() -> None:
    model, groups = tiny_model("llama", 0), random_groups(0, MIXED)
    result = held_out(model, groups, max_tokens=40)
    with torch.no_grad():
        rows = plain_logps(plain_copy(model), groups)
    flags = [torch.tensor(c.trained) for group in groups for c in group.completions]
    expected = [-row[flag].sum().item() for row, flag in zip(rows, flags, strict=True)]
    np.testing.assert_allclose(result.nll_sums, expected, rtol=1e-4, atol=1e-4)
    assert result.tokens == tuple(int(flag.sum()) for flag in flags)
    assert result.nll.value == pytest.approx(sum(expected) / sum(result.tokens), rel=1e-5)
    assert result.nll.low < result.nll.value < result.nll.high


def test_accuracy_counts_what_greedy_decoding_gives() -> None:
    model = tiny_model("llama", 0)
    with torch.no_grad():
        best = int(model(torch.tensor([[5, 9, 20]])).logits[0, -1].argmax())
    right = TokenGroup((5, 9, 20), (Completion((best,), (True,)),))
    wrong = TokenGroup((5, 9, 20), (Completion(((best + 1) % 263,), (True,)),))
    result = held_out(model, [right, right, right, wrong])
    assert result.correct == (1, 1, 1, 0) and result.accuracy.value == 0.75


def fixed(nll_sums: list[float], correct: list[int], tokens: list[int]) -> HeldOut:
    nothing = Estimate(0, 0, 0, 1)
    return HeldOut(
        nll=nothing, accuracy=nothing, nll_sums=tuple(nll_sums), correct=tuple(correct), tokens=tuple(tokens)
    )


def test_comparison_by_hand() -> None:
    # Loss: (3 + 12) / 10 - (2 + 8) / 10 = 0.5; right answers: (1 + 5) / (2 + 6) = 0.75. Each item alone: 0.5
    # and 0.5.
    base, tuned = fixed([2, 8], [2, 6], [2, 8]), fixed([3, 12], [1, 5], [2, 8])
    result = compare_held_out(base, tuned)
    assert result.nll_increase.value == pytest.approx(0.5) and result.accuracy_ratio.value == pytest.approx(
        0.75
    )
    assert result.nll_increase.high - result.nll_increase.low < 1e-9, "every token lost the same"
    same = compare_held_out(base, base)
    assert same.nll_increase == (0.0, 0.0, 0.0, 2) and same.accuracy_ratio == (1.0, 1.0, 1.0, 2)


def test_ratio_interval_covers_the_truth() -> None:
    rng = np.random.default_rng(0)
    covered = 0
    for seed in range(60):
        base = rng.random(150) < 0.8
        tuned = rng.random(150) < 0.6
        interval = accuracy_ratio(base, tuned, seed=seed)
        covered += interval.low <= 0.75 <= interval.high
    # Of 60 intervals at 95 %, fewer than 50 would cover with probability below 1e-3.
    assert covered >= 50


def test_wrong_input_raises() -> None:
    with pytest.raises(EvidenceError, match="no held-out text"):
        held_out(tiny_model("llama"), [])
    with pytest.raises(EvidenceError, match="different completions"):
        compare_held_out(fixed([1], [1], [1]), fixed([1], [1], [2]))
    with pytest.raises(EvidenceError, match="nothing to retain"):
        accuracy_ratio([0, 0], [1, 0])
    with pytest.raises(EvidenceError, match="as many"):
        accuracy_ratio([1, 0], [1])
    untrained = TokenGroup((1,), (Completion((2,), (False,)),))
    with pytest.raises(EvidenceError, match="not all of them 0"):
        held_out(tiny_model("llama"), [untrained])
