"""Losses of the GRPO family and group advantages agree with those of TRL 1.16, computed by TRL's own code."""

from collections import defaultdict
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.objectives.test_policy_gradient_methods import MASK, TOTALS, batch
from trueward.objectives import (
    POLICY_GRADIENT_METHODS,
    REDUCTIONS,
    group_relative,
    leave_one_out,
    policy_surrogate,
)

pytestmark = pytest.mark.slow  # importing TRL takes seconds


class _OneProcess:
    num_processes = 1
    sync_gradients = True

    def gather(self, value: Tensor) -> Tensor:
        return value

    def reduce(self, value: Tensor, reduction: str) -> Tensor:
        return value


def trl_loss(logps: Tensor, old: Tensor, advantages_B: Tensor, **settings: Any) -> Tensor:
    """The loss of TRL's trainer for given log-probs: its method, run on a stand-in for the trainer."""
    grpo_trainer = pytest.importorskip("trl.trainer.grpo_trainer", reason="TRL is not installed")
    trainer = SimpleNamespace(
        _get_per_token_logps_and_entropies=lambda *a, **k: (logps, torch.zeros_like(logps), None),
        aux_loss_enabled=False,
        top_entropy_quantile=1.0,
        off_policy_mask_threshold=None,
        beta=0.0,
        use_vllm=False,
        vllm_importance_sampling_correction=False,
        model=SimpleNamespace(training=True),
        current_gradient_accumulation_steps=1,
        max_completion_length=TOTALS.max_tokens,
        accelerator=_OneProcess(),
        _entropy_bonus_enabled=False,
        _metrics=defaultdict(lambda: defaultdict(list)),
        args=SimpleNamespace(
            delta=settings.pop("delta", None), steps_per_generation=1, use_bias_correction_kl=False
        ),
        **{"importance_sampling_level": "token", "epsilon_low": 0.2, "epsilon_high": 0.3, **settings},
    )
    ids = torch.zeros(MASK.shape, dtype=torch.int64)
    inputs = {
        "prompt_ids": ids[:, :1],
        "prompt_mask": torch.ones_like(ids[:, :1]),
        "completion_ids": ids,
        "completion_mask": MASK.long(),
        "advantages": advantages_B,
        "old_per_token_logps": old,
        "num_items_in_batch": MASK.sum(),
    }
    return grpo_trainer.GRPOTrainer._compute_loss(trainer, None, inputs)  # type: ignore[no-any-return]


@pytest.mark.parametrize(
    ("name", "theirs", "clips"),
    [
        ("grpo", {"loss_type": "grpo"}, {}),
        ("grpo", {"loss_type": "grpo", "delta": 1.5}, {"dual_clip": 1.5}),
        ("dr_grpo", {"loss_type": "dr_grpo"}, {}),
        ("dapo", {"loss_type": "dapo"}, {}),
        ("bnpo", {"loss_type": "bnpo"}, {}),
        ("gspo", {"loss_type": "grpo", "importance_sampling_level": "sequence"}, {}),
        # TRL's epsilon_high is the largest weight itself for CISPO, and it has no lower bound.
        ("cispo", {"loss_type": "cispo", "epsilon_high": 1.3}, {"clip_low": 1.0}),
    ],
    ids=["grpo", "grpo-dual-clip", "dr_grpo", "dapo", "bnpo", "gspo", "cispo"],
)
def test_losses_agree(name: str, theirs: dict[str, Any], clips: dict[str, float]) -> None:
    logps, old, advantages = batch()
    logps.requires_grad_()
    method = POLICY_GRADIENT_METHODS[name]
    ranges = {"clip_low": 0.2, "clip_high": 0.3, **clips}
    result = policy_surrogate(logps, old, advantages, method=method, mask_BT=MASK, **ranges)
    ours = REDUCTIONS[method.reduction](result.loss_BT, MASK, TOTALS)
    expected = trl_loss(logps, old, advantages[:, 0], **theirs)
    # 1e-6 is asked for; both are float64, so only the order of sums differs.
    torch.testing.assert_close(ours, expected, rtol=0, atol=1e-6)
    gradients = [torch.autograd.grad(loss, logps)[0] for loss in (ours, expected)]
    torch.testing.assert_close(*gradients, rtol=0, atol=1e-6)


def test_group_advantages_agree() -> None:
    # As in `_generate_and_score_completions` for scale_rewards "group" and "none", with its own nanstd.
    nanstd = pytest.importorskip("trl.trainer.utils", reason="TRL is not installed").nanstd
    rewards = torch.randn(5, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    rewards[2] = 0.1
    centred = rewards - torch.nanmean(rewards, dim=1, keepdim=True)
    scaled = centred / (nanstd(rewards, dim=1).unsqueeze(1) + 1e-4)
    torch.testing.assert_close(group_relative(rewards, scale="none"), centred, rtol=0, atol=1e-6)
    torch.testing.assert_close(group_relative(rewards, scale="std"), scaled, rtol=0, atol=1e-6)
    # RLOO: (sum of the group - own reward) / (G - 1) is the baseline.
    baseline = (rewards.sum(dim=1, keepdim=True) - rewards) / 3
    torch.testing.assert_close(leave_one_out(rewards), rewards - baseline, rtol=0, atol=1e-6)
