"""Our objectives against TRL 1.16's own loss code, called on objects that hold what that code reads.

The trainers of TRL compute a loss inside a method that also runs the model. Here the model is a function that
returns given log-probs per token, so that the method runs as it is. Axes: B pairs, T tokens.
"""

import importlib
from collections import defaultdict
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from trueward.objectives import distill, preference, reward_model, sequence_mean, unpaired

# Importing TRL's trainers takes seconds.
pytestmark = pytest.mark.slow
F64 = torch.float64
B, T = 4, 6


class Accelerator:
    """One process: gathering is nothing."""

    device = torch.device("cpu")

    def gather(self, values: Tensor) -> Tensor:
        return values

    gather_for_metrics = gather


def bare(module: str, name: str, **attributes: Any) -> Any:
    """A TRL trainer without its constructor, in training mode."""
    cls = getattr(importlib.import_module(module), name)
    trainer = cls.__new__(cls)
    common = {
        "accelerator": Accelerator(),
        "model": SimpleNamespace(training=True),
        "aux_loss_enabled": False,
        "_metrics": {"train": defaultdict(list)},
        "_total_train_tokens": 0,
        "_tp_size": 1,
    }
    for key, value in {**common, **attributes}.items():
        setattr(trainer, key, value)
    return trainer


def scored(logps_T: Tensor, *others: Tensor) -> Any:
    """A model that gives these log-probs, to its callers in turn."""
    rows = iter((*others, logps_T))

    def model(**_: object) -> object:
        values = next(rows)
        zeros = torch.zeros_like(values)
        return SimpleNamespace(
            log_probs=values, entropy=zeros, mean_logits=zeros, is_top1=zeros.bool(), log_sum_sq_probs=zeros
        )

    return model


class Batch:
    """Random log-probs of 2 B completions of 1 to T tokens: B chosen, then B rejected."""

    def __init__(self, num_pairs: int = B) -> None:
        generator = torch.Generator().manual_seed(0)
        lengths = torch.randint(1, T + 1, (2 * num_pairs,), generator=generator)
        self.mask = torch.arange(T) < lengths.unsqueeze(1)
        policy, ref = -2 * torch.rand(2, 2 * num_pairs, T, generator=generator, dtype=F64)
        self.policy, self.ref = torch.where(self.mask, policy, 0.0), torch.where(self.mask, ref, 0.0)

    def columns(self, *, mean: bool = False) -> dict[str, Tensor]:
        lengths = self.mask.sum(1) if mean else 1
        chosen, rejected = (self.policy.sum(1) / lengths).chunk(2)
        ref_chosen, ref_rejected = (self.ref.sum(1) / lengths).chunk(2)
        nll = -(self.policy.sum(1) / self.mask.sum(1)).chunk(2)[0]
        return {"c": chosen, "r": rejected, "C": ref_chosen, "R": ref_rejected, "n": nll}

    def trl_inputs(self) -> dict[str, Tensor]:
        # TRL's masks and ids have one column more: the prompt's last token, which predicts the first.
        mask = torch.cat([torch.zeros(len(self.mask), 1, dtype=torch.long), self.mask.long()], dim=1)
        return {
            "input_ids": torch.ones_like(mask),
            "attention_mask": torch.ones_like(mask),
            "completion_mask": mask,
        }


def trl_dpo(batch: Batch, loss_types: list[str], weights: list[float], **options: float) -> float:
    trainer = bare(
        "trl.trainer.dpo_trainer",
        "DPOTrainer",
        loss_types=loss_types,
        loss_weights=weights,
        beta=options["beta"],
        label_smoothing=options.get("label_smoothing", options.get("flip_rate", 0.0)),
        f_divergence_type="reverse_kl",
        ld_alpha=None,
        precompute_ref_logps=True,
        use_weighting=False,
        args=SimpleNamespace(discopop_tau=options.get("tau")),
    )
    ref_chosen, ref_rejected = batch.ref.sum(1).chunk(2)
    inputs = {**batch.trl_inputs(), "ref_chosen_logps": ref_chosen, "ref_rejected_logps": ref_rejected}
    return float(trainer._compute_loss(scored(batch.policy), inputs, return_outputs=False))


DPO_CASES: list[tuple[str, str, dict[str, float]]] = [
    ("dpo", "sigmoid", {"beta": 0.3}),
    ("robust_dpo", "robust", {"beta": 0.3, "flip_rate": 0.2}),
    ("ipo", "ipo", {"beta": 0.3}),
    ("hinge", "hinge", {"beta": 0.3}),
    ("exo_pair", "exo_pair", {"beta": 0.3, "label_smoothing": 0.1}),
    ("nca_pair", "nca_pair", {"beta": 0.3}),
    ("sppo_hard", "sppo_hard", {"beta": 0.3}),
    ("apo_zero", "apo_zero", {"beta": 0.3}),
    ("apo_down", "apo_down", {"beta": 0.3}),
    ("discopop", "discopop", {"beta": 0.3, "tau": 0.05}),
]


@pytest.mark.parametrize(("ours", "theirs", "options"), DPO_CASES, ids=[case[0] for case in DPO_CASES])
def test_dpo_family(ours: str, theirs: str, options: dict[str, float]) -> None:
    batch = Batch()
    columns = batch.columns(mean=ours == "ipo")
    out = getattr(preference, ours)(*(columns[k] for k in "crCR"), **options)
    loss = float(sequence_mean(out.loss_B, denominator=B))
    assert loss == pytest.approx(trl_dpo(batch, [theirs], [1.0], **options), abs=1e-6)


def test_rpo_of_one_pair() -> None:
    # TRL averages its likelihood term over the tokens of the batch, we over those of each pair: one pair.
    batch = Batch(1)
    columns = batch.columns()
    out = preference.rpo(*(columns[k] for k in "crCRn"), beta=0.3, alpha=0.7)
    theirs = trl_dpo(batch, ["sigmoid", "sft"], [1.0, 0.7], beta=0.3)
    assert out.loss_B.item() == pytest.approx(theirs, abs=1e-6)


@pytest.mark.parametrize("ours", ["cpo", "simpo"])
def test_cpo_trainer(ours: str) -> None:
    gamma = 0.4
    trainer = bare(
        "trl.experimental.cpo.cpo_trainer",
        "CPOTrainer",
        alpha=0.0,
        beta=0.3,
        label_smoothing=0.0,
        simpo_gamma=gamma,
        loss_type={"cpo": "sigmoid", "simpo": "simpo"}[ours],
    )
    columns = Batch().columns(mean=ours == "simpo")
    theirs, chosen_rewards, rejected_rewards = trainer.cpo_loss(columns["c"], columns["r"])
    options = {"beta": 0.3, **({"gamma": gamma} if ours == "simpo" else {})}
    out = getattr(preference, ours)(columns["c"], columns["r"], **options)
    for got, expected in zip(out, (theirs, chosen_rewards, rejected_rewards), strict=True):
        torch.testing.assert_close(got, expected, rtol=0, atol=1e-6)


def test_orpo_trainer() -> None:
    trainer = bare("trl.experimental.orpo.orpo_trainer", "ORPOTrainer", beta=0.3)
    columns = Batch().columns(mean=True)
    term, chosen_rewards, rejected_rewards, _, _ = trainer.odds_ratio_loss(columns["c"], columns["r"])
    out = preference.orpo(columns["c"], columns["r"], columns["n"], weight=0.3)
    # TRL subtracts the term from the likelihood, and computes it in float32.
    torch.testing.assert_close(out.loss_B, columns["n"] - term.double(), rtol=0, atol=1e-6)
    torch.testing.assert_close(out.chosen_rewards_B, chosen_rewards.double(), rtol=0, atol=1e-6)
    torch.testing.assert_close(out.rejected_rewards_B, rejected_rewards.double(), rtol=0, atol=1e-6)


@pytest.mark.parametrize("higher", ["policy", "reference"])
def test_kto_trainer(higher: str) -> None:
    batch, mismatched = Batch(), Batch()
    if higher == "reference":
        mismatched.policy, mismatched.ref = mismatched.ref, mismatched.policy
    labels = torch.tensor([True, False, False, True, True, False, True, False])
    weights = {"desirable_weight": 1.5, "undesirable_weight": 0.5}
    trainer = bare(
        "trl.trainer.kto_trainer",
        "KTOTrainer",
        calculate_KL=True,
        precompute_ref_logps=True,
        loss_type="kto",
        beta=0.3,
        **weights,
    )
    inputs = batch.trl_inputs()
    inputs |= {f"KL_{name}": values for name, values in inputs.items()}
    inputs |= {"label": labels, "ref_logps": batch.ref.sum(1), "ref_KL_logps": mismatched.ref.sum(1)}
    model = scored(batch.policy, mismatched.policy)
    theirs = float(trainer._compute_loss(model, inputs, return_outputs=False))
    kl = unpaired.kto_kl(mismatched.policy.sum(1), mismatched.ref.sum(1))
    assert float(kl) == pytest.approx(trainer._metrics["train"]["kl"][0])
    out = unpaired.kto(batch.policy.sum(1), batch.ref.sum(1), labels, kl, beta=0.3, **weights)
    assert float(sequence_mean(out.loss_B, denominator=2 * B)) == pytest.approx(theirs, abs=1e-6)


def test_bco_without_shift_is_bco_pair() -> None:
    # TRL 1.16 has BCO on pairs only, with a shift of 0 and both expectations of weight 1.
    batch = Batch()
    labels = torch.tensor([True] * B + [False] * B)
    out = unpaired.bco(batch.policy.sum(1), batch.ref.sum(1), labels, 0.0, beta=0.3)
    theirs = trl_dpo(batch, ["bco_pair"], [1.0], beta=0.3)
    assert float(sequence_mean(out.loss_B, denominator=B)) == pytest.approx(theirs, abs=1e-6)


def test_reward_trainer() -> None:
    trainer = bare(
        "trl.trainer.reward_trainer",
        "RewardTrainer",
        args=SimpleNamespace(center_rewards_coefficient=0.1),
    )
    generator = torch.Generator().manual_seed(0)
    chosen, rejected, margin = torch.randn(3, B, generator=generator, dtype=F64)
    margin = margin.abs()
    inputs = {"attention_mask": torch.ones(2 * B, T), "margin": margin}

    def model(**_: object) -> object:
        return SimpleNamespace(logits=torch.cat([chosen, rejected]).unsqueeze(1))

    theirs = float(trainer.compute_loss(model, inputs))
    out = reward_model.bradley_terry(chosen, rejected, margin_B=margin, center=0.1)
    assert float(sequence_mean(out.loss_B, denominator=B)) == pytest.approx(theirs, abs=1e-6)


@pytest.mark.parametrize("beta", [0.0, 0.3, 1.0], ids=["forward", "jsd", "reverse"])
def test_gkd_trainer(beta: float) -> None:
    cls = importlib.import_module("trl.experimental.gkd.gkd_trainer").GKDTrainer
    generator = torch.Generator().manual_seed(0)
    student, teacher = torch.randn(2, B, T, 7, generator=generator, dtype=F64)
    mask = Batch().mask[:B]
    labels = torch.where(mask, 1, -100)
    theirs = cls.generalized_jsd_loss(student, teacher, labels=labels, beta=beta, reduction="sum")
    if beta == 0.0:
        out = distill.forward_kl(student, teacher, mask)
    elif beta == 1.0:
        out = distill.reverse_kl(student, teacher, mask)
    else:
        out = distill.generalized_jsd(student, teacher, mask, beta=beta)
    assert float(out.loss_BT.sum()) == pytest.approx(float(theirs), abs=1e-6)
