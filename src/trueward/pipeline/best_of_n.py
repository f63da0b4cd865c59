"""The best-of-n stage: n completions of a policy for each held-out prompt, and what each way of choosing is
worth.

On questions, whose answers are verified, the choosers are PRM, ORM, reward model and votes, between a single
completion (pass@1) and an oracle (pass@n). On comparisons the reward model chooses, and a judge that had no
part in it says how often the choice beats another completion.
Every figure is a mean over all subsets of n of the completions drawn (`decoding.best_of_n`); intervals
resample prompts, and gains are paired.
"""

import math
import time
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray
from rich.table import Table
from rich.text import Text

from trueward.core.errors import DataError, RunError
from trueward.core.files import write_json, write_jsonl
from trueward.core.stats import Estimate, paired_difference
from trueward.decoding import expected_best, expected_pass, expected_vote, kl_bound
from trueward.evals import fit_bag_of_words
from trueward.models.load import LoadedModel
from trueward.pipeline.candidates import Candidates, Floats, draw_candidates, judged_by, reward_scores
from trueward.pipeline.datasets import asked_records, decided, has_comparisons, pairs, test_prompts
from trueward.pipeline.group import mean_score
from trueward.pipeline.ppo import gold_of
from trueward.pipeline.questions import asked_questions
from trueward.pipeline.rollout_labels import record_of, start_of
from trueward.pipeline.sampling import prompt_ids
from trueward.pipeline.training import check
from trueward.pipeline.workspace import Begun, Workspace
from trueward.rewards import Case, all_of, final_answer
from trueward.rewards.maths import number_of

__all__ = ["best_of_n"]

_SCHEMA = "trueward.best_of_n/1"
_VOTE = "vote"
On = Literal["questions", "comparisons"]


class _Choice(NamedTuple):
    """A way of choosing. worth_P: of each prompt, what it is worth at n."""

    name: str
    worth_P: Callable[[int], list[float]]


class _Measured(NamedTuple):
    """What a kind of prompts gave: ways of choosing, the first of which takes any completion."""

    choices: list[_Choice]
    figures: dict[str, Any]
    prompts: int
    rows: list[dict[str, Any]]


def _answer(text: str) -> str | None:
    """The final answer in a form that is equal for equal answers."""
    stated = final_answer(text)
    if stated is None:
        return None
    number = number_of(stated)
    return stated.strip() if number is None else str(number)


def _choosing(scores_PN: Floats, values_PN: Floats) -> Callable[[int], list[float]]:
    return lambda n: [expected_best(s, v, n=n) for s, v in zip(scores_PN, values_PN, strict=True)]


def _voting(
    workspace: Workspace,
    answers_PN: list[list[str | None]],
    right_PN: Floats,
    weights_PN: Floats | None = None,
) -> Callable[[int], list[float]]:
    seed = workspace.seed("best_of_n", "votes")
    weights = [None] * len(right_PN) if weights_PN is None else list(weights_PN)

    def worth(n: int) -> list[float]:
        rows = zip(answers_PN, right_PN, weights, strict=True)
        return [expected_vote(a, r, n=n, weights_N=w, seed=seed) for a, r, w in rows]

    return worth


def _on_questions(workspace: Workspace, policy: LoadedModel) -> _Measured:
    recipe, section = workspace.recipe, workspace.recipe.best_of_n
    records = asked_records(workspace).test
    asked = asked_questions(
        workspace,
        policy,
        records,
        split="test",
        section=recipe.questions,
        key="questions",
        max_new_tokens=section.max_new_tokens,
        who="best of n",
    )
    most = None if recipe.data.source == "testbed" else recipe.eval.prompts
    prompts, groups = asked.prompts[:most], asked.groups[:most]
    check(workspace, policy, groups, completions=False, quiet=True)
    drawn = draw_candidates(workspace, policy, prompts, groups, section.completions)
    questions = [asked.questions[group.id] for group in groups]
    verdicts = all_of(recipe.questions.verifiers)(
        [
            Case(text, question.answer, question.prompt)
            for row, question in zip(drawn.texts_PN, questions, strict=True)
            for text in row
        ]
    )
    scores, unscored = judged_by(workspace, drawn)
    judged_PN = np.reshape([v.score is not None for v in verdicts], (len(groups), -1))
    kept_P = judged_PN.all(axis=1)
    if not kept_P.any():
        raise DataError("the verifier has no verdict on some completion of every question", value=len(groups))
    right_PN = drawn.table(
        [float(v.score is not None and v.score >= recipe.questions.right_at) for v in verdicts]
    )
    answers_PN = [[_answer(text) for text in row] for row in drawn.texts_PN]
    rows = _rows(drawn, scores, {"right": right_PN}, answers_PN, judged_PN)
    kept = np.flatnonzero(kept_P)
    right_PN, answers_PN = right_PN[kept], [answers_PN[p] for p in kept]
    choices = [
        _Choice("any (pass@1)", lambda n: list(right_PN.mean(axis=1))),
        _Choice(_VOTE, _voting(workspace, answers_PN, right_PN)),
    ]
    for name, scores_PN in scores.items():
        choices.append(_Choice(name, _choosing(scores_PN[kept], right_PN)))
        if name != "reward model":
            weights_PN = np.exp(scores_PN[kept])
            choices.append(_Choice(f"vote by {name}", _voting(workspace, answers_PN, right_PN, weights_PN)))
    choices.append(_Choice("oracle (pass@n)", lambda n: [expected_pass(r, n=n) for r in right_PN]))
    figures = {
        "unfinished": drawn.unfinished,
        "unscored": unscored,
        "verifier_errors": int((~judged_PN).sum()),
        "questions_left_out": int((~kept_P).sum()),
    }
    return _Measured(choices, figures, len(kept), rows)


def _rows(
    drawn: Candidates,
    scores: Mapping[str, Floats],
    values: Mapping[str, Floats],
    answers_PN: list[list[str | None]] | None = None,
    judged_PN: NDArray[np.bool_] | None = None,
) -> list[dict[str, Any]]:
    """Every completion with its scores and values: what the figures can be computed from again."""
    rows = []
    for p, texts in enumerate(drawn.texts_PN):
        completions = []
        for k, text in enumerate(texts):
            body: dict[str, Any] = {"text": text}
            if answers_PN is not None:
                body["answer"] = answers_PN[p][k]
            body |= {name: float(table[p, k]) for name, table in values.items()}
            if judged_PN is not None and not judged_PN[p, k]:
                body["right"] = None
            body["scores"] = {
                name: float(table[p, k]) if math.isfinite(table[p, k]) else None
                for name, table in scores.items()
            }
            completions.append(body)
        rows.append({"prompt": drawn.prompts[p].messages[-1].content, "completions": completions})
    return rows


def _on_comparisons(workspace: Workspace, policy: LoadedModel) -> _Measured:
    """The reward model chooses; one completion more than asked for is what the choice is compared with."""
    recipe, section = workspace.recipe, workspace.recipe.best_of_n
    if not workspace.has("reward"):
        raise RunError(
            f"{workspace.out} holds no reward model to choose by", remedy="run the reward stage first"
        )
    found = test_prompts(workspace).prompts
    kept, groups = prompt_ids(policy, found, max_tokens=recipe.data.max_tokens - section.max_new_tokens)
    prompts = [found[index] for index in kept]
    check(workspace, policy, groups, completions=False, quiet=True)
    drawn = draw_candidates(workspace, policy, prompts, groups, section.completions + 1)
    reward_PN = drawn.table(reward_scores(workspace, drawn))
    if recipe.data.source == "testbed":
        judge, judged_PN = "true reward", drawn.table(gold_of(policy, prompts)(drawn.groups, drawn.rollouts))
    else:
        train = decided(pairs(workspace).train).records
        words = fit_bag_of_words([r.chosen for r in train], [r.rejected for r in train])
        judge = "bag of words"
        judged_PN = drawn.table([words("", text) for row in drawn.texts_PN for text in row])
    rows = _rows(drawn, {"reward model": reward_PN}, {judge: judged_PN})
    # The last completion is the rival, so that no choice is compared with itself.
    scores_PN, values_PN, rival_P = reward_PN[:, :-1], judged_PN[:, :-1], judged_PN[:, -1:]
    wins_PN = np.where(values_PN > rival_P, 1.0, np.where(values_PN == rival_P, 0.5, 0.0))
    choices = [
        _Choice(f"any: win rate by {judge}", lambda n: list(wins_PN.mean(axis=1))),
        _Choice(f"reward model: win rate by {judge}", _choosing(scores_PN, wins_PN)),
        _Choice("reward model: its own reward", _choosing(scores_PN, scores_PN)),
    ]
    if judge == "true reward":
        choices.append(_Choice("reward model: true reward", _choosing(scores_PN, values_PN)))
    return _Measured(choices, {"unfinished": drawn.unfinished, "judge": judge}, len(groups), rows)


_MEASURES: Mapping[On, Callable[[Workspace, LoadedModel], _Measured]] = MappingProxyType(
    {"questions": _on_questions, "comparisons": _on_comparisons}
)


def _figures(measured: _Measured, sizes: Sequence[int]) -> list[dict[str, Any]]:
    """Each way of choosing at each n, with its paired gains over any completion and over the vote, where
    those are figures of the same kind."""
    rows: list[dict[str, Any]] = []
    any_P = measured.choices[0].worth_P(1)
    for n in sizes:
        worths = {choice.name: choice.worth_P(n) for choice in measured.choices}
        for name, worth_P in worths.items():
            vote_P = worths.get(_VOTE)
            rows.append(
                {
                    "choice": name,
                    "n": n,
                    "kl_bound": kl_bound(n),
                    "value": mean_score(np.array(worth_P))._asdict(),
                    "gain": None if name.endswith("reward") else paired_difference(worth_P, any_P)._asdict(),
                    "gain_over_vote": None
                    if vote_P is None
                    else paired_difference(worth_P, vote_P)._asdict(),
                }
            )
    return rows


def _table(title: str, rows: Sequence[Mapping[str, Any]], sizes: Sequence[int]) -> Table:
    table = Table(title=Text(title), title_justify="left", box=None, pad_edge=False)
    table.add_column("chosen by")
    for n in sizes:
        table.add_column(f"n = {n}", justify="right")
    for name in dict.fromkeys(row["choice"] for row in rows):
        cells = [Estimate(**row["value"]).shown(3) for row in rows if row["choice"] == name]
        table.add_row(Text(name), *map(Text, cells))
    table.add_row("KL bound, nats", *(f"{kl_bound(n):.2f}" for n in sizes))
    return table


def _kind(workspace: Workspace) -> On:
    """What is asked: as the recipe says, else comparisons where files hold some, else questions."""
    recipe = workspace.recipe
    if recipe.best_of_n.on is not None:
        return recipe.best_of_n.on
    files = recipe.data.source == "files"
    return "comparisons" if files and has_comparisons(workspace) else "questions"


def _begin(workspace: Workspace, stage: str, policy: LoadedModel, on: On) -> tuple[Begun, list[str]]:
    """The run folder, and the registry ids of all that takes part."""
    recipe = workspace.recipe
    judges = [name for name in ("prm", "orm", "reward") if workspace.has(name)]
    made = {name: workspace.record_of(name, "model") for name in judges}
    data = asked_records(workspace)
    config = {
        "section": recipe.best_of_n.model_dump(mode="json"),
        "questions": recipe.questions.model_dump(mode="json"),
        "on": on,
        "policy": stage,
        "dtype": recipe.model.dtype,
        "max_tokens": recipe.data.max_tokens,
        "limit": recipe.data.limit,
        "held_out": recipe.eval.prompts,
    }
    parents = {
        "policy": policy.hash,
        "data": data.hash,
        "charter": workspace.charter.hash,
        **{name: str(workspace.registry.get(record).body["hash"]) for name, record in made.items()},
    }
    begun = workspace.begin("best_of_n", config=config, parents=parents)
    return begun, [*data.records, record_of(workspace, stage, policy), *made.values()]


def best_of_n(workspace: Workspace) -> None:
    """Draw, choose in every way that the run has models for, and measure.

    Raises:
        DataError: no prompt can be asked.
        RunError: on comparisons, there is no reward model.
    """
    section, started_s = workspace.recipe.best_of_n, time.monotonic()
    stage, on = start_of(workspace, section.policy), _kind(workspace)
    policy = workspace.load(stage)
    begun, parents = _begin(workspace, stage, policy, on)
    if begun.done:
        return
    measured = _MEASURES[on](workspace, policy)
    rows = _figures(measured, section.sizes)
    body = {
        "schema": _SCHEMA,
        "on": on,
        "policy": stage,
        "prompts": measured.prompts,
        "completions": section.completions,
        **measured.figures,
        "rows": rows,
    }
    write_jsonl(begun.folder.path / "completions.jsonl", measured.rows)
    write_json(begun.folder.path / "figures.json", body)
    title = (
        f"best of n by {stage} on {measured.prompts:,} held-out {on}, of {section.completions} completions"
    )
    workspace.console.print(_table(title, rows, section.sizes))
    for name, count in measured.figures.get("unscored", {}).items():
        if count:
            workspace.say(f"best of n: {name} could not score {count:,} completions, which it never chooses")
    if measured.figures.get("questions_left_out"):
        workspace.say(
            f"best of n: {measured.figures['questions_left_out']:,} questions are left out, as the verifier "
            f"has no verdict on {measured.figures['verifier_errors']:,} of their completions"
        )
    workspace.finish(begun.folder, results={"seconds": time.monotonic() - started_s}, parents=parents)
