"""The comparison with TRL: command line, plan of the runs, ids, ratios and the table. Nothing is timed."""

import dataclasses
from pathlib import Path

import pytest
from benchmarks.vs_trl import ALLOCATORS, SIDES, parse, plan
from benchmarks.vs_trl_group import prompts_in_order, train_groups
from benchmarks.vs_trl_ours import kto_groups
from benchmarks.vs_trl_table import FLOORS, Floor, Run, compare, loss_difference, table
from benchmarks.vs_trl_watch import Watch, memory_bytes
from benchmarks.vs_trl_work import METHODS, Job, batches_of, data_file, expected_ids, groups_of, real_tokens

from trueward.core.errors import DataError
from trueward.core.files import write_jsonl
from trueward.models.tiny import tiny_model

GIB = 1 << 30


def run(seconds: float, *, losses: tuple[float, ...] = (1.0, 0.5), gib: float = 1.0) -> Run:
    return Run(
        seconds=seconds,
        cpu_seconds=seconds / 2,
        losses=losses,
        loaded_bytes=GIB,
        peak_bytes=GIB + round(gib * GIB),
    )


def job(folder: Path, method: str = "dpo") -> Job:
    return Job(
        method=method,  # type: ignore[arg-type]  # a literal, parametrized
        work=str(folder),
        steps=2,
        batch=2,
        max_length=16,
        lr=1e-4,
        threads=1,
        checkpointing=False,
    )


@pytest.fixture
def work(tmp_path: Path) -> Path:
    rows = [
        {"prompt_ids": [1, 2, 3], "chosen_ids": [10 + number, 4], "rejected_ids": [5, 6, 7]}
        for number in range(6)
    ]
    write_jsonl(tmp_path / "pairs.jsonl", rows)
    return tmp_path


def test_ratios_are_medians_over_pairs() -> None:
    ours = [run(1.0, gib=1.0), run(2.0, gib=1.0), run(1.0, gib=3.0)]
    theirs = [run(4.0, gib=4.0), run(6.0, gib=2.0), run(5.0, gib=4.0)]
    got = compare("dpo", "as one batch", ours, theirs, tokens=100)
    # Pair by pair: speed 4, 3, 5; memory 0.25, 0.5, 0.75.
    assert (got.speed, got.memory, got.pairs) == (4.0, 0.5, 3)
    assert got.cpu_speed == 4.0
    # Whole processes: 2/5, 2/3, 4/5.
    assert got.total_memory == pytest.approx(2 / 3)
    assert (got.tokens_per_s, got.peer_tokens_per_s) == (100.0, 20.0)
    assert (got.training_gib, got.peer_training_gib) == (1.0, 4.0)


def test_speed_counts_the_tokens_that_a_side_drew() -> None:
    ours = dataclasses.replace(run(1.0), tokens=50)
    theirs = dataclasses.replace(run(4.0), tokens=100)
    got = compare("grpo", "", [ours], [theirs], tokens=0)
    assert (got.tokens_per_s, got.peer_tokens_per_s, got.speed) == (50.0, 25.0, 2.0)


def test_loss_difference_is_the_worst_step_of_all_pairs() -> None:
    assert loss_difference([1.0, 2.0], [1.0, 2.25]) == 0.25
    ours = [run(1.0, losses=(1.0, 2.0)), run(1.0, losses=(1.0, 2.0))]
    theirs = [run(1.0, losses=(1.0, 2.0)), run(1.0, losses=(1.5, 2.0))]
    assert compare("sft", "", ours, theirs, tokens=1).loss_difference == 0.5


@pytest.mark.parametrize(("ours", "theirs"), [([1.0], [1.0, 2.0]), ([], [])], ids=["longer", "empty"])
def test_runs_of_other_lengths_are_refused(ours: list[float], theirs: list[float]) -> None:
    with pytest.raises(ValueError, match="cannot be compared"):
        loss_difference(ours, theirs)


def test_runs_without_a_partner_are_refused() -> None:
    with pytest.raises(ValueError, match="make no pairs"):
        compare("sft", "", [run(1.0)], [], tokens=1)


def test_a_run_reads_what_its_process_wrote() -> None:
    result = {
        "ends_s": [1.0, 3.0],
        "ends_cpu_s": [0.5, 2.0],
        "losses": [0.7, 0.6],
        "loaded_bytes": 5,
        "peak_bytes": 12,
        "model_flops": 60.0,
        "matmul_flops_per_s": 40.0,
    }
    got = Run.of(result)
    assert (got.seconds, got.cpu_seconds, got.losses, got.training_bytes) == (3.0, 2.0, (0.7, 0.6), 7)
    # 60 operations in 3 s where 120 were possible.
    assert got.utilisation == 0.5


@pytest.mark.parametrize(
    "change",
    [{"speed": 3.9}, {"memory": 0.51}, {"loss_difference": 2e-4}],
    ids=["slow", "large", "another loss"],
)
def test_each_floor_can_be_missed(change: dict[str, float]) -> None:
    good = compare("dpo", "", [run(1.0)], [run(4.0, gib=2.0)], tokens=1)
    assert good.meets(FLOORS["dpo"])
    assert not dataclasses.replace(good, **change).meets(FLOORS["dpo"])


def test_the_floors_are_those_that_were_set() -> None:
    assert {method: FLOORS[method] for method in ("sft", "reward", "dpo")} == {
        "sft": Floor(3.0),
        "reward": Floor(3.0),
        "dpo": Floor(4.0),
    }
    assert FLOORS["orpo"] == FLOORS["kto"] == Floor(4.0, 0.4)
    assert FLOORS["grpo"] == Floor(3.0, 0.8) and set(METHODS) == set(FLOORS)
    assert Floor(1.0)[1:] == (0.5, 1e-4)


def test_the_table_names_the_verdict() -> None:
    good = compare("sft", "as one batch", [run(1.0)], [run(4.0, gib=2.0)], tokens=100)
    lines = table([good, dataclasses.replace(good, speed=2.0)]).splitlines()
    assert len(lines) == 4
    assert "| sft | as one batch | 1 | 100 | 25 | 4.00x |" in lines[2]
    assert lines[2].endswith("3x, 0.5: met |") and lines[3].endswith("3x, 0.5: missed |")
    assert len({line.count("|") for line in lines}) == 1


def test_memory_is_read_in_bytes() -> None:
    status = "Name:\tpython\nVmHWM:\t  2048 kB\nVmRSS:\t  1024 kB\n"
    assert memory_bytes("VmHWM", status) == 2048 * 1024
    assert memory_bytes("VmRSS", status) == 1024 * 1024
    assert memory_bytes("VmHWM") > 1 << 20


def test_a_watch_collects_ends_of_steps() -> None:
    watch = Watch()
    watch.start()
    watch.update(1, "loss 1")
    watch.update(2)
    assert len(watch.ends_s) == len(watch.ends_cpu_s) == 2
    assert 0 <= watch.ends_s[0] <= watch.ends_s[1]
    assert watch.peak_bytes > 0


@pytest.mark.parametrize(
    ("asked", "ours", "theirs"),
    [("off", False, False), ("peer", False, True), ("both", True, True)],
)
def test_the_plan_pairs_both_sides(tmp_path: Path, asked: str, ours: bool, theirs: bool) -> None:
    cases = plan(parse(["--allocator", "both", "--checkpointing", asked, "--steps", "3"]), tmp_path)
    assert len(cases) == len(METHODS) * len(ALLOCATORS)
    assert {(case.ours.checkpointing, case.theirs.checkpointing) for case in cases} == {(ours, theirs)}
    # Nothing else differs between the sides.
    assert all(case.theirs._replace(checkpointing=ours) == case.ours for case in cases)
    assert len({(case.ours.method, case.setting) for case in cases}) == len(cases)


def test_one_method_alone(tmp_path: Path) -> None:
    cases = plan(parse(["--method", "reward", "--forward-tokens", "512"]), tmp_path)
    assert [(case.ours.method, case.ours.forward_tokens) for case in cases] == [("reward", 512)]
    assert "512" in cases[0].setting


def test_each_side_is_a_module() -> None:
    assert all(
        (Path(__file__).parents[2] / f"{name.replace('.', '/')}.py").is_file() for name in SIDES.values()
    )


def test_data_that_is_not_there_is_one_clear_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRUEWARD_SHARED", str(tmp_path))
    with pytest.raises(DataError, match="TRUEWARD_SHARED"):
        data_file(None)
    file = tmp_path / "pairs.jsonl"
    file.write_text("{}")
    assert data_file(file) == file


def test_real_tokens_count_a_prompt_once_per_sequence(work: Path) -> None:
    groups = groups_of(job(work))
    # 4 pairs of (3 + 2) + (3 + 3) tokens; the rows beyond steps x batch are not used.
    assert (len(groups), real_tokens(groups)) == (4, 44)
    assert real_tokens(groups_of(job(work, "sft"))) == 20


def test_kto_takes_one_answer_of_each_pair_and_mismatches_by_the_batch(work: Path) -> None:
    asked = job(work, "kto")
    groups = groups_of(asked)
    # Desirable answers end with 4, the others with 7.
    assert [group.completions[0].ids[-1] for group in groups] == [4, 7, 4, 7]
    own, other = kto_groups(asked)
    for batch in batches_of(asked):
        answers = [own[i].group.completions[0].ids for i in batch]
        assert [other[i].completions[0].ids for i in batch] == [answers[-1], *answers[:-1]]
        assert all(other[i].prompt_ids == own[i].group.prompt_ids for i in batch)
    assert [item.desirable for item in own] == [True, False, True, False]
    # Cut where prompt and answer together are too long, as TRL's collator does.
    _, cut = kto_groups(asked._replace(max_length=4))
    assert {len(group.completions[0].ids) for group in cut} == {1}


def test_groups_are_drawn_and_scored_as_a_padded_forward_does(work: Path) -> None:
    asked = job(work, "grpo")._replace(completions=2, new_tokens=4)
    assert sorted(prompts_in_order(asked)) == [0, 1, 2, 3]
    watch = Watch()
    train_groups(asked, tiny_model("llama"), watch, stop=2)
    assert len(watch.ends_s) == 2 and watch.losses[0] < 1e-5
    # 8 sequences of 3 tokens of prompt and 1 to 4 drawn ones.
    assert 8 * (3 + 1) <= watch.tokens <= 8 * (3 + 4)


def test_every_pair_is_used_once(work: Path) -> None:
    batches = batches_of(job(work))
    assert [len(batch) for batch in batches] == [2, 2]
    assert sorted(i for batch in batches for i in batch) == [0, 1, 2, 3]


@pytest.mark.parametrize(
    ("method", "expected"),
    [
        ("sft", {"input_ids": [1, 2, 3], "labels": [-100, -100, 3]}),
        ("reward", {"chosen_ids": [1, 2, 3], "rejected_ids": [1, 2, 4, 5]}),
        ("dpo", {"prompt_ids": [1, 2], "chosen_ids": [3], "rejected_ids": [4, 5]}),
        (
            "orpo",
            {
                "prompt_input_ids": [1, 2],
                "chosen_input_ids": [1, 2, 3],
                "rejected_input_ids": [1, 2, 4, 5],
                "chosen_labels": [-100, -100, 3],
            },
        ),
        ("kto", {"prompt_ids": [1, 2], "completion_ids": [4, 5]}),
    ],
    ids=["sft", "reward", "dpo", "orpo", "kto"],
)
def test_ids_that_trl_must_have(method: str, expected: dict[str, list[int]]) -> None:
    row = {"prompt_ids": [1, 2], "chosen_ids": [3], "rejected_ids": [4, 5], "desirable": False}
    assert expected_ids(method, row) == expected
