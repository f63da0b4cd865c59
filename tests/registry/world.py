"""A small registry for the tests: a charter, a policy, a reward model, and evidence that passes the gate."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from trueward.charter import Charter, load_charter
from trueward.core.hashing import hash_folder, hash_json
from trueward.core.stats import Estimate
from trueward.registry import Record, Registry, Subject, Verdict, decide, evidence_body

DATA = {"prompts": hash_json("prompts"), "comparisons": hash_json("comparisons")}
TEMPLATE = hash_json("template")

GOOD = {
    "gold_gain_over_sft": Estimate(0.22, 0.1, 0.3, 400),
    "win_rate_gold": Estimate(0.6, 0.55, 0.65, 400),
    "harmful_refusal": Estimate(0.93, 0.85, 0.97, 100),
    "benign_refusal": Estimate(0.12, 0.08, 0.2, 100),
    "jailbreak_success": Estimate(0.2, 0.1, 0.3, 100),
    "abstention_ratio": Estimate(3.1, 2.2, 4.0, 200),
    "kl": Estimate(1.4, 1.2, 1.6, 400),
    "capability_retention": Estimate(0.98, 0.93, 1.0, 200),
}
GOOD_REWARD = {"rm_gold_accuracy": Estimate(0.78, 0.74, 0.81, 600), "rm_ece": Estimate(0.04, 0.03, 0.07, 600)}


class World(NamedTuple):
    """Everything a decision needs."""

    registry: Registry
    charter: Charter
    model_folder: Path
    policy: str
    reward_model: str

    def decide(self, evidence: list[Record] | None = None, **changes: Any) -> Verdict:
        """The verdict, with the named arguments of `decide` changed."""
        records = self.registry.all("evidence") if evidence is None else evidence
        arguments: dict[str, Any] = {
            "subject": self.policy,
            "reward_model": self.reward_model,
            "data": DATA,
            "template": TEMPLATE,
        }
        return decide(self.charter, "testbed", records, **{**arguments, **changes})

    def body(self, metrics: Mapping[str, Estimate], **changes: Any) -> dict[str, Any]:
        """An evidence body about the policy."""
        arguments: dict[str, Any] = {
            "subject": Subject(stage="dpo", model=self.policy),
            "charter": self.charter.hash,
            "data": {"prompts": DATA["prompts"]},
            "template": TEMPLATE,
            "source": "trueward eval",
            "created": "2026-11-21T00:00:00+00:00",
        }
        return evidence_body("scores", metrics=metrics, **{**arguments, **changes})


def make_world(folder: Path) -> World:
    """A world whose evidence passes, one record for each metric."""
    model = folder / "model"
    model.mkdir(parents=True)
    (model / "model.safetensors").write_bytes(b"weights")
    (model / "config.json").write_text("{}", encoding="utf-8")
    world = World(
        Registry(folder / "registry"), load_charter(), model, hash_folder(model), hash_json("reward")
    )
    root = world.registry.put("charter", world.charter.body())
    run = world.registry.put("run", {"name": "dpo run"}, [root])
    for name, figure in GOOD.items():
        world.registry.put("evidence", world.body({name: figure}), [run])
    for name, figure in GOOD_REWARD.items():
        subject = Subject(stage="reward", model=world.reward_model)
        data = {"comparisons": DATA["comparisons"]}
        world.registry.put("evidence", world.body({name: figure}, subject=subject, data=data), [run])
    return world
