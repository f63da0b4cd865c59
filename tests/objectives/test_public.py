"""The public surface of the package, frozen, and what it may import."""

import ast
import inspect
import operator
import pkgutil
import sys
from pathlib import Path

import trueward.objectives
from trueward import objectives

SIGNATURES = {
    "accuracy": "chosen_B rejected_B",
    "apo_down": "chosen_logps_B rejected_logps_B ref_chosen_logps_B ref_rejected_logps_B * beta",
    "apo_zero": "chosen_logps_B rejected_logps_B ref_chosen_logps_B ref_rejected_logps_B * beta",
    "bco": "policy_logps_B ref_logps_B desirable_B delta * beta desirable_weight undesirable_weight",
    "bco_delta": "rewards_B desirable_B",
    "bradley_terry": "chosen_rewards_B rejected_rewards_B * margin_B target_B center",
    "confidence_threshold": "strong_logits_B",
    "constant_length_mean": "values_BT mask_BT * denominator max_tokens",
    "cpo": "chosen_logps_B rejected_logps_B * beta",
    "d2o": "rejected_logps_B ref_rejected_logps_B sampled_logps_BK ref_sampled_logps_BK * beta alpha",
    "davidson": "chosen_rewards_B rejected_rewards_B tie_B * nu",
    "discopop": "chosen_logps_B rejected_logps_B ref_chosen_logps_B ref_rejected_logps_B * beta tau",
    "dpo": "chosen_logps_B rejected_logps_B ref_chosen_logps_B ref_rejected_logps_B * beta label_smoothing",
    "exo_pair": (
        "chosen_logps_B rejected_logps_B ref_chosen_logps_B ref_rejected_logps_B * beta label_smoothing"
    ),
    "forward_kl": "student_logits_BTV teacher_logits_BTV mask_BT",
    "gae": "rewards_BT values_BT * mask_BT gamma lam",
    "generalized_jsd": "student_logits_BTV teacher_logits_BTV mask_BT * beta",
    "group_relative": "rewards_PG * scale",
    "hinge": "chosen_logps_B rejected_logps_B ref_chosen_logps_B ref_rejected_logps_B * beta",
    "ipo": (
        "chosen_mean_logps_B rejected_mean_logps_B ref_chosen_mean_logps_B ref_rejected_mean_logps_B * beta"
    ),
    "kl.exact": "logits_BTV other_logits_BTV",
    "kl.k1": "sampler_logps other_logps",
    "kl.k2": "sampler_logps other_logps",
    "kl.k3": "sampler_logps other_logps",
    "kto": "policy_logps_B ref_logps_B desirable_B kl * beta desirable_weight undesirable_weight",
    "kto_kl": "mismatched_logps_B ref_mismatched_logps_B",
    "lagrangian_advantages": "reward_advantages_BT cost_advantages_BT * log_lambda",
    "leave_one_out": "rewards_PG",
    "masked_importance": "trainer_logps_BT sampler_logps_BT * mask_BT low high level",
    "masked_mean_B": "values_BT mask_BT",
    "masked_sum_B": "values_BT mask_BT",
    "micro_batch_token_mean": "values_BT mask_BT * denominator",
    "min_of_steps": "correct_logps_BT ends_BT",
    "nca_pair": "chosen_logps_B rejected_logps_B ref_chosen_logps_B ref_rejected_logps_B * beta",
    "orpo": "chosen_mean_logps_B rejected_mean_logps_B chosen_nll_B * weight",
    "outcome": "logits_B labels_B",
    "plackett_luce": "rewards_BK ranks_BK",
    "policy_surrogate": "logps_BT old_logps_BT advantages_BT * method mask_BT clip_low clip_high dual_clip",
    "ppo_policy": "logps_BT old_logps_BT advantages_BT * mask_BT clip_low clip_high dual_clip",
    "ppo_value": "values_BT old_values_BT returns_BT mask_BT * clip",
    "product_of_steps": "correct_logps_BT ends_BT",
    "ranking_pairs": "rewards_BK ranks_BK",
    "rao_kupper": "chosen_rewards_B rejected_rewards_B tie_B * theta",
    "reinforce": "logps_BT advantages_BT * mask_BT",
    "reinforce_plus_plus": "scores_B kl_BT * mask_BT beta",
    "reverse_kl": "student_logits_BTV teacher_logits_BTV mask_BT",
    "robust_dpo": "chosen_logps_B rejected_logps_B ref_chosen_logps_B ref_rejected_logps_B * beta flip_rate",
    "rpo": (
        "chosen_logps_B rejected_logps_B ref_chosen_logps_B ref_rejected_logps_B chosen_nll_B * beta alpha"
    ),
    "sequence_mean": "values_B * denominator",
    "sft": "logps_BT mask_BT * weights_BT",
    "simpo": "chosen_mean_logps_B rejected_mean_logps_B * beta gamma",
    "sppo_hard": "chosen_logps_B rejected_logps_B ref_chosen_logps_B ref_rejected_logps_B * beta",
    "step_binary": "logits_BT labels_BT ends_BT",
    "step_classes": "logits_BTC labels_BT ends_BT * neutral_is_correct",
    "token_entropy": "logits_BTV",
    "token_logps": "logits_BTV labels_BT",
    "token_mean": "values_BT mask_BT * denominator",
    "token_rewards": "scores_B kl_BT mask_BT * beta",
    "truncated_importance": "trainer_logps_BT sampler_logps_BT * mask_BT cap level",
    "update_log_lambda": "log_lambda mean_cost * threshold lr max_log_lambda",
    "weak_answers": "weak_logps_BT own_logps_BT mask_BT * alpha",
    "weak_to_strong": "strong_logits_B weak_probs_B * alpha threshold",
    "whiten": "values_BT mask_BT * shift_mean",
    "zero_masked": "values_BT mask_BT",
}
FIELDS = {
    "Advantages": ("advantages_BT", "returns_BT"),
    "BradleyTerryLoss": ("loss_B", "accuracies_B", "margins_B"),
    "D2OLoss": ("loss_B", "sampled_rewards_B", "rejected_rewards_B"),
    "DistillLoss": ("loss_BT",),
    "ImportanceWeights": ("weights_BT", "ratio_BT", "corrected_BT"),
    "Multiplier": ("log_lambda", "slack", "held"),
    "OutcomeLoss": ("loss_B", "correct_logps_B"),
    "PolicyLoss": ("loss_BT", "ratio_BT", "clipped_BT"),
    "PreferenceLoss": ("loss_B", "chosen_rewards_B", "rejected_rewards_B"),
    "ProcessLoss": ("loss_BT", "correct_logps_BT"),
    "RankingLoss": ("loss_B", "accuracies_B"),
    "ReinforceLoss": ("loss_BT",),
    "SFTLoss": ("loss_BT",),
    "StepTotals": ("num_tokens", "num_sequences", "max_tokens"),
    "TiesLoss": ("loss_B", "margins_B"),
    "UnpairedLoss": ("loss_B", "rewards_B"),
    "ValueLoss": ("loss_BT", "clipped_BT"),
    "WeakAnswerLoss": ("loss_BT",),
    "WeakToStrongLoss": ("loss_B", "hardened_B"),
}
TABLES = {"KL_ESTIMATORS", "POLICY_GRADIENT_METHODS", "REDUCTIONS", "STEP_AGGREGATIONS", "STEP_CLASSES"}


def _signature(name: str) -> str:
    words = []
    for parameter in inspect.signature(operator.attrgetter(name)(objectives)).parameters.values():
        if parameter.kind is parameter.KEYWORD_ONLY and "*" not in words:
            words.append("*")
        words.append(parameter.name)
    return " ".join(words)


def test_public_names_are_frozen() -> None:
    functions = {name for name in SIGNATURES if "." not in name}
    assert set(objectives.__all__) == {*functions, *FIELDS, *TABLES, "PolicyGradientMethod", "kl"}
    assert {name: _signature(name) for name in SIGNATURES} == SIGNATURES
    assert {name: getattr(objectives, name)._fields for name in FIELDS} == FIELDS


def test_imports_torch_and_the_standard_library_only() -> None:
    folder = Path(trueward.objectives.__file__).parent
    allowed = {"torch", *sys.stdlib_module_names}
    for path in sorted(folder.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            modules: list[str] = []
            if isinstance(node, ast.Import):
                modules = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                modules = [node.module or ""]
            for module in modules:
                inside = module == "trueward.objectives" or module.startswith("trueward.objectives.")
                assert inside or module.split(".")[0] in allowed, f"{path.name} imports {module}"


def test_oracles_do_not_read_the_package() -> None:
    folder = Path(__file__).parents[1] / "oracles"
    for path in sorted(folder.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            assert not any(name.split(".")[0] == "trueward" for name in names), path.name


def test_a_module_is_not_hidden_behind_a_function_of_its_name() -> None:
    # `sft` is one function in a module of its own.
    names = {module.name for module in pkgutil.iter_modules(objectives.__path__)} - {"sft"}
    assert {name for name in names if not inspect.ismodule(getattr(objectives, name))} == set()
