"""Records: the JSON form is exact both ways, and every broken rule names its field."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trueward.core.errors import ConfigError, DataError
from trueward.data.convert import as_demonstration, as_prompt, convert
from trueward.data.records import (
    Comparison,
    Demonstration,
    Label,
    Message,
    Meta,
    Prompt,
    Ranking,
    Record,
    RecordError,
    StepLabels,
    Text,
    from_json,
    kind_of,
    to_json,
)

ASK = (Message("system", ""), Message("user", "Why?"))
META = Meta(source="s", licence="MIT", annotator="a1", extra={"n": [1, None, 2.5, {"k": True}]})
EXAMPLES: list[Record] = [
    Text(id="t", text="Once\u2028upon", meta=META),
    Prompt(id="p", messages=ASK),
    Demonstration(id="d", messages=(*ASK, Message("assistant", "So."))),
    Comparison(id="c", prompt=ASK, chosen="a", rejected="b", margin=0.5, soft_label=1.0, meta=META),
    Ranking(id="r", prompt=ASK, completions=("a", "b", "c")),
    Label(id="l", prompt=ASK, completion="a", label=False),
    StepLabels(id="s", prompt=ASK, steps=("a", "b"), labels=(1, None), soft_labels=(0.25, None)),
]
each = pytest.mark.parametrize("record", EXAMPLES, ids=kind_of)


@each
def test_json_round_trip(record: Record) -> None:
    assert from_json(json.loads(json.dumps(to_json(record)))) == record


words = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0")).filter(str.strip)


@given(words, words, words, st.floats(allow_nan=False, allow_infinity=False), st.floats(0, 1))
def test_any_text_survives(ask: str, chosen: str, rejected: str, margin: float, soft: float) -> None:
    if chosen == rejected:
        rejected += "."
    prompt = (Message("user", ask),)
    record = Comparison(
        id="x", prompt=prompt, chosen=chosen, rejected=rejected, margin=margin, soft_label=soft
    )
    assert from_json(json.loads(json.dumps(to_json(record)))) == record


@each
def test_every_field_is_guarded(record: Record) -> None:
    good = to_json(record)
    for name in good:
        if name not in ("meta", "margin", "soft_label", "soft_labels"):
            with pytest.raises(DataError, match=name):
                from_json({key: value for key, value in good.items() if key != name})
        for bad in (object(), 7.5j, [[[]]], {"a": 1}):
            with pytest.raises(DataError):
                from_json({**good, name: bad})
    with pytest.raises(RecordError, match="no such field"):
        from_json({**good, "txet": "x"})


@pytest.mark.parametrize(
    ("changes", "field", "message"),
    [
        ({"chosen": "b"}, "rejected", "identical"),
        ({"chosen": " \n"}, "chosen", "chosen is empty"),
        ({"rejected": ""}, "rejected", "rejected is empty"),
        ({"chosen": "a\0b"}, "chosen", "NUL"),
        ({"chosen": "a\ud800"}, "chosen", "UTF-8"),
        ({"chosen": 3}, "chosen", "a string"),
        ({"margin": float("nan")}, "margin", "finite"),
        ({"margin": True}, "margin", "finite"),
        ({"soft_label": 1.1}, "soft_label", "probability"),
        ({"prompt": [{"role": "human", "content": "x"}]}, "prompt[0].role", "system, user"),
        ({"prompt": [{"role": "user", "content": None}]}, "prompt[0].content", "a string"),
        ({"prompt": [{"role": "assistant", "content": "x"}]}, "prompt[-1].role", "before the assistant"),
        ({"prompt": [{"role": "user", "content": " "}]}, "prompt[-1].content", "empty"),
        ({"prompt": []}, "prompt", "at least one message"),
        ({"meta": {"license": "MIT"}}, "meta.license", "licence"),
        ({"meta": {"extra": {"a": float("inf")}}}, "meta.extra.a", "finite"),
    ],
)
def test_messages_name_field_value_and_expectation(changes: dict[str, Any], field: str, message: str) -> None:
    with pytest.raises(RecordError, match=message) as caught:
        from_json({**to_json(EXAMPLES[3]), **changes})
    assert caught.value.field == field


def test_conversions() -> None:
    text, _, demonstration, comparison, ranking, label, steps = EXAMPLES
    assert as_prompt(demonstration).messages == ASK
    assert as_demonstration(comparison).messages[-1] == Message("assistant", "a")
    assert as_demonstration(ranking).messages == as_demonstration(comparison).messages
    assert convert(comparison, "comparison") is comparison
    scored = Ranking(id="r", prompt=ASK, completions=("a", "b"), meta=Meta(extra={"scores": [4, 4]}))
    tied = convert(scored, "comparison")
    assert isinstance(tied, Comparison) and (tied.margin, tied.soft_label) == (0.0, 0.5)
    for record, kind in ((text, "prompt"), (label, "demonstration"), (steps, "comparison")):
        with pytest.raises(RecordError):
            convert(record, kind)
    with pytest.raises(ConfigError, match="did you mean 'comparison'"):
        convert(label, "comparisons")
