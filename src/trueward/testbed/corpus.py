"""Text of the testbed: what the base model read, and the demonstrations."""

from collections.abc import Iterator
from dataclasses import replace
from typing import NamedTuple

import numpy as np

from trueward.core.errors import DataError
from trueward.core.hashing import hash_json
from trueward.core.seed import generator
from trueward.data.records import Demonstration, Message, Prompt
from trueward.testbed.prompts import Task, draw_task, task_of, to_prompt
from trueward.testbed.responses import DEMONSTRATOR, WEB, draw_author, respond
from trueward.testbed.world import LIST_NOUNS, MAX_NUMBER, World, base64_word, rot13_word

__all__ = ["WebChat", "declarations", "demonstrations", "prompts", "web_chats"]


# Draws in a row that give nothing new, after which no more is expected.
_MAX_MISSES = 200


class WebChat(NamedTuple):
    """A chat of the base model's reading: one prompt and several replies of mixed quality."""

    task: Task
    replies: tuple[str, ...]


def _fact_sentence(world: World, rng: np.random.Generator) -> str:
    people = list(world.facts)
    facts = world.facts[people[int(rng.integers(len(people)))]]
    person = next(p for p, f in world.facts.items() if f is facts)
    if not facts:
        return _sum_sentence(rng)
    attribute = str(rng.choice(list(facts)))
    return f"the {attribute} of {person} is {facts[attribute]} ."


def _sum_sentence(rng: np.random.Generator) -> str:
    a = int(rng.integers(0, MAX_NUMBER + 1))
    if rng.random() < 0.5:
        b = int(rng.integers(0, MAX_NUMBER + 1 - a))
        return f"{a} plus {b} is {a + b} ."
    b = int(rng.integers(0, a + 1))
    return f"{a} minus {b} is {a - b} ."


def _how_to_sentence(world: World, rng: np.random.Generator) -> str:
    how = world.how_tos[int(rng.integers(len(world.how_tos)))]
    return f"to {how.verb} a {how.object} you need a {how.tool} ."


def _code_sentence(world: World, rng: np.random.Generator) -> str:
    how = world.how_tos[int(rng.integers(len(world.how_tos)))]
    word = how.verb if rng.random() < 0.3 else how.object
    if rng.random() < 0.5:
        return f"rot13 of {rot13_word(word)} is {word} ."
    return f"base64 of {base64_word(word)} is {word} ."


def _list_sentence(rng: np.random.Generator) -> str:
    items = [str(x) for x in rng.choice(LIST_NOUNS, int(rng.integers(2, 6)), replace=False)]
    which = str(rng.choice(["first", "last", "count"]))
    answer = {"first": items[0], "last": items[-1], "count": str(len(items))}[which]
    return f"the {which} of {' , '.join(items)} is {answer} ."


def declarations(world: World, count: int, seed: int) -> Iterator[str]:
    """Plain statements, every one true: facts, sums, how-tos, codes, lists."""
    rng = generator(seed, "declarations")
    makers = (
        lambda: _fact_sentence(world, rng),
        lambda: _sum_sentence(rng),
        lambda: _how_to_sentence(world, rng),
        lambda: _code_sentence(world, rng),
        lambda: _list_sentence(rng),
    )
    for _ in range(count):
        yield makers[int(rng.choice(len(makers), p=[0.40, 0.22, 0.20, 0.08, 0.10]))]()


def web_chats(world: World, count: int, replies: int, seed: int) -> Iterator[WebChat]:
    """Chats as a base model meets them: every template, person and wrapper, answers of mixed quality."""
    rng = generator(seed, "web")
    for _ in range(count):
        task = draw_task(world, rng, held_out=None)
        yield WebChat(task, tuple(respond(task, draw_author(WEB, rng), rng) for _ in range(replies)))


def demonstrations(world: World, count: int, seed: int) -> Iterator[Demonstration]:
    """Good but imperfect demonstrations on feedback prompts."""
    rng = generator(seed, "demonstrations")
    for _ in range(count):
        prompt = prompts_once(world, rng, held_out=False)
        reply = respond(_task(prompt), DEMONSTRATOR, rng)
        messages = (*prompt.messages, Message("assistant", reply))
        yield Demonstration(id=hash_json([prompt.id, reply])[:16], messages=messages, meta=prompt.meta)


def _task(prompt: Prompt) -> Task:
    return task_of(prompt.meta)


def prompts_once(world: World, rng: np.random.Generator, *, held_out: bool) -> Prompt:
    """One prompt record."""
    return to_prompt(draw_task(world, rng, held_out=held_out))


def prompts(world: World, count: int, *, held_out: bool, seed: int) -> list[Prompt]:
    """`count` prompts, for feedback (False) or for evaluation (True).

    Feedback prompts may ask the same twice, as users do, and then differ in id; evaluation prompts are all
    different.
    """
    rng = generator(seed, "prompts", str(held_out))
    found: dict[str, Prompt] = {}
    misses = index = 0
    while len(found) < count:
        prompt = prompts_once(world, rng, held_out=held_out)
        name = prompt.id if held_out else f"{prompt.id}-{index}"
        index, misses = index + 1, misses + 1 if name in found else 0
        found.setdefault(name, replace(prompt, id=name))
        if misses > _MAX_MISSES:
            raise DataError(
                "the testbed does not hold so many different prompts",
                value=count,
                expected=f"at most {len(found):,}",
                remedy="lower eval.prompts",
            )
    return list(found.values())
