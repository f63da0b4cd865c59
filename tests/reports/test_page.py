"""The page as text: one library, one policy, everything escaped, nothing to load."""

import base64
import hashlib
import json
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest

from tests.reports.example import HOSTILE, bare, summary
from trueward.core.errors import EvidenceError
from trueward.reports import render_report


class Elements(HTMLParser):
    """Start tags with attributes, and the text of scripts and styles."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.texts: dict[str, list[str]] = {"script": [], "style": []}

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        if self.tags and self.lasttag in self.texts and self.cdata_elem:
            self.texts[self.tags[-1][0]].append(data)


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("page") / "report.html"
    render_report(summary(), path)
    return path.read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def elements(page: str) -> Elements:
    parser = Elements()
    parser.feed(page)
    return parser


def test_only_two_scripts_run_and_the_policy_names_them(elements: Elements) -> None:
    scripts = [attrs for tag, attrs in elements.tags if tag == "script"]
    running = [attrs for attrs in scripts if attrs.get("type") != "application/json"]
    assert running == [{}, {}]
    policy = next(attrs["content"] for tag, attrs in elements.tags if tag == "meta" and "http-equiv" in attrs)
    assert policy is not None
    assert "default-src 'none'" in policy and "unsafe" not in policy and "http" not in policy
    code = [text for text in elements.texts["script"] if not text.startswith("{")]
    for text in [*code, *elements.texts["style"]]:
        digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
        assert f"'sha256-{digest}'" in policy
    assert len(code) == 2


def test_nothing_is_loaded(elements: Elements) -> None:
    for tag, attrs in elements.tags:
        assert tag not in {"img", "iframe", "object", "embed", "base", "audio", "video", "form"}
        for name, value in attrs.items():
            assert not name.startswith("on") and name != "style"
            assert name not in {"src", "href"} or (value or "").startswith(("#", "data:,"))


def test_hostile_text_is_shown_and_not_read(page: str) -> None:
    assert "&lt;script&gt;window.hacked = 1; alert(1)&lt;/script&gt;" in page
    body = page.split("<body>")[1].split("</footer>")[0]
    assert "<script>" not in body and "<img" not in body
    assert "{{ 7 * 7 }}" in page and "NUL ⟦U+0000⟧ bell ⟦U+0007⟧" in page
    assert "\x00" not in page and HOSTILE[5] in page


def test_chart_data_cannot_leave_its_element(tmp_path: Path) -> None:
    body = summary()
    body["stages"][0]["stage"] = "</script ><!--<script >window.hacked=4</script>"
    render_report(body, tmp_path / "report.html")
    text = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "<script >" not in text and "<!--" not in text
    specs = re.findall(r'<script type="application/json" id="[^"]*">(.*?)</script>', text, flags=re.DOTALL)
    assert len(specs) == 16 and all(json.loads(spec)["description"] for spec in specs)
    assert any("</script >" in json.dumps(json.loads(spec)) for spec in specs)


def test_every_criterion_is_listed_with_its_finding(page: str) -> None:
    assert "The gate refused dpo" in page and "1 of 5 criteria not met: abstention ratio" in page
    assert page.count('class="pill yes"') == 4 and page.count('class="pill no"') == 1
    assert "lower end 0.16 meets &gt;= 0 on 400 items" in page and "the evidence is stale" in page


def test_judges_of_solutions_and_best_of_n_are_tables(page: str) -> None:
    assert "shorter is right" in page and "better than chance and than the length" in page
    assert "n = 4" in page and "KL bound, nats" in page
    # log 4 - 3/4
    assert re.search(
        r"KL bound, nats</th><td class=\"number\">0\.00</td><td class=\"number\">0\.64</td>", page
    )


def test_a_bare_run_says_what_is_missing(tmp_path: Path) -> None:
    render_report(bare(), tmp_path / "report.html")
    text = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "Not judged" in text and "application/json" not in text.split("<main>")[1].split("</main>")[0]
    for sentence in (
        "No reward model was trained",
        "PPO was not part",
        "No samples were kept",
        "No lineage was recorded",
    ):
        assert sentence in text


def test_rendering_is_deterministic_and_small(page: str, tmp_path: Path) -> None:
    render_report(summary(), tmp_path / "again.html")
    assert (tmp_path / "again.html").read_text(encoding="utf-8") == page
    assert page.count("vega-lite") < 40 and len(page) < 1_300_000


def test_a_wrong_summary_leaves_the_old_report(tmp_path: Path) -> None:
    path = tmp_path / "report.html"
    path.write_text("old", encoding="utf-8")
    with pytest.raises(EvidenceError):
        render_report({**bare(), "kind": "other"}, path)
    assert path.read_text(encoding="utf-8") == "old"
