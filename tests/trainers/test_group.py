"""The group trainer on tiny models: it learns, resumes bit-equal, leaves out what teaches nothing."""

import os
import signal
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from tests.trainers import language, toy
from trueward.core.config import build
from trueward.core.errors import ConfigError, DataError, RunError
from trueward.core.files import read_jsonl
from trueward.data.chat import TokenGroup
from trueward.objectives import POLICY_GRADIENT_METHODS
from trueward.rewards import Case, Verdict, VerifierSettings, failed, scored, verifier_named
from trueward.rollouts import LocalEngine, Rollout
from trueward.trainers.accumulate import accumulate
from trueward.trainers.group import train_group
from trueward.trainers.group_experience import group_models
from trueward.trainers.group_rollout import Drawn, Surroundings, advantages_of, draw, overlong_B
from trueward.trainers.group_settings import METHOD_DEFAULTS, GroupSettings, choices_of
from trueward.trainers.group_update import GroupObjective, correct
from trueward.trainers.loop import TrainResult
from trueward.trainers.ppo import PPOHooks
from trueward.trainers.verified import Question, verified_reward

Reward = Callable[[Sequence[TokenGroup], Sequence[Rollout]], Sequence[float | Verdict]]


def settings(**changes: Any) -> GroupSettings:
    small = {
        "iterations": 4,
        "prompts_per_iteration": 6,
        "completions_per_prompt": 4,
        "max_new_tokens": 6,
        "lr": 0.01,
        "max_tokens_per_forward": 60,
        "samples_every": 2,
    }
    return GroupSettings(**{**small, **changes})


def prompts(n: int = 20) -> list[TokenGroup]:
    return [TokenGroup(group.prompt_ids, (), group.id) for group in language.demonstrations(n)]


def low_words(groups: Sequence[TokenGroup], rollouts: Sequence[Rollout]) -> list[float]:
    """Share of words below 12."""
    return [sum(3 < i < 12 for i in rollout.ids) / len(rollout.ids) for rollout in rollouts]


def rarely_low_words(groups: Sequence[TokenGroup], rollouts: Sequence[Rollout]) -> list[float]:
    """The same, for every third prompt; the others' completions are all alike."""
    asked = [int(groups[rollout.prompt].id[1:]) for rollout in rollouts]
    pairs = zip(asked, low_words(groups, rollouts), strict=True)
    return [0.0 if number % 3 else score for number, score in pairs]


def run(folder: Path, policy: nn.Module, *, resume: bool = False, **changes: Any) -> TrainResult:
    own = {key: changes.pop(key) for key in ("engine", "reward", "hooks", "prompts") if key in changes}
    chosen = settings(**changes)
    return train_group(
        group_models(policy, chosen),
        own.pop("prompts", prompts()),
        **{"engine": LocalEngine(policy, [language.STOP]), "reward": low_words, **own},
        settings=chosen,
        folder=folder,
        resume=resume,
    )


def drawn_with(policy: nn.Module, chosen: GroupSettings, reward: Reward = low_words) -> Drawn:
    """One round of a policy, batch after batch of six prompts."""
    engine = LocalEngine(policy, [language.STOP])
    surroundings = Surroundings(lambda n: prompts()[6 * n :][:6], engine, reward, None)
    return draw(group_models(policy, chosen), surroundings, chosen, choices_of(chosen), first_draw=0)


def row(folder: Path, at: int = -1) -> dict[str, Any]:
    rows: list[dict[str, Any]] = list(read_jsonl(folder / "metrics.jsonl"))
    return rows[at]


@pytest.mark.parametrize("method", sorted(POLICY_GRADIENT_METHODS))
def test_every_method_learns_what_is_rewarded(tmp_path: Path, method: str) -> None:
    policy = language.policy()
    # Nearly all first completions fill the six tokens: DAPO would learn to be short first.
    run(tmp_path, policy, method=method, iterations=12, prompts_per_iteration=12, overlong_buffer=0)
    rows = list(read_jsonl(tmp_path / "metrics.jsonl"))
    first, last = (sum(r["reward"] for r in part) / 2 for part in (rows[:2], rows[-2:]))
    assert last > first + 0.2
    assert rows[0]["objective/kl"] == pytest.approx(0, abs=1e-5), "the first are the reference's own"
    assert rows[-1]["objective/kl_k3"] > 0.2
    assert max(r["sampler_gap/max"] for r in rows) < 1e-4
    assert max(abs(r["mismatch/kl_k1"]) for r in rows) < 1e-5


def test_every_method_has_defaults() -> None:
    assert METHOD_DEFAULTS.keys() == POLICY_GRADIENT_METHODS.keys()


def test_choices_can_be_made_one_by_one() -> None:
    chosen = choices_of(settings(method="rloo", clip="surrogate", reduction="token_mean", clip_high=0.3))
    assert (chosen.method.clip, chosen.method.reduction) == ("surrogate", "token_mean")
    assert (chosen.clip_low, chosen.clip_high) == (0.2, 0.3)
    dapo = choices_of(settings(method="dapo", max_new_tokens=100))
    assert (dapo.clip_high, dapo.dynamic_sampling, dapo.overlong_buffer) == (0.28, True, 20)
    assert choices_of(settings(method="rloo")).clip_low is None


@pytest.mark.parametrize(
    ("make", "changes"),
    [
        (language.policy, {}),
        (language.adapted, {"kl_coef": 0.05}),
        (
            language.policy,
            {"method": "dapo", "max_draws": 3, "minibatches": 2, "epochs": 2, "reward": rarely_low_words},
        ),
        (language.policy, {"method": "rloo", "kl_coef": 0.1, "kl_in": "reward", "importance": "truncate"}),
        (language.policy, {"reference": False, "activation_checkpointing": True}),
    ],
    ids=["full", "lora-kl", "dapo", "rloo-kl-tis", "no-reference"],
)
def test_ten_iterations_equal_five_and_five(tmp_path: Path, make: Any, changes: dict[str, Any]) -> None:
    whole, cut, after = make(), make(), make()
    run(tmp_path / "whole", whole, iterations=10, **changes)
    calls = 0

    def evaluate(model: nn.Module) -> dict[str, float]:
        nonlocal calls
        calls += 1
        if calls == 5:
            os.kill(os.getpid(), signal.SIGINT)
        return {}

    hooks = PPOHooks(evaluate=evaluate)
    first = run(tmp_path / "cut", cut, iterations=10, hooks=hooks, eval_every=1, **changes)
    assert (first.step, first.interrupted) == (5, True)
    second = run(tmp_path / "cut", after, iterations=10, resume=True, **changes)
    assert (second.step, second.interrupted, second.resumed_from) == (10, False, 5)
    assert toy.equal(toy.weights(whole), toy.weights(after))
    assert toy.figures(tmp_path / "whole") == toy.figures(tmp_path / "cut")
    samples = [(tmp_path / name / "group_samples.jsonl").read_text() for name in ("whole", "cut")]
    assert samples[0] == samples[1]
    assert len(samples[0].splitlines()) == 5


def test_another_run_is_not_resumed(tmp_path: Path) -> None:
    run(tmp_path, language.policy(), iterations=1)
    with pytest.raises(RunError, match="cannot resume: choices differs"):
        run(tmp_path, language.policy(), iterations=1, method="rloo", resume=True)
    with pytest.raises(RunError, match="holds a checkpoint"):
        run(tmp_path, language.policy(), iterations=1)


def test_micro_batches_do_not_change_the_gradient() -> None:
    chosen = settings(method="dr_grpo", kl_coef=0.1)
    policy = language.policy()
    drawn = drawn_with(policy, chosen)
    advantages_BT = advantages_of(drawn, chosen, choices_of(chosen))
    weights_BT, _ = correct(drawn.experience, chosen)
    items = list(range(6))
    objective = GroupObjective(
        drawn.experience, advantages_BT, weights_BT, settings=chosen, choices=choices_of(chosen), items=items
    )
    gradients = []
    for max_tokens in (40, 10_000):
        policy.zero_grad()
        accumulate(policy, objective, items, max_tokens=max_tokens, precision="float32", seed=0)
        gradients.append(torch.cat([p.grad.flatten() for p in policy.parameters() if p.grad is not None]))
    torch.testing.assert_close(gradients[0], gradients[1], rtol=1e-4, atol=1e-7)
    assert float(gradients[0].abs().max()) > 0


def judged_by(table: Sequence[Sequence[float | None]]) -> Reward:
    """Scores from a table, group by group; None is a verifier that failed."""

    def reward(groups: Sequence[TokenGroup], rollouts: Sequence[Rollout]) -> list[Verdict]:
        flat = [value for group in table for value in group]
        assert len(flat) == len(rollouts)
        return [failed("raised", "broken") if v is None else scored(v) for v in flat]

    return reward


def test_a_completion_without_a_score_is_left_out_of_its_group() -> None:
    table = [
        [1, 0, None, 2],
        [None, None, None, 5],
        [1, 1, 1, 1],
        [0, 3, 0, 3],
        [1, 1, None, 1],
        [4, 2, 2, 4],
    ]
    chosen = settings(max_error_share=0.5, advantage="group_mean")
    drawn = drawn_with(language.policy(), chosen, judged_by(table))
    advantages_PG = advantages_of(drawn, chosen, choices_of(chosen))[:, 0].view(6, 4)
    expected = [
        [0.0, -1.0, 0.0, 1.0],  # against (1 + 0 + 2) / 3, not against a zero in the gap
        [0.0] * 4,  # one score compares with nothing
        [0.0] * 4,
        [-1.5, 1.5, -1.5, 1.5],
        [0.0] * 4,
        [1.0, -1.0, -1.0, 1.0],
    ]
    torch.testing.assert_close(advantages_PG, torch.tensor(expected))
    assert drawn.figures["verifier/error_share"] == pytest.approx(5 / 24)
    assert drawn.figures["group/zero_variance_share"] == pytest.approx(3 / 6)
    assert drawn.figures["reward"] == pytest.approx(sum(v for g in table for v in g if v is not None) / 19)


def test_too_many_errors_stop_the_run_and_nothing_is_lost(tmp_path: Path) -> None:
    calls = 0

    def reward(groups: Sequence[TokenGroup], rollouts: Sequence[Rollout]) -> list[Verdict]:
        nonlocal calls
        calls += 1
        return [
            failed("timed out", "no value within 5 s") if calls == 3 and i % 2 else scored(float(i % 4))
            for i in range(len(rollouts))
        ]

    with pytest.raises(RunError, match=r"no score for 12 of 24 completions, the first timed out: no value"):
        run(tmp_path, language.policy(), reward=reward)
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["step-00000002"]


def test_dynamic_sampling_draws_until_there_is_enough_to_learn_from() -> None:
    chosen = settings(method="dapo", overlong_buffer=0, max_draws=3, prompts_per_iteration=4)

    def reward(groups: Sequence[TokenGroup], rollouts: Sequence[Rollout]) -> list[float]:
        """Only every third prompt divides its completions."""
        return [
            float(i % 2) if int(groups[r.prompt].id[1:]) % 3 == 0 else 1.0 for i, r in enumerate(rollouts)
        ]

    drawn = drawn_with(language.policy(), chosen, reward)
    assert [group.id for group in drawn.experience.groups] == ["d0", "d3", "d6", "d9"]
    assert drawn.num_draws == 2
    assert drawn.figures["group/zero_variance_share"] == pytest.approx(8 / 12)
    assert drawn.figures["group/kept"] == 4
    assert [r.prompt for r in drawn.experience.rollouts[::4]] == [0, 1, 2, 3]
    assert drawn.scores_B.tolist() == [0, 1, 0, 1] * 4


def test_equal_scores_change_nothing_and_end_the_run(tmp_path: Path) -> None:
    policy = language.policy()
    before = toy.weights(policy)

    def equal(groups: Sequence[TokenGroup], rollouts: Sequence[Rollout]) -> list[float]:
        return [0.5] * len(rollouts)

    with pytest.raises(RunError, match="nothing to learn from for 3 iterations: all scores of every group"):
        run(tmp_path, policy, reward=equal, max_idle=3, iterations=9)
    assert toy.equal(before, toy.weights(policy))
    assert row(tmp_path)["group/zero_variance_share"] == 1.0
    assert len(list(read_jsonl(tmp_path / "metrics.jsonl"))) == 3
    with pytest.raises(RunError, match="nothing to learn from for 2 iterations"):
        run(tmp_path / "rpp", policy, reward=equal, max_idle=2, method="reinforce_plus_plus", iterations=9)


def test_momentum_alone_moves_nothing(tmp_path: Path) -> None:
    def low_words_twice(limit: int) -> Reward:
        calls = 0

        def reward(groups: Sequence[TokenGroup], rollouts: Sequence[Rollout]) -> list[float]:
            nonlocal calls
            calls += 1
            return low_words(groups, rollouts) if calls <= limit else [0.5] * len(rollouts)

        return reward

    short, long = language.policy(), language.policy()
    run(tmp_path / "short", short, iterations=2)
    run(tmp_path / "long", long, iterations=4, reward=low_words_twice(2))
    assert toy.equal(toy.weights(short), toy.weights(long))


def test_overlong_completions_are_punished_linearly() -> None:
    chosen = settings(method="dapo", max_new_tokens=10, overlong_buffer=4, overlong_penalty=2.0)
    taken_B = overlong_B(torch.tensor([1, 6, 7, 9, 10]), chosen, choices_of(chosen))
    assert taken_B.tolist() == [0.0, 0.0, 0.5, 1.5, 2.0]
    none = choices_of(settings())
    assert overlong_B(torch.tensor([6]), settings(), none).tolist() == [0.0]


@pytest.mark.parametrize("kl_in", ["loss", "reward"])
def test_the_price_of_kl_holds_the_policy_back(tmp_path: Path, kl_in: str) -> None:
    for name, price in (("free", 0.0), ("priced", 1.0)):
        run(tmp_path / name, language.policy(), iterations=10, kl_coef=price, kl_in=kl_in)
    free, priced = (row(tmp_path / name)["objective/kl_k3"] for name in ("free", "priced"))
    assert priced < 0.5 * free


class Biased:
    """An engine whose log-probs are off by a little, as those of another program are."""

    def __init__(self, policy: nn.Module, gap: float) -> None:
        self._inner, self._gap = LocalEngine(policy, [language.STOP]), gap

    def generate(self, prompts: Sequence[Sequence[int]], **options: Any) -> list[Rollout]:
        drawn = self._inner.generate(prompts, **options)
        return [r._replace(logps=tuple(logp - self._gap for logp in r.logps)) for r in drawn]


def test_a_sampler_that_disagrees_is_refused_or_corrected(tmp_path: Path) -> None:
    policy = language.policy()
    with pytest.raises(RunError, match="disagree about a token's log-prob"):
        run(tmp_path / "refused", policy, engine=Biased(policy, 0.1))
    run(
        tmp_path / "truncated",
        policy,
        engine=Biased(policy, 0.1),
        iterations=1,
        max_sampler_gap=0.5,
        importance="truncate",
        importance_high=1.05,
    )
    seen = row(tmp_path / "truncated")
    # The trainer's log-probs are 0.1 above the sampler's: ratio exp(0.1) = 1.105, above the cap.
    assert seen["mismatch/kl_k1"] == pytest.approx(-0.1, abs=1e-4)
    assert seen["mismatch/corrected"] == pytest.approx(1.0)
    assert seen["sampler_gap/max"] == pytest.approx(0.1, abs=1e-4)


@pytest.mark.parametrize(
    ("importance", "weight", "share"), [("none", 1.0, 0.0), ("truncate", 2.0, 1.0), ("mask", 0.0, 1.0)]
)
def test_importance_weights(importance: str, weight: float, share: float) -> None:
    chosen = settings(importance=importance, max_sampler_gap=2.0)
    policy = language.policy()
    surroundings = Surroundings(lambda n: prompts()[:6], Biased(policy, 1.0), low_words, None)
    drawn = draw(group_models(policy, chosen), surroundings, chosen, choices_of(chosen), first_draw=0)
    weights_BT, corrected = correct(drawn.experience, chosen)
    mask_BT = drawn.experience.mask_BT
    assert weights_BT[mask_BT].tolist() == pytest.approx([weight] * int(mask_BT.sum()))
    assert corrected == share
    assert not weights_BT[~mask_BT].any()
    gradients = []
    for used_BT in (weights_BT, torch.ones_like(weights_BT)):
        policy.zero_grad()
        advantages_BT = advantages_of(drawn, chosen, choices_of(chosen))
        objective = GroupObjective(
            drawn.experience,
            advantages_BT,
            used_BT,
            settings=chosen,
            choices=choices_of(chosen),
            items=range(6),
        )
        accumulate(policy, objective, range(6), max_tokens=10_000, precision="float32", seed=0)
        gradients.append(torch.cat([p.grad.flatten() for p in policy.parameters() if p.grad is not None]))
    torch.testing.assert_close(gradients[0], weight * gradients[1])


def test_a_verifier_as_reward(tmp_path: Path) -> None:
    policy, asked = language.policy(), prompts()
    questions = {group.id: Question("say a low word", "9") for group in asked}
    reward = verified_reward(
        verifier_named(VerifierSettings(name="maths")),
        questions,
        text=lambda rollout: " ".join(map(str, rollout.ids[:-1])),
    )
    run(tmp_path, policy, reward=reward, iterations=1, hooks=PPOHooks(decode=lambda ids: str(list(ids))))
    (sample,) = read_jsonl(tmp_path / "group_samples.jsonl")
    assert len(sample["completions"]) == 4
    assert all(c["error"] is None and c["score"] in (0.0, 1.0) for c in sample["completions"])
    with pytest.raises(DataError, match="no answer to verify against"):
        reward([TokenGroup((1,), (), "stranger")], [])


def test_the_prompt_and_answer_reach_the_verifier() -> None:
    seen: list[Case] = []

    def note(cases: Sequence[Case]) -> list[Verdict]:
        seen.extend(cases)
        return [scored(0.0)] * len(cases)

    reward = verified_reward(note, {"a": Question("ask", "7")}, text=lambda rollout: "said")
    reward([TokenGroup((1,), (), "a")], [Rollout(0, (5,), (0.0,), True)])
    assert seen == [Case("said", "7", "ask")]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"method": "grpoo"}, "unknown method 'grpoo'; did you mean 'grpo'?"),
        ({"completions_per_prompt": 1}, "in a group of one nothing can be compared"),
        ({"minibatches": 7}, "a prompt's completions stay together"),
        ({"kl_coef": 0.1, "reference": False}, "kl_coef needs the reference"),
        ({"kl_in": "loss", "kl_estimator": "k1"}, "no gradient in expectation"),
        ({"method": "rloo", "clip_low": 0.1}, "has no clip"),
        ({"method": "cispo", "dual_clip": 3.0}, "dual_clip belongs to clip 'surrogate'"),
        ({"overlong_buffer": 7}, "overlong_buffer (7) is longer than max_new_tokens (6)"),
        ({"advantage": "gae"}, "advantage"),
        ({"kl_coef": -1}, "kl_coef"),
    ],
    ids=str,
)
def test_settings_that_are_refused(changes: dict[str, Any], said: str) -> None:
    given = {"prompts_per_iteration": 6, "max_new_tokens": 6, **changes}
    with pytest.raises(ConfigError) as caught:
        build(GroupSettings, given, source="test")
    assert said in str(caught.value)


def test_a_group_of_one_is_enough_for_reinforce_plus_plus(tmp_path: Path) -> None:
    run(
        tmp_path,
        language.policy(),
        method="reinforce_plus_plus",
        completions_per_prompt=1,
        iterations=1,
        kl_in="reward",
        kl_coef=0.01,
    )
    assert row(tmp_path)["group/zero_variance_share"] == 1.0
    assert row(tmp_path)["grad_norm"] > 0


def test_bad_rewards_and_completions_are_refused(tmp_path: Path) -> None:
    policy = language.policy()

    def nan(groups: Sequence[TokenGroup], rollouts: Sequence[Rollout]) -> list[float]:
        return [float("nan")] * len(rollouts)

    with pytest.raises(RunError, match="the reward of 24 completions is not finite, got 'nan for ids"):
        run(tmp_path / "nan", policy, reward=nan)
    with pytest.raises(RunError, match="another number of scores, got 1, expected 24"):
        run(tmp_path / "few", policy, reward=lambda groups, rollouts: [1.0])
    with pytest.raises(DataError, match="grpo: there are no prompts"):
        run(tmp_path / "none", policy, prompts=[])

    class Silent(Biased):
        def generate(self, prompts: Sequence[Sequence[int]], **options: Any) -> list[Rollout]:
            return [r._replace(ids=(), logps=()) for r in super().generate(prompts, **options)]

    with pytest.raises(RunError, match="the engine returned a completion without tokens"):
        run(tmp_path / "silent", policy, engine=Silent(policy, 0.0), reward=lambda g, r: [0.0, 1.0] * 12)


def test_ctrl_c_while_sampling_drops_the_iteration(tmp_path: Path) -> None:
    policy = language.policy()

    def pressed(groups: Sequence[TokenGroup], rollouts: Sequence[Rollout]) -> list[float]:
        if (
            len(list(read_jsonl(tmp_path / "metrics.jsonl")) if (tmp_path / "metrics.jsonl").exists() else [])
            == 2
        ):
            os.kill(os.getpid(), signal.SIGINT)
        return low_words(groups, rollouts)

    result = run(tmp_path, policy, reward=pressed)
    assert (result.step, result.interrupted) == (2, True)
    again = run(tmp_path, language.policy(), resume=True)
    assert (again.step, again.resumed_from) == (4, 2)
    whole = language.policy()
    run(tmp_path / "whole", whole)
    assert toy.figures(tmp_path / "whole") == toy.figures(tmp_path)
