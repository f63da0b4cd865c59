"""The charter's operating point: sent with every prompt of training and evaluation, and on record."""

from pathlib import Path

import pytest
import yaml
from rich.console import Console

from tests.pipeline.toy import call, hh_arguments, refusal, write_testbed_model
from trueward import pipeline
from trueward.charter import default_charter_path
from trueward.core.files import read_json, read_jsonl
from trueward.core.run import open_run
from trueward.data.records import Demonstration, Message, Prompt, Text
from trueward.pipeline import datasets
from trueward.pipeline.operating_point import own_system, under
from trueward.pipeline.workspace import Workspace
from trueward.registry import Registry

SYSTEM = "Be kind."
STAGES = ("sft", "reward", "dpo", "ppo")


def _charter(folder: Path) -> Path:
    """The charter that ships with a `careful` point that is short enough for a toy."""
    body = yaml.safe_load(default_charter_path().read_text())
    body["operating_points"]["careful"]["system"] = SYSTEM
    file = folder / "charter.yaml"
    file.write_text(yaml.safe_dump(body))
    return file


def _arguments(folder: Path, *, out: str = "run", point: str = "careful") -> list[str]:
    asked = [f"charter={_charter(folder)}", f"operating_point={point}", "data.max_tokens=200"]
    return [*hh_arguments(folder, out=out), *asked]


def _workspace(arguments: list[str]) -> Workspace:
    return pipeline.open_workspace(pipeline.resolve(arguments[0], arguments[1:]), console=Console(quiet=True))


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("point")
    assert call("run", *_arguments(folder)) == 0
    return folder


def test_every_prompt_begins_with_the_system_turn(finished: Path) -> None:
    workspace = _workspace(_arguments(finished))
    turn = Message("system", SYSTEM)
    assert {d.messages[0] for d in datasets.demonstrations(workspace).train} == {turn}
    assert {c.prompt[0] for split in datasets.pairs(workspace)[2:4] for c in split} == {turn}
    assert {p.messages[0] for p in datasets.train_prompts(workspace)} == {turn}
    assert {p.messages[0] for p in datasets.test_prompts(workspace).prompts} == {turn}
    # What was drawn for is what was asked, and the data set on disk is as it was imported.
    evaluation = workspace.evaluation().path
    assert all(
        row["prompt"].startswith(f"system: {SYSTEM}\n") for row in read_jsonl(evaluation / "samples.jsonl")
    )
    (version,) = (finished / "run" / "data" / "feedback").glob("*/manifest.json")
    assert SYSTEM not in "".join(file.read_text() for file in version.parent.glob("*.jsonl"))


def test_manifests_evidence_and_report_name_it(finished: Path) -> None:
    out, point = finished / "run", {"name": "careful", "system": SYSTEM}
    for stage in STAGES:
        assert open_run(out / stage).manifest["config"]["operating_point"] == point
    evidence = Registry(out / "records").all("evidence")
    assert {record.body["operating_point"] for record in evidence} == {"careful"}
    notes = read_json(out / "summary.json")["notes"]
    assert "operating point careful: its system prompt was sent with every prompt" in notes
    assert "operating_point" not in open_run(out / "data").manifest["config"]


def test_evidence_under_another_operating_point_is_stale(finished: Path) -> None:
    arguments = _arguments(finished, point="null")
    assert call("gate", *arguments, "release=dpo") == 1
    reasons = [c["reason"] for c in read_json(finished / "run" / "verdict.json")["criteria"]]
    assert all("under operating point 'careful', not no operating point" in reason for reason in reasons), (
        reasons
    )


def test_another_operating_point_is_another_evaluation(finished: Path) -> None:
    before = set((finished / "run" / "eval").iterdir())
    assert call("eval", *_arguments(finished, point="null")) == 0
    (made,) = set((finished / "run" / "eval").iterdir()) - before
    assert all(row["prompt"].startswith("user: ") for row in read_jsonl(made / "samples.jsonl"))
    assert call("eval", *_arguments(finished)) == 0
    assert set((finished / "run" / "eval").iterdir()) == {*before, made}


@pytest.mark.parametrize("option", ["--dry-run", "--resume"], ids=["dry run", "run"])
def test_an_unknown_name_gives_the_nearest(
    option: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    said = refusal(capsys, "run", *_arguments(tmp_path, point="carefull"), option)
    assert said == "the charter has no operating point 'carefull'; did you mean 'careful'?"
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("rule", "why"),
    [
        (
            "{% if m['role'] == 'system' %}{{ raise_exception('no system role') }}{% endif %}",
            "no system role",
        ),
        ("{% if m['role'] == 'system' %}{% continue %}{% endif %}", "it leaves the system turn out"),
    ],
    ids=["refuses", "leaves out"],
)
def test_a_template_without_system_role_is_one_sentence(
    rule: str, why: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = _arguments(tmp_path)
    template = tmp_path / "model" / "chat_template.jinja"
    text = template.read_text()
    loop = "{% for message in messages %}"
    assert loop in text
    template.write_text(text.replace(loop, loop + rule.replace("m[", "message[")))
    said = refusal(capsys, "run", *arguments)
    assert "cannot send operating point 'careful'" in said and why in said
    assert not (tmp_path / "run").exists()
    assert call("run", *arguments, "operating_point=null", "stages=[data, sft]") == 0


def test_a_record_keeps_its_own_system_turn() -> None:
    asked = (Message("user", "Hello?"),)
    own = Prompt(id="own", messages=(Message("system", "Be brief."), *asked))
    plain = Prompt(id="plain", messages=asked)
    assert under(own, SYSTEM) is own and own_system(own, SYSTEM)
    assert under(plain, SYSTEM).messages == (Message("system", SYSTEM), *asked)  # type: ignore[union-attr]
    assert not own_system(under(plain, SYSTEM), SYSTEM)
    shown = Demonstration(id="shown", messages=(*asked, Message("assistant", "Hi.")))
    assert under(shown, SYSTEM).messages[0] == Message("system", SYSTEM)  # type: ignore[union-attr]
    text = Text(id="text", text="It rained.")
    assert under(text, SYSTEM) is text


def test_on_the_testbed_replies_are_drawn_and_compared_under_it(tmp_path: Path) -> None:
    model = write_testbed_model(tmp_path / "base")
    arguments = [
        "quickstart",
        f"out={tmp_path / 'run'}",
        f"model.path={model}",
        "operating_point=careful",
        "sft.train={steps: 1, batch_size: 4}",
        "reward.train={steps: 1, batch_size: 4}",
        "testbed={demonstrations: 30, prompts: 40}",
        "data.test_share=0.3",
        "eval.prompts=100",
        "eval.max_new_tokens=6",
        "stages=[data, sft, reward]",
    ]
    assert call("run", *arguments) == 0
    found = datasets.pairs(_workspace(arguments))
    assert all(c.prompt[0].content.startswith("You are a careful assistant") for c in found.train)
