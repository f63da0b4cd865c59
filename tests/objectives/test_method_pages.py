"""The Python snippets on the pages of the methods run as they are printed."""

import re
from pathlib import Path

import pytest

from trueward.objectives import POLICY_GRADIENT_METHODS

FOLDER = Path(__file__).parents[2] / "docs" / "methods"


@pytest.mark.parametrize(
    "page",
    [
        "sft",
        "reward-model",
        "dpo",
        "preference",
        "kto",
        "ppo",
        "policy-gradient",
        "distill",
        "weak-to-strong",
    ],
)
def test_snippets_run(page: str) -> None:
    text = (FOLDER / f"{page}.md").read_text(encoding="utf-8")
    snippets = re.findall(r"^```python\n(.*?)^```$", text, flags=re.DOTALL | re.MULTILINE)
    assert snippets
    for snippet in snippets:
        names: dict[str, object] = {}
        exec(compile(snippet, f"{page}.md", "exec"), names)
        assert "loss" in names


def test_the_table_of_policy_gradients_is_the_codes() -> None:
    text = (FOLDER / "policy-gradient.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `(\w+)` \| (\w+) \| (\w+) \| (\w+) \| (\w+) \|", text, flags=re.MULTILINE)
    expected = [
        (name, method.ratio_level, method.clip, method.reduction, method.advantage)
        for name, method in POLICY_GRADIENT_METHODS.items()
    ]
    assert rows == expected
