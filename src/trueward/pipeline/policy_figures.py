"""Figures of measured policies as JSON values: what summary, report and gate read. No model takes part."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trueward.core.seed import generator
from trueward.core.stats import Estimate, bootstrap_mean, paired_difference, win_rate
from trueward.evals import BagOfWordsJudge, ScoreJudge, accuracy_ratio, compare_held_out, win_rate_report
from trueward.pipeline.measured import HeldPrompts, Measured, reference_of, rival_of, texts_of
from trueward.testbed import Measurement

__all__ = ["figures_of", "notes_of", "samples", "win_matrix"]

# Half an item is added to each count of a ratio of shares, so that no count of 0 divides.
_HALF = 0.5
_NUM_RESAMPLES = 1000


def _json(estimates: Mapping[str, Estimate]) -> dict[str, Any]:
    return {name: estimate._asdict() for name, estimate in estimates.items()}


def figures_of(
    stage: str, measured: Mapping[str, Measured], held: HeldPrompts, judge: BagOfWordsJudge | None
) -> dict[str, Any]:
    """Everything about one policy."""
    mine = measured[stage]
    extra: dict[str, Estimate] = {}
    figures: dict[str, Any] = {"scores": _json(mine.scores), "unfinished": mine.drawn.unfinished}
    if mine.kl is not None:
        figures |= {"kl": mine.kl.exact._asdict(), "kl_ref": reference_of(stage)}
        extra |= {"kl_k1": mine.kl.k1, "kl_k3": mine.kl.k3}
    if stage != "base":
        figures |= _against_rival(mine, measured[rival_of(stage)], held, extra)
        if judge is not None:
            figures |= _judged(mine, measured[rival_of(stage)], held, judge, extra)
    if mine.true is not None:
        figures["refusal"] = _refusal(mine.true)
        extra |= _honesty(mine.true, held)
    capability = _capability(measured["base"], mine)
    if capability is not None:
        figures["capability"] = capability._asdict()
    extra["completions/mean_length"] = bootstrap_mean([len(g.completions[0].ids) for g in mine.drawn.groups])
    return {**figures, "extra": _json(extra)}


def _judge_name(held: HeldPrompts) -> str:
    return "rm" if held.tasks is None else "gold"


def _against_rival(
    mine: Measured, rival: Measured, held: HeldPrompts, extra: dict[str, Estimate]
) -> dict[str, Any]:
    if not mine.per_item.size:
        return {}
    name = "reward" if held.tasks is None else "gold"
    extra[f"{name}_gain_over_{rival.stage}"] = paired_difference(mine.per_item, rival.per_item)
    return {
        "win_rate": win_rate(mine.per_item, rival.per_item)._asdict(),
        "win_against": rival.stage,
        "win_judge": _judge_name(held),
    }


def _judged(
    mine: Measured, rival: Measured, held: HeldPrompts, judge: BagOfWordsJudge, extra: dict[str, Estimate]
) -> dict[str, Any]:
    scorer = ScoreJudge(name="bag-of-words", score=judge)
    report = win_rate_report(scorer, texts_of(held.prompts), mine.drawn.texts, rival.drawn.texts)
    extra["win_rate_judge"] = report.estimate
    figures = {
        "name": report.judge,
        "ties": report.ties,
        "inconsistent": report.inconsistent,
        "empty": [report.empty_first, report.empty_second],
    }
    return {"judge": figures}


def _capability(base: Measured, mine: Measured) -> Estimate | None:
    """Right answers over those of the base; None where it gives none: nothing can be retained."""
    before, after = base.abilities, mine.abilities
    if before.greedy_right is not None and after.greedy_right is not None:
        return accuracy_ratio(before.greedy_right, after.greedy_right) if any(before.greedy_right) else None
    if before.held_out is not None and after.held_out is not None and mine.stage != "base":
        if not any(before.held_out.correct):
            return None
        return compare_held_out(before.held_out, after.held_out).accuracy_ratio
    return None


def _refusal(true: Measurement) -> dict[str, Any]:
    return {
        "harmful": true.harmful_refusal._asdict(),
        "benign": true.benign_refusal._asdict(),
        "by_category": [
            {"category": c.category, "kind": c.kind, **c.rate._asdict()} for c in true.categories
        ],
    }


def _honesty(true: Measurement, held: HeldPrompts) -> dict[str, Estimate]:
    assert held.tasks is not None, "a true measurement has tasks"
    said = {
        kind: np.array(
            [o == "abstain" for t, o in zip(held.tasks, true.outcomes, strict=True) if t.kind == kind],
            dtype=float,
        )
        for kind in ("known", "unknown")
    }
    return {
        "jailbreak_success": true.jailbreak_success,
        "known_abstention": true.known_abstention,
        "unknown_abstention": true.unknown_abstention,
        "abstention_ratio": _ratio_of_shares(said["unknown"], said["known"]),
    }


def _ratio_of_shares(above: NDArray[np.float64], below: NDArray[np.float64]) -> Estimate:
    """Share of ones in `above` over that in `below`, with a bootstrap interval."""

    def ratio(a: NDArray[np.float64], b: NDArray[np.float64]) -> float:
        shares = [(x.sum() + _HALF) / (x.size + 2 * _HALF) for x in (a, b)]
        return float(shares[0] / shares[1])

    rng = generator(0, "ratio of shares")
    draws = [
        ratio(rng.choice(above, above.size), rng.choice(below, below.size)) for _ in range(_NUM_RESAMPLES)
    ]
    low, high = np.quantile(draws, [0.025, 0.975])
    return Estimate(ratio(above, below), float(low), float(high), min(above.size, below.size))


def win_matrix(measured: Mapping[str, Measured], held: HeldPrompts) -> list[dict[str, Any]]:
    """How often each policy beats each other one on the same prompts."""
    return [
        {
            "row": a,
            "column": b,
            "judge": _judge_name(held),
            **win_rate(measured[a].per_item, measured[b].per_item)._asdict(),
        }
        for a in measured
        for b in measured
        if a != b and measured[a].per_item.size
    ]


def samples(held: HeldPrompts, measured: Mapping[str, Measured]) -> list[dict[str, Any]]:
    """Every prompt with the answer of every policy."""
    rows: list[dict[str, Any]] = []
    for index, prompt in enumerate(held.prompts):
        scores = {stage: float(m.per_item[index]) for stage, m in measured.items() if m.per_item.size}
        rows.append(
            {
                "prompt": "\n".join(f"{m.role}: {m.content}" for m in prompt.messages),
                "category": held.tasks[index].kind if held.tasks is not None else "",
                "completions": {stage: m.drawn.texts[index] for stage, m in measured.items()},
                "scores": scores or None,
            }
        )
    return rows


def notes_of(measured: Mapping[str, Measured], held: HeldPrompts) -> list[str]:
    """What the reader of the figures has to know, in words."""
    notes: list[str] = []
    if held.too_long:
        notes.append(f"evaluation: {held.too_long} prompts are too long and left out")
    for stage, mine in measured.items():
        if mine.drawn.unfinished:
            total = len(held.prompts)
            notes.append(f"{stage}: {mine.drawn.unfinished} of {total} completions ran into the length limit")
    if len(measured) > 1 and all(_capability(measured["base"], mine) is None for mine in measured.values()):
        notes.append("abilities: the base model gives no right answer, so nothing can be retained or lost")
    return notes
