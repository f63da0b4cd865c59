"""AdamW over looked-up rows moves every weight exactly as plain AdamW does."""

import copy
import math
from pathlib import Path

import pytest
import torch
from torch import nn

from tests.models.rows import MIXED, random_groups
from tests.trainers import toy
from trueward.models.memory import TrainingMemory
from trueward.models.packing import pack
from trueward.models.scoring import hidden_states, score_completions
from trueward.models.tiny import tiny_model
from trueward.trainers import row_adamw
from trueward.trainers.optim import build_optimizer, trainable, update
from trueward.trainers.row_adamw import RowAdamW, gradient_values, row_gradients
from trueward.trainers.settings import TrainSettings
from trueward.trainers.state import latest_checkpoint, restore, save_checkpoint

WORDS, WIDTH = 11, 3
# Rows come, stay away, and come again; one step has a row twice; rows 0 and 10 never come.
LOOKED_UP = [[3, 5, 5], [7], [3, 9], [1, 2, 3, 4], [5]]


class Scored(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embed, self.score = nn.Embedding(WORDS, WIDTH), nn.Linear(WIDTH, 1)

    def forward(self, ids: list[int]) -> torch.Tensor:
        out: torch.Tensor = self.score(torch.tanh(self.embed(torch.tensor(ids)))).square().sum()
        return out


def steps(
    model: Scored, optimizer: torch.optim.Optimizer, batches: list[list[int]], max_norm: float = 1.0
) -> list[float]:
    norms = []
    for ids in batches:
        # Two backward passes, as two micro-batches.
        for part in (ids[:1], ids[1:]):
            if part:
                (10 * model(part)).backward()
        norms.append(update(optimizer, trainable(model), loss=0.0, lr=0.05, max_norm=max_norm))
        optimizer.zero_grad(set_to_none=True)
    return norms


@pytest.mark.parametrize("max_norm", [0.0, 1.0], ids=["as it is", "clipped"])
@pytest.mark.parametrize("beta2", [0.999, 0.9])
def test_every_weight_is_moved_as_by_plain_adamw(beta2: float, max_norm: float) -> None:
    model, plain = Scored(), Scored()
    settings = toy.settings(adam_beta2=beta2)
    with row_gradients(model, TrainingMemory()):
        got = steps(model, build_optimizer(model, settings), LOOKED_UP, max_norm)
    optimizer = torch.optim.AdamW(
        [{"params": [plain.embed.weight, plain.score.weight]}, {"params": [plain.score.bias]}],
        lr=settings.lr, betas=(0.9, beta2), weight_decay=0.0, fused=True,
    )  # fmt: skip
    expected = steps(plain, optimizer, LOOKED_UP, max_norm)
    assert min(expected) > 1, "the gradient is clipped"
    # Norms sum in another order where rows are absent: what is scaled by them differs by rounding.
    assert got == pytest.approx(expected, rel=1e-6)
    for one, other in zip(model.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-7 if max_norm else 0.0)
    untouched = Scored().embed.weight[[0, 10]]
    assert model.embed.weight[[0, 10]].equal(untouched)
    assert (
        not model.embed.weight[[1, 2, 3, 4, 5, 7, 9]].eq(Scored().embed.weight[[1, 2, 3, 4, 5, 7, 9]]).any()
    )


def test_state_and_gradient_hold_the_rows_that_came() -> None:
    model = Scored()
    with row_gradients(model, TrainingMemory()):
        optimizer = build_optimizer(model, toy.settings())
        steps(model, optimizer, LOOKED_UP[:2])
        model([4, 4, 1]).backward()
    assert gradient_values(model.embed.weight).shape == (2, WIDTH)
    state = optimizer.state[model.embed.weight]
    assert state["rows"].tolist() == [3, 5, 7]
    assert state["exp_avg"].shape == state["exp_avg_sq"].shape == (3, WIDTH)
    assert not model.embed.sparse


@pytest.mark.parametrize("first_moment", ["float32", "bfloat16"])
def test_a_run_that_goes_on_from_a_checkpoint_is_bit_equal(tmp_path: Path, first_moment: str) -> None:
    whole, half = Scored(), Scored()
    settings = toy.settings(first_moment=first_moment)
    with row_gradients(whole, TrainingMemory()), row_gradients(half, TrainingMemory()):
        steps(whole, build_optimizer(whole, settings), LOOKED_UP)
        first = build_optimizer(half, settings)
        steps(half, first, LOOKED_UP[:2])
        state = {"identity": {}}
        save_checkpoint(tmp_path, step=2, model=half, optimizer=first, state=state, keep=1)
        resumed = Scored()
        second = build_optimizer(resumed, settings)
        found = latest_checkpoint(tmp_path)
        assert found is not None
        restore(found, resumed, second)
        with row_gradients(resumed, TrainingMemory()):
            steps(resumed, second, LOOKED_UP[2:])
    for one, other in zip(whole.parameters(), resumed.parameters(), strict=True):
        assert one.equal(other)


def test_moments_of_all_rows_are_taken_over() -> None:
    model, plain = Scored(), Scored()
    optimizer, other = build_optimizer(model, toy.settings()), build_optimizer(plain, toy.settings())
    steps(model, optimizer, LOOKED_UP[:2])
    with row_gradients(model, TrainingMemory()):
        steps(model, optimizer, LOOKED_UP[2:])
    steps(plain, other, LOOKED_UP)
    torch.testing.assert_close(model.embed.weight, plain.embed.weight, rtol=0, atol=1e-7)


def test_shared_frozen_and_special_tables_keep_whole_gradients() -> None:
    shared, frozen, counted = Scored(), Scored(), Scored()
    shared.other = nn.Embedding(WORDS, WIDTH)
    shared.other.weight = shared.embed.weight
    frozen.embed.weight.requires_grad_(False)
    counted.embed.scale_grad_by_freq = True
    for model in (shared, frozen, counted):
        with row_gradients(model, TrainingMemory()):
            assert not any(m.sparse for m in model.modules() if isinstance(m, nn.Embedding))
    decayed = Scored()
    with row_gradients(decayed, TrainingMemory(), weight_decay=0.1):
        assert not decayed.embed.sparse


def test_a_gradient_that_is_not_finite_moves_no_row() -> None:
    model = Scored()
    with row_gradients(model, TrainingMemory()):
        optimizer = build_optimizer(model, toy.settings())
        (model([3]) * math.inf).backward()
        before = copy.deepcopy(model.state_dict())
        assert not math.isfinite(update(optimizer, trainable(model), loss=0.0, lr=1.0, max_norm=1.0))
    assert all(before[name].equal(value) for name, value in model.state_dict().items())
    assert isinstance(optimizer, RowAdamW) and not optimizer.state


def test_a_gradient_with_all_rows_after_some_goes_on_from_their_moments() -> None:
    model, plain = Scored(), Scored()
    optimizer, other = build_optimizer(model, toy.settings()), build_optimizer(plain, toy.settings())
    with row_gradients(model, TrainingMemory()):
        steps(model, optimizer, LOOKED_UP[:3])
    steps(model, optimizer, LOOKED_UP[3:])
    steps(plain, other, LOOKED_UP)
    torch.testing.assert_close(model.embed.weight, plain.embed.weight, rtol=0, atol=1e-7)


@pytest.mark.parametrize("autocast", [False, True], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("decay", [0.0, 0.1])
def test_a_tied_model_gets_the_gradients_of_plain_autograd(decay: float, autocast: bool) -> None:
    model = tiny_model("gpt2", 3)
    assert model.get_input_embeddings().weight is model.get_output_embeddings().weight
    plain = copy.deepcopy(model)
    groups = random_groups(1, MIXED)

    def backward(scored: nn.Module) -> None:
        for group in groups:
            with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
                logps_N = score_completions(scored, pack([group])).logps_N
            logps_N.sum().backward()

    with row_gradients(model, TrainingMemory(), weight_decay=decay):
        backward(model)
    backward(plain)
    assert not model.get_input_embeddings().weight.grad.is_sparse
    for (name, got), expected in zip(model.named_parameters(), plain.parameters(), strict=True):
        assert got.grad is not None and expected.grad is not None, name
        scale = float(expected.grad.abs().max())
        # In bfloat16 the sums of several forwards are rounded once less.
        tolerance = 2e-2 if autocast else 1e-5
        # Positions are a table of their own.
        whole = got.grad.to_dense() if got.grad.is_sparse else got.grad
        torch.testing.assert_close(whole, expected.grad, atol=tolerance * scale, rtol=0)


def test_rows_that_come_before_the_head_are_not_lost() -> None:
    model = tiny_model("gpt2", 3)
    plain = copy.deepcopy(model)
    groups = random_groups(1, MIXED)
    with row_gradients(model, TrainingMemory()):
        # The first forward reads no logits: its gradient has rows only.
        hidden_states(model, pack(groups[:1])).sum().backward()
        assert model.get_input_embeddings().weight.grad.is_sparse
        score_completions(model, pack(groups)).logps_N.sum().backward()
    (
        hidden_states(plain, pack(groups[:1])).sum() + score_completions(plain, pack(groups)).logps_N.sum()
    ).backward()
    got, expected = (m.get_input_embeddings().weight.grad for m in (model, plain))
    torch.testing.assert_close(got, expected, atol=1e-4, rtol=1e-5)


@pytest.mark.parametrize("block", [7, 1 << 18], ids=["in blocks", "at once"])
def test_a_first_moment_in_bfloat16_is_rounded_after_each_step(
    monkeypatch: pytest.MonkeyPatch, block: int
) -> None:
    """Kingma & Ba 2015, algorithm 1, in float64, but for m, which is rounded to bfloat16 where it is kept."""
    monkeypatch.setattr(row_adamw, "_BLOCK_ELEMENTS", block)
    model = nn.Linear(5, 9)
    settings = TrainSettings(lr=0.05, first_moment="bfloat16", weight_decay=0.1, adam_beta2=0.95)
    optimizer = build_optimizer(model, settings)
    rng = torch.Generator().manual_seed(3)
    oracle = {name: p.detach().double() for name, p in model.named_parameters()}
    moments = {name: (torch.zeros_like(p), torch.zeros_like(p)) for name, p in oracle.items()}
    for step in range(1, 6):
        for name, parameter in model.named_parameters():
            parameter.grad = torch.randn(parameter.shape, generator=rng)
            m, v = moments[name]
            grad = parameter.grad.double()
            m, v = 0.9 * m + 0.1 * grad, 0.95 * v + 0.05 * grad**2
            decay = 0.1 if parameter.ndim == 2 else 0.0
            update = (m / (1 - 0.9**step)) / ((v / (1 - 0.95**step)).sqrt() + 1e-8)
            oracle[name] = oracle[name] * (1 - settings.lr * decay) - settings.lr * update
            moments[name] = (m.float().bfloat16().double() if parameter.ndim == 2 else m, v)
        optimizer.step()
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.detach().double(), oracle[name], atol=1e-6, rtol=0)
        state = optimizer.state[parameter]
        assert state["exp_avg"].dtype == (torch.bfloat16 if parameter.ndim == 2 else torch.float32)
        assert state["exp_avg_sq"].dtype == torch.float32 and float(state["step"]) == 5


def test_rows_keep_a_first_moment_in_bfloat16_too() -> None:
    table = nn.Embedding(11, 4)
    optimizer = build_optimizer(table, TrainSettings(first_moment="bfloat16"))
    for words in ([3, 5], [5, 7]):
        with row_gradients(table, TrainingMemory()):
            table(torch.tensor(words)).square().sum().backward()
        optimizer.step()
        optimizer.zero_grad()
    state = optimizer.state[table.weight]
    assert state["rows"].tolist() == [3, 5, 7]
    assert state["exp_avg"].dtype == torch.bfloat16 and state["exp_avg"].shape == (3, 4)
    assert state["exp_avg_sq"].dtype == torch.float32
