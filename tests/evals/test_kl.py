"""KL to the reference against a plain forward of transformers, and the estimators against the exact sum."""

import numpy as np
import pytest
import torch

from tests.models.rows import MIXED, padded, plain_copy, plain_rows, random_groups
from trueward.core.errors import EvidenceError
from trueward.data.chat import Completion, TokenGroup
from trueward.evals.kl import kl_to_ref
from trueward.models.tiny import tiny_model


def test_exact_kl_equals_a_plain_forward() -> None:
    model, ref = tiny_model("llama", 0), tiny_model("llama", 1)
    groups = random_groups(0, MIXED)
    report = kl_to_ref(model, ref, groups, max_tokens=40)
    rows = plain_rows(groups)
    ids, mask = padded([row for row, _ in rows])
    with torch.no_grad():
        p, q = (
            torch.log_softmax(plain_copy(m)(input_ids=ids, attention_mask=mask).logits.double(), -1)
            for m in (model, ref)
        )
    token_kl = (p.exp() * (p - q)).sum(-1)
    trained = [completion.trained for group in groups for completion in group.completions]
    expected = [
        sum(token_kl[row, start - 1 + n].item() for n, flag in enumerate(flags) if flag)
        for row, ((_, start), flags) in enumerate(zip(rows, trained, strict=True))
    ]
    # Float32 models: relative error of a few 1e-6 a token.
    assert report.exact.value == pytest.approx(np.mean(expected), rel=1e-4)
    assert report.exact.n == len(rows)
    assert report.tokens == np.mean([sum(flags) for flags in trained])


def test_a_model_has_no_distance_from_itself() -> None:
    model = tiny_model("llama", 0)
    report = kl_to_ref(model, model, random_groups(0, MIXED))
    assert report.exact.value == pytest.approx(0, abs=1e-6)
    assert report.k1.value == report.k3.value == 0.0


def test_estimators_agree_with_the_exact_kl_on_drawn_tokens() -> None:
    model, ref = tiny_model("llama", 0, scale=1.0), tiny_model("llama", 0, scale=1.3)
    prompt = torch.tensor([[5, 17, 33, 80]])
    with torch.no_grad():
        p = torch.softmax(model(prompt).logits[0, -1], -1)
    drawn = torch.multinomial(p, 3000, replacement=True, generator=torch.Generator().manual_seed(0)).tolist()
    group = TokenGroup((5, 17, 33, 80), tuple(Completion((token,), (True,)) for token in drawn))
    report = kl_to_ref(model, ref, [group], max_tokens=4000)
    assert report.exact.value > 1e-4
    assert report.k1.low < report.exact.value < report.k1.high
    assert report.k3.low < report.exact.value < report.k3.high
    assert report.k3.high - report.k3.low < 0.5 * (report.k1.high - report.k1.low)


def test_nothing_to_measure_raises() -> None:
    with pytest.raises(EvidenceError, match="no completions"):
        kl_to_ref(tiny_model("llama"), tiny_model("llama"), [])
