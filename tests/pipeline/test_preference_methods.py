"""The DPO stage with other methods: chosen by the recipe, without a reference pass where there is none."""

import json
import shutil
from pathlib import Path

import pytest

from tests.pipeline.toy import call, hh_arguments, refusal

Capture = pytest.CaptureFixture[str]


@pytest.fixture(scope="module")
def tuned(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the run up to SFT."""
    folder = tmp_path_factory.mktemp("methods")
    assert call("run", *hh_arguments(folder), "stages=[data, sft]") == 0
    return folder


@pytest.mark.parametrize(("method", "reference"), [("ipo", True), ("orpo", False)])
def test_a_method_by_name(tuned: Path, method: str, reference: bool) -> None:
    out = tuned / f"run-{method}"
    shutil.copytree(tuned / "run", out)
    assert call("dpo", *hh_arguments(tuned), f"out={out}", f"dpo.objective.method={method}") == 0
    stage = out / "dpo"
    assert bool(list(stage.glob("ref_logps-*"))) == reference
    rows = [json.loads(line) for line in (stage / "metrics.jsonl").read_text().splitlines()]
    assert ("logps/chosen_per_token_change" in rows[-1]) == reference
    assert "accuracy" in json.loads((stage / "manifest.json").read_text())["results"]["held_out"]
    assert f"Preference tuning ({method})" in (stage / "model" / "README.md").read_text()


def test_options_of_another_method_are_refused(tuned: Path, capsys: Capture) -> None:
    said = refusal(capsys, "dpo", *hh_arguments(tuned), "dpo.objective.method=orpo", "dpo.objective.beta=0.1")
    assert "beta is set, but orpo does not use it; it uses weight" in said
    said = refusal(capsys, "dpo", *hh_arguments(tuned), "dpo.objective.method=oropo")
    assert "did you mean 'orpo'?" in said and "known: dpo, robust_dpo" in said
