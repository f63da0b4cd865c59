"""The performance benchmark: its lines, results file, page and charts. Nothing is timed."""

import math
import re
from dataclasses import replace
from pathlib import Path

import pytest
from benchmarks.ablation import ALL_ON, DECODING, TRAINING, AblationJob, run_variant
from benchmarks.cost import AXES, CostJob, groups_at, measure_point, points
from benchmarks.growth import STAGES, GrowthJob, run_stage, write_rows
from benchmarks.performance import chosen, main, parse
from benchmarks.performance_charts import cost_chart, growth_chart
from benchmarks.performance_page import fill, sections, write_page
from benchmarks.performance_targets import DECODE_TARGETS, PPO_TARGET, TRL_TARGETS, Target
from benchmarks.process import command_s
from benchmarks.results import Line, read_lines, record
from benchmarks.tried import TRIALS, first_fit_decreasing
from benchmarks.vs_trl_watch import Watch

from benchmarks import performance_tasks
from trueward.core.errors import DataError, RunError
from trueward.core.files import write_jsonl
from trueward.models.tiny import tiny_model

ROOT = Path(__file__).parents[2]
COMPARED = {
    "pairs": 5,
    "steps": 2,
    "forward_tokens": 512,
    "tokens_per_s": 600.0,
    "peer_tokens_per_s": 100.0,
    "speed": 6.0,
    "cpu_speed": 6.1,
    "training_gib": 1.0,
    "peer_training_gib": 4.0,
    "memory": 0.25,
    "total_memory": 0.3,
    "loss_difference": 1e-6,
    "utilisation": 0.7,
    "matmul_gflops_per_s": 100.0,
}


def line(name: str, **values: object) -> Line:
    return Line(
        name=name,
        date="2026-01-02T03:04:05+00:00",
        command="python -m benchmarks.performance all",
        machine="2 cores of a processor, 8 GiB",
        versions={"torch": "2.13.0"},
        commit="0123456789abcdef",
        values=values,
    )


EVERY_PART = [
    line(
        "gpu/1.5B/dpo/padded loop",
        step_s=0.5,
        speed=2.5,
        utilisation=0.2,
        peak_gib=60.0,
        loss_difference=None,
        failed="",
        sequences=64,
        steps=4,
        matmul_flops_per_s=8e14,
    ),
    line("trl/135M/dpo/float32/1 thread/default", **COMPARED),
    line(
        "decode/135M/float32/1 thread/8 x 64",
        **{k: v for k, v in COMPARED.items() if k not in ("loss_difference", "utilisation")},
        rows=8,
        rows_equal=7,
        equal_share=0.9,
    ),
    line(
        "ppo/135M/lora/1 thread",
        pairs=5,
        iteration_s=2.0,
        peer_iteration_s=5.0,
        speed=2.5,
        cpu_speed=2.4,
        memory_gib=1.3,
        peer_memory_gib=4.0,
        alone_gib=1.0,
        lora_alone_gib=1.0,
        peer_memory=0.33,
        alone_memory=1.4,
        memory=1.4,
        loss_difference=1e-6,
        texts_equal=True,
    ),
    line(
        "ablation/small/training",
        pairs=5,
        lines=[
            {
                "variant": ALL_ON,
                "seconds": 1.0,
                "time": 1.0,
                "cpu_time": 1.0,
                "memory_gib": 1.0,
                "memory": 1.0,
                "loss_difference": 0.0,
            }
        ],
    ),
    line("growth/import/10,000", records=10_000, seconds=2.0, records_per_s=5000.0, memory_mib=3.0),
    line("growth/import/1,000", records=1_000, seconds=0.2, records_per_s=5000.0, memory_mib=3.0),
    line("cost/length", points=[{"value": 128, "tokens": 512, "seconds": 0.5, "memory_mib": 80.0}] * 2),
    line("tried/an idea", figures={"with s": 1.0, "without s": None}, verdict="not kept"),
    line("start/tiny model", imported_s=3.0, first_step_s=6.0),
]


def test_lines_are_named_once_and_chosen_by_words(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(performance_tasks, "_has_wide_registers", lambda: False)
    names = [task.name for task in chosen(parse([]))]
    assert len(names) == len(set(names)) > 60
    quick = [task.name for task in chosen(parse(["--quick"]))]
    assert set(quick) < set(names)
    assert all("2 threads" not in name and "kept" not in name for name in quick)
    picked = [task.name for task in chosen(parse(["trl", "--only", "dpo/float32/1 thread/default"]))]
    assert picked == [f"trl/{size}/dpo/float32/1 thread/default" for size in ("135M", "small")]


def test_float32_with_wide_registers_is_a_line_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(performance_tasks, "_has_wide_registers", lambda: True)
    (task,) = chosen(parse(["trl", "--quick", "--models", "135M", "--only", "dpo/float32"]))
    assert task.name == "trl/135M/dpo/float32, AVX-512/1 thread/own"
    written = sections([line(task.name, **COMPARED)])
    assert "| float32, AVX-512 | 1 |" in written["trl"] and "6x, 0.3, 1e-05" in written["trl"]
    assert "float32, AVX-512" in written["utilisation"] and "65%" in written["utilisation"]


@pytest.mark.parametrize(("lacking", "label"), [(False, "bfloat16"), (True, "bfloat16, no instructions")])
def test_bfloat16_without_instructions_is_a_line_of_its_own(
    lacking: bool, label: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(performance_tasks, "lacks_instructions", lambda: lacking)
    asked = ["--quick", "--models", "135M", "--only", "dpo/bf", "decode/135M/bf"]
    names = [task.name for task in chosen(parse(["trl", "decode", *asked]))]
    assert names == [f"trl/135M/dpo/{label}/1 thread/own", f"decode/135M/{label}/1 thread/8 x 64"]
    figures = {k: v for k, v in COMPARED.items() if k not in ("loss_difference", "utilisation")}
    lines = [
        line(names[0], **COMPARED),
        line(names[1], **figures, rows=8, rows_equal=7, equal_share=0.9),
    ]
    written = sections(lines)
    assert f"| {label} | 1 |" in written["decode"] and "4x, 1, equal text: missed" in written["decode"]
    assert f"| {label} | 1 |" in written["trl"] and "6x, 0.5, 1e-04" in written["trl"]


def test_one_command_on_two_machines_is_two_sources() -> None:
    lines = [
        replace(line(f"trl/135M/dpo/{label}/1 thread/own", **COMPARED), machine=machine)
        for label, machine in (("float32", "one"), ("bfloat16", "another"), ("bfloat16, x", "another"))
    ]
    written = sections(lines)["trl"]
    assert written.count(", one; ") == written.count(", another; ") == 1


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        (["--peer-recomputes", "no"], "/TRL keeps activations"),
        (["--recompute"], "/Trueward recomputes"),
        (["--first-moment", "bfloat16"], "/first moment in bfloat16"),
    ],
)
def test_a_line_says_what_else_was_set(asked: list[str], said: str) -> None:
    names = [task.name for task in chosen(parse(["trl", "--quick", *asked]))]
    assert names and all(name.endswith(said) for name in names)


def test_nothing_matching_is_no_success(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert main(["trl", "--only", "no such line"]) == 1
    for wide, name in ((False, "start/tiny model"), (True, "start/tiny model, AVX-512")):
        monkeypatch.setattr(performance_tasks, "_has_wide_registers", lambda wide=wide: wide)
        assert main(["start", "--list"]) == 0
        assert capsys.readouterr().out.split("\n")[-2] == name


def test_lines_accumulate_and_a_newer_one_takes_its_place(tmp_path: Path) -> None:
    file = tmp_path / "results.json"
    assert read_lines(file) == []
    record(file, "start/b", {"s": 1}, command="first")
    record(file, "start/a", {"s": 2}, command="second")
    record(file, "start/b", {"s": 3}, command="third")
    lines = read_lines(file)
    assert [(each.name, each.values, each.command) for each in lines] == [
        ("start/a", {"s": 2}, "second"),
        ("start/b", {"s": 3}, "third"),
    ]
    assert all(each.machine and each.versions["torch"] and each.date for each in lines)
    file.write_text("{}")
    with pytest.raises(DataError, match="measured lines"):
        read_lines(file)


@pytest.mark.parametrize(
    ("target", "values", "missed"),
    [
        (Target(6, 0.3, 1e-5), {"speed": 6.0, "memory": 0.3, "loss_difference": 1e-5}, []),
        (Target(6, 0.3, 1e-5), {"speed": 5.9, "memory": 0.3, "loss_difference": 1e-5}, ["speed"]),
        (Target(6, 0.3, 1e-5), {"speed": 6.0, "memory": 0.4, "loss_difference": 1e-4}, ["memory", "loss"]),
        (Target(2, 1.0, None), {"speed": 2.0, "memory": 1.0, "rows": 8, "rows_equal": 8}, []),
        (Target(2, 1.0, None), {"speed": 2.0, "memory": 1.0, "rows": 8, "rows_equal": 7}, ["text"]),
    ],
    ids=["met", "slow", "large and wrong", "equal", "another text"],
)
def test_targets_can_be_missed(target: Target, values: dict[str, float], missed: list[str]) -> None:
    assert target.missed(values) == missed


def test_the_targets_are_those_that_were_set() -> None:
    assert TRL_TARGETS["135M", "dpo", "float32"] == (6.0, 0.3, 1e-5)
    assert TRL_TARGETS["135M", "dpo", "bfloat16"] == (6.0, 0.5, 1e-4)
    assert TRL_TARGETS["small", "reward", "float32"] == (5.0, 0.45, 1e-5)
    assert TRL_TARGETS["135M", "kto", "float32"] == (4.0, 0.4, 1e-5)
    assert TRL_TARGETS["small", "orpo", "float32"] == (4.0, 0.4, 1e-5)
    assert TRL_TARGETS["135M", "grpo", "float32"] == (3.0, 0.8, 1e-5)
    assert TRL_TARGETS["small", "grpo", "float32"] == (4.0, 0.45, 1e-5)
    assert PPO_TARGET == (2.0, 1.3, 1e-4)
    assert {name: target.speed for name, target in DECODE_TARGETS.items()} == {"float32": 2, "bfloat16": 4}


def test_every_part_has_its_table_with_source_and_verdict() -> None:
    found = sections(EVERY_PART)
    assert "6x, 0.3, 1e-05: met |" in found["trl"] and "70% of 100 GFLOP/s" in found["trl"]
    assert "| 70% | 65%: met |" in found["utilisation"]
    assert "2x, 1, equal text: missed (text) |" in found["decode"]
    assert "| 2.50x | 2.40x |" in found["ppo"] and "2x, 1.3, 1e-04: missed (memory) |" in found["ppo"]
    assert "| padded loop | 64 x 4 | 500 | 2.50 | 20% | 60.0 | - |" in found["gpu"]
    assert "800 TFLOP/s" in found["gpu"]
    assert (
        "1.5B: 2.50 times as fast as the fastest other side (padded loop); target 1.5: met." in found["gpu"]
    )
    assert "without s not supported" in found["tried"] and "5 s: missed" in found["start"]
    # The smaller file first, though 10,000 sorts before 1,000.
    assert found["growth"].index("| 1,000 |") < found["growth"].index("| 10,000 |")
    for name, text in found.items():
        widths = {row.count("|") for row in text.splitlines() if row.startswith("|")}
        assert len(widths) == 1
        source = "2026-01-02, 2 cores of a processor, 8 GiB; torch 2.13.0, commit 012345678: `python -m"
        assert name == "targets" or source in text


def test_targets_are_told_with_the_lines_that_miss_them() -> None:
    slow = {**COMPARED, "speed": 5.0, "utilisation": 0.6}
    lines = [
        line("trl/135M/dpo/float32/1 thread/own", **COMPARED),
        line("trl/135M/dpo/float32, AVX-512/2 threads/own", **slow),
        line("trl/small/dpo/float32/1 thread/own", **slow),
        *(each for each in EVERY_PART if each.part in ("decode", "ppo", "start")),
    ]
    written = sections(lines)["targets"].splitlines()[2:]
    dpo = "dpo, 135M, float32"
    assert written == [
        f"| {dpo} | 6x, 0.3, 1e-05 | 1 of 2 | AVX-512, 2 threads, own: speed |",
        f"| share of peak: {dpo} | 65% | 1 of 2 | AVX-512, 2 threads, own: 60% |",
        "| decoding, 135M, float32 | 2x, 1, equal text | 0 of 1 | 1 thread: text |",
        "| PPO on one backbone, 135M | 2x, 1.3, 1e-04 | 0 of 1 | lora: memory |",
        "| from import to the first step | 5 s | 0 of 1 | tiny model: 6.0 s |",
    ]
    met = line("start/tiny model", imported_s=3.0, first_step_s=4.0, help_s=0.2)
    told = sections([met])["targets"]
    assert "| from import to the first step | 5 s | 1 of 1 | - |" in told
    assert "| `trueward --help` | 0.5 s | 1 of 1 | - |" in told
    slow_help = line("start/tiny model", imported_s=3.0, first_step_s=4.0, help_s=0.5)
    assert "| `trueward --help` | 0.5 s | 0 of 1 | tiny model: 0.50 s |" in sections([slow_help])["targets"]
    assert "| 0.50 | 0.5 s: missed |" in sections([slow_help])["start"]


def test_a_gpu_is_held_against_its_targets() -> None:
    told = {"step_s": 0.5, "peak_gib": 60.0, "loss_difference": None, "failed": ""}
    told |= {"sequences": 64, "steps": 4, "matmul_flops_per_s": 8e14}
    lines = [
        line("gpu/1.5B/dpo/Trueward", speed=1.0, utilisation=0.49, **told),
        line("gpu/1.5B/dpo/Trueward, recomputing", speed=1.2, utilisation=0.4, **told),
        line("gpu/1.5B/dpo/TRL", speed=1.4, utilisation=0.3, **told),
        line("gpu/1.5B/dpo/padded loop", speed=3.0, utilisation=0.1, **told),
        line(
            "gpu/1.5B/dpo/TRL in parts", **{**told, "failed": "out of memory"}, speed=None, utilisation=None
        ),
        line("gpu/1.5B/sft/padded loop", speed=1.1, utilisation=0.4, **told),
    ]
    said = sections(lines)["gpu"]
    assert "DPO, 1.5B: 1.40 times as fast as the fastest other side (TRL); target 1.5: missed." in said
    assert "MFU of DPO, 1.5B: 49%; target 50%: missed." in said
    targets = sections(lines)["targets"]
    assert "| dpo on a GPU | 1.5x the fastest other side | 0 of 1 | 1.5B: 1.40x |" in targets
    assert "| share of peak: dpo, 1.5B, on a GPU | 50% | 0 of 1 | bfloat16: 49% |" in targets


def test_a_gpu_where_only_trueward_was_measured_is_not_held_against_another_side() -> None:
    told = {"step_s": 0.5, "peak_gib": 60.0, "loss_difference": None, "failed": ""}
    told |= {"sequences": 64, "steps": 4, "matmul_flops_per_s": 8e14}
    found = sections([line("gpu/1.5B/dpo/Trueward", speed=1.0, utilisation=0.5, **told)])
    assert "fastest" not in found["gpu"] + found["targets"]
    assert "MFU of DPO, 1.5B: 50%; target 50%: met." in found["gpu"]
    assert "| share of peak: dpo, 1.5B, on a GPU | 50% | 1 of 1 | - |" in found["targets"]


def test_parts_without_lines_say_so() -> None:
    assert set(sections([]).values()) == {"Not measured yet."}


def test_the_page_is_filled_between_its_markers(tmp_path: Path) -> None:
    page = tmp_path / "performance.md"
    page.write_text((ROOT / "docs" / "performance.md").read_text())
    (tmp_path / "assets").mkdir()
    write_page(page, EVERY_PART)
    first = page.read_text()
    assert "2 cores of a processor" in first
    assert {path.name for path in (tmp_path / "assets").iterdir()} == {
        "performance-length.svg",
        "performance-growth.svg",
    }
    # Again, and nothing has moved.
    write_page(page, EVERY_PART)
    assert page.read_text() == first
    with pytest.raises(DataError, match="markers"):
        fill("<!-- performance:trl -->\nx\n<!-- performance:end -->", sections([]))


def test_the_pages_charts_exist() -> None:
    text = (ROOT / "docs" / "performance.md").read_text()
    charts = re.findall(r"\]\((assets/performance-[a-z-]+\.svg)\)", text)
    assert len(charts) == 1 + len(AXES)
    assert all((ROOT / "docs" / chart).is_file() for chart in charts)


def test_charts_are_pictures() -> None:
    growth = [each for each in EVERY_PART if each.part == "growth"]
    for drawn in (growth_chart(growth), cost_chart(next(e for e in EVERY_PART if e.part == "cost"))):
        assert drawn.startswith("<svg") and "memory, MiB" in drawn


def test_rows_of_growth_pass_through_every_stage(tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    write_rows(file, 300)
    assert len(set(file.read_text().splitlines())) == 300
    for stage in STAGES:
        watch = Watch()
        run_stage(GrowthJob(stage, str(file), str(tmp_path), 300), watch)
        assert watch.ends_s[0] > 0
    assert not (tmp_path / "growth-bad.jsonl").exists()
    assert len(list((tmp_path / "growth" / "rows-300").iterdir())) == 1


def test_steps_of_the_cost_axes() -> None:
    assert [len(g.completions) for g in groups_at("group size", 8)] == [8]
    assert {len(g.prompt_ids) + len(g.completions[0].ids) for g in groups_at("length", 512)} == {512}
    assert len(groups_at("vocabulary", 1024)) == 4
    assert points("length", quick=True) == AXES["length"][:-1]
    assert points("length", quick=False) == AXES["length"]


def test_a_point_of_the_cost_is_measured(tmp_path: Path) -> None:
    got = measure_point(CostJob("group size", 2, str(tmp_path)))
    assert (got["value"], got["tokens"]) == (2, 256 + 2 * 64)
    assert got["seconds"] > 0


def test_first_fit_decreasing_holds_every_item_once() -> None:
    rows = first_fit_decreasing([3, 5, 2, 4, 1, 5], 6)
    assert sorted(i for row in rows for i in row) == [0, 1, 2, 3, 4, 5]
    # 20 of 24: 5 + 1, 5, 4 + 2, 3.
    assert rows == [[1, 4], [5], [3, 2], [0]]


@pytest.fixture
def work(tmp_path: Path) -> Path:
    rows = [
        {"prompt_ids": [1, 20 + n, 30], "chosen_ids": [40 + n, 50, 2], "rejected_ids": [60, 2]}
        for n in range(4)
    ]
    write_jsonl(tmp_path / "pairs.jsonl", rows)
    return tmp_path


@pytest.mark.parametrize("variant", [name for name in TRAINING if "torch.compile" not in name])
def test_training_without_an_idea_learns_the_same(work: Path, variant: str) -> None:
    losses = []
    for each in (ALL_ON, variant):
        watch = Watch()
        run_variant(AblationJob("training", each, str(work), 2, 2, 4), tiny_model("llama"), watch)
        losses.append(watch.losses)
    assert losses[0] == pytest.approx(losses[1], abs=5e-3 if "bfloat16" in variant else 1e-5)
    assert len(losses[0]) == 2 and losses[0][0] == pytest.approx(math.log(2))


@pytest.mark.parametrize("variant", list(DECODING))
def test_decoding_without_an_idea_runs(work: Path, variant: str) -> None:
    watch = Watch()
    run_variant(AblationJob("decoding", variant, str(work), 2, 4, 4), tiny_model("llama"), watch)
    assert len(watch.ends_s) == 1


def test_every_idea_of_the_issue_has_a_variant() -> None:
    words = " ".join([*TRAINING, *DECODING])
    for idea in ("packing", "shared prompts", "completion-only head", "cached reference", "shared prompt KV"):
        assert f"without {idea}" in words
    for idea in ("early retirement", "bfloat16 weights", "allocator", "torch.compile"):
        assert idea in words
    assert all(trial.verdict for trial in TRIALS.values())


def test_a_command_is_timed_and_its_failure_is_an_error() -> None:
    assert 0 < command_s("--version") < 60
    with pytest.raises(RunError, match=r"trueward no-such-command failed: .*exit status 2"):
        command_s("no-such-command")
