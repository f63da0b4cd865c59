"""Token rewards, GAE and whitening: hand-worked values, the double sum of the paper, ends of completions."""

import math

import pytest
import torch
from torch import Tensor

from tests.oracles import advantages as oracle
from trueward.objectives import Advantages, gae, token_rewards, whiten

LENGTHS = [6, 2, 4, 1]
MASK = torch.arange(6) < torch.tensor(LENGTHS).unsqueeze(1)
GARBAGE = [math.nan, math.inf, -math.inf]


def usual(rewards: Tensor, values: Tensor, mask: Tensor | None = None) -> Advantages:
    return gae(rewards, values, mask_BT=mask, gamma=1.0, lam=0.95)


def _batch(seed: int = 0) -> tuple[Tensor, Tensor]:
    first, second = torch.randn(2, 4, 6, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return first, second


def test_token_rewards_hand_value() -> None:
    # beta 0.1. First completion: 3 tokens, score 2, KL 1, 2, 3: -0.1, -0.2, and at the last token 2 - 0.3.
    # Second: 1 token, score -1, KL 5: -1 - 0.5. Third: no padding after it, score 0.5 at the very end.
    kl = torch.tensor(
        [[1.0, 2.0, 3.0, 99.0], [5.0, 99.0, 99.0, 99.0], [0.0, 0.0, 0.0, 1.0]], dtype=torch.float64
    )
    mask = torch.arange(4) < torch.tensor([[3], [1], [4]])
    scores = torch.tensor([2.0, -1.0, 0.5], dtype=torch.float64)
    expected = [[-0.1, -0.2, 1.7, 0.0], [-1.5, 0.0, 0.0, 0.0], [0.0, 0.0, 0.0, 0.4]]
    torch.testing.assert_close(token_rewards(scores, kl, mask, beta=0.1).tolist(), expected)


def test_token_rewards_find_the_last_token_by_position() -> None:
    # A gap, as where a tool's output is not counted, does not move the score.
    mask = torch.tensor([[False, True, False, True, False]])
    rewards = token_rewards(torch.tensor([1.0]), torch.zeros(1, 5), mask, beta=0.1)
    assert rewards.tolist() == [[0.0, 0.0, 0.0, 1.0, 0.0]]


def test_token_rewards_sum_to_score_minus_kl() -> None:
    kl, scores = _batch()[0], _batch()[1][:, 0]
    rewards = token_rewards(scores, kl, MASK, beta=0.3)
    torch.testing.assert_close(rewards.sum(1), scores - 0.3 * torch.where(MASK, kl, 0.0).sum(1))
    expected = oracle.token_rewards(scores.tolist(), kl.tolist(), LENGTHS, 0.3)
    torch.testing.assert_close(rewards.tolist(), expected)


@pytest.mark.parametrize("garbage", GARBAGE, ids=str)
def test_token_rewards_ignore_padding(garbage: float) -> None:
    kl, scores = _batch()[0], _batch()[1][:, 0]
    dirty = token_rewards(scores, torch.where(MASK, kl, garbage), MASK, beta=0.3)
    assert torch.equal(dirty, token_rewards(scores, kl, MASK, beta=0.3))
    assert (dirty[~MASK] == 0).all()


def test_gae_hand_value() -> None:
    # gamma 0.9, lambda 0.5, values 1, 2, 3, rewards 0, 0, 4; the completion ends after the third token.
    # delta_2 = 4 + 0 - 3 = 1; delta_1 = 0 + 0.9*3 - 2 = 0.7; delta_0 = 0 + 0.9*2 - 1 = 0.8.
    # A_2 = 1; A_1 = 0.7 + 0.45*1 = 1.15; A_0 = 0.8 + 0.45*1.15 = 1.3175. Returns add 3, 2, 1.
    rewards = torch.tensor([[0.0, 0.0, 4.0, 0.0]], dtype=torch.float64)
    values = torch.tensor([[1.0, 2.0, 3.0, 50.0]], dtype=torch.float64)
    mask = torch.tensor([[True, True, True, False]])
    result = gae(rewards, values, mask_BT=mask, gamma=0.9, lam=0.5)
    torch.testing.assert_close(result.advantages_BT.tolist(), [[1.3175, 1.15, 1.0, 0.0]])
    torch.testing.assert_close(result.returns_BT.tolist(), [[2.3175, 3.15, 4.0, 0.0]])


@pytest.mark.parametrize(
    ("gamma", "lam"), [(1.0, 0.95), (0.9, 0.5), (1.0, 1.0), (0.9, 0.0), (0.0, 0.95)], ids=str
)
def test_gae_is_the_double_sum(gamma: float, lam: float) -> None:
    rewards, values = _batch()
    result = gae(rewards, values, mask_BT=MASK, gamma=gamma, lam=lam)
    expected = torch.tensor(
        oracle.gae(rewards.tolist(), values.tolist(), LENGTHS, gamma, lam), dtype=torch.float64
    )
    torch.testing.assert_close(result.advantages_BT, expected)
    torch.testing.assert_close(result.returns_BT, torch.where(MASK, expected + values, 0.0))


def test_gae_limits() -> None:
    # lambda 1, gamma 1: the return is the plain sum of rewards to come. lambda 0: one temporal difference.
    rewards, values = _batch()
    whole = gae(rewards, values, mask_BT=MASK, gamma=1.0, lam=1.0).returns_BT
    kept = torch.where(MASK, rewards, 0.0)
    to_come = kept.flip(1).cumsum(1).flip(1)
    torch.testing.assert_close(whole, torch.where(MASK, to_come, 0.0))
    first = gae(rewards, values, mask_BT=MASK, gamma=1.0, lam=0.0).advantages_BT[0, 0]
    torch.testing.assert_close(first, rewards[0, 0] + values[0, 1] - values[0, 0])


@pytest.mark.parametrize("garbage", GARBAGE, ids=str)
def test_gae_ignores_padding(garbage: float) -> None:
    rewards, values = _batch()
    dirty = usual(torch.where(MASK, rewards, garbage), torch.where(MASK, values, garbage), MASK)
    clean = usual(rewards, values, MASK)
    assert torch.equal(dirty.advantages_BT, clean.advantages_BT)
    assert torch.equal(dirty.returns_BT, clean.returns_BT)
    assert (dirty.advantages_BT[~MASK] == 0).all() and (dirty.returns_BT[~MASK] == 0).all()


def test_gae_mask_equals_filter_and_permutation() -> None:
    rewards, values = _batch()
    whole = usual(rewards, values, MASK)
    for b, length in enumerate(LENGTHS):
        row = slice(b, b + 1)
        alone = usual(rewards[row, :length], values[row, :length], MASK[row, :length])
        assert torch.equal(alone.advantages_BT, whole.advantages_BT[row, :length])
    order = torch.tensor([3, 0, 2, 1])
    permuted = usual(rewards[order], values[order], MASK[order])
    assert torch.equal(permuted.advantages_BT, whole.advantages_BT[order])


def test_gae_without_a_mask_counts_every_token() -> None:
    rewards, values = _batch()
    everything = torch.ones(4, 6, dtype=torch.bool)
    assert torch.equal(usual(rewards, values).returns_BT, usual(rewards, values, everything).returns_BT)


def test_gae_of_nothing() -> None:
    empty = torch.zeros(2, 3, dtype=torch.bool)
    assert usual(torch.ones(2, 3), torch.ones(2, 3), empty).returns_BT.tolist() == [[0.0] * 3] * 2
    none = usual(torch.zeros(2, 0), torch.zeros(2, 0), torch.zeros(2, 0, dtype=torch.bool))
    assert none.advantages_BT.shape == (2, 0)


def test_gae_extremes() -> None:
    rewards = torch.tensor([[0.0, 1e4], [0.0, -1e4]])
    result = usual(rewards, torch.zeros(2, 2), torch.ones(2, 2, dtype=torch.bool))
    torch.testing.assert_close(result.advantages_BT, torch.tensor([[9500.0, 1e4], [-9500.0, -1e4]]))


@pytest.mark.parametrize("shift_mean", [True, False], ids=["shifted", "kept"])
def test_whiten(shift_mean: bool) -> None:
    # By hand: 1, 3 have mean 2 and population deviation 1; whitened -1, 1, or 1, 3 with the mean kept.
    values = torch.tensor([[1.0, 3.0, 99.0]], dtype=torch.float64)
    mask = torch.tensor([[True, True, False]])
    expected = [[-1.0, 1.0, 0.0]] if shift_mean else [[1.0, 3.0, 0.0]]
    # 1e-8 under the root moves the values by 5e-9.
    assert (whiten(values, mask, shift_mean=shift_mean) - torch.tensor(expected)).abs().max() < 1e-8
    values, _ = _batch()
    oracle_values = oracle.whiten(values[MASK].tolist(), shift_mean)
    whitened = whiten(values, MASK, shift_mean=shift_mean)
    torch.testing.assert_close(whitened[MASK].tolist(), oracle_values)
    assert (whitened[~MASK] == 0).all()


def test_whiten_constant_is_zero() -> None:
    assert whiten(torch.full((2, 2), 5.0), torch.ones(2, 2, dtype=torch.bool)).tolist() == [[0.0] * 2] * 2


@pytest.mark.parametrize("garbage", GARBAGE, ids=str)
def test_whiten_ignores_padding(garbage: float) -> None:
    values, _ = _batch()
    for shift_mean in (True, False):
        dirty = whiten(torch.where(MASK, values, garbage), MASK, shift_mean=shift_mean)
        assert torch.equal(dirty, whiten(values, MASK, shift_mean=shift_mean))


def test_half_precision_is_cast_up() -> None:
    rewards, values = (x.bfloat16() for x in _batch())
    assert torch.equal(
        usual(rewards, values, MASK).returns_BT, usual(rewards.float(), values.float(), MASK).returns_BT
    )
    assert torch.equal(whiten(values, MASK), whiten(values.float(), MASK))
    assert token_rewards(values[:, 0], rewards, MASK, beta=0.1).dtype == torch.float32


def test_token_rewards_wrong_input_raises() -> None:
    kl, scores = _batch()[0], _batch()[1][:, 0]
    with pytest.raises(
        ValueError, match="every row of mask_BT needs a True to carry its score, row 2 has none"
    ):
        token_rewards(scores, kl, MASK & (torch.arange(4) != 2).unsqueeze(1), beta=0.1)
    with pytest.raises(ValueError, match=r"scores_B must have 4 elements \(B of kl_BT\), got 1"):
        token_rewards(scores[:1], kl, MASK, beta=0.1)
    with pytest.raises(ValueError, match=r"beta must be finite and in \[0, inf\], got -0.1"):
        token_rewards(scores, kl, MASK, beta=-0.1)
    with pytest.raises(ValueError, match="scores_B must have 1 axis, got 2"):
        token_rewards(kl, kl, MASK, beta=0.1)
    with pytest.raises(TypeError, match="mask_BT must be bool"):
        token_rewards(scores, kl, MASK.long(), beta=0.1)
    with pytest.raises(ValueError, match="kl_BT must not require grad"):
        token_rewards(scores, kl.clone().requires_grad_(), MASK, beta=0.1)
    with pytest.raises(ValueError, match="scores_B must not require grad"):
        token_rewards(scores.clone().requires_grad_(), kl, MASK, beta=0.1)


def test_gae_wrong_input_raises() -> None:
    rewards, values = _batch()
    with pytest.raises(
        ValueError, match=r"mask_BT must be True for completion tokens.*row 1 turns True again"
    ):
        usual(rewards[:2, :3], values[:2, :3], torch.tensor([[True, True, False], [True, False, True]]))
    with pytest.raises(ValueError, match=r"gamma must be finite and in \[0, 1\], got 1.1"):
        gae(rewards, values, mask_BT=MASK, gamma=1.1, lam=0.95)
    with pytest.raises(ValueError, match=r"lam must be finite and in \[0, 1\], got -0.1"):
        gae(rewards, values, mask_BT=MASK, gamma=1.0, lam=-0.1)
    with pytest.raises(
        ValueError, match=r"values_BT must have the shape of rewards_BT, \(4, 6\), got \(4, 1\)"
    ):
        usual(rewards, values[:, :1], MASK)
    with pytest.raises(ValueError, match="mask_BT must have the shape of rewards_BT"):
        usual(rewards, values, MASK[:1])
    with pytest.raises(ValueError, match="values_BT must not require grad"):
        usual(rewards, values.clone().requires_grad_(), MASK)
    with pytest.raises(ValueError, match="rewards_BT must not require grad"):
        usual(rewards.clone().requires_grad_(), values, MASK)


def test_whiten_wrong_input_raises() -> None:
    values, _ = _batch()
    one = torch.zeros(4, 6, dtype=torch.bool)
    one[0, 0] = True
    with pytest.raises(ValueError, match="whiten needs at least 2 counted positions to have a spread, got 1"):
        whiten(values, one)
    with pytest.raises(ValueError, match="values_BT must not require grad"):
        whiten(values.clone().requires_grad_(), MASK)
    with pytest.raises(ValueError, match="mask_BT must have the shape of values_BT"):
        whiten(values, MASK[:1])
