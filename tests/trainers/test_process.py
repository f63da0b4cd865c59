"""Process reward models: tokens and ends, losses by hand, a rule learnt, a resume, judging, best of n."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.metrics import balanced_accuracy_score, roc_auc_score
from transformers import PreTrainedModel

from tests.trainers import language, toy
from trueward.core.errors import DataError
from trueward.core.files import read_jsonl
from trueward.data.chat import Completion, Dropped, TokenGroup
from trueward.data.records import Message, StepLabels
from trueward.data.steps import StepGroup, outcome_label, tokenise_steps
from trueward.models.tiny import tiny_tokenizer
from trueward.objectives import outcome
from trueward.trainers.accumulate import accumulate
from trueward.trainers.process import (
    ProcessObjective,
    ProcessSettings,
    score_steps,
    step_scorer,
    train_process,
)
from trueward.trainers.process_judge import evaluate_process

BINARY, CLASSES = ProcessSettings(), ProcessSettings(method="classes")


def solutions(n: int = 40, seed: int = 0) -> list[StepGroup]:
    """Steps of one to three words and an end word; a step is right if its last word is low."""
    rng = np.random.default_rng(seed)
    found = []
    for i in range(n):
        ids: list[int] = []
        ends: list[bool] = []
        labels: list[int | None] = []
        for _ in range(int(rng.integers(1, 4))):
            words = rng.integers(8, language.VOCAB, rng.integers(1, 4)).tolist()
            ids += [*words, 3]
            ends += [False] * len(words) + [True]
            labels.append(1 if words[-1] < 14 else -1 if words[-1] > 17 else 0)
        if i % 4 == 0 and len(labels) > 1:
            labels[0] = None
        found.append(
            StepGroup(TokenGroup((1, 9), (Completion(tuple(ids), tuple(ends)),), f"s{i}"), tuple(labels))
        )
    return found


def scorer(process: ProcessSettings, seed: int = 0) -> PreTrainedModel:
    return step_scorer(language.policy(seed), tiny_tokenizer(), process, seed=seed)


def record(**changes: object) -> StepLabels:
    given = {
        "id": "r",
        "prompt": (Message("user", "1+1?"),),
        "steps": ("one and one", "is two.\nSo 2"),
        "labels": (None, 1),
    }
    return StepLabels(**{**given, **changes})  # type: ignore[arg-type]


def test_steps_end_where_their_text_ends() -> None:
    tokenizer = tiny_tokenizer()
    (item,) = tokenise_steps(tokenizer, [record()])
    assert isinstance(item, StepGroup)
    (completion,) = item.group.completions
    pieces, last = [], 0
    for position, end in enumerate(completion.trained):
        if end:
            pieces.append(tokenizer.decode(list(completion.ids[last : position + 1])))
            last = position + 1
    assert pieces == ["one and one\n", "is two.\nSo 2\n"] and last == len(completion.ids)
    assert item.labels == (None, 1)


def test_what_cannot_be_used_is_dropped_with_a_reason() -> None:
    tokenizer = tiny_tokenizer()
    special = tokenizer.eos_token
    cases = [record(steps=(f"a {special}", "b")), record()]
    first, second = tokenise_steps(tokenizer, cases, max_tokens=10)
    assert isinstance(first, Dropped) and "special token" in first.reason
    assert isinstance(second, Dropped) and "longer than max_tokens" in second.reason


def test_the_loss_is_that_of_the_plain_model_at_its_step_ends() -> None:
    items = solutions(6)
    model = scorer(BINARY)
    out = ProcessObjective(BINARY).loss(model, items)
    total, hits, count = 0.0, 0, 0
    for item in items:
        ids = [*item.group.prompt_ids, *item.group.completions[0].ids]
        with torch.no_grad():
            hidden_LD = model.base_model(torch.tensor([ids])).last_hidden_state[0]
            logits_L = model.get_submodule("score")(hidden_LD)[:, 0]
        ends = [t + 2 for t, end in enumerate(item.group.completions[0].trained) if end]
        for end, label in zip(ends, item.labels, strict=True):
            if label is not None:
                right = label >= 0
                logit = float(logits_L[end])
                total += math.log1p(math.exp(-logit if right else logit))
                hits += (logit > 0) == right
                count += 1
    assert float(out.loss_sum.detach()) == pytest.approx(total, rel=1e-4)
    measured, counted = out.sums["step_accuracy"]
    assert (float(measured), counted) == (hits, count)
    assert count < sum(len(item.labels) for item in items)


def test_one_label_at_the_end_is_an_outcome_reward_model() -> None:
    labelled = outcome_label(record(labels=(-1, 0)), right=True)
    assert labelled.labels == (None, 1) and outcome_label(record(), right=False).labels == (None, -1)
    items = [
        StepGroup(i.group, (*(None for _ in i.labels[:-1]), 1 if n % 2 else -1))
        for n, i in enumerate(solutions(6))
    ]
    model = scorer(BINARY)
    out = ProcessObjective(BINARY).loss(model, items)
    logps = [row[-1] for row in score_steps(model, items, process=BINARY, max_tokens_per_forward=1000)]
    # logit = log p - log (1 - p)
    logits_B = torch.tensor([p - math.log1p(-math.exp(p)) for p in logps])
    expected = outcome(logits_B, torch.tensor([float(n % 2) for n in range(6)])).loss_B.sum()
    assert float(out.loss_sum.detach()) == pytest.approx(float(expected), rel=1e-4)


@pytest.mark.parametrize("process", [BINARY, CLASSES], ids=["binary", "classes"])
def test_micro_batches_do_not_change_the_step(process: ProcessSettings) -> None:
    model, objective, items = scorer(process), ProcessObjective(process), solutions(8)

    def gradients(max_tokens: int) -> dict[str, torch.Tensor]:
        model.zero_grad(set_to_none=True)
        accumulate(model, objective, items, max_tokens=max_tokens, precision="float32", seed=0)
        return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}

    whole, parts = gradients(1000), gradients(20)
    for name, grad in whole.items():
        torch.testing.assert_close(parts[name], grad, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("process", [BINARY, CLASSES], ids=["binary", "classes"])
def test_it_learns_a_rule_and_resumes_bit_equal(process: ProcessSettings, tmp_path: Path) -> None:
    items, held = solutions(120), solutions(60, seed=1)
    whole, cut, after = (scorer(process) for _ in range(3))
    chosen = toy.settings(steps=40, batch_size=24, lr=0.02, save_every=20, max_tokens_per_forward=2000)
    stop = toy.interrupt_at(2)
    train_process(whole, items, settings=chosen, process=process, folder=tmp_path / "whole")
    often = chosen.model_copy(update={"eval_every": 10})
    train_process(cut, items, settings=often, process=process, folder=tmp_path / "cut", evaluate=stop)
    result = train_process(
        after, items, settings=chosen, process=process, folder=tmp_path / "cut", resume=True
    )
    assert result.resumed_from == 20 and toy.equal(toy.weights(whole), toy.weights(after))
    assert list(read_jsonl(tmp_path / "whole" / "metrics.jsonl"))[-1]["step_accuracy"] > 0.9
    logps = score_steps(whole, held, process=process, max_tokens_per_forward=2000)
    judged = evaluate_process(logps, held, clusters=[item.group.id for item in held])
    assert judged.accuracy.low > judged.majority and judged.auc.low > 0.9
    assert all(p <= 0 for row in logps for p in row) and [len(r) for r in logps] == [
        len(i.labels) for i in held
    ]


def test_judging_agrees_with_scikit_learn() -> None:
    items, rng = solutions(50), np.random.default_rng(0)
    logps = [tuple(np.round(np.log(rng.uniform(0.05, 0.95, len(i.labels))), 1).tolist()) for i in items]
    judged = evaluate_process(
        logps, items, clusters=[item.group.id for item in items], neutral_is_right=False
    )
    pairs = [
        (p, label == 1)
        for row, item in zip(logps, items, strict=True)
        for p, label in zip(row, item.labels, strict=True)
        if label is not None
    ]
    scores, right = zip(*pairs, strict=True)
    guessed = [p > math.log(0.5) for p in scores]
    assert judged.auc.value == pytest.approx(roc_auc_score(right, scores))
    assert judged.balanced_accuracy.value == pytest.approx(balanced_accuracy_score(right, guessed))
    assert judged.accuracy.value == pytest.approx(np.mean(np.array(guessed) == right))
    assert judged.majority == pytest.approx(max(np.mean(right), 1 - np.mean(right)))
    assert judged.auc.low < 0.5 < judged.auc.high and judged.auc.n == len(pairs)


def test_labels_are_needed(tmp_path: Path) -> None:
    bare = [StepGroup(item.group, tuple(None for _ in item.labels)) for item in solutions(2)]
    with pytest.raises(DataError, match="no step of solution s0 has a label"):
        train_process(scorer(BINARY), bare, settings=toy.settings(), process=BINARY, folder=tmp_path)
    right = [StepGroup(item.group, tuple(1 for _ in item.labels)) for item in solutions(2)]
    logps = [[-0.1] * len(item.labels) for item in right]
    with pytest.raises(DataError, match="steps of both labels"):
        evaluate_process(logps, right, clusters=["a", "b"])
