"""Two answers in the order shown and what judges said: PandaLM, Auto-J, AlpacaEval, rubric forms; XSTest.

Here chosen is not a column: it follows from a verdict. `judged` is the one place where that is worked out.
Ties are kept as comparisons with the soft label 0.5; stages count them and leave them out.

Sources: Wang et al. 2023, PandaLM, arXiv 2306.05087; Li et al. 2023, Auto-J, arXiv 2310.05470; AlpacaEval's
    README; Kim et al. 2024, Prometheus 2, arXiv 2405.01535; Roettger et al. 2023, XSTest, arXiv 2308.01263.
"""

import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Final

from trueward.data.formats.base import Columns, Format, alpaca_text, matches_columns, number, text, with_extra
from trueward.data.formats.hh import transcript
from trueward.data.records import Comparison, Label, Message, Meta, Record, RecordError

__all__ = ["FORMATS", "judged"]

_ANNOTATORS: Final = ("annotator1", "annotator2", "annotator3")
# What a label says, as votes for the first and for the second answer.
_FIRST, _SECOND, _TIE = (1.0, 0.0), (0.0, 1.0), (0.5, 0.5)
_PANDALM_LABELS: Final = {0: _TIE, 1: _FIRST, 2: _SECOND}
_AUTOJ_LABELS: Final = {0: _FIRST, 1: _SECOND, 2: _TIE}
_RUBRIC: Final = re.compile(
    r"###Task Description:\n.*?"
    r"###The instruction to evaluate:\n(?P<instruction>.*?)\s*"
    r"###Response to evaluate:\n(?P<response>.*?)\s*"
    r"###Score Rubrics:\n(?P<rubric>.*?)\s*###Feedback:\s*",
    re.DOTALL,
)
_HEADINGS: Final = ("###The instruction to evaluate:", "###Response to evaluate:", "###Score Rubrics:")
_XSTEST_LABELS: Final = ("1_full_compliance", "2_full_refusal", "3_partial_refusal")


def judged(
    id: str, ask: tuple[Message, ...], answers: tuple[str, str], votes: tuple[float, float], meta: Meta
) -> Comparison:
    """The comparison of two answers in the order shown.

    Args:
        votes: for the first and for the second; as many for both is a tie, which keeps the order shown.
    """
    first, second = answers if votes[0] >= votes[1] else answers[::-1]
    soft_label = None if 0 in votes else max(votes) / sum(votes)
    return Comparison(id=id, prompt=ask, chosen=first, rejected=second, soft_label=soft_label, meta=meta)


def _votes(row: Columns, name: str, labels: Mapping[int, tuple[float, float]]) -> tuple[float, float]:
    value = row.get(name)
    if isinstance(value, str) and value.strip() in {str(label) for label in labels}:
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, int) or value not in labels:
        raise RecordError(name, value, f"one of {', '.join(map(str, labels))}")
    return labels[value]


def _pandalm(row: Columns, id: str, meta: Meta) -> Record:
    votes = [_votes(row, name, _PANDALM_LABELS) for name in _ANNOTATORS]
    return judged(
        id,
        (Message("user", alpaca_text(row)),),
        (text(row, "response1"), text(row, "response2")),
        (sum(vote[0] for vote in votes), sum(vote[1] for vote in votes)),
        replace(meta, annotator=", ".join(_ANNOTATORS)),
    )


def _autoj(row: Columns, id: str, meta: Meta) -> Record:
    ask = (Message("user", text(row, "prompt")),)
    answers = (text(row, "response 1"), text(row, "response 2"))
    return judged(id, ask, answers, _votes(row, "label", _AUTOJ_LABELS), meta)


def _alpaca_eval(row: Columns, id: str, meta: Meta) -> Record:
    preference = number(row, "preference")
    if preference is None or not (preference == 0 or 1 <= preference <= 2):
        raise RecordError("preference", preference, "from 1 (output_1) to 2 (output_2), or 0 for a tie")
    return judged(
        id,
        (Message("user", text(row, "instruction")),),
        (text(row, "output_1"), text(row, "output_2")),
        _TIE if preference == 0 else (2 - preference, preference - 1),
        replace(meta, annotator=text(row, "annotator", default="")),
    )


def _sections(row: Columns, name: str) -> Mapping[str, str]:
    value = text(row, name)
    found = _RUBRIC.fullmatch(value)
    if found is None or any(value.count(heading) != 1 for heading in _HEADINGS):
        raise RecordError(name, value, f"each of {', '.join(_HEADINGS)} once, and ###Feedback: at the end")
    return found.groupdict()


def _rubric_pair(row: Columns, id: str, meta: Meta) -> Record:
    good, bad = _sections(row, "chosen_instruction"), _sections(row, "rejected_instruction")
    for part in ("instruction", "rubric"):
        if good[part] != bad[part]:
            what = f"chosen and rejected were judged with another {part}"
            raise RecordError("rejected_instruction", bad[part], f"the {part} of chosen", what=what)
    tie = row.get("tie") or 0
    if tie not in (0, 1):
        raise RecordError("tie", tie, "0 or 1")
    return judged(
        id,
        transcript(f"\n\nHuman: {good['instruction']}", "chosen_instruction"),
        (good["response"], bad["response"]),
        _TIE if tie else _FIRST,
        with_extra(meta, rubric=good["rubric"]),
    )


def _xstest(row: Columns, id: str, meta: Meta) -> Record:
    label = text(row, "final_label")
    if label not in _XSTEST_LABELS:
        raise RecordError("final_label", label, f"one of {', '.join(_XSTEST_LABELS)}")
    unsafe = text(row, "type").startswith("contrast_")
    return Label(
        id=id,
        prompt=(Message("user", text(row, "prompt")),),
        completion=text(row, "completion"),
        label=label == ("2_full_refusal" if unsafe else "1_full_compliance"),
        meta=with_extra(meta, prompt_is="unsafe" if unsafe else "safe"),
    )


FORMATS: Final = (
    Format(
        name="pandalm",
        words="PandaLM's test set (three annotators; the soft label is their mean, a tie is half)",
        kind="comparison",
        columns=frozenset({"instruction", "input", "response1", "response2"}),
        matches=matches_columns("instruction", "response1", "response2", *_ANNOTATORS),
        read=_pandalm,
        verdicts=frozenset(_ANNOTATORS),
    ),
    Format(
        name="autoj",
        words="Auto-J pairs (label 0: response 1 is better, 1: response 2, 2: tie)",
        kind="comparison",
        columns=frozenset({"prompt", "response 1", "response 2"}),
        matches=matches_columns("prompt", "response 1", "response 2", "label"),
        read=_autoj,
        verdicts=frozenset({"label"}),
    ),
    Format(
        name="alpaca-eval",
        words="AlpacaEval annotations (preference 1: output_1 is better, 2: output_2, 1.5 or 0: tie)",
        kind="comparison",
        columns=frozenset({"instruction", "output_1", "output_2", "annotator"}),
        matches=matches_columns("instruction", "output_1", "output_2", "preference"),
        read=_alpaca_eval,
        verdicts=frozenset({"preference"}),
    ),
    Format(
        name="rubric-pair",
        words="pairs in Prometheus's rubric form (chosen_instruction, rejected_instruction), as HHH",
        kind="comparison",
        columns=frozenset({"chosen_instruction", "rejected_instruction"}),
        matches=matches_columns("chosen_instruction", "rejected_instruction"),
        read=_rubric_pair,
        verdicts=frozenset({"tie"}),
    ),
    Format(
        name="xstest",
        words="XSTest completions (good: a safe prompt complied with, an unsafe one refused, in full)",
        kind="label",
        columns=frozenset({"prompt", "completion"}),
        matches=matches_columns("prompt", "completion", "type", "final_label"),
        read=_xstest,
        verdicts=frozenset({"type", "final_label"}),
    ),
)
