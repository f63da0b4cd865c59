"""Distillation: against whole logits, chunks, the share of answers, resume, what is refused."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from tests.oracles import distill as oracle
from tests.trainers import language, toy
from trueward.core.errors import DataError, ModelError
from trueward.core.files import read_jsonl
from trueward.data.chat import TokenGroup
from trueward.models.distributions import Predicting, over_vocabulary
from trueward.models.packing import pack
from trueward.models.plain import plain_logits
from trueward.models.scoring import head_states
from trueward.objectives import distill
from trueward.trainers.distill import (
    DISTILL_METHODS,
    Answer,
    DistillObjective,
    DistillSettings,
    divergence_N,
    train_distill,
)

STUDENT, TEACHER = 0, 5


def teacher() -> Any:
    return language.policy(TEACHER)


def run(folder: Path, model: Any, *, items: Sequence[TokenGroup] | None = None, **changes: Any) -> Any:
    own = {key: changes.pop(key) for key in ("resume", "evaluate", "teacher") if key in changes}
    chosen = {"max_new_tokens": 6, **changes.pop("distill", {})}
    return train_distill(
        model,
        language.demonstrations() if items is None else items,
        **{"teacher": teacher(), "stop_ids": [language.STOP], **own},
        distill=DistillSettings(**chosen),
        settings=toy.settings(**{"lr": 0.005, "max_tokens_per_forward": 64, **changes}),
        folder=folder,
    )


class NeverAsked:
    """An engine for answers that the data gives."""

    def generate(self, prompts: Sequence[Any], **_: Any) -> list[Any]:
        assert not prompts
        return []


@pytest.mark.parametrize("method", DISTILL_METHODS)
def test_divergence_is_that_of_whole_logits(method: Any) -> None:
    student, other = language.policy(STUDENT), teacher()
    with torch.no_grad():  # near enough that they find some words alike
        for own, learned in zip(other.parameters(), student.parameters(), strict=True):
            own.lerp_(learned, 0.6)
    packed = pack(language.demonstrations(4))
    loss_N, agree_N = divergence_N(student, other, packed, DistillSettings(method=method, beta=0.3))
    student_NV, teacher_NV = (plain_logits(m, packed).detach().double() for m in (student, other))
    for index, (s_V, t_V) in enumerate(zip(student_NV, teacher_NV, strict=True)):
        p, q = oracle.softmax(s_V.tolist()), oracle.softmax(t_V.tolist())
        expected = {
            "forward_kl": oracle.kl(q, p),
            "reverse_kl": oracle.kl(p, q),
            "jsd": oracle.generalized_jsd(s_V.tolist(), t_V.tolist(), 0.3),
        }[method]
        # Logits of float32, a few steps of 1e-7 each.
        assert float(loss_N[index].detach()) == pytest.approx(expected, abs=1e-6)
        assert bool(agree_N[index]) == (p.index(max(p)) == q.index(max(q)))
    assert 0 < float(agree_N.sum()) < len(agree_N)


def test_chunks_give_the_loss_and_the_gradients_of_one() -> None:
    packed = pack(language.demonstrations(6))
    found = []
    for chunk_tokens in (None, 3):
        student, other = language.policy(STUDENT), teacher()
        inner, hidden_ND = head_states(student, packed)
        other_inner, other_ND = head_states(other, packed)
        sizes: list[int] = []

        def compute(s_nV: torch.Tensor, t_nV: torch.Tensor, sizes: list[int] = sizes) -> tuple[Any, ...]:
            sizes.append(len(s_nV))
            mask = torch.ones(1, len(s_nV), dtype=torch.bool)
            return (distill.reverse_kl(s_nV[None], t_nV.detach()[None], mask).loss_BT[0],)

        models = [Predicting.of(inner, hidden_ND), Predicting.of(other_inner, other_ND)]
        (loss_N,) = over_vocabulary(models, compute, num_words=language.VOCAB, chunk_tokens=chunk_tokens)
        loss_N.sum().backward()  # type: ignore[no-untyped-call]
        assert max(sizes) == (len(loss_N) if chunk_tokens is None else 3)
        found.append((loss_N.detach(), {n: p.grad for n, p in student.named_parameters()}))
    (first, grads), (second, others) = found
    torch.testing.assert_close(first, second, rtol=1e-6, atol=1e-6)
    for name, grad in grads.items():
        # Sums over chunks in another order.
        torch.testing.assert_close(grad, others[name], rtol=1e-4, atol=1e-6)


def test_a_padded_matrix_of_words_counts_shared_words_only() -> None:
    student, wide = language.policy(STUDENT), language.policy(STUDENT)
    wide.resize_token_embeddings(language.VOCAB + 8, mean_resizing=False)
    packed = pack(language.demonstrations(3))
    loss_N, agree_N = divergence_N(student, wide, packed, DistillSettings(method="reverse_kl"))
    assert float(loss_N.detach().abs().max()) < 1e-6
    assert bool(agree_N.all())


def objective(share: float, others: Any = "data") -> tuple[Any, DistillObjective]:
    student, other = language.policy(STUDENT), teacher()
    engine, asked = NeverAsked(), DistillSettings(on_policy=share, others=others)
    made = DistillObjective(student, other, asked, engine=engine, teacher_engine=engine, seed=0)
    return student, made


def test_the_loss_is_a_mean_over_tokens_then_over_answers() -> None:
    student, made = objective(0.0)
    items = [Answer(group) for group in language.demonstrations(5)]
    made.at(0, 10)
    made.prepare(student, items, 1000)
    assert made.micro_batches(items, 1000) == [items]
    total = float(made.loss(student, items).loss_sum.detach())
    means = [
        float(divergence_N(student, teacher(), pack([item.group]), DistillSettings())[0].detach().mean())
        for item in items
    ]
    assert total == pytest.approx(sum(means), rel=1e-5)


def test_any_share_is_met_over_the_run(tmp_path: Path) -> None:
    result = run(
        tmp_path / "run", language.policy(STUDENT), steps=10, batch_size=1, distill={"on_policy": 0.3}
    )
    assert result.step == 10
    shares = [row["distill/on_policy"] for row in read_jsonl(tmp_path / "run" / "metrics.jsonl")]
    assert sum(shares) == pytest.approx(3)
    assert set(shares) == {0.0, 1.0}


@pytest.mark.parametrize(
    "chosen",
    [{"method": m} for m in DISTILL_METHODS] + [{"on_policy": 0.5}, {"on_policy": 0.0, "others": "teacher"}],
    ids=str,
)
def test_it_learns_from_the_teacher(tmp_path: Path, chosen: dict[str, Any]) -> None:
    student = language.policy(STUDENT)
    run(tmp_path / "run", student, steps=20, distill=chosen)
    rows = toy.figures(tmp_path / "run")
    assert rows[-1]["loss"] < 0.5 * rows[0]["loss"]
    assert ("completions/mean_length" in rows[0]) == (chosen.get("on_policy") != 0.0)
    assert all(0 <= row["distill/agreement"] <= 1 for row in rows)


def test_micro_batches_do_not_change_the_step(tmp_path: Path) -> None:
    found = []
    for name, tokens in (("one", 4096), ("many", 24)):
        student = language.policy(STUDENT)
        run(tmp_path / name, student, steps=3, max_tokens_per_forward=tokens)
        found.append(toy.weights(student))
    for name, weight in found[0].items():
        torch.testing.assert_close(weight, found[1][name], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("make", [language.policy, language.adapted], ids=["full", "adapters"])
def test_a_stopped_run_goes_on_bit_equal(tmp_path: Path, make: Any) -> None:
    whole, stopped, resumed = make(), make(), make()
    chosen = {"distill": {"on_policy": 0.5}, "eval_every": 1}
    run(tmp_path / "whole", whole, **chosen)
    assert run(tmp_path / "cut", stopped, evaluate=toy.interrupt_at(4), **chosen).interrupted
    assert run(tmp_path / "cut", resumed, resume=True, **chosen).resumed_from == 4
    assert toy.equal(toy.weights(whole), toy.weights(resumed))
    assert toy.figures(tmp_path / "whole") == toy.figures(tmp_path / "cut")


def test_another_teacher_is_not_resumed(tmp_path: Path) -> None:
    run(tmp_path, language.policy(), steps=2)
    with pytest.raises(Exception, match="objective settings differs"):
        run(tmp_path, language.policy(), steps=2, teacher=language.policy(6), resume=True)


def test_the_teacher_stays_as_it_is(tmp_path: Path) -> None:
    other = teacher()
    before = toy.weights(other)
    run(tmp_path, language.policy(), steps=2, teacher=other, distill={"on_policy": 0.5, "others": "teacher"})
    assert toy.equal(before, toy.weights(other))
    assert not any(p.requires_grad for p in other.parameters())


def test_prompts_alone_need_an_answerer(tmp_path: Path) -> None:
    prompts = [TokenGroup(group.prompt_ids, (), group.id) for group in language.demonstrations(6)]
    with pytest.raises(DataError, match=r"the data is to answer prompt d0, and does not.*others to teacher"):
        run(tmp_path / "a", language.policy(), items=prompts, distill={"on_policy": 0.9})
    assert run(tmp_path / "b", language.policy(), items=prompts, steps=1).step == 1


def test_a_model_is_not_its_own_teacher(tmp_path: Path) -> None:
    student = language.policy()
    with pytest.raises(ModelError, match="same model in memory"):
        run(tmp_path, student, teacher=student)


def test_settings_out_of_range_are_refused() -> None:
    for wrong in ({"method": "kl"}, {"beta": 0.0}, {"on_policy": 1.1}, {"others": "user"}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            DistillSettings(**wrong)  # type: ignore[arg-type]


def test_models_of_different_tokens_are_refused() -> None:
    head = language.policy().get_output_embeddings()
    assert isinstance(head, nn.Linear)
    models = [Predicting(Any, torch.zeros(n, 16)) for n in (2, 3)]  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="same tokens"):
        over_vocabulary(models, lambda *_: (), num_words=4)
