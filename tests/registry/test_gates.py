"""The gate fails closed: each way in which evidence can be missing or wrong refuses, with a reason."""

import dataclasses
import random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.registry.world import DATA, GOOD, GOOD_REWARD, TEMPLATE, World
from trueward.core.errors import ConfigError, EvidenceError
from trueward.core.stats import Estimate
from trueward.registry import Metric, Record, Subject, Verdict, evidence_body, record_id


def as_record(body: dict[str, Any]) -> Record:
    return Record(id=record_id("evidence", [], body), kind="evidence", parents=(), body=body)


def with_metric(world: World, name: str, figure: Estimate | Metric, **changes: Any) -> list[Record]:
    """The world's evidence with the record of one metric replaced."""
    others = [record for record in world.registry.all("evidence") if name not in record.body["metrics"]]
    return [*others, as_record(world.body({name: figure}, **changes))]  # type: ignore[dict-item]


def failed(verdict: Verdict) -> dict[str, str]:
    return {result.metric: result.reason for result in verdict.criteria if not result.passed}


def test_good_evidence_passes(world: World) -> None:
    verdict = world.decide()
    assert verdict.passed and not failed(verdict)
    assert {result.metric for result in verdict.criteria} == set(GOOD) | set(GOOD_REWARD)
    assert len(verdict.sources) == 10
    assert verdict.criteria[0].reason == "lower end 0.1 meets >= 0 on 400 items"


def test_order_of_evidence_does_not_matter(world: World) -> None:
    records = world.registry.all("evidence")
    random.Random(0).shuffle(records)
    assert world.decide(records) == world.decide()


@pytest.mark.parametrize("index", range(len(GOOD) + len(GOOD_REWARD)))
def test_each_record_is_needed(world: World, index: int) -> None:
    records = world.registry.all("evidence")
    removed = records.pop(index)
    verdict = world.decide(records)
    assert not verdict.passed
    assert failed(verdict).keys() == removed.body["metrics"].keys()
    assert "no evidence holds" in next(iter(failed(verdict).values()))


def other(digest: str, position: int) -> str:
    """The digest with one character changed."""
    at = position % len(digest)
    return digest[:at] + ("0" if digest[at] != "0" else "1") + digest[at + 1 :]


@settings(max_examples=60, deadline=None)
@given(
    index=st.integers(0, 9),
    path=st.sampled_from([("charter",), ("template",), ("subject", "model"), ("data", None)]),
    position=st.integers(0, 63),
    resealed=st.booleans(),
)
def test_any_changed_hash_character_fails(
    world: World, index: int, path: tuple[str | None, ...], position: int, resealed: bool
) -> None:
    records = world.registry.all("evidence")
    body = {
        key: dict(value) if isinstance(value, dict) else value for key, value in records[index].body.items()
    }
    target: Any = body
    for key in path[:-1]:
        target = target[str(key)]
    if path[-1] is None:
        target, last = body["data"], next(iter(body["data"]))
    else:
        last = path[-1]
    target[last] = other(target[last], position)
    # Resealed: the forger also computed a matching id.
    records[index] = as_record(body) if resealed else dataclasses.replace(records[index], body=body)
    assert not world.decide(records).passed


@settings(max_examples=30, deadline=None)
@given(
    position=st.integers(0, 63),
    name=st.sampled_from(["subject", "reward_model", "template", "prompts", "comparisons"]),
)
def test_any_other_expectation_fails(world: World, position: int, name: str) -> None:
    if name in DATA:
        changes: dict[str, Any] = {"data": {**DATA, name: other(DATA[name], position)}}
    else:
        now = {"subject": world.policy, "reward_model": world.reward_model, "template": TEMPLATE}[name]
        changes = {name: other(now, position)}
    assert not world.decide(**changes).passed


def test_another_charter_makes_all_evidence_stale(world: World) -> None:
    changed = world.charter.model_copy(update={"version": "1.1"})
    verdict = world._replace(charter=changed).decide()
    assert len(failed(verdict)) == len(verdict.criteria)
    assert all("stale" in reason and "charter" in reason for reason in failed(verdict).values())


@pytest.mark.parametrize(
    ("name", "figure", "passes"),
    [
        pytest.param("win_rate_gold", Estimate(0.6, 0.5, 0.7, 200), True, id="low-equal"),
        pytest.param("win_rate_gold", Estimate(0.6, 0.49999999, 0.7, 200), False, id="low-below"),
        pytest.param("kl", Estimate(10.0, 9.0, 11.0, 50), True, id="at-most-equal"),
        pytest.param("kl", Estimate(10.000000001, 9.0, 11.0, 50), False, id="at-most-above"),
        pytest.param("harmful_refusal", Estimate(0.85, 0.1, 0.9, 50), True, id="value-ignores-ends"),
        pytest.param("kl", Estimate(1.0, 0.5, 1.5, 50), True, id="enough"),
        pytest.param("kl", Estimate(1.0, 0.5, 1.5, 49), False, id="one-too-few"),
    ],
)
def test_thresholds(world: World, name: str, figure: Estimate, passes: bool) -> None:
    assert world.decide(with_metric(world, name, figure)).passed is passes


@pytest.mark.parametrize(
    ("figure", "reason"),
    [
        pytest.param(Estimate(float("nan"), 0.0, 1.0, 400), "finite", id="nan"),
        pytest.param(Estimate(float("inf"), 0.0, 1.0, 400), "finite", id="infinite"),
        pytest.param(Metric(value=None, n=400), "finite", id="unmeasured"),
        pytest.param(Metric(value=0.9, n=400), "has no interval", id="no-interval"),
        pytest.param(Metric(value=0.9, low=0.95, high=0.8, n=400), "upside down", id="upside-down"),
        pytest.param(Estimate(0.4, 0.3, 0.45, 400), "lower end 0.3 misses >= 0.5", id="low"),
        pytest.param(Estimate(0.6, 0.4999999, 0.7, 400), "0.4999999 misses >= 0.5", id="near"),
        pytest.param(Estimate(0.6, 0.55, 0.7, 5), "5 items are too few, 200 are needed", id="few"),
    ],
)
def test_reasons_in_words(world: World, figure: Estimate | Metric, reason: str) -> None:
    assert reason in failed(world.decide(with_metric(world, "win_rate_gold", figure)))["win_rate_gold"]


def test_contradiction_fails_and_agreement_passes(world: World) -> None:
    records = world.registry.all("evidence")
    twin = as_record(world.body({"kl": GOOD["kl"]}, source="a second command"))
    assert world.decide([*records, twin]).passed
    contrary = as_record(world.body({"kl": Estimate(1.5, 1.2, 1.6, 400)}))
    verdict = world.decide([*records, contrary])
    assert "contradicts itself" in failed(verdict)["kl"]
    assert verdict == world.decide([contrary, *reversed(records)])


def test_stale_evidence_beside_fresh_is_passed_over(world: World) -> None:
    old = as_record(world.body({"kl": Estimate(99.0, 98.0, 100.0, 400)}, charter="0" * 64))
    elsewhere = Subject(stage="ppo", model="f" * 64)
    another = as_record(world.body({"kl": Estimate(99.0, 98.0, 100.0, 400)}, subject=elsewhere))
    assert world.decide([*world.registry.all("evidence"), old, another]).passed


def test_evidence_on_unknown_data_is_stale(world: World) -> None:
    records = with_metric(world, "kl", GOOD["kl"], data={"elsewhere": "0" * 64})
    assert "not part of this release" in failed(world.decide(records))["kl"]


def test_evidence_about_the_policy_does_not_speak_for_the_reward_model(world: World) -> None:
    records = with_metric(world, "rm_ece", GOOD_REWARD["rm_ece"])
    assert "not on this reward model" in failed(world.decide(records))["rm_ece"]
    assert "no reward model was named" in failed(world.decide(reward_model=None))["rm_ece"]


def test_unreadable_evidence_refuses_even_beside_good(world: World) -> None:
    broken = Record(id="0" * 64, kind="evidence", parents=(), body={"schema": "trueward.evidence/1"})
    verdict = world.decide([*world.registry.all("evidence"), broken])
    assert not verdict.passed and verdict.criteria[0].id == "evidence_intact"


def test_unknown_profile_names_the_nearest(world: World) -> None:
    with pytest.raises(ConfigError, match=r"no gate .testbed.; known names: real"):
        from_world = world.charter.model_copy(update={"gates": {"real": world.charter.gates["real"]}})
        world._replace(charter=from_world).decide()


def test_evidence_without_data_is_refused(world: World) -> None:
    with pytest.raises(EvidenceError, match="data"):
        evidence_body(
            "scores",
            subject=Subject(stage="dpo", model=world.policy),
            charter=world.charter.hash,
            data={},
            template=TEMPLATE,
            source="test",
            metrics={"kl": GOOD["kl"]},
        )
