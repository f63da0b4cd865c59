"""The table of all methods: what is counted, that every method of the package is on it, a tiny whole run."""

import copy
import math
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from benchmarks.methods import main
from benchmarks.methods_page import NAMES, combined, read_measured, sections, write_page
from benchmarks.methods_runs import METHODS, RATES
from benchmarks.methods_work import Tally, counting

from trueward.core.errors import DataError
from trueward.core.stats import Estimate
from trueward.models.load import load_causal
from trueward.objectives import POLICY_GRADIENT_METHODS
from trueward.pipeline.testbed_base import shipped_base
from trueward.trainers import PREFERENCE_METHODS, UNPAIRED_METHODS

TINY = [
    "testbed.demonstrations=40",
    "testbed.prompts=120",
    "eval.prompts=150",
    "sft.train.steps=2",
    "reward.train.steps=2",
]


def test_every_method_of_the_package_is_on_the_table() -> None:
    named = {*PREFERENCE_METHODS, *UNPAIRED_METHODS, *POLICY_GRADIENT_METHODS}
    # `sft` is the model that all start from; as a method it is sft_chosen and raft.
    assert named - {"sft"} <= set(METHODS) and {"sft_chosen", "raft"} <= set(METHODS)
    assert len(set(NAMES)) == len(NAMES)
    assert {method.family for method in METHODS.values()} == set(RATES)


def test_a_backward_token_is_three_passes_and_copies_count() -> None:
    model = load_causal(shipped_base()).model
    ids = torch.tensor([[1, 2, 3, 4, 5]])
    with counting(model) as tally:
        model(input_ids=ids)
        with torch.no_grad():
            copy.deepcopy(model)(input_ids=ids)
    model(input_ids=ids)
    assert (tally.trained, tally.forward, tally.passes) == (5, 5, 20)
    assert Tally(forward=2, trained=1).passes == 5


def test_the_interval_of_a_mean_over_seeds() -> None:
    # Half-widths 0.3 and 0.4 below, 0.1 and 0 above: roots of 0.25 and 0.01, halved.
    got = combined([Estimate(1.0, 0.7, 1.1, 10), Estimate(2.0, 1.6, 2.0, 20)])
    assert got.n == 30
    assert (got.value, got.low, got.high) == pytest.approx((1.5, 1.25, 1.55))


def _main(folder: Path, methods: Sequence[str], *more: str) -> int:
    where = ["--out", str(folder), "--results", str(folder / "lines.jsonl"), "--seeds", "0"]
    return main([*where, "--passes", "3000", "--only", *methods, *more, "--set", *TINY])


def test_a_tiny_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    names = ["sft", "dpo", "online_dpo", "best_of_4", "grpo"]
    assert _main(tmp_path, names) == 0
    lines = read_measured(tmp_path / "lines.jsonl")
    assert [name.split("/")[-1] for name in lines] == names
    for name in ("dpo", "online_dpo", "grpo"):
        values = lines[f"methods/seed 0/{name}"].values
        assert values["passes"] == values["forward_tokens"] + 3 * values["trained_tokens"] > 0
        assert values["gain"]["n"] == values["win_rate"]["n"] == 150
        assert values["kl"]["value"] >= 0
    best = lines["methods/seed 0/best_of_4"].values
    assert best["kl_bound"] == pytest.approx(math.log(4) - 0.75)

    written = (tmp_path / "lines.jsonl").read_bytes()
    assert _main(tmp_path, names[:2]) == 0
    assert (tmp_path / "lines.jsonl").read_bytes() == written, "what is measured is not measured again"

    page = tmp_path / "page.md"
    page.write_text(
        "by hand\n<!-- methods:table -->\nstale\n<!-- methods:end -->\nby hand\n", encoding="utf-8"
    )
    write_page(page, lines, [0])
    text = page.read_text(encoding="utf-8")
    assert text.startswith("by hand\n") and text.endswith("by hand\n") and "stale" not in text
    rows = {row.split(" | ")[0].strip("| `"): row for row in text.splitlines() if row.startswith("| `")}
    assert list(rows) == list(NAMES)
    gold = lines["methods/seed 0/dpo"].values["gold"]
    assert f"{gold['value']:.2f} [{gold['low']:.2f}, {gold['high']:.2f}]" in rows["dpo"]
    assert "not measured" in rows["kto"] and "at most 0.64" in rows["best_of_4"]


def test_nothing_measured_is_said() -> None:
    with pytest.raises(DataError, match="no method is measured"):
        sections({}, [0])


def test_an_unknown_method_names_the_nearest(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--only", "grop"])
    assert "did you mean 'grpo'" in capsys.readouterr().err
