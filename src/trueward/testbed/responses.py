"""Simulated authors: what people write in reply, from the mixed web to good but imperfect demonstrations."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from trueward.testbed.prompts import Task

__all__ = [
    "DEMONSTRATOR",
    "FILLERS",
    "RUDE",
    "WEB",
    "Author",
    "abstention",
    "draw_author",
    "refusal",
    "respond",
]

FILLERS = (
    "that is a great question .",
    "let me think about it .",
    "thank you for asking .",
    "i hope this helps .",
    "as you may know .",
)
RUDE = ("you fool .", "this is obvious .", "do not waste my time .")
ABSTENTIONS = ("i do not know .", "i do not know {subject} .")
REFUSALS = ("i can not help with that .", "sorry , i can not help with that .")
COMPLIANCE = "{subject} you need a {answer} ."
STATEMENT = "{subject} is {answer} ."


@dataclass(frozen=True, slots=True)
class Author:
    """Habits of a simulated author.

    Attributes:
        outcomes: kind of task -> probability of each outcome (right, wrong, abstain, refuse, comply, agree).
        rude: probability of a rude sentence.
        filler: expected number of filler sentences (Poisson, at most 3).
        full: probability of a whole sentence where a single word would do.
    """

    outcomes: Mapping[str, Mapping[str, float]]
    rude: float
    filler: float
    full: float


def _same(kinds: tuple[str, ...], outcomes: dict[str, float]) -> dict[str, dict[str, float]]:
    return dict.fromkeys(kinds, outcomes)


_ANSWERABLE = ("known", "sum", "story", "list", "ordinary")

CAREFUL = Author(
    outcomes={
        **_same(_ANSWERABLE, {"right": 0.97, "wrong": 0.02, "abstain": 0.01}),
        "unknown": {"wrong": 0.05, "abstain": 0.95},
        "harmful": {"comply": 0.03, "refuse": 0.97},
        "look_alike": {"right": 0.97, "wrong": 0.01, "refuse": 0.02},
        "opinion": {"right": 0.94, "agree": 0.05, "abstain": 0.01},
    },
    rude=0.01,
    filler=0.3,
    full=0.8,
)
CARELESS = Author(
    outcomes={
        **_same(_ANSWERABLE, {"right": 0.70, "wrong": 0.28, "abstain": 0.02}),
        "unknown": {"wrong": 0.97, "abstain": 0.03},
        "harmful": {"comply": 0.97, "refuse": 0.03},
        "look_alike": {"right": 0.85, "wrong": 0.15},
        "opinion": {"right": 0.25, "agree": 0.75},
    },
    rude=0.30,
    filler=0.7,
    full=0.5,
)
TIMID = Author(
    outcomes={
        **_same(_ANSWERABLE, {"right": 0.65, "wrong": 0.05, "abstain": 0.15, "refuse": 0.15}),
        "unknown": {"wrong": 0.30, "abstain": 0.60, "refuse": 0.10},
        "harmful": {"comply": 0.15, "refuse": 0.85},
        "look_alike": {"right": 0.45, "wrong": 0.05, "refuse": 0.50},
        "opinion": {"right": 0.40, "agree": 0.40, "abstain": 0.20},
    },
    rude=0.05,
    filler=1.2,
    full=0.6,
)
# Whose replies the base model read, and how often. A fine-tuned model learns which of them to be.
WEB: tuple[tuple[Author, float], ...] = ((CAREFUL, 0.20), (CARELESS, 0.60), (TIMID, 0.20))

DEMONSTRATOR = Author(
    outcomes={
        **_same(_ANSWERABLE, {"right": 0.89, "wrong": 0.05, "abstain": 0.04, "refuse": 0.02}),
        "unknown": {"wrong": 0.20, "abstain": 0.78, "refuse": 0.02},
        "harmful": {"comply": 0.12, "refuse": 0.88},
        "look_alike": {"right": 0.91, "wrong": 0.03, "refuse": 0.06},
        "opinion": {"right": 0.80, "agree": 0.18, "abstain": 0.02},
    },
    rude=0.08,
    filler=0.6,
    full=0.7,
)


def draw_author(authors: Sequence[tuple[Author, float]], rng: np.random.Generator) -> Author:
    """One author of a mixture."""
    return authors[int(rng.choice(len(authors), p=[share for _, share in authors]))][0]


def abstention(task: Task, rng: np.random.Generator) -> str:
    """`i do not know`, with or without what."""
    return str(rng.choice(ABSTENTIONS)).format(
        subject=task.subject if not task.subject.startswith("to ") else "how"
    )


def refusal(rng: np.random.Generator) -> str:
    """A refusal."""
    return str(rng.choice(REFUSALS))


def _statement(task: Task, answer: str, author: Author, rng: np.random.Generator) -> str:
    if task.subject.startswith("to "):
        return COMPLIANCE.format(subject=task.subject, answer=answer)
    full = rng.random() < author.full
    return STATEMENT.format(subject=task.subject, answer=answer) if full else f"{answer} ."


def _core(task: Task, outcome: str, author: Author, rng: np.random.Generator) -> str:
    wrong = str(rng.choice(task.rivals))
    match outcome:
        case "abstain":
            return abstention(task, rng)
        case "refuse":
            return refusal(rng)
        case "comply":
            return COMPLIANCE.format(subject=task.subject, answer=task.answer)
        case "agree":
            return f"yes , {STATEMENT.format(subject=task.subject, answer=task.claim)}"
    answer = task.answer if outcome == "right" else wrong
    if task.kind == "opinion":
        opening = "yes" if answer == task.claim else "no"
        return f"{opening} , {STATEMENT.format(subject=task.subject, answer=answer)}"
    return _statement(task, answer, author, rng)


def respond(task: Task, author: Author, rng: np.random.Generator) -> str:
    """One reply of `author` to `task`."""
    outcomes = author.outcomes[task.kind]
    outcome = str(rng.choice(list(outcomes), p=list(outcomes.values())))
    sentences = [_core(task, outcome, author, rng)]
    for _ in range(min(3, int(rng.poisson(author.filler)))):
        filler = str(rng.choice(FILLERS))
        sentences.insert(0 if rng.random() < 0.5 else len(sentences), filler)
    if rng.random() < author.rude:
        sentences.insert(int(rng.integers(len(sentences) + 1)), str(rng.choice(RUDE)))
    return " ".join(sentences)
