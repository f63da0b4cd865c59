"""The code verifier: the program in a completion against the tests of the reference, in the sandbox.

A program passes when its last line and that of the tests were reached. It can be written to cheat (objects
that equal everything, a hunt for the word that the last line says), so read samples of what scores well.
"""

import re
from collections.abc import Sequence

from trueward.rewards.sandbox import Ended, Limits, run_programs
from trueward.rewards.verdict import Case, Verdict, failed, scored

__all__ = ["code", "program_of"]

_FENCE = re.compile(r"^[ ]{0,3}```[ ]*(?:python3?|py)?[ ]*\n(.*?)^[ ]{0,3}```", re.DOTALL | re.MULTILINE)


def program_of(completion: str) -> str:
    """The program in a completion: its last fenced block of Python, or, without one, all of it."""
    blocks = _FENCE.findall(completion)
    return str(blocks[-1]) if blocks else completion


def code(cases: Sequence[Case], *, limits: Limits, time_s: float, num_workers: int) -> list[Verdict]:
    """1 where the program passes the tests (`Case.answer`: Python that raises on failure), else 0.

    A program that uses up its processor time is wrong. One that runs into the wall-clock limit without having
    done so is an error, as a busy machine looks the same; so is a reference without tests.
    """
    verdicts = [failed("raised", "the reference holds no tests")] * len(cases)
    usable = [index for index, case in enumerate(cases) if case.answer.strip()]
    programs = [f"{program_of(cases[index].completion)}\n\n{cases[index].answer}" for index in usable]
    ended = run_programs(programs, limits=limits, time_s=time_s, num_workers=num_workers)
    for index, how in zip(usable, ended, strict=True):
        verdicts[index] = _verdict(how)
    return verdicts


def _verdict(how: Ended) -> Verdict:
    if how.outcome == "late":
        return failed("timed out", how.detail)
    return scored(float(how.outcome == "passed"), how.detail)
