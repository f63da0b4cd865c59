"""Scores that depend on their company are found, and those of our own path do not."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.models.rows import random_groups
from trueward.core.errors import EvidenceError
from trueward.data.chat import TokenGroup
from trueward.evals import InvarianceReport, invariance, reward_invariance
from trueward.models.heads import reward_from_causal
from trueward.models.packing import Packed
from trueward.models.scoring import sequence_rewards
from trueward.models.tiny import KINDS, Kind, tiny_model, tiny_tokenizer


def model_of(kind: Kind = "llama") -> Any:
    return reward_from_causal(tiny_model(kind, 1), tiny_tokenizer(), seed=3)


def pairs(count: int = 12) -> list[TokenGroup]:
    return random_groups(5, [(2 + i % 9, (1 + i % 5, 3 + i % 7)) for i in range(count)])


def measured(model: Any, groups: list[TokenGroup]) -> InvarianceReport:
    return reward_invariance(model, groups, max_tokens_per_forward=400)


@pytest.mark.parametrize("kind", KINDS)
def test_our_scores_depend_on_the_text_alone(kind: Kind) -> None:
    report = measured(model_of(kind), pairs())
    assert report.largest < 1e-4 < report.spread
    assert set(report.ways) == {"pair by pair", "short rows", "full rows", "another order", "exchanged"}
    assert report.estimate() == (report.largest, report.largest, report.largest, 24)


@pytest.mark.parametrize(
    ("fault", "seen_in", "unseen_in"),
    [
        (lambda scores_S, packed: scores_S + 0.01 * packed.num_tokens, "full rows", None),
        (lambda scores_S, packed: scores_S + 0.1 * (torch.arange(len(scores_S)) % 2), "exchanged", None),
        (
            lambda scores_S, packed: scores_S.where(torch.arange(len(scores_S)) < 20, 0),
            "full rows",
            "pair by pair",
        ),
        (lambda scores_S, packed: scores_S / (len(scores_S) < 3), "short rows", "pair by pair"),
    ],
    ids=["batch size", "place in the pair", "end of a long row", "lost in company"],
)
def test_scores_that_depend_on_company_are_found(
    fault: Any, seen_in: str, unseen_in: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    def faulty(model: Any, packed: Packed) -> Tensor:
        scores_S: Tensor = fault(sequence_rewards(model, packed), packed)
        return scores_S

    monkeypatch.setattr(invariance, "sequence_rewards", faulty)
    report = measured(model_of(), pairs())
    assert report.ways[seen_in] > 0.005 and report.largest >= report.ways[seen_in]
    assert unseen_in is None or report.ways[unseen_in] < 1e-4


def test_wrong_input_is_refused() -> None:
    with pytest.raises(EvidenceError, match="measured on pairs"):
        measured(model_of(), [])
    group = pairs(1)[0]
    with pytest.raises(EvidenceError, match="measured on pairs"):
        measured(model_of(), [replace(group, completions=group.completions[:1])])
    broken = model_of()
    broken.score.weight.data.fill_(float("nan"))
    with pytest.raises(EvidenceError, match="24 scores are not finite"):
        measured(broken, pairs())
