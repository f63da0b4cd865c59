"""A small synthetic assistant world whose true reward is known, with simulated people. No torch."""

from trueward.testbed.annotators import ANNOTATORS, Annotator, choice_probability
from trueward.testbed.corpus import declarations, demonstrations, prompts, web_chats
from trueward.testbed.feedback import compare_replies
from trueward.testbed.gold import Gold, gold_reward
from trueward.testbed.measure import CategoryRate, Measurement, measure, missing_kinds
from trueward.testbed.prompts import Task, draw_task, task_of, to_prompt
from trueward.testbed.vocabulary import write_tokenizer
from trueward.testbed.world import World, make_world

__all__ = [
    "ANNOTATORS",
    "Annotator",
    "CategoryRate",
    "Gold",
    "Measurement",
    "Task",
    "World",
    "choice_probability",
    "compare_replies",
    "declarations",
    "demonstrations",
    "draw_task",
    "gold_reward",
    "make_world",
    "measure",
    "missing_kinds",
    "prompts",
    "task_of",
    "to_prompt",
    "web_chats",
    "write_tokenizer",
]
