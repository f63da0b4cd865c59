"""Nothing is trained before its preflight: a template that never stops ends the command before step 1, and
every stage that trains runs the checks."""

import ast
import json
from pathlib import Path

import pytest

import trueward
from tests.data.tokenizers import NO_END
from tests.pipeline.toy import hh_arguments, refusal

PIPELINE = Path(trueward.__file__).parent / "pipeline"
_CHECKS = {"check", "checked"}
# Builds the base model that ships, once, from the embedded world's own text.
_EXEMPT = {"testbed_base"}


def test_a_template_without_stop_token_trains_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = hh_arguments(tmp_path)
    file = tmp_path / "model" / "tokenizer_config.json"
    config = json.loads(file.read_text())
    config.pop("chat_template", None)
    (tmp_path / "model" / "chat_template.jinja").write_text(NO_END)
    file.write_text(json.dumps(config))
    said = refusal(capsys, "run", *arguments, "stages=[data, sft]")
    assert "a trained span does not end on a stop token" in said
    assert not list((tmp_path / "run").rglob("metrics.jsonl")), "it ended before step 1"


def called(tree: ast.AST) -> set[str]:
    """Names of the functions that a module calls."""
    return {
        node.func.id
        for node in ast.walk(tree)
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)
    }


def test_every_stage_that_trains_runs_the_checks() -> None:
    calls = {path.stem: called(ast.parse(path.read_text())) for path in PIPELINE.glob("*.py")}
    training = {name for name, names in calls.items() if any(n.startswith("train_") for n in names)} - _EXEMPT
    assert training >= {"stages", "ppo", "group"}
    assert {name for name in training if not calls[name] & _CHECKS} == set()
