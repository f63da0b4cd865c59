"""The verifiers by name, what a recipe says of each, and several of them as one.

A new verifier is a function and a line in `VERIFIERS`.
"""

import importlib.util
import re
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from types import MappingProxyType
from typing import NamedTuple, Self

from pydantic import Field, model_validator

from trueward.core.config import Config
from trueward.core.errors import ConfigError, unknown
from trueward.rewards import texts
from trueward.rewards.code import code
from trueward.rewards.maths import maths
from trueward.rewards.sandbox import Limits
from trueward.rewards.verdict import Case, Verdict, Verifier, scored
from trueward.rewards.worker import call_many, check_target

__all__ = ["VERIFIERS", "VerifierKind", "VerifierSettings", "all_of", "verifier_named"]


class VerifierSettings(Config):
    """One verifier. Keys that the named verifier does not read are errors."""

    name: str = "maths"
    """One of maths, math_verify, exact, regex, format, length, code, function."""
    weight: float = Field(1.0, allow_inf_nan=False)
    """Factor of its score in the sum of all; a negative one punishes."""
    pattern: str | None = None
    """Regular expression of `regex` (found somewhere; a group must hold the answer) and `format` (the
    whole)."""
    function: str | None = None
    """`module:function` of `function`; it takes completion, answer and prompt, and returns a number."""
    min_words: int = Field(0, ge=0)
    """Fewest words that `length` accepts."""
    max_words: int | None = Field(None, ge=1)
    """Most words that `length` accepts."""
    time_s: float = Field(10.0, gt=0)
    """Wall-clock limit of one completion; beyond it the verdict is an error, not a score."""
    cpu_s: int = Field(4, ge=1)
    """Processor seconds that a program of `code` may use; one that needs more is wrong."""
    memory_mib: int = Field(512, ge=64)
    """Memory that a program of `code` may use."""
    file_mib: int = Field(4, ge=1)
    """Largest file that a program of `code` may write."""
    num_workers: int = Field(2, ge=1)
    """Programs of `code` that run at once."""

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.name not in VERIFIERS:
            raise ValueError(unknown("verifier", self.name, VERIFIERS))
        kind = VERIFIERS[self.name]
        for key in sorted(self.model_fields_set - {"name", "weight"} - kind.reads):
            if getattr(self, key) != type(self).model_fields[key].default:
                raise ValueError(f"verifier {self.name!r} does not read {key!r}")
        for key in sorted(kind.needs):
            if getattr(self, key) is None:
                raise ValueError(f"verifier {self.name!r} needs {key!r}")
        if self.pattern is not None:
            try:
                re.compile(self.pattern)
            except re.error as error:
                raise ValueError(f"the pattern is no regular expression: {error}") from error
        if self.max_words is not None and self.max_words < self.min_words:
            raise ValueError(f"max_words ({self.max_words}) is below min_words ({self.min_words})")
        return self


class VerifierKind(NamedTuple):
    """How a verifier is made from its settings, and which of them it reads and cannot do without."""

    build: Callable[[VerifierSettings], Verifier]
    reads: frozenset[str] = frozenset()
    needs: frozenset[str] = frozenset()


def _maths(settings: VerifierSettings) -> Verifier:
    return maths


def _exact(settings: VerifierSettings) -> Verifier:
    return texts.exact


def _length(settings: VerifierSettings) -> Verifier:
    return partial(texts.length, min_words=settings.min_words, max_words=settings.max_words)


def _regex(settings: VerifierSettings) -> Verifier:
    assert settings.pattern is not None, "settings were checked"
    return partial(
        texts.pattern_verifier, function="matches", pattern=settings.pattern, time_s=settings.time_s
    )


def _format(settings: VerifierSettings) -> Verifier:
    assert settings.pattern is not None, "settings were checked"
    return partial(
        texts.pattern_verifier, function="has_form", pattern=settings.pattern, time_s=settings.time_s
    )


def _code(settings: VerifierSettings) -> Verifier:
    limits = Limits(cpu_s=settings.cpu_s, memory_mib=settings.memory_mib, file_mib=settings.file_mib)
    return partial(code, limits=limits, time_s=settings.time_s, num_workers=settings.num_workers)


def _math_verify(settings: VerifierSettings) -> Verifier:
    if importlib.util.find_spec("math_verify") is None:
        raise ConfigError(
            "verifier 'math_verify' needs the package math-verify, which is not installed",
            remedy="pip install 'trueward[verify]', or use the verifier 'maths', which compares numbers",
        )

    def judge(cases: Sequence[Case]) -> list[Verdict]:
        arguments = [(case.completion, case.answer) for case in cases]
        return call_many("trueward.rewards.symbolic:same", arguments, time_s=settings.time_s)

    return judge


def _function(settings: VerifierSettings) -> Verifier:
    target = settings.function
    assert target is not None, "settings were checked"
    check_target(target)
    return lambda cases: call_many(target, cases, time_s=settings.time_s)


VERIFIERS: Mapping[str, VerifierKind] = MappingProxyType(
    {
        "maths": VerifierKind(_maths),
        "math_verify": VerifierKind(_math_verify, frozenset({"time_s"})),
        "exact": VerifierKind(_exact),
        "regex": VerifierKind(_regex, frozenset({"pattern", "time_s"}), frozenset({"pattern"})),
        "format": VerifierKind(_format, frozenset({"pattern", "time_s"}), frozenset({"pattern"})),
        "length": VerifierKind(_length, frozenset({"min_words", "max_words"})),
        "code": VerifierKind(_code, frozenset({"time_s", "cpu_s", "memory_mib", "file_mib", "num_workers"})),
        "function": VerifierKind(_function, frozenset({"function", "time_s"}), frozenset({"function"})),
    }
)
"""Every verifier that a recipe can name."""


def verifier_named(settings: VerifierSettings) -> Verifier:
    """The verifier that the settings describe.

    Raises:
        ConfigError: its package or function is not there.
    """
    return VERIFIERS[settings.name].build(settings)


def all_of(settings: Sequence[VerifierSettings]) -> Verifier:
    """The weighted sum of several verifiers; a case that one of them has no score for has none.

    Raises:
        ConfigError: there are none, or one cannot be made.
    """
    if not settings:
        raise ConfigError("there is no verifier", remedy=f"name one or more of {', '.join(VERIFIERS)}")
    verifiers = [verifier_named(each) for each in settings]

    def judge(cases: Sequence[Case]) -> list[Verdict]:
        columns = [verifier(cases) for verifier in verifiers]
        return [_sum(settings, row) for row in zip(*columns, strict=True)]

    return judge


def _sum(settings: Sequence[VerifierSettings], verdicts: Sequence[Verdict]) -> Verdict:
    total = 0.0
    for each, verdict in zip(settings, verdicts, strict=True):
        if verdict.score is None:
            return verdict._replace(detail=f"{each.name}: {verdict.detail}")
        total += each.weight * verdict.score
    named = zip(settings, verdicts, strict=True)
    return scored(total, "; ".join(f"{each.name}: {v.detail}" for each, v in named if v.detail))
