"""PPO-ptx: demonstrations beside the completions, by hand, under any cut, and across a resume."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.trainers import language, toy
from tests.trainers.test_ppo import experienced, low_words, prompts, settings
from trueward.core.files import read_jsonl
from trueward.rollouts import LocalEngine
from trueward.trainers.accumulate import Accumulated, StepObjective, accumulate
from trueward.trainers.experience import ppo_models
from trueward.trainers.loop import TrainResult
from trueward.trainers.ppo import train_ppo
from trueward.trainers.ppo_ptx import PtxObjective, demonstrations_of_step
from trueward.trainers.ppo_update import PPOObjective
from trueward.trainers.sft import SFTObjective

BESIDE = language.demonstrations(9, seed=3)


def gradients(
    model: nn.Module, objective: StepObjective[Any], items: list[Any], max_tokens: int = 1000
) -> tuple[Accumulated, dict[str, Tensor]]:
    model.zero_grad(set_to_none=True)
    got = accumulate(model, objective, items, max_tokens=max_tokens, precision="float32", seed=0)
    return got, {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


def test_without_advantages_it_is_a_step_of_sft() -> None:
    chosen = settings(value_coef=0.0)
    models, drawn, learning = experienced(chosen)
    still = replace(learning.targets, advantages_BT=torch.zeros_like(learning.targets.advantages_BT))
    ppo = PPOObjective(models, drawn.experience, still, chosen)
    mixed = PtxObjective(ppo, models.policy, coef=2.5)
    got, grads = gradients(models.policy, mixed, [3, 0, *BESIDE])
    expected, sft_grads = gradients(models.policy, SFTObjective(), BESIDE)
    # Advantages of 0 have loss 0: what is left is 2.5 times the mean over the demonstrations' own tokens.
    assert got.loss == pytest.approx(2.5 * expected.loss, rel=1e-5)
    assert got.means["ptx_loss"] == pytest.approx(expected.loss, rel=1e-5)
    for name, grad in sft_grads.items():
        torch.testing.assert_close(grads[name], 2.5 * grad, rtol=1e-4, atol=1e-6)


def test_micro_batches_do_not_change_the_mixed_update() -> None:
    chosen = settings()
    models, drawn, learning = experienced(chosen)
    mixed = PtxObjective(
        PPOObjective(models, drawn.experience, learning.targets, chosen), models.policy, coef=0.7
    )
    items: list[Any] = [3, 0, 7, *BESIDE]
    whole, whole_grads = gradients(models.policy, mixed, items)
    parts, part_grads = gradients(models.policy, mixed, items, max_tokens=20)
    assert len(mixed.micro_batches(items, 20)) > 4 and len(mixed.micro_batches(items, 1000)) == 2
    assert parts.loss == pytest.approx(whole.loss, rel=1e-4)
    assert parts.means["ptx_loss"] == pytest.approx(whole.means["ptx_loss"], rel=1e-5)
    for name, grad in whole_grads.items():
        torch.testing.assert_close(part_grads[name], grad, rtol=1e-3, atol=1e-6)


def run(folder: Path, policy: nn.Module, *, resume: bool = False) -> TrainResult:
    chosen = settings(
        iterations=2, save_every=1, prompts_per_iteration=6, ptx_coef=1.0, ptx_batch_size=4, kl_coef=0.0
    )
    return train_ppo(
        ppo_models(policy, chosen, demonstrations=BESIDE),
        prompts(),
        engine=LocalEngine(policy, [language.STOP]),
        reward=low_words,
        settings=chosen,
        folder=folder,
        resume=resume,
    )


def test_it_imitates_and_resumes_bit_equal(tmp_path: Path) -> None:
    whole, cut, after = (language.policy() for _ in range(3))
    run(tmp_path / "whole", whole)
    run(tmp_path / "cut", cut)
    for path in sorted((tmp_path / "cut" / "checkpoints").iterdir())[1:]:
        path.rename(tmp_path / path.name)
    assert run(tmp_path / "cut", after, resume=True).resumed_from == 1
    assert toy.equal(toy.weights(whole), toy.weights(after))
    assert toy.figures(tmp_path / "whole") == toy.figures(tmp_path / "cut")
    losses = [row["ptx_loss"] for row in read_jsonl(tmp_path / "whole" / "metrics.jsonl")]
    assert losses[-1] < losses[0] - 0.1


def test_each_demonstration_comes_once_in_a_pass() -> None:
    chosen = settings(ptx_coef=1.0, ptx_batch_size=4)
    of_step = demonstrations_of_step(BESIDE, chosen)
    ids = [group.id for step in range(9) for group in of_step(step)]
    assert [sorted(ids[i : i + 9]) for i in range(0, 36, 9)] == [sorted(group.id for group in BESIDE)] * 4
    assert ids[:9] != ids[9:18]
    assert demonstrations_of_step([], settings())(5) == []


@pytest.mark.parametrize(("coef", "given"), [(1.0, []), (0.0, BESIDE)], ids=["none", "no-coef"])
def test_demonstrations_and_coefficient_go_together(coef: float, given: list[Any]) -> None:
    with pytest.raises(ValueError, match=r"ptx_coef above 0, which needs some, got \d with ptx_coef"):
        ppo_models(language.policy(), settings(ptx_coef=coef), demonstrations=given)
