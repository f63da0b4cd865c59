"""Functions that tests name as verifiers of a user."""

import os
import sys
import time

__all__ = ["NOT_A_FUNCTION", "count_words", "dies", "moody"]

NOT_A_FUNCTION = 3


def count_words(completion: str, answer: str, prompt: str) -> int:
    """Prints, too, which must not disturb the replies."""
    print("counting", completion, file=sys.stdout, flush=True)
    return len(completion.split()) + len(prompt)


def moody(completion: str, answer: str, prompt: str) -> object:
    """Does what the completion says."""
    if completion == "raise":
        raise KeyError(answer)
    if completion == "sleep":
        time.sleep(60)
    return {"nan": float("nan"), "text": "1", "none": None}.get(completion, 1.0)


def dies(completion: str, answer: str, prompt: str) -> float:
    """Takes its process with it."""
    if completion == "die":
        os._exit(0)
    return 1.0
