"""PPO on one backbone against four models: both run on a tiny model and make the same first update."""

from pathlib import Path

import pytest
from benchmarks.ppo_roles import RolesJob, relative_difference, run_roles, write_rewards
from benchmarks.vs_trl_watch import Watch

from trueward.core.files import write_jsonl
from trueward.models import save_causal
from trueward.models.tiny import tiny_model, tiny_tokenizer


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("roles")
    save_causal(tiny_model("llama", 1), tiny_tokenizer(), folder / "causal", "base")
    write_rewards(folder)
    rows = [{"prompt_ids": [1, 20 + n, 30], "chosen_ids": [40 + n, 50, 2]} for n in range(4)]
    write_jsonl(folder / "pairs.jsonl", rows)
    return folder


def run(work: Path, layout: str, policy: str) -> tuple[Watch, dict[str, object]]:
    watch = Watch()
    job = RolesJob(layout, policy, str(work), iterations=2, prompts=4, new_tokens=4, forward_tokens=256)
    return watch, run_roles(job, watch)


@pytest.mark.parametrize("policy", ["full", "lora"])
def test_both_layouts_make_the_same_first_update(work: Path, policy: str) -> None:
    watch, one = run(work, "one backbone", policy)
    _, four = run(work, "four models", policy)
    assert one["ids"] == four["ids"] and len(watch.ends_s) == 2
    assert relative_difference(one["moved"], four["moved"]) < 1e-4  # type: ignore[arg-type]  # of JSON
    # A model this small may train in memory that was free already.
    assert watch.peak_bytes >= watch.loaded_bytes > 0


def test_the_policy_alone_is_trained_on_as_many_tokens(work: Path) -> None:
    watch, found = run(work, "alone", "lora")
    assert len(watch.ends_s) == 2 and found["ids"] == []


def test_a_difference_of_updates_is_relative_to_the_second() -> None:
    assert relative_difference({"a": [1.0, 0.0], "b": [9.0]}, {"a": [2.0, 0.0]}) == 0.5
    with pytest.raises(ValueError, match="no update"):
        relative_difference({"a": [1.0]}, {"a": [0.0]})
