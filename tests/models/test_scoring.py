"""The packed path against transformers' padded forward: values, gradients, invariances. Float32 agrees to 1e-5."""

import pytest
import torch

from tests.models.rows import MIXED, plain_copy, plain_logps, random_groups
from trueward.models.packing import pack
from trueward.models.scoring import score_completions, supports_packing
from trueward.models.tiny import KINDS, Kind, tiny_model

LONG = [(40, (60, 33)), (3, (70,)), (64, (2, 2, 50))]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shapes", [MIXED, LONG, [(6, (5,))]], ids=["mixed", "long", "single"])
@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_packed_logps_equal_the_padded_forward(kind: Kind, shapes, temperature: float) -> None:
    model = tiny_model(kind, 3)
    reference = plain_copy(model)
    groups = random_groups(1, shapes)
    assert supports_packing(model)
    with torch.no_grad():
        scores = score_completions(model, pack(groups), temperature=temperature)
        expected = torch.cat(plain_logps(reference, groups, temperature))
    torch.testing.assert_close(scores.logps_N, expected, atol=2e-5, rtol=1e-5)
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
