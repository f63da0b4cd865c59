"""Judging models of steps: the length rule by hand, the paired gain, soft targets, saving with probes."""

import json
import math
from pathlib import Path

import pytest
import torch

from tests.trainers import language
from tests.trainers.test_process import solutions
from trueward.core.errors import ConfigError, DataError, ModelError
from trueward.data.chat import Completion, TokenGroup
from trueward.data.steps import StepGroup
from trueward.models.load import load_reward
from trueward.models.tiny import tiny_model, tiny_tokenizer
from trueward.trainers.process import (
    ProcessObjective,
    ProcessSettings,
    evaluate_steps,
    score_steps,
    step_scorer,
    train_process,
)
from trueward.trainers.process_judge import auc_gain, evaluate_process, fit_length_rule
from trueward.trainers.settings import TrainSettings
from trueward.trainers.step_model import STEPS_FILE, load_steps, save_steps

CLASSES = ProcessSettings(method="classes")


def item(lengths: list[int], labels: list[int | None], soft: list[float | None] | None = None) -> StepGroup:
    """A solution of steps of so many tokens."""
    ends = [t == n - 1 for n in lengths for t in range(n)]
    group = TokenGroup((1, 9), (Completion((8,) * len(ends), tuple(ends)),), "i")
    return StepGroup(group, tuple(labels), None if soft is None else tuple(soft))


def test_the_length_rule_by_hand() -> None:
    # Ends at 2, 5 | 3, 4 | 6 tokens, of which those at 2 and 4 are right.
    items = [item([2, 3], [1, -1]), item([3, 1], [-1, 1]), item([6], [-1])]
    rule = fit_length_rule(items)
    # Gains are +1 (2), -1 (3), +1 (4), -1 (5), -1 (6): totals 1, 0, 1, 0, -1; the first best bound is 2.
    assert rule.longest == 2.0
    scores = rule.scores(items)
    assert [[logp > math.log(0.5) for logp in row] for row in scores] == [
        [True, False],
        [False, False],
        [False],
    ]
    assert scores[0][0] == pytest.approx(-math.log1p(math.exp(-0.5)))
    assert fit_length_rule([item([3], [-1])]).longest == 0.0
    with pytest.raises(DataError, match="no labelled step"):
        fit_length_rule([item([3], [None])])


def test_the_gain_is_the_difference_of_two_aucs() -> None:
    items = solutions(40)
    clusters = [i.group.id for i in items]
    good = [tuple(-0.1 if (label or 0) >= 0 else -2.0 for label in i.labels) for i in items]
    rule = fit_length_rule(items).scores(items)
    gain = auc_gain(good, rule, items, clusters=clusters)
    first, second = (evaluate_process(s, items, clusters=clusters).auc.value for s in (good, rule))
    assert gain.value == pytest.approx(first - second) and first == 1.0 and gain.low > 0
    same = auc_gain(rule, rule, items, clusters=clusters)
    assert same[:3] == (0.0, 0.0, 0.0)


def test_a_cluster_of_alike_steps_widens_the_interval() -> None:
    items = [item([2], [1 if n % 3 else -1]) for n in range(60)]
    scores = [(-0.1 if n % 2 else -2.0,) for n in range(60)]
    apart = evaluate_process(scores, items, clusters=[str(n) for n in range(60)])
    together = evaluate_process(scores, items, clusters=[str(n // 10) for n in range(60)])
    assert apart.auc.value == together.auc.value
    # Ten alike in a cluster: the same steps, fewer independent ones.
    assert together.accuracy.high - together.accuracy.low != apart.accuracy.high - apart.accuracy.low


def test_soft_labels_are_learnt_as_probabilities() -> None:
    soft = ProcessSettings(estimation="soft")
    items = [item([2, 2], [1, -1], [0.25, 0.0]), item([3], [1], [None])]
    model = step_scorer(language.policy(), tiny_tokenizer(), soft, seed=0)
    out = ProcessObjective(soft).loss(model, items)
    logps = [p for row in score_steps(model, items, process=soft, max_tokens_per_forward=99) for p in row]
    wrong = [math.log1p(-math.exp(p)) for p in logps]
    # -(0.25 log p1 + 0.75 log(1 - p1)) - log(1 - p2); the third step could not be judged.
    expected = -(0.25 * logps[0] + 0.75 * wrong[0]) - wrong[1]
    assert float(out.loss_sum.detach()) == pytest.approx(expected, rel=1e-4)
    assert ProcessObjective(soft).count(items) == 2
    found = evaluate_steps(model, items, process=soft, max_tokens_per_forward=99)
    assert found["eval/loss"] == pytest.approx(expected / 2, rel=1e-4)
    with pytest.raises(DataError, match="has no soft labels"):
        ProcessObjective(soft).count([item([2], [1])])
    with pytest.raises(ValueError, match="'soft' needs method 'binary'"):
        ProcessSettings(estimation="soft", method="classes")


def test_a_solution_without_a_soft_label_is_refused(tmp_path: Path) -> None:
    soft = ProcessSettings(estimation="soft")
    model = step_scorer(language.policy(), tiny_tokenizer(), soft, seed=0)
    with pytest.raises(DataError, match="no step of solution i has a label"):
        train_process(
            model, [item([2], [1], [None])], settings=TrainSettings(steps=1), process=soft, folder=tmp_path
        )


@pytest.mark.parametrize("process", [ProcessSettings(), CLASSES], ids=["binary", "classes"])
def test_a_saved_model_of_steps_gives_its_scores_again(process: ProcessSettings, tmp_path: Path) -> None:
    tokenizer = tiny_tokenizer()
    model = step_scorer(tiny_model("llama"), tokenizer, process, seed=0)
    folder = tmp_path / "model"
    digest = save_steps(
        model, tokenizer, folder, process=process, target="steps", step_end="\n", card="A model of steps."
    )
    found = load_steps(folder)
    assert (found.loaded.hash, found.process, found.target, found.step_end) == (
        digest,
        process,
        "steps",
        "\n",
    )
    items = [item([2, 3], [1, 1])]
    scores = [
        score_steps(m, items, process=process, max_tokens_per_forward=99) for m in (model, found.loaded.model)
    ]
    # The head's sums may be taken in another order once the weights lie elsewhere in memory.
    assert scores[1][0] == pytest.approx(scores[0][0], rel=1e-6)
    with torch.no_grad():
        found.loaded.model.get_parameter("score.weight")[0].add_(0.5)
    found.loaded.model.save_pretrained(folder)
    with pytest.raises(ModelError, match="does not give its stored score"):
        load_steps(folder)


def test_a_head_of_one_score_is_a_reward_model_and_one_of_three_is_not(tmp_path: Path) -> None:
    tokenizer = tiny_tokenizer()
    for name, process in (("one", ProcessSettings()), ("three", CLASSES)):
        model = step_scorer(tiny_model("llama"), tokenizer, process, seed=0)
        save_steps(
            model,
            tokenizer,
            tmp_path / name,
            process=process,
            target="outcome",
            step_end="\n",
            card="A model.",
        )
    assert load_reward(tmp_path / "one").model.config.num_labels == 1
    with pytest.raises(ModelError, match="a reward model has one label"):
        load_reward(tmp_path / "three")


def test_a_folder_that_does_not_say_how_to_read_scores_is_refused(tmp_path: Path) -> None:
    tokenizer = tiny_tokenizer()
    model = step_scorer(tiny_model("llama"), tokenizer, ProcessSettings(), seed=0)
    save_steps(
        model,
        tokenizer,
        tmp_path / "m",
        process=ProcessSettings(),
        target="steps",
        step_end="\n",
        card="A model.",
    )
    file = tmp_path / "m" / STEPS_FILE
    body = json.loads(file.read_text())
    file.write_text(json.dumps({**body, "process": {"method": "tenary"}}))
    with pytest.raises(ConfigError, match=r"process\.method|method"):
        load_steps(tmp_path / "m")
    file.unlink()
    with pytest.raises(ModelError, match="does not say how the scores"):
        load_steps(tmp_path / "m")
