"""Progress: lines where there is no terminal, a bar where there is; text from outside is never markup."""

import io

import pytest
from rich.console import Console

from trueward.core import progress
from trueward.core.progress import stage_bar


def console(*, terminal: bool) -> tuple[Console, io.StringIO]:
    out = io.StringIO()
    return Console(file=out, force_terminal=terminal, width=100, color_system=None), out


def test_plain_lines_say_what_how_far_and_the_figure() -> None:
    target, out = console(terminal=False)
    with stage_bar("SFT", 10, target) as bar:
        bar.advance(4, "loss 0.52")
        bar.advance(6)
    assert out.getvalue() == "SFT: 10/10, 0 s, loss 0.52\n"


def test_a_plain_line_appears_every_few_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    now_s = iter([0.0, 4.0, 20.0, 20.0, 20.0, 25.0, 40.0])
    monkeypatch.setattr(progress.time, "monotonic", lambda: next(now_s))
    target, out = console(terminal=False)
    with stage_bar("SFT", 10, target) as bar:
        bar.update(1, "loss 2")
        bar.update(5, "loss 1")
        bar.update(6)
    assert out.getvalue().splitlines() == [
        "SFT: 5/10, 20 s, 20 s left, loss 1",
        "SFT: 6/10, 40 s, 27 s left, loss 1",
    ]


def test_a_long_line_is_not_wrapped() -> None:
    target, out = console(terminal=False)
    with stage_bar("a stage", 1, target) as bar:
        bar.update(1, "word " * 60 + "end")
    assert len(out.getvalue().splitlines()) == 1


@pytest.mark.parametrize("terminal", [False, True], ids=["plain", "bar"])
def test_text_from_outside_is_no_markup_and_no_control(terminal: bool) -> None:
    target, out = console(terminal=terminal)
    with stage_bar("[red]a[/] :smile:", 2, target) as bar:
        bar.update(2, "[link=x]b[/link] \x1b]0;title\x07\n[/nonsense]")
    text = out.getvalue()
    assert "[red]a[/] :smile:" in text
    assert r"[link=x]b[/link] \x1b]0;title\x07\n[/nonsense]" in text
    assert "\x1b]0;" not in text
    assert "\x07" not in text


def test_the_bar_shows_stage_count_and_figure() -> None:
    target, out = console(terminal=True)
    with stage_bar("SFT", 10, target) as bar:
        bar.advance(10, "loss 0.52")
    for part in ("SFT", "10/10", "loss 0.52"):
        assert part in out.getvalue()


@pytest.mark.parametrize("terminal", [False, True], ids=["plain", "bar"])
def test_a_stage_without_work_and_one_that_fails(terminal: bool) -> None:
    target, _ = console(terminal=terminal)
    with stage_bar("nothing", 0, target):
        pass
    with pytest.raises(KeyError), stage_bar("fails", 2, target):
        raise KeyError
