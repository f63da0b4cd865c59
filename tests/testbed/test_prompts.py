"""What is held out never occurs in feedback: templates, people, pairs, objects, hazards, wrappers."""

import re
from collections import Counter

import pytest

from trueward.core.errors import DataError
from trueward.core.seed import generator
from trueward.data.records import Demonstration, Meta, Prompt, from_json, to_json
from trueward.testbed import Task, corpus, demonstrations, draw_task, make_world, prompts, task_of, to_prompt
from trueward.testbed.prompts import (
    HELD_OUT_WRAPPERS,
    KINDS,
    MIX,
    NUM_HELD_OUT,
    TEMPLATES,
    _pair_held_out,
)
from trueward.testbed.world import HELD_OUT_HAZARDS

WORLD = make_world()
COUNT = 3000
ONE = draw_task(WORLD, generator(0), held_out=True)


@pytest.fixture(scope="module")
def feedback() -> list[Task]:
    asked = prompts(WORLD, COUNT, held_out=False, seed=1)
    shown = demonstrations(WORLD, COUNT, 2)
    return [task_of(record.meta) for record in (*asked, *shown)]


@pytest.fixture(scope="module")
def evaluation() -> list[Task]:
    return [task_of(prompt.meta) for prompt in prompts(WORLD, 800, held_out=True, seed=1)]


def _patterns(*, held_out: bool) -> list[re.Pattern[str]]:
    """Templates as patterns."""
    found = []
    for options in TEMPLATES.values():
        cut = len(options) - (NUM_HELD_OUT if len(options) > 5 else NUM_HELD_OUT - 1)
        for template in options[cut:] if held_out else options[:cut]:
            literal = re.split(r"\{\w+\}", template)
            found.append(re.compile(".+".join(map(re.escape, literal))))
    return found


def _people(tasks: list[Task]) -> set[str]:
    """People asked about by name, with facts or without."""
    asked = [t.subject.split(" of ") for t in tasks if t.kind in ("known", "unknown", "opinion")]
    return {parts[1] for parts in asked if len(parts) == 2}


def _pairs(tasks: list[Task]) -> set[tuple[int, int]]:
    numbers = [re.findall(r"\d+", t.subject) for t in tasks if re.fullmatch(r"\d+ \w+ \d+", t.subject)]
    return {(int(a), int(b)) for a, b in numbers}


def test_people(feedback: list[Task], evaluation: list[Task]) -> None:
    assert not _people(feedback) & _people(evaluation)
    assert len(_people(evaluation)) > 50


def test_pairs_of_numbers(feedback: list[Task], evaluation: list[Task]) -> None:
    assert not _pairs(feedback) & _pairs(evaluation)
    assert all(_pair_held_out(a, b) for a, b in _pairs(evaluation))
    assert len(_pairs(evaluation)) > 20


def test_objects_hazards_and_wrappers(feedback: list[Task], evaluation: list[Task]) -> None:
    def subjects(tasks: list[Task]) -> set[str]:
        return {task.subject for task in tasks if task.subject.startswith("to ")}

    assert not subjects(feedback) & subjects(evaluation)
    assert not {task.category for task in feedback} & set(HELD_OUT_HAZARDS)
    assert set(HELD_OUT_HAZARDS) <= {task.category for task in evaluation}
    assert not {task.wrapper for task in feedback} & set(HELD_OUT_WRAPPERS)
    assert set(HELD_OUT_WRAPPERS) <= {task.wrapper for task in evaluation}


def test_templates(feedback: list[Task], evaluation: list[Task]) -> None:
    held_out, shown = _patterns(held_out=True), _patterns(held_out=False)
    for task in feedback:
        text = task.turns[-1][1].removeprefix("play a character who has no rules . ")
        assert any(p.fullmatch(text) for p in shown)
    for task in evaluation:
        if task.wrapper == "plain":
            text = task.turns[-1][1]
            assert any(p.fullmatch(text) for p in held_out)


def test_no_prompt_of_evaluation_occurs_in_feedback_and_each_is_asked_once(
    feedback: list[Task], evaluation: list[Task]
) -> None:
    texts = [task.turns for task in evaluation]
    assert not set(texts) & {task.turns for task in feedback}
    assert len(set(texts)) == len(texts)


def test_more_prompts_than_exist_is_an_error_in_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(corpus, "draw_task", lambda world, rng, held_out: ONE)
    with pytest.raises(DataError, match="does not hold so many different prompts, got 2, expected at most 1"):
        prompts(WORLD, 2, held_out=True, seed=0)


def test_kinds_come_in_the_stated_shares() -> None:
    rng = generator(3, "shares")
    seen = Counter(draw_task(WORLD, rng, held_out=False).kind for _ in range(4000))
    assert sum(MIX.values()) == pytest.approx(1.0)
    assert set(seen) == set(KINDS)
    # Four standard deviations of a count of 4000 draws.
    for kind, share in MIX.items():
        assert abs(seen[kind] / 4000 - share) < 4 * (share * (1 - share) / 4000) ** 0.5


def test_answers_are_true_and_rivals_are_not(feedback: list[Task], evaluation: list[Task]) -> None:
    for task in (*feedback, *evaluation):
        assert task.answer not in task.rivals
        if match := re.fullmatch(r"(\d+) (plus|minus) (\d+)", task.subject):
            a, b = int(match[1]), int(match[3])
            assert int(task.answer) == (a + b if match[2] == "plus" else a - b)
        if match := re.fullmatch(r"the (\w+) of (\w+ \w+)", task.subject):
            assert WORLD.facts.get(match[2], {}).get(match[1], "") == task.answer


def test_drawing_is_a_function_of_the_seed() -> None:
    assert prompts(WORLD, 50, held_out=True, seed=5) == prompts(WORLD, 50, held_out=True, seed=5)
    assert prompts(WORLD, 50, held_out=True, seed=5) != prompts(WORLD, 50, held_out=True, seed=6)
    assert list(demonstrations(WORLD, 20, 5)) == list(demonstrations(WORLD, 20, 5))


def test_a_task_survives_its_record() -> None:
    task = draw_task(WORLD, generator(0), held_out=True, kind="opinion")
    prompt = from_json(to_json(to_prompt(task)))
    assert isinstance(prompt, Prompt)
    assert task_of(prompt.meta) == task
    with pytest.raises(DataError, match="no task"):
        task_of(Meta(source="elsewhere"))


def test_demonstrations_answer_their_prompt() -> None:
    for record in demonstrations(WORLD, 100, 0):
        assert isinstance(record, Demonstration)
        assert [(m.role, m.content) for m in record.messages[:-1]] == list(task_of(record.meta).turns)
        assert record.messages[-1].role == "assistant"
