"""The faults: signs, masks off by one, means for sums, dropped factors, wrong sides, gradients not stopped.

Grouped by file; every group names the test files that must notice. Not here: how they are planted (see
fault).
"""

from collections.abc import Iterator

from tests.mutants.fault import Fault

Row = tuple[str, str, str]
"""Name, old text, new text."""


def _in(file: str, tests: tuple[str, ...], *rows: Row) -> Iterator[Fault]:
    for name, old, new in rows:
        yield Fault(name=name, file=file, old=old, new=new, tests=tests)


POLICY = ("objectives/test_policy_gradient.py", "objectives/test_policy_gradient_methods.py")
ADVANTAGES = ("objectives/test_advantages.py", "objectives/test_group_advantages.py")

FAULTS: tuple[Fault, ...] = (
    *_in(
        "objectives/policy_gradient.py",
        POLICY,
        ("REINFORCE: sign", "ReinforceLoss(-advantages_BT", "ReinforceLoss(advantages_BT"),
        ("ratio: old over new", "logps_BT - old_logps_BT", "old_logps_BT - logps_BT"),
        ("sequence ratio: sum for mean", "masked_mean_B(log_ratio_BT", "masked_sum_B(log_ratio_BT"),
        (
            "weight: gradient not stopped",
            "ratio_BT = log_ratio_BT.detach().exp()\n    if clip_low",
            "ratio_BT = log_ratio_BT.exp()\n    if clip_low",
        ),
        (
            "weight: upper bound 1 - clip",
            "clamp(1 - clip_low, 1 + clip_high)",
            "clamp(1 - clip_low, 1 - clip_high)",
        ),
        (
            "clip: high side for A < 0",
            "(ratio_BT > high) & (advantages_BT > 0)",
            "(ratio_BT > high) & (advantages_BT < 0)",
        ),
        (
            "clip: low side for A > 0",
            "(ratio_BT < low) & (advantages_BT < 0)",
            "(ratio_BT < low) & (advantages_BT > 0)",
        ),
        (
            "clip: one range for both sides",
            "1 - clip_low, 1 + clip_high, dual_clip",
            "1 - clip_high, 1 + clip_high, dual_clip",
        ),
        ("clip: edge counts as outside", "over_BT = (ratio_BT > high)", "over_BT = (ratio_BT >= high)"),
        (
            "clip: gradient through the clip",
            "torch.where(clipped_BT, held_BT, live_ratio_BT)",
            "torch.where(clipped_BT, live_ratio_BT, live_ratio_BT)",
        ),
        (
            "clip: 0 * inf in the unused branch",
            "torch.where(no_gradient_BT, 0.0, log_ratio_BT)",
            "log_ratio_BT",
        ),
        (
            "surrogate: sign",
            "PolicyLoss(-used_ratio_BT * advantages_BT",
            "PolicyLoss(used_ratio_BT * advantages_BT",
        ),
        (
            "dual clip: for A > 0",
            "(ratio_BT > dual_clip) & (advantages_BT < 0)",
            "(ratio_BT > dual_clip) & (advantages_BT > 0)",
        ),
        ("clipped ratio in float32", "torch.full_like(ratio_BT, low)", "torch.tensor(low)"),
        ("advantages not masked", "counted.append(zero_masked(full_BT, mask_BT))", "counted.append(full_BT)"),
    ),
    *_in(
        "objectives/advantages.py",
        ADVANTAGES,
        ("reward one token early", "positions_T == last_B1", "positions_T == last_B1 - 1"),
        ("reward at the first token", ".max(dim=1, keepdim=True).values", ".min(dim=1, keepdim=True).values"),
        ("KL price: sign", "return score_BT - beta", "return score_BT + beta"),
        ("KL price: beta dropped", "- beta * zero_masked(kl_BT", "- zero_masked(kl_BT"),
        (
            "GAE: next value not discounted",
            "rewards_BT + gamma * next_values_BT",
            "rewards_BT + next_values_BT",
        ),
        ("GAE: lambda dropped", "gamma * lam * running_B", "gamma * running_B"),
        ("GAE: value of the same token", "[values_BT[:, 1:], torch", "[values_BT[:, :-1], torch"),
        ("GAE: bootstraps from padding", "    values_BT = zero_masked(values_BT, mask_BT)\n", ""),
        (
            "GAE: returns without values",
            "advantages_BT, advantages_BT + values_BT",
            "advantages_BT, advantages_BT",
        ),
        (
            "whiten: variance of n - 1",
            "centred_BT.square().sum() / num_counted",
            "centred_BT.square().sum() / (num_counted - 1)",
        ),
        ("whiten: padding in the mean", "kept_BT.sum() / num_counted", "kept_BT.mean()"),
        ("group: variance of n", ".div(centred_PG.shape[1] - 1)", ".div(centred_PG.shape[1])"),
        ("group: mean of all groups", "rewards_PG.mean(dim=1, keepdim=True)", "rewards_PG.mean()"),
        ("group: rounding of equal rewards", "torch.where(equal_P1, 0.0, centred_PG)", "centred_PG"),
        ("leave-one-out: own reward in the baseline", "num_completions / (num_completions - 1)", "1.0"),
        ("REINFORCE++: not whitened", "return whiten(returns_BT, mask_BT)", "return returns_BT"),
    ),
    *_in(
        "objectives/reduce.py",
        ("objectives/test_reduce.py",),
        (
            "token mean: local denominator",
            "zero_masked(values_BT, mask_BT).sum() / denominator",
            "zero_masked(values_BT, mask_BT).sum() / mask_BT.sum()",
        ),
        ("mean over padding too", "mask_BT.sum(dim=1).clamp(min=1)", "mask_BT.shape[1]"),
        ("empty sequence divides by 0", "mask_BT.sum(dim=1).clamp(min=1)", "mask_BT.sum(dim=1)"),
        ("masked by product", "torch.where(mask_BT, values_BT, 0.0)", "values_BT * mask_BT"),
        (
            "sum is a mean",
            "zero_masked(values_BT, mask_BT).sum(dim=1)",
            "zero_masked(values_BT, mask_BT).mean(dim=1)",
        ),
        ("constant length dropped", "denominator=denominator) / max_tokens", "denominator=denominator)"),
        ("micro-batches weigh the same", "(len(values_BT) / denominator)", "(1 / denominator)"),
    ),
    *_in(
        "objectives/kl.py",
        ("objectives/test_kl.py",),
        (
            "KL of the other direction",
            "return other_logps - sampler_logps",
            "return sampler_logps - other_logps",
        ),
        ("k2 without its half", "0.5 * _log_ratio", "_log_ratio"),
        ("k3 without expm1", "torch.expm1(log_ratio) - log_ratio", "log_ratio.exp() - 1 - log_ratio"),
        (
            "exact: weighted by the other",
            "(logps_BTV.exp() * log_ratio_BTV)",
            "(other_logps_BTV.exp() * log_ratio_BTV)",
        ),
    ),
    *_in(
        "objectives/value.py",
        ("objectives/test_value.py",),
        ("value: smaller error", "(held_error_BT > error_BT)", "(held_error_BT < error_BT)"),
        ("value: clip around the return", "held_BT = old_values_BT +", "held_BT = returns_BT +"),
    ),
    *_in(
        "objectives/importance.py",
        ("objectives/test_importance.py",),
        ("importance: sampler over trainer", "counted[0] - counted[1]", "counted[1] - counted[0]"),
        ("importance: lower bound for cap", "ratio_BT.clamp(max=cap)", "ratio_BT.clamp(min=cap)"),
        (
            "importance: mean for product",
            "masked_sum_B(log_ratio_BT, mask_BT)",
            "masked_sum_B(log_ratio_BT, mask_BT) / mask_BT.sum(dim=1)",
        ),
        ("importance: one-sided mask", "((ratio_BT < low) | (ratio_BT > high))", "(ratio_BT > high)"),
    ),
    *_in(
        "objectives/process.py",
        ("objectives/test_process.py",),
        ("steps: labels turned round", "labels * logsigmoid(logits)", "labels * logsigmoid(-logits)"),
        (
            "steps: every token counts",
            "ProcessLoss(zero_masked(loss_BT, ends_BT), _correct(logsigmoid",
            "ProcessLoss(loss_BT, _correct(logsigmoid",
        ),
        (
            "steps: neutral and positive swapped",
            '"neutral" if neutral_is_correct else "positive"',
            '"positive" if neutral_is_correct else "neutral"',
        ),
        ("steps: best step for worst", ".amin(dim=1)", ".amax(dim=1)"),
    ),
    *_in(
        "objectives/lagrangian.py",
        ("objectives/test_lagrangian.py",),
        ("Lagrangian: cost rewarded", "reward_BT - _sigmoid", "reward_BT + _sigmoid"),
        ("Lagrangian: descent", "(mean_cost - threshold)\n", "(threshold - mean_cost)\n"),
        ("Lagrangian: lambda dropped", "lr * math.exp(log_lambda) * ", "lr * "),
    ),
    *_in(
        "objectives/logprobs.py",
        ("objectives/test_logprobs.py",),
        ("entropy: sign", "return -(logps_BTV.exp()", "return (logps_BTV.exp()"),
    ),
    *_in(
        "models/head.py",
        ("models/test_head.py",),
        (
            "head: a GPU's matrix without its gradient in a step",
            "hidden_ND, weight_VD, bias_V, dtype=grad_logps_N.dtype, owner=ctx.owner)\n        for",
            "hidden_ND, weight_VD, bias_V, dtype=grad_logps_N.dtype)\n        for",
        ),
    ),
    *_in(
        "models/head_passes.py",
        ("models/test_head.py",),
        (
            "head: onehot without its 1",
            "torch.where(chosen_nV, 1.0 - probs_nV,",
            "torch.where(chosen_nV, probs_nV,",
        ),
        ("head: entropy's gradient without H", "logps_nV + entropy_n.unsqueeze(1), 0.0", "logps_nV, 0.0"),
        ("head: temperature left out of the gradient", "(grad_nV / temperature)", "grad_nV"),
    ),
    *_in(
        "models/compiled.py",
        ("models/test_compiled.py",),
        ("compiled: mode not put back", 'values["training"] = True', 'values["training"] = False'),
        ("compiled: dropout taken for none", "[] if any(map(_drops, training)) else ", ""),
        (
            "compiled: layers of a checkpoint too",
            'not asked or getattr(self._layer, "gradient_checkpointing", False)',
            "not asked",
        ),
    ),
    *_in(
        "models/flex.py",
        ("models/test_flex.py",),
        (
            "flex: heads of a group side by side",
            "unsqueeze(3).expand(-1, -1, -1, groups, -1)",
            "unsqueeze(2).expand(-1, -1, groups, -1, -1)",
        ),
    ),
    *_in(
        "models/relaid_table.py",
        ("models/test_relaid.py",),
        (
            "table: words of the first block",
            "flat_N[at_n] - block * _BLOCK_WORDS",
            "flat_N[at_n] * 0",
        ),
        ("table: not put back", "onednn.move_back(block_BD, laid)", "block_BD.zero_()"),
        ("table: the last block is forgotten", "self._dense[len(self._laid) :]", "[]"),
    ),
    *_in(
        "models/relaid.py",
        ("models/test_relaid.py",),
        ("relaid: not put back", "onednn.move_back(dense, laid)", "pass"),
        ("relaid: a weight that others read is moved", "elif shared:", "elif False:"),
        (
            "relaid: interrupted while moved",
            "with uninterrupted():\n                if table",
            "if True:\n                if table",
        ),
        (
            "relaid: interrupted on the way back",
            "with uninterrupted():\n            while laid",
            "if True:\n            while laid",
        ),
    ),
    *_in(
        "core/signals.py",
        ("core/test_signals.py",),
        ("signals: lost", "handled.callback(signal.raise_signal, each)", "pass"),
        ("signals: the other way round", "in reversed(came)", "in came"),
        ("signals: handlers stay", "signal.signal(number, handler)", "pass"),
    ),
    *_in(
        "models/bfloat16.py",
        ("models/test_bfloat16.py",),
        ("bfloat16: a block of the sum left out", "sum_MN.addmm_(a_MK", "torch.addmm(sum_MN, a_MK"),
        ("bfloat16: autocast not seen", "return autocast or any(", "return any("),
        ("bfloat16: in place into nothing", "args[0] if func in _IN_PLACE else ", ""),
        (
            "bfloat16: rounded before the bias",
            "torch.addmm(bias.float(), a_MK",
            "torch.addmm(bias.float() * 0, a_MK",
        ),
        ("bfloat16: mixed operands", "not all(map(_low, args))", "not any(map(_low, args))"),
    ),
    *_in(
        "trainers/group_experience.py",
        ("trainers/test_group_forwards.py",),
        ("group: recorded in other rows", "first += packed.num_sequences", "first += 1"),
        ("group: a gap is not looked at", "if not gap <= settings.max_sampler_gap:", "if False:"),
    ),
    *_in(
        "trainers/group.py",
        ("trainers/test_group_forwards.py",),
        (
            "group: a round without an update is unknown",
            "if not teaches and settings.scored_by_update:",
            "if False:",
        ),
        (
            "group: not saved",
            "with _saved(run) if settings.scored_by_update else",
            "with nullcontext() if 1 else",
        ),
    ),
    *_in(
        "trainers/group_settings.py",
        ("trainers/test_group_forwards.py",),
        ("group: KL in the reward needs no scores", 'self.kl_in == "reward" or ', ""),
    ),
    *_in(
        "models/head.py",
        ("models/test_head.py",),
        (
            "head: mean of the first rows",
            "return torch.cat(sums) / part",
            "return torch.cat(sums[::-1]) / part",
        ),
        ("head: entropy's gradient left out", "if grad_entropy_N is not None:", "if False:"),
    ),
    *_in(
        "models/onednn.py",
        ("models/test_relaid.py",),
        ("places: not checked", "not torch.equal(found[at], some)", "False"),
        ("places: one digit", "number += weight", "number = weight"),
        ("moved: larger than its place", "== weight.nbytes and _serves", "> 0 and _serves"),
        ("moved: not tried", "return torch.equal(other, weight) and bool(", "return True or bool("),
    ),
    *_in(
        "models/blockwise.py",
        ("models/test_blockwise.py",),
        ("blocks: a query sees the one after it", ".triu_(1)", ".triu_(2)"),
        (
            "blocks: the last key is left out",
            "min(self.reach.most + end, ",
            "min(self.reach.most + end - 1, ",
        ),
        ("blocks: what all see begins too late", "max(0, self.reach.least + block.start)", "block.num_keys"),
        ("blocks: gradient of queries unscaled", "(dq_NBd), work.scale, out", "(dq_NBd), 1.0, out"),
        ("blocks: keys of the last block only", "dk_NKd[:, :num_keys] +=", "dk_NKd[:, :num_keys] ="),
        ("blocks: values of the last block only", "dv_NKd[:, :num_keys] +=", "dv_NKd[:, :num_keys] ="),
        (
            "blocks: scores are rounded",
            "return torch.softmax(s_NBK, -1)",
            "return torch.softmax(s_NBK.bfloat16(), -1).to(self.wide)",
        ),
        ("blocks: under autocast", "enabled=False):\n        result", "enabled=True):\n        result"),
    ),
    *_in(
        "models/processor.py",
        ("models/test_processor.py",),
        (
            "processor: also where there is AMX",
            'not any(flag.startswith("amx")',
            'any(True or flag.startswith("amx")',
        ),
        ("processor: of any maker", 'fields.get("vendor_id") == "AuthenticAMD"', "True"),
        ("processor: over what was set", "before != _UNSET and not _WITHIN.get()", "False"),
        ("processor: left on", "        setting.fp32_precision = before\n        _WITHIN", "        _WITHIN"),
        ("processor: rounded all the same", "return all(torch.equal(got, expected)", "return any(True"),
        (
            "processor: small products by oneDNN",
            "    with _library(False):",
            "    with _library(True):",
        ),
        (
            "processor: tried under autocast",
            'torch.autocast("cpu", enabled=False)',
            'torch.autocast("cpu", enabled=torch.is_autocast_enabled("cpu"))',
        ),
        ("processor: of the model around it", "_ASKED if large and _usable() else _UNSET", "_ASKED"),
    ),
    *_in(
        "trainers/accumulate.py",
        ("models/test_processor.py",),
        (
            "accumulate: products as torch comes",
            'model_products(model, autocast=precision == "bfloat16"),',
            "nullcontext(),",
        ),
    ),
    *_in(
        "models/activations.py",
        ("models/test_activations.py", "models/test_scoring.py"),
        (
            "norms: another order without gradient",
            "if is_rms_norm(module):",
            "if not only_norms and is_rms_norm(module):",
        ),
    ),
    *_in(
        "rollouts/lean.py",
        ("rollouts/test_lean.py",),
        ("lean: another epsilon", "weight=weight, eps=eps)", "weight=weight, eps=0.1)"),
        ("lean: values turned too", "sin_RXd[:, heads - value_heads :] = 0.0", "pass"),
    ),
    *_in(
        "rollouts/cache.py",
        ("rollouts/test_cache.py",),
        ("cache: what was drawn is lost with more room", "larger[:, :, :size] = found.slots", "pass"),
        (
            "cache: the new token by head",
            "= new_RcKd.transpose(0, 1)",
            "= new_RcKd.transpose(0, 1).roll(1, 1)",
        ),
    ),
    *_in(
        "data/unique.py",
        ("data/test_unique.py",),
        ("ids: what waits is left out", "np.array(waiting, dtype", "np.array(waiting[:0], dtype"),
        ("ids: neighbours compared with themselves", "found[1:] == found[:-1]", "found[1:] == found[1:]"),
    ),
    *_in(
        "trainers/row_adamw.py",
        ("trainers/test_row_adamw.py",),
        ("moment: rounded one not kept", "            kept.copy_(moment)\n", ""),
        ("moment: each block a step", 'squares, state["step"].clone())', 'squares, state["step"])'),
    ),
    *_in(
        "models/norms.py",
        ("models/test_activations.py",),
        ("norm: mean without its sign", "div_(-grad_LD.shape[-1])", "div_(grad_LD.shape[-1])"),
        (
            "norm: scale left out of the gradient",
            ".addcmul_(unit_LD, mean_L1).mul_(scale_L1)",
            ".addcmul_(unit_LD, mean_L1)",
        ),
        (
            "norm: unit without the weight for products",
            "self.unit()[0] * self._kept()",
            "self.unit()[0] + 0 * self._kept()",
        ),
    ),
    *_in(
        "models/products.py",
        ("models/test_activations.py",),
        (
            "product: gradient put in the place of the sum",
            "room_OI.addmm_(grad_NO.T, states_NI)",
            "torch.mm(grad_NO.T, states_NI, out=room_OI)",
        ),
        (
            "product: owner of states without gradient",
            "torch.is_grad_enabled() and states_NI.requires_grad",
            "torch.is_grad_enabled()",
        ),
        ("product: weight's gradient lost", "needs_weight or owner is not None:", "needs_weight:"),
    ),
    *_in(
        "core/imports.py",
        ("core/test_imports.py",),
        ("imports: searched for garbage", "    gc.disable()\n", ""),
        ("imports: searched later", "gc.freeze()", "pass"),
        ("imports: never searched again", "        if collects:\n            gc.enable()\n", ""),
    ),
    *_in(
        "models/memory.py",
        ("models/test_memory.py",),
        ("memory: pages made when written", "    take_pages(made)\n", ""),
        (
            "memory: pages that were given back made when written",
            "take_pages(self._given_back.pop())",
            "self._given_back.pop()",
        ),
        ("stack: pages made when written", "if self._top > self._highest:", "if False:"),
        ("stack: blocks in use given again", "self._blocks[-1].buffer() is None", "self._blocks"),
        (
            "stack: an address used again taken for the same tensor",
            "StorageWeakRef(storage), copy",
            "None, copy",
        ),
        (
            "stack: offset of a view forgotten",
            "copy.copy_(tensor.as_strided((span,), (1,)))",
            "copy.copy_(tensor.as_strided((span,), (1,), 0))",
        ),
    ),
    *_in(
        "models/packing.py",
        ("models/test_packing.py",),
        (
            "packing: first token predicted by itself",
            "prompt_ends.append(start + prompt - 1)",
            "prompt_ends.append(start + prompt)",
        ),
        ("packing: tokens predict themselves", "predict_N = position_N - 1", "predict_N = position_N + 0"),
        ("packing: later completions start at 0", "bases.append(prompt)", "bases.append(0)"),
        (
            "packing: last token one early",
            "moved(ends - 1)",
            "moved(ends - 2)",
        ),
        (
            "packing: row of the sequence before",
            "starts_S[packed.sequence_N]",
            "starts_S[packed.sequence_N - 1]",
        ),
    ),
    *_in(
        "objectives/_pairs.py",
        ("objectives/test_preference.py",),
        (
            "pairs: references exchanged",
            "policy.chosen_B - refs[0], policy.rejected_B - refs[1]",
            "policy.chosen_B - refs[1], policy.rejected_B - refs[0]",
        ),
        ("pairs: gradient into rewards", "scale * self.chosen_B.detach()", "scale * self.chosen_B"),
    ),
    *_in(
        "objectives/preference.py",
        ("objectives/test_preference.py",),
        (
            "DPO: beta dropped",
            "-(1 - label_smoothing) * logsigmoid(d_B)",
            "-(1 - label_smoothing) * logsigmoid(d_B / beta)",
        ),
        (
            "DPO: smoothing on the wrong side",
            "- label_smoothing * logsigmoid(-d_B)\n    return",
            "- label_smoothing * logsigmoid(d_B)\n    return",
        ),
        ("robust DPO: not rescaled", " / (1 - 2 * flip_rate)", ""),
        ("IPO: margin 1 / beta", "1 / (2 * beta)).square()", "1 / beta).square()"),
        ("hinge: margin of 0", "torch.relu(1 - beta", "torch.relu(-beta"),
        ("RPO: NLL rewarded", "out.loss_B + alpha * nll_B", "out.loss_B - alpha * nll_B"),
    ),
    *_in(
        "objectives/reference_free.py",
        ("objectives/test_preference.py",),
        (
            "SimPO: gamma helps",
            "(logps.chosen_B - logps.rejected_B) - gamma",
            "(logps.chosen_B - logps.rejected_B) + gamma",
        ),
        ("ORPO: odds are probabilities", "below_B - torch.log(-torch.expm1(below_B))", "below_B"),
    ),
    *_in(
        "trainers/unpaired.py",
        ("trainers/test_unpaired.py",),
        (
            "unpaired: mismatched completion never beside the own",
            "return [both] if shared else [group, other]",
            "return [group, other]",
        ),
        (
            "unpaired: mismatched and own exchanged",
            "(*group.completions, *other.completions)",
            "(*other.completions, *group.completions)",
        ),
    ),
    *_in(
        "trainers/reference.py",
        ("trainers/test_unpaired.py",),
        (
            "reference: the key follows the size of forwards",
            "groups_hash(groups)",
            "groups_hash(together or groups)",
        ),
    ),
    *_in(
        "objectives/unpaired.py",
        ("objectives/test_unpaired.py",),
        (
            "KTO: desirable and undesirable exchanged",
            "kl - ratios_B, ratios_B - kl",
            "ratios_B - kl, kl - ratios_B",
        ),
        ("KTO: baseline below 0", ".mean().clamp(min=0.0)", ".mean()"),
        (
            "KTO: weights exchanged",
            "[undesirable_weight, desirable_weight]",
            "[desirable_weight, undesirable_weight]",
        ),
        ("BCO: shift added", "beta * ratios_B - delta", "beta * ratios_B + delta"),
    ),
    *_in(
        "objectives/reward_model.py",
        ("objectives/test_reward_model.py",),
        ("Bradley-Terry: margin helps", "-logsigmoid(margins_B - margin)", "-logsigmoid(margins_B + margin)"),
    ),
    *_in(
        "objectives/ranking.py",
        ("objectives/test_ranking.py",),
        ("Plackett-Luce: worst first", ".triu().bool()", ".tril().bool()"),
        ("ranking pairs: sum for mean", "losses_BKK.sum(dim=(1, 2)) / count_B", "losses_BKK.sum(dim=(1, 2))"),
    ),
    *_in(
        "objectives/distill.py",
        ("objectives/test_distill.py",),
        (
            "forward KL is the reverse",
            "DistillLoss(exact(teacher_BTV, student_BTV))",
            "DistillLoss(exact(student_BTV, teacher_BTV))",
        ),
        (
            "weak-to-strong: own label turned round",
            "torch.sigmoid(logits_B.detach()) > threshold",
            "torch.sigmoid(logits_B.detach()) < threshold",
        ),
    ),
)
