"""The Python snippets on the pages of the methods run as they are printed."""

import re
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[2] / "docs" / "methods"


@pytest.mark.parametrize("page", ["sft", "reward-model", "dpo", "ppo"])
def test_snippets_run(page: str) -> None:
    text = (FOLDER / f"{page}.md").read_text(encoding="utf-8")
    snippets = re.findall(r"^```python\n(.*?)^```$", text, flags=re.DOTALL | re.MULTILINE)
    assert snippets
    for snippet in snippets:
        names: dict[str, object] = {}
        exec(compile(snippet, f"{page}.md", "exec"), names)
        assert "loss" in names
