"""Labels by rollouts with a scripted policy: shares by hand, errors as a third outcome, budgets, batches.

Tokens are characters; `;` ends a step and `.` stops.
"""

from collections.abc import Callable, Sequence

import pytest

from trueward.data.chat import TokenGroup
from trueward.data.records import Message, Meta, Prompt
from trueward.rewards import Case, Verdict, failed, scored
from trueward.rollouts.engine import Progress, Rollout
from trueward.trainers.step_rollouts import Asked, Labeller, RolloutSettings, soft_label
from trueward.trainers.verified import Question

STOP = ord(".")


def text(ids: Sequence[int]) -> str:
    return "".join(map(chr, ids))


class Scripted:
    """Completes a prompt with the next of the texts that its script holds for it; notes what was asked."""

    def __init__(self, script: dict[str, list[str]]) -> None:
        self.script, self.calls = script, list[tuple[list[str], int, int]]()

    def generate(
        self,
        prompts: Sequence[Sequence[int]],
        *,
        num_completions: int,
        max_new_tokens: int,
        temperature: float,
        seed: int,
        on_progress: Progress | None = None,
    ) -> list[Rollout]:
        self.calls.append(([text(p) for p in prompts], num_completions, max_new_tokens))
        found = []
        for index, prompt in enumerate(prompts):
            for number in range(num_completions):
                ids = tuple(map(ord, self.script[text(prompt)][number]))[:max_new_tokens]
                found.append(Rollout(index, ids, (0.0,) * len(ids), ids[-1:] == (STOP,)))
        return found


def judge(cases: Sequence[Case]) -> list[Verdict]:
    """Right where the answer is the last thing said; `?` cannot be judged."""
    return [
        failed("raised", "what?")
        if "?" in case.completion
        else scored(float(case.completion.endswith(case.answer)))
        for case in cases
    ]


def asked(name: str = "q", answer: str = "5") -> Asked:
    prompt = Prompt(id=name, messages=(Message("user", f"{name}?"),))
    group = TokenGroup(tuple(map(ord, name)), (), name)
    return Asked(prompt, group, Question(f"{name}?", answer))


def labeller(
    engine: Scripted, *, solutions: int = 1, completions: int = 4, limit: int = 40, max_tokens: int = 99
) -> Labeller:
    return Labeller(
        engine=engine,
        verify=judge,
        decode=text,
        stop_ids={STOP},
        step_end=";",
        right_at=1.0,
        max_tokens=max_tokens,
        settings=RolloutSettings(solutions=solutions, completions=completions, max_new_tokens=limit),
    )


def test_shares_by_hand() -> None:
    # After `a;` one of four completions ends right, after `a;b;` none; the solution itself is wrong.
    engine = Scripted({"q": ["a;b;6."], "qa;": ["5.", "6.", "x;6.", "7."], "qa;b;": ["1.", "2.", "3.", "4."]})
    records, counts = labeller(engine).label([asked()], meta=Meta(source="s"), seed=0)
    (record,) = records
    assert record.steps == ("a;", "b;", "6")
    assert record.soft_labels == (0.25, 0.0, 0.0)
    assert record.labels == (1, -1, -1)
    assert record.meta.extra["outcome"] is False and record.meta.extra["completions"] == [4, 4, 1]
    assert record.id == "q/0" and record.meta.source == "s"
    assert counts.plus(counts).completions == 2 * counts.completions == 16
    assert (counts.solutions, counts.right, counts.errors, counts.unfinished, counts.unusable) == (
        1,
        0,
        0,
        0,
        0,
    )


def test_an_error_is_neither_right_nor_wrong() -> None:
    engine = Scripted({"q": ["a;b;?."], "qa;": ["?.", "5.", "?.", "6."], "qa;b;": ["?.", "?.", "?.", "?."]})
    (record,), counts = labeller(engine).label([asked()], meta=Meta(), seed=0)
    # One right of the two that were judged; of the others nothing is known.
    assert record.soft_labels == (0.5, None, None)
    assert record.labels == (1, None, None)
    assert "outcome" not in record.meta.extra and record.meta.extra["completions"] == [2, 0, 0]
    assert (counts.errors, counts.completion_errors, counts.right) == (1, 6, 0)


def test_equal_prefixes_are_completed_once_and_solutions_kept_as_often_as_drawn() -> None:
    engine = Scripted({"q": ["a;5.", "a;6.", "a;5."], "qa;": ["5.", "6."]})
    records, counts = labeller(engine, solutions=3, completions=2).label([asked()], meta=Meta(), seed=0)
    assert [r.id for r in records] == ["q/0", "q/1", "q/2"]
    assert [r.labels for r in records] == [(1, 1), (1, -1), (1, 1)]
    assert counts.completions == 2 and engine.calls[1] == (["qa;"], 2, 38)


def test_a_completion_has_only_the_room_that_a_solution_has() -> None:
    # At most 5 tokens: after `a;` three are left, so `1234` is cut to `123`, which does not end in 4.
    engine = Scripted({"q": ["a;b;4"], "qa;": ["1234"], "qa;b;": ["4."]})
    (record,), counts = labeller(engine, completions=1, limit=5).label(
        [asked(answer="4")], meta=Meta(), seed=0
    )
    assert record.soft_labels == (0.0, 1.0, 1.0)
    assert counts.unfinished == 1 and record.meta.extra["finished"] is False


def test_batches_stay_within_the_positions() -> None:
    """Prompts of 1 and 11 tokens and 8 new ones: together, a late prefix of the long one with a whole
    completion of the short one would need 11 + 4 + 6 tokens."""
    long = "p" * 11
    engine = Scripted({"q": ["a;bbb;5."], long: ["a;bbb;5."], "qa;": ["5."], "qa;bbb;": ["5."]})
    engine.script |= {f"{long}a;": ["5."], f"{long}a;bbb;": ["5."]}
    made = labeller(engine, completions=1, limit=8, max_tokens=19)
    records, _ = made.label([asked(), asked(long)], meta=Meta(), seed=0)
    assert [r.labels for r in records] == [(1, 1, 1), (1, 1, 1)]
    assert len(engine.calls) > 2
    for prompts, _, new in engine.calls:
        assert max(map(len, prompts)) + new <= 19


def test_a_solution_without_text_or_with_nul_gives_no_record_and_is_counted() -> None:
    engine = Scripted({"q": [".", "5.", "\x005."]})
    records, counts = labeller(engine, solutions=3).label([asked()], meta=Meta(), seed=0)
    assert [r.id for r in records] == ["q/1"] and counts.unusable == 2 and counts.solutions == 3
    assert counts.completions == 0


@pytest.mark.parametrize(
    ("verdicts", "expected"),
    [
        ([scored(1.0), scored(0.0)], 0.5),
        ([scored(0.9)], 0.0),
        ([failed("raised", ""), scored(1.5)], 1.0),
        ([failed("timed out", "")], None),
        ([], None),
    ],
)
def test_soft_labels(verdicts: list[Verdict], expected: float | None) -> None:
    assert soft_label(verdicts, right_at=1.0) == expected


def test_the_same_seed_asks_the_engine_for_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    seeds: list[list[int]] = []
    for seed in (0, 0, 1):
        engine = Scripted({"q": ["a;5."], "qa;": ["5."] * 4})
        noted: list[int] = []
        generate: Callable[..., list[Rollout]] = engine.generate

        def noting(
            *args: object, noted: list[int] = noted, generate=generate, **options: object
        ) -> list[Rollout]:  # type: ignore[no-untyped-def]
            noted.append(int(options["seed"]))  # type: ignore[call-overload]
            return generate(*args, **options)

        monkeypatch.setattr(engine, "generate", noting)
        labeller(engine).label([asked()], meta=Meta(), seed=seed)
        seeds.append(noted)
    assert seeds[0] == seeds[1] != seeds[2] and len(set(seeds[0])) == 2
