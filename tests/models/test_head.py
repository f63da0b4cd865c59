"""The fused head against the formulas of objectives.logprobs under autograd: values, gradients, chunks,
precisions.
"""

import pytest
import torch
from torch import nn

from trueward.models import head as head_module
from trueward.models.head import Head, score_tokens
from trueward.models.head_passes import Passes, logit_gradient, logit_scores
from trueward.models.memory import TrainingMemory
from trueward.models.tiny import tiny_model
from trueward.objectives.logprobs import token_entropy, token_logps

N, D, V = 37, 6, 11


def parts(dtype: torch.dtype, bias: bool) -> tuple[nn.Linear, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    linear = nn.Linear(D, V, bias=bias).to(dtype)
    with torch.no_grad():
        for parameter in linear.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator))
    hidden = torch.randn(N, D, generator=generator).to(dtype).requires_grad_()
    return linear, hidden, torch.randint(0, V, (N,), generator=generator)


@pytest.mark.parametrize("bias", [False, True], ids=["plain", "bias"])
@pytest.mark.parametrize("entropy", [False, True], ids=["logps", "entropy"])
@pytest.mark.parametrize(
    ("chunk", "kept"), [(10**6, 10**6), (5 * V, 0), (5 * V, 10**6)], ids=["one", "again", "kept"]
)
@pytest.mark.parametrize("passes", [None, Passes()], ids=["in place", "of a compiler"])
def test_the_fused_head_equals_autograd(
    monkeypatch: pytest.MonkeyPatch, bias: bool, entropy: bool, chunk: int, kept: int, passes: Passes | None
) -> None:
    monkeypatch.setattr(head_module, "_passes", lambda device, entropy: passes)
    monkeypatch.setattr(head_module, "_CHUNK_ELEMENTS", chunk)
    monkeypatch.setattr(head_module, "_KEPT_ELEMENTS", kept)
    linear, hidden, labels = parts(torch.float64, bias)
    weights = torch.randn(2, N, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    inputs = [hidden, *linear.parameters()]

    scores = score_tokens(Head(linear, None), hidden, labels, temperature=0.6, entropy=entropy)
    loss = (scores.logps_N * weights[0]).sum()
    logits = linear(hidden).unsqueeze(0) / 0.6
    expected_logps = token_logps(logits, labels.unsqueeze(0))[0]
    expected = (expected_logps * weights[0]).sum()
    if entropy:
        loss = loss + (scores.entropy_N * weights[1]).sum()
        expected_entropy = token_entropy(logits)[0]
        torch.testing.assert_close(scores.entropy_N, expected_entropy)
        expected = expected + (expected_entropy * weights[1]).sum()
    else:
        assert scores.entropy_N is None
    torch.testing.assert_close(scores.logps_N, expected_logps)
    assert scores.greedy_N.equal(logits[0].argmax(-1) == labels)
    # Twice: the second backward finds the kept softmax used up.
    for _ in range(2):
        got = torch.autograd.grad(loss, inputs, retain_graph=True)
        for mine, theirs in zip(got, torch.autograd.grad(expected, inputs, retain_graph=True), strict=True):
            torch.testing.assert_close(mine, theirs, rtol=1e-9, atol=1e-12)


def test_a_frozen_head_gets_no_gradient() -> None:
    linear, hidden, labels = parts(torch.float32, True)
    linear.requires_grad_(False)
    score_tokens(Head(linear, None), hidden, labels).logps_N.sum().backward()
    assert hidden.grad is not None
    assert linear.weight.grad is None


@pytest.mark.parametrize("softcap", [None, 3.0], ids=["module", "softcap"])
def test_other_heads_go_through_their_module(monkeypatch: pytest.MonkeyPatch, softcap: float | None) -> None:
    monkeypatch.setattr(head_module, "_CHUNK_ELEMENTS", 8 << 15)
    linear, hidden, labels = parts(torch.float32, True)
    module = nn.Sequential(linear)
    logits = linear(hidden) if softcap is None else torch.tanh(linear(hidden) / softcap) * softcap
    expected = token_logps(logits.unsqueeze(0), labels.unsqueeze(0))[0]
    scores = score_tokens(Head(module, softcap), hidden, labels)
    torch.testing.assert_close(scores.logps_N, expected)
    mine = torch.autograd.grad(scores.logps_N.sum(), [hidden, linear.weight])
    for got, theirs in zip(mine, torch.autograd.grad(expected.sum(), [hidden, linear.weight]), strict=True):
        torch.testing.assert_close(got, theirs, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("how", ["bfloat16", "autocast"])
def test_half_precision_keeps_a_float32_softmax(how: str) -> None:
    dtype = torch.bfloat16 if how == "bfloat16" else torch.float32
    linear, hidden, labels = parts(dtype, False)
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=how == "autocast"):
        scores = score_tokens(Head(linear, None), hidden, labels)
    assert scores.logps_N.dtype == torch.float32
    logits = (hidden.bfloat16() @ linear.weight.bfloat16().T).float()
    expected = token_logps(logits.unsqueeze(0), labels.unsqueeze(0))[0]
    torch.testing.assert_close(scores.logps_N, expected, atol=1e-6, rtol=0)
    scores.logps_N.sum().backward()
    assert hidden.grad.dtype == linear.weight.grad.dtype == dtype
    exact = torch.autograd.grad(
        token_logps((hidden.float() @ linear.weight.float().T).unsqueeze(0), labels.unsqueeze(0)).sum(),
        linear.weight,
    )[0]
    torch.testing.assert_close(
        linear.weight.grad.float(), exact.float(), atol=0.03 * float(exact.abs().max()), rtol=0
    )


def test_a_head_on_frozen_states_is_trained_in_a_step_too() -> None:
    model = tiny_model("llama", 3)
    model.requires_grad_(False)
    head = model.get_output_embeddings()
    head.weight = nn.Parameter(head.weight.detach().clone())
    hidden_ND, labels_N = torch.randn(5, head.weight.shape[1]), torch.arange(5)
    with TrainingMemory().used():
        score_tokens(Head(head, None), hidden_ND, labels_N).logps_N.sum().backward()
    assert head.weight.grad is not None
    assert bool(head.weight.grad.any())


@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("passes", [None, Passes()], ids=["in place", "of a compiler"])
def test_in_a_step_the_gradient_of_the_matrix_is_added_where_it_lies(
    monkeypatch: pytest.MonkeyPatch, passes: Passes | None, autocast: bool
) -> None:
    asked: list[str] = []

    def which(device: str, entropy: bool) -> Passes | None:
        asked.append(device)
        return passes

    monkeypatch.setattr(head_module, "_passes", which)
    monkeypatch.setattr(head_module, "_CHUNK_ELEMENTS", 5 * V)
    linear, hidden, labels = parts(torch.float32, bias=True)

    def loss() -> torch.Tensor:
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
            return score_tokens(Head(linear, None), hidden, labels).logps_N.sum()

    plain = torch.autograd.grad(loss(), [hidden, *linear.parameters()])
    with TrainingMemory().used():
        loss().backward()
        first = linear.weight.grad
        assert first is not None
        loss().backward()
    # The same matrix, grown by the second backward.
    assert linear.weight.grad is first
    for tensor, expected in zip([hidden, *linear.parameters()], plain, strict=True):
        torch.testing.assert_close(tensor.grad, 2 * expected, rtol=2e-2 if autocast else 1e-5, atol=1e-5)
    assert asked == ["cpu"] * 3


def test_passes_of_a_compiler_survive_words_that_cannot_come() -> None:
    # By hand: of three words one cannot come, the others are 1 : 3, so p = 1/4 and 3/4.
    logits = torch.tensor([[float("-inf"), 0.0, 3.0]], dtype=torch.float64)
    logits[0, 2] = torch.tensor(3.0).double().log()
    labels = torch.tensor([1])
    logps, greedy, entropy, log_sums = logit_scores(logits, labels, 1.0, True)
    quarter, rest = torch.tensor(0.25).double(), torch.tensor(0.75).double()
    expected = -(quarter * quarter.log() + rest * rest.log())
    torch.testing.assert_close(logps[0], quarter.log())
    torch.testing.assert_close(entropy[0], expected)
    assert not greedy.item()
    one = torch.ones(1, dtype=torch.float64)
    got = logit_gradient(logits, labels, 1.0, log_sums, one, entropy, one)
    # g (onehot - p) - g p (log p + H), 0 for the word that cannot come.
    by_hand = [0.0, 0.75 - quarter * (quarter.log() + expected), -0.75 - rest * (rest.log() + expected)]
    torch.testing.assert_close(got[0], torch.tensor(by_hand, dtype=torch.float64))


def test_passes_of_a_compiler_keep_the_softmax_in_float32() -> None:
    logits = torch.linspace(-3, 3, 4 * 500).view(4, 500)
    labels = torch.tensor([0, 7, 250, 499])
    low = logits.to(torch.bfloat16)
    got = logit_scores(low, labels, 1.0, True)
    expected = logit_scores(low.double(), labels, 1.0, True)
    assert got[0].dtype == torch.float32
    for mine, theirs in zip((got[0], got[2], got[3]), (expected[0], expected[2], expected[3]), strict=True):
        torch.testing.assert_close(mine.double(), theirs, atol=1e-5, rtol=1e-5)
    gradient = logit_gradient(low, labels, 1.0, got[3], torch.ones(4), got[2], None)
    assert gradient.dtype == torch.bfloat16


@pytest.mark.parametrize("kept", [0, 10**6])
@pytest.mark.parametrize("passes", [None, Passes()], ids=["in place", "of a compiler"])
def test_an_entropy_that_is_only_looked_at_changes_no_gradient(
    monkeypatch: pytest.MonkeyPatch, kept: int, passes: Passes | None
) -> None:
    monkeypatch.setattr(head_module, "_passes", lambda device, entropy: passes)
    monkeypatch.setattr(head_module, "_KEPT_ELEMENTS", kept)
    # Pieces of two rows, and one left over.
    monkeypatch.setattr(head_module, "_MEAN_ELEMENTS", 2 * V)
    linear, hidden, labels = parts(torch.float64, bias=True)
    gradients = []
    for entropy in (False, True):
        scores = score_tokens(Head(linear, None), hidden, labels, entropy=entropy)
        gradients.append(torch.autograd.grad(scores.logps_N.sum(), [hidden, *linear.parameters()]))
    assert all(torch.equal(*pair) for pair in zip(*gradients, strict=True))
    assert scores.entropy_N is not None
    expected_N = token_entropy(linear(hidden).unsqueeze(0))[0]
    torch.testing.assert_close(scores.entropy_N, expected_N)
    # And the other way round: nothing asks for the log-probs.
    again = score_tokens(Head(linear, None), hidden, labels, entropy=True)
    assert again.entropy_N is not None
    (got,) = torch.autograd.grad(again.entropy_N.sum(), hidden)
    torch.testing.assert_close(got, *torch.autograd.grad(expected_N.sum(), hidden))
