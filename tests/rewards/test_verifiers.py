"""The table of verifiers: texts, patterns with a time limit, functions of users, sums, what is refused."""

import importlib.util
import time
from pathlib import Path

import pytest

from trueward.core.config import build
from trueward.core.errors import ConfigError
from trueward.rewards import (
    VERIFIERS,
    Case,
    Verdict,
    VerifierSettings,
    all_of,
    failed,
    scored,
    verifier_named,
)


def judged(completions: list[str], answer: str = "7", **settings: object) -> list[Verdict]:
    verifier = verifier_named(build(VerifierSettings, settings, source="test"))
    return verifier([Case(completion, answer, "ask") for completion in completions])


def scores(completions: list[str], answer: str = "7", **settings: object) -> list[float | None]:
    return [verdict.score for verdict in judged(completions, answer, **settings)]


def test_exact_ignores_white_space_only() -> None:
    assert scores(["two  words\n", "Two words", ""], "two words", name="exact") == [1, 0, 0]
    assert judged(["x"], " ", name="exact")[0].error == "raised"


def test_length_counts_words() -> None:
    assert scores(["a", "a b", "a b c", ""], name="length", min_words=2, max_words=2) == [0, 1, 0, 0]
    assert scores(["a b c"], name="length", min_words=2) == [1]


def test_regex_finds_and_compares_its_group() -> None:
    assert scores(["it is 7 .", "no", "7 and 8"], name="regex", pattern=r"\d") == [1, 0, 1]
    found = scores(["answer: 7", "answer: 8", "answer: 8 answer: 7"], name="regex", pattern=r"answer: (\d+)")
    assert found == [1, 0, 1]


def test_regex_reads_a_reference_that_is_a_whole_solution() -> None:
    """GSM8K's references are solutions; compared as they stand, every completion was wrong."""
    reference, pattern = "16 - 3 = <<16-3=13>>13\n#### 13", r"#### (-?[\d,.]+)"
    assert scores(["#### 13", "#### 14", "13", reference], reference, name="regex", pattern=pattern) == [
        1,
        0,
        0,
        1,
    ]
    assert judged(["#### 13"], " ", name="regex", pattern=pattern)[0].error == "raised"


def test_format_takes_the_whole_completion() -> None:
    pattern = r"<think>.*</think>\s*<answer>.*</answer>"
    good = "<think>\nx\n</think>\n<answer>7</answer>\n"
    assert scores([good, "well: " + good, good + "more"], name="format", pattern=pattern) == [1, 0, 0]


def test_a_pattern_that_takes_for_ever_is_an_error_and_the_next_case_is_judged() -> None:
    start_s = time.monotonic()
    verdicts = judged(["a" * 40 + "!", "aaa"], name="format", pattern=r"(a+)+", time_s=0.5)
    assert [(v.score, v.error) for v in verdicts] == [(None, "timed out"), (1.0, None)]
    assert time.monotonic() - start_s < 10


def test_a_function_of_the_user() -> None:
    assert scores(["a b", "c"], name="function", function="tests.rewards.judges:count_words") == [5, 4]


def test_a_function_in_the_present_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "my_judges.py").write_text(
        "def tone(completion, answer, prompt): return answer in completion"
    )
    monkeypatch.chdir(tmp_path)
    assert scores(["it is 7", "no"], name="function", function="my_judges:tone") == [1, 0]


def test_what_a_function_does_wrong_is_an_error_each() -> None:
    target = "tests.rewards.judges:moody"
    verdicts = judged(
        ["raise", "ok", "nan", "text", "none", "sleep", "ok"], name="function", function=target, time_s=1.0
    )
    outcomes = ["raised", None, "raised", "raised", "raised", "timed out", None]
    assert [v.error for v in verdicts] == outcomes
    assert [v.score for v in verdicts] == [1.0 if outcome is None else None for outcome in outcomes]
    assert "KeyError" in verdicts[0].detail
    assert "nan" in verdicts[2].detail


def test_a_function_that_ends_its_process_is_an_error() -> None:
    verdicts = judged(["die", "live"], name="function", function="tests.rewards.judges:dies")
    assert [(v.score, v.error) for v in verdicts] == [(None, "raised"), (1.0, None)]


def test_a_sum_of_verifiers_and_its_error() -> None:
    settings = [
        VerifierSettings(name="maths"),
        VerifierSettings(name="length", max_words=2, weight=-0.5),
    ]
    verdicts = all_of(settings)([Case("7", "7"), Case("it is now 7", "7"), Case("8", ""), Case("", "7")])
    assert [v.score for v in verdicts] == [0.5, 1.0, None, -0.5]
    assert verdicts[2].detail.startswith("maths: ")


def test_a_score_that_is_not_finite_is_an_error() -> None:
    assert scored(float("inf")).score is None
    assert failed("timed out", "x") == Verdict(None, "timed out", "x")


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"name": "math"}, "unknown verifier 'math'; did you mean 'maths'?"),
        ({"name": "zzz"}, "unknown verifier 'zzz'; known: maths, math_verify, exact, regex, format, length"),
        ({"name": "regex"}, "verifier 'regex' needs 'pattern'"),
        ({"name": "maths", "pattern": "x"}, "verifier 'maths' does not read 'pattern'"),
        ({"name": "regex", "pattern": "("}, "no regular expression"),
        ({"name": "length", "min_words": 3, "max_words": 2}, "max_words (2) is below min_words (3)"),
        ({"name": "maths", "weight": float("nan")}, "weight"),
        ({"name": "function", "function": "tests.rewards.judges:nothing"}, "cannot be used: AttributeError"),
        ({"name": "function", "function": "nowhere:f"}, "cannot be used: ModuleNotFoundError"),
        ({"name": "function", "function": "tests.rewards.judges:NOT_A_FUNCTION"}, "is no function"),
    ],
    ids=str,
)
def test_what_is_refused(settings: dict[str, object], said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        judged(["x"], **settings)
    assert said in str(caught.value)


def test_no_verifier_is_refused() -> None:
    with pytest.raises(ConfigError, match="there is no verifier"):
        all_of([])


@pytest.mark.skipif(importlib.util.find_spec("math_verify") is not None, reason="the package is installed")
def test_math_verify_names_the_extra() -> None:
    with pytest.raises(ConfigError, match=r"pip install 'trueward\[verify\]'"):
        judged(["x"], name="math_verify")


@pytest.mark.skipif(importlib.util.find_spec("math_verify") is None, reason="needs the extra verify")
def test_math_verify_knows_algebra() -> None:
    assert scores([r"\boxed{1+x}", r"\boxed{x}"], "$x + 1$", name="math_verify") == [1, 0]


def test_every_verifier_is_documented() -> None:
    page = Path(__file__).parents[2] / "docs" / "methods" / "verifiers.md"
    text = page.read_text(encoding="utf-8")
    assert [name for name in VERIFIERS if f"`{name}`" not in text] == []
