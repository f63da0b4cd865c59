"""The packed path against transformers' padded forward: values, gradients, invariances. Float32 agrees to
1e-5.
"""

import copy

import pytest
import torch
from torch.nn.attention import flex_attention as torch_flex
from transformers import (
    BloomConfig,
    BloomForCausalLM,
    CohereConfig,
    CohereForCausalLM,
    Gemma2Config,
    Gemma2ForCausalLM,
    PreTrainedModel,
)

from tests.models.rows import MIXED, padded, plain_copy, plain_logps, plain_rows, random_groups
from trueward.core.errors import ModelError
from trueward.data.chat import TokenGroup
from trueward.models import activations, flex, routes, scoring
from trueward.models.heads import ValueHead, reward_from_causal
from trueward.models.packing import pack, unflatten
from trueward.models.scoring import (
    exact_kl_N,
    fallbacks,
    hidden_states,
    score_completions,
    sequence_rewards,
    supports_packing,
    token_values,
)
from trueward.models.tiny import KINDS, Kind, tiny_model, tiny_tokenizer

LONG = [(40, (60, 33)), (3, (70,)), (64, (2, 2, 50))]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shapes", [MIXED, LONG, [(6, (5,))]], ids=["mixed", "long", "single"])
@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_packed_logps_equal_the_padded_forward(kind: Kind, shapes, temperature: float) -> None:
    # The weights are those that transformers itself draws.
    torch.manual_seed(3)
    model = type(tiny_model(kind))(tiny_model(kind).config).eval()
    reference = plain_copy(model)
    groups = random_groups(1, shapes)
    assert supports_packing(model)
    with torch.no_grad():
        scores = score_completions(model, pack(groups), temperature=temperature)
        expected = torch.cat(plain_logps(reference, groups, temperature))
    torch.testing.assert_close(scores.logps_N, expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shapes", [MIXED, LONG, [(6, (5,))]], ids=["mixed", "long", "single"])
def test_packed_logps_of_a_decided_model_equal_the_padded_forward(kind: Kind, shapes) -> None:
    # Large weights in float64: nothing of a mistake is hidden by rounding or by a nearly uniform model.
    model = tiny_model(kind, 3).double()
    reference = plain_copy(model, "sdpa")
    groups = random_groups(1, shapes)
    with torch.no_grad():
        scores = score_completions(model, pack(groups), temperature=0.7)
        expected = torch.cat(plain_logps(reference, groups, 0.7))
    assert scores.logps_N.dtype == torch.float64
    torch.testing.assert_close(scores.logps_N, expected, atol=1e-10, rtol=0)
    assert expected.std() > 0.3, "a nearly uniform model would hide mistakes"


@pytest.mark.parametrize("kind", KINDS)
def test_packed_gradients_equal_the_padded_forward(kind: Kind) -> None:
    model = tiny_model(kind, 5)
    reference = plain_copy(model)
    groups = random_groups(2, MIXED)
    weights = torch.randn(sum(len(c.ids) for g in groups for c in g.completions))
    (score_completions(model, pack(groups), temperature=0.9).logps_N * weights).sum().backward()
    (torch.cat(plain_logps(reference, groups, 0.9)) * weights).sum().backward()
    for (name, got), expected in zip(model.named_parameters(), reference.parameters(), strict=True):
        scale = expected.grad.abs().max()
        torch.testing.assert_close(got.grad, expected.grad, atol=1e-4 * float(scale), rtol=1e-4, msg=name)


@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_with_a_gradient_or_without_scores_are_the_same_bits(
    kind: Kind, autocast: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(activations, "_LEAST_ELEMENTS", 0)
    model = tiny_model(kind, 3, width=64)
    packed = pack(random_groups(1, MIXED))
    scored = []
    for enabled in (True, False):
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast), torch.set_grad_enabled(enabled):
            scored.append(score_completions(model, packed).logps_N)
    assert scored[0].requires_grad
    assert torch.equal(scored[0].detach(), scored[1])


def test_scores_do_not_depend_on_the_row() -> None:
    model = tiny_model("gemma3", 1)
    groups = random_groups(6, MIXED)
    with torch.no_grad():
        together = unflatten(score_completions(model, pack(groups)).logps_N, pack(groups))
        order = [4, 1, 5, 0, 3, 2]
        shuffled = pack([groups[i] for i in order])
        other = list(
            unflatten(score_completions(model, shuffled).logps_N, shuffled).split(
                [len(groups[i].completions) for i in order]
            )
        )
        back = torch.cat([other[order.index(i)] for i in range(len(groups))])
        alone = []
        for group in groups:
            for completion in group.completions:
                row = pack([TokenGroup(group.prompt_ids, (completion,))])
                alone.append(score_completions(model, row).logps_N)
    torch.testing.assert_close(back, together, atol=1e-5, rtol=0)
    torch.testing.assert_close(torch.cat(alone), together[together != 0], atol=1e-5, rtol=0)


@pytest.mark.parametrize("kind", KINDS)
def test_activation_checkpointing_changes_nothing(kind: Kind) -> None:
    model = tiny_model(kind, 2)
    packed = pack(random_groups(3, MIXED))
    names = [name for name, _ in model.named_parameters()]
    expected = torch.autograd.grad(score_completions(model, packed).logps_N.sum(), list(model.parameters()))
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    model.train()
    got = torch.autograd.grad(score_completions(model, packed).logps_N.sum(), list(model.parameters()))
    for name, mine, theirs in zip(names, got, expected, strict=True):
        torch.testing.assert_close(mine, theirs, atol=1e-4 * float(theirs.abs().max()), rtol=1e-4, msg=name)


def test_a_switched_model_still_answers_ordinary_calls() -> None:
    model = tiny_model("mistral", 2)
    other = plain_copy(model)
    assert supports_packing(model)
    ids, mask = padded([[5, 6, 7], list(range(3, 23))])
    for side in ("right", "left"):
        if side == "left":
            ids, mask = ids.flip(1), mask.flip(1)
        got = model(input_ids=ids, attention_mask=mask).logits[mask.bool()]
        torch.testing.assert_close(
            got, other(input_ids=ids, attention_mask=mask).logits[mask.bool()], atol=2e-5, rtol=1e-5
        )


def test_reward_gradients_equal_transformers() -> None:
    reward = reward_from_causal(tiny_model("qwen3", 1), tiny_tokenizer(), seed=0)
    other = plain_copy(reward)
    groups = random_groups(1, MIXED)
    weights = torch.randn(sum(len(g.completions) for g in groups), generator=torch.Generator().manual_seed(0))
    ids, mask = padded([row for row, _ in plain_rows(groups)])
    (sequence_rewards(reward, pack(groups)) * weights).sum().backward()
    (other(input_ids=ids, attention_mask=mask).logits[:, 0] * weights).sum().backward()
    for got, expected in zip(reward.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(
            got.grad, expected.grad, atol=1e-4 * float(expected.grad.abs().max()), rtol=1e-4
        )


def test_exact_kl_is_the_sum_over_the_vocabulary(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scoring, "_KL_CHUNK_ELEMENTS", 263 * 10)
    model, ref = tiny_model("gpt2", 1), tiny_model("gpt2", 2)
    groups = random_groups(1, MIXED)
    packed = pack(groups)
    rows = plain_rows(groups)
    ids, mask = padded([row for row, _ in rows])
    with torch.no_grad():
        p, q = (
            torch.log_softmax(m(input_ids=ids, attention_mask=mask).logits.double(), -1)
            for m in (plain_copy(model), plain_copy(ref))
        )
    full = (p.exp() * (p - q)).sum(-1)
    expected = torch.cat([full[i, start - 1 : len(row) - 1] for i, (row, start) in enumerate(rows)])
    got = exact_kl_N(model, ref, packed)
    torch.testing.assert_close(got.double(), expected, atol=1e-4, rtol=1e-4)
    assert float(exact_kl_N(model, model, packed).abs().max()) == 0.0


def test_the_value_of_a_token_is_read_before_it() -> None:
    model = tiny_model("llama", 1)
    packed = pack(random_groups(1, MIXED))
    hidden_ND = hidden_states(model, packed, packed.predict_N)
    head = ValueHead(hidden_ND.shape[1])
    assert not token_values(head, hidden_ND).any()
    torch.nn.init.ones_(head.linear.weight)
    expected_LD = hidden_states(model, packed)
    torch.testing.assert_close(token_values(head, hidden_ND), head(expected_LD)[packed.predict_N, 0])


def unusual(kind: str) -> PreTrainedModel:
    ids = {"vocab_size": 263, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
    more = {"intermediate_size": 64, "num_key_value_heads": 2, "head_dim": 8}
    torch.manual_seed(0)
    if kind == "bloom":
        return BloomForCausalLM(BloomConfig(hidden_size=32, n_layer=2, n_head=4, **ids)).eval()
    if kind == "gemma2":
        config = Gemma2Config(**ids, **sizes, **more, attn_logit_softcapping=2.0, final_logit_softcapping=3.0)
        config._attn_implementation = "eager"
        return Gemma2ForCausalLM(config).eval()
    return CohereForCausalLM(CohereConfig(**ids, **sizes, intermediate_size=64, logit_scale=0.3)).eval()


@pytest.mark.parametrize("kind", ["bloom", "gemma2", "cohere"])
def test_models_that_cannot_be_packed_are_served_and_named(
    kind: str, capsys: pytest.CaptureFixture[str]
) -> None:
    model = unusual(kind)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(3)
    other = copy.deepcopy(model)
    groups = random_groups(1, MIXED)
    packed = pack(groups)
    assert supports_packing(model) == (kind == "cohere")
    first = capsys.readouterr().err
    supports_packing(model)
    assert ("padded path" in first) == (kind != "cohere")
    assert capsys.readouterr().err == ""
    assert fallbacks(model) == {}, "nothing was asked of it yet"
    scores = score_completions(model, packed, temperature=0.8, entropy=True)
    expected = torch.cat(plain_logps(other, groups, 0.8))
    torch.testing.assert_close(scores.logps_N, expected, atol=2e-5, rtol=1e-5)
    assert scores.entropy_N is not None
    scores.logps_N.sum().backward()
    assert list(fallbacks(model).values()) == [1]
    score_completions(model, packed)
    assert list(fallbacks(model).values()) == [2]
    said = first + capsys.readouterr().err
    assert said.count("padded path") == 1, "once a reason"


def test_sequences_beyond_the_positions_are_refused() -> None:
    with pytest.raises(ModelError, match="positions"):
        score_completions(tiny_model("gpt2"), pack(random_groups(0, [(400, (120,))])))


@pytest.mark.parametrize("temperature", [0.0, -1.0, float("nan")])
def test_temperature_must_be_positive(temperature: float) -> None:
    with pytest.raises(ValueError, match="temperature"):
        score_completions(tiny_model("llama"), pack(random_groups(0, MIXED)), temperature=temperature)


def test_a_causal_model_is_no_reward_model_nor_the_other_way_round() -> None:
    with pytest.raises(ModelError, match="no score head"):
        sequence_rewards(tiny_model("llama"), pack(random_groups(0, MIXED)))
    reward = reward_from_causal(tiny_model("llama"), tiny_tokenizer(), seed=0)
    with pytest.raises(ModelError, match="no vocabulary head"):
        score_completions(reward, pack(random_groups(0, MIXED)))


def test_bfloat16_agrees_to_its_precision() -> None:
    model = tiny_model("llama", 1, scale=2.0).bfloat16()
    groups = random_groups(1, MIXED)
    with torch.no_grad():
        got = score_completions(model, pack(groups)).logps_N
        expected = torch.cat(plain_logps(plain_copy(model), groups))
    assert got.dtype == torch.float32
    torch.testing.assert_close(got, expected, atol=0.1, rtol=0.02)


@pytest.fixture
def like_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """The choice that is made on a GPU, with flex-attention run densely."""
    monkeypatch.setattr(routes, "_ELSEWHERE", ("flex", "buckets"))
    monkeypatch.setattr(torch_flex, "_validate_device", lambda query, key, value: None)
    monkeypatch.setattr(flex, "compiled_kernel", lambda: flex.compile_kernel("eager"))


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor")
@pytest.mark.usefixtures("like_a_gpu")
@pytest.mark.parametrize("kind", ["gemma3", "qwen3"])
def test_flex_attention_serves_where_it_is_chosen(kind: Kind) -> None:
    model = tiny_model(kind, 3, width=64, scale=2.0)
    reference = plain_copy(model)
    packed = pack(random_groups(1, MIXED))
    got = score_completions(model, packed).logps_N
    assert set(packed.steps) == {"flex"}
    torch.testing.assert_close(
        got, torch.cat(plain_logps(reference, random_groups(1, MIXED))), atol=1e-5, rtol=1e-5
    )
    got.sum().backward()
    assert fallbacks(model) == {}


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor")
@pytest.mark.usefixtures("like_a_gpu")
def test_dropout_of_attention_takes_the_buckets_and_is_counted(capsys: pytest.CaptureFixture[str]) -> None:
    model = tiny_model("llama", 3, width=64)
    packed = pack(random_groups(1, MIXED))
    for layer in model.model.layers:
        layer.self_attn.attention_dropout = 0.5
    first = score_completions(model, packed).logps_N
    model.train()
    assert not torch.equal(score_completions(model, packed).logps_N, first)
    score_completions(model, packed)
    assert fallbacks(model) == {"flex-attention has no dropout of attention weights": 2}
    assert capsys.readouterr().err.count("bucketed path") == 1


def test_a_kernel_that_does_not_run_is_left_and_counted(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    # On a CPU flex-attention refuses gradients.
    monkeypatch.setattr(routes, "_ELSEWHERE", ("flex", "buckets"))
    model = tiny_model("llama", 3)
    expected = torch.cat(plain_logps(plain_copy(model), random_groups(1, MIXED)))
    got = score_completions(model, pack(random_groups(1, MIXED))).logps_N
    torch.testing.assert_close(got, expected, atol=2e-5, rtol=1e-5)
    ((reason, count),) = fallbacks(model).items()
    assert "flex-attention does not run here" in reason
    assert count == 1
    assert "bucketed path" in capsys.readouterr().err
