"""A run small enough for tests: a random Llama of a few thousand weights, rows like HH, few steps a stage."""

import hashlib
import json
import sys
from pathlib import Path

import pytest

from trueward.cli.main import main
from trueward.core.errors import TruewardError
from trueward.models.checkpoint import save_causal
from trueward.models.tiny import tiny_model, tiny_tokenizer
from trueward.testbed import make_world, write_tokenizer

_THINGS = ("bread", "soup", "a kite", "a chair", "a poem", "a lamp", "tea", "a raft", "jam", "a bench")
_WAYS = ("with care", "in one day", "by hand", "for two", "at home", "in the rain")


def hh_rows(count: int = 60) -> list[dict[str, str]]:
    """Comparisons in the form of HH-RLHF: every other one has two turns."""
    rows = []
    for number in range(count):
        thing, way = _THINGS[number % len(_THINGS)], _WAYS[number // len(_THINGS) % len(_WAYS)]
        asked = f"\n\nHuman: How do I make {thing} {way}?\n\nAssistant:"
        if number % 2:
            asked += f" Do you mean {thing}?\n\nHuman: Yes, {way}.\n\nAssistant:"
        chosen, rejected = f" Take your time with {thing}.", f" No. {thing[0]}"
        rows.append({"chosen": asked + chosen, "rejected": asked + rejected})
    return rows


def write_rows(path: Path, rows: list[dict[str, str]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def write_model(folder: Path, seed: int = 0) -> Path:
    """A random two-layer Llama of width 16 that reads bytes."""
    model = tiny_model("llama", seed, width=16, layers=1, heads=2, kv_heads=2, scale=1.0)
    save_causal(model, tiny_tokenizer(), folder, "Random weights.")
    return folder


def write_testbed_model(folder: Path) -> Path:
    """The same with the testbed's tokenizer."""
    from transformers import AutoTokenizer

    write_tokenizer(make_world(), folder.with_name("tokenizer"))
    tokenizer = AutoTokenizer.from_pretrained(folder.with_name("tokenizer"))
    model = tiny_model("llama", vocab_size=len(tokenizer), width=16, layers=1, heads=2, kv_heads=2, scale=1.0)
    model.config.pad_token_id, model.config.bos_token_id = tokenizer.pad_token_id, tokenizer.bos_token_id
    model.config.eos_token_id = model.generation_config.eos_token_id = tokenizer.eos_token_id
    save_causal(model, tokenizer, folder, "Random weights.")
    return folder


SMALL = (
    "data.max_tokens=160",
    "data.test_share=0.3",
    "sft.train={steps: 3, batch_size: 4, lr: 0.001, save_every: 1}",
    "reward.train={steps: 2, batch_size: 4, lr: 0.001}",
    "dpo.train={steps: 2, batch_size: 4, lr: 0.001}",
    "ppo.train={iterations: 2, prompts_per_iteration: 4, minibatches: 2, epochs: 1, lr: 0.001}",
    "ppo.train.max_new_tokens=6",
    "eval.prompts=10",
    "eval.max_new_tokens=6",
)


def hh_arguments(folder: Path, *, out: str = "run") -> list[str]:
    """Recipe and overrides of a small run on HH-form rows; writes rows and model where they are not there."""
    data, model = folder / "rows.jsonl", folder / "model"
    if not data.exists():
        write_rows(data, hh_rows())
    if not model.exists():
        write_model(model)
    return ["hh", f"out={folder / out}", f"data.path={data}", f"model.path={model}", *SMALL]


def call(*arguments: str) -> int:
    """The command line in this process: its exit code."""
    before = sys.argv
    sys.argv = ["trueward", *arguments]
    try:
        main()
    except SystemExit as stop:
        return int(stop.code or 0)
    finally:
        sys.argv = before
    return 0


def tree(folder: Path) -> dict[str, str]:
    """Path -> SHA-256 of every file below `folder`."""
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def refusal(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """The one sentence that a command ends in when it refuses its input with exit code 2."""
    assert call(*arguments) == 2
    captured = capsys.readouterr()
    assert "Traceback" not in captured.err + captured.out
    sentences = [line for line in captured.err.splitlines() if line.startswith("trueward: ")]
    assert len(sentences) == 1, captured.err
    assert captured.err.splitlines()[-1] == sentences[0]
    return sentences[0].removeprefix("trueward: ")


__all__ = [
    "SMALL",
    "TruewardError",
    "call",
    "hh_arguments",
    "hh_rows",
    "refusal",
    "tree",
    "write_model",
    "write_rows",
    "write_testbed_model",
]
