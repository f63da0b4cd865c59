"""Every format on rows of our own: what is detected, what record comes out."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from trueward.core.errors import ConfigError, DataError
from trueward.data.formats import FORMATS
from trueward.data.importers import import_file
from trueward.data.records import (
    Comparison,
    Demonstration,
    Label,
    Message,
    Prompt,
    Ranking,
    Record,
    StepLabels,
    Text,
    kind_of,
)

U = Message("user", "Why?")
SYSTEM = Message("system", "Be brief.")
USER = {"role": "user", "content": "Why?"}
SO = {"role": "assistant", "content": "So."}
NO = {"role": "assistant", "content": "No."}
HUMAN = {"from": "human", "value": "Why?"}
HH = "\n\nHuman: Why?\n\nAssistant: "

DEMONSTRATION = Demonstration(id="x", messages=(U, Message("assistant", "So.")))
PAIR = Comparison(id="x", prompt=(U,), chosen="So.", rejected="No.")
GOOD = Label(id="x", prompt=(U,), completion="So.", label=True)
STEPS = StepLabels(id="x", prompt=(U,), steps=("a", "b"), labels=(1, -1))

TURNED = replace(PAIR, chosen="No.", rejected="So.")
# Votes 0 tie, 1 first, 2 second; the share of the first answer is the mean of 1/2, 1 and 0.
PANDALM = [
    ((1, 1, 1), PAIR),
    ((2, 2, 2), TURNED),
    ((2, 2, 1), replace(TURNED, soft_label=2 / 3)),
    ((1, 0, 0), replace(PAIR, soft_label=2 / 3)),
    ((0, 2, 2), replace(TURNED, soft_label=5 / 6)),
    ((0, 0, 0), replace(PAIR, soft_label=0.5)),
    ((0, 1, 2), replace(PAIR, soft_label=0.5)),
]


def pandalm(*votes: object) -> dict[str, Any]:
    names = {f"annotator{number}": vote for number, vote in enumerate(votes, 1)}
    return {"instruction": "Why?", "input": "", "response1": "So.", "response2": "No.", **names}


def autoj(label: object) -> dict[str, Any]:
    return {"prompt": "Why?", "response 1": "So.", "response 2": "No.", "label": label, "scenario": "s"}


def alpaca_eval(preference: object) -> dict[str, Any]:
    return {"instruction": "Why?", "output_1": "So.", "output_2": "No.", "preference": preference}


def rubric(instruction: str, response: str, *, scores: str = "Score 1: bad") -> str:
    return (
        "###Task Description:\nJudge.\n\n"
        f"###The instruction to evaluate:\n{instruction}\n\n"
        f"###Response to evaluate:\n{response}\n\n###Score Rubrics:\n{scores}\n\n###Feedback: "
    )


def xstest(type: str, label: str) -> dict[str, Any]:
    return {"type": type, "prompt": "Why?", "completion": "So.", "final_label": label}


CASES: list[tuple[str, dict[str, Any], Record]] = [
    ("trl-text", {"text": "Once."}, Text(id="x", text="Once.")),
    ("trl-prompt", {"prompt": "Why?"}, Prompt(id="x", messages=(U,))),
    ("trl-prompt", {"prompt": [USER]}, Prompt(id="x", messages=(U,))),
    ("trl-prompt-completion", {"prompt": "Why?", "completion": "So."}, DEMONSTRATION),
    ("trl-prompt-completion", {"prompt": [USER], "completion": [SO]}, DEMONSTRATION),
    ("openai-messages", {"messages": [USER, SO]}, DEMONSTRATION),
    (
        "openai-messages",
        {"messages": [{"role": "user", "content": [{"type": "text", "text": "Why?"}]}, SO]},
        DEMONSTRATION,
    ),
    ("trl-preference", {"prompt": "Why?", "chosen": "So.", "rejected": "No."}, PAIR),
    ("trl-preference", {"prompt": [USER], "chosen": [SO], "rejected": [NO]}, PAIR),
    (
        "trl-preference",
        {"prompt": "Why?", "chosen": "So.", "rejected": "No.", "margin": 2},
        Comparison(id="x", prompt=(U,), chosen="So.", rejected="No.", margin=2.0),
    ),
    ("trl-preference-implicit", {"chosen": [USER, SO], "rejected": [USER, NO]}, PAIR),
    (
        "trl-preference-implicit",
        {"chosen": "The sky is blue.", "rejected": "The sky is green."},
        Comparison(id="x", prompt=(Message("user", "The sky is"),), chosen=" blue.", rejected=" green."),
    ),
    ("trl-unpaired", {"prompt": "Why?", "completion": "So.", "label": True}, GOOD),
    ("trl-unpaired", {"prompt": [USER], "completion": [SO], "label": 1}, GOOD),
    ("trl-stepwise", {"prompt": "Why?", "completions": ["a", "b"], "labels": [True, False]}, STEPS),
    ("messages-label", {"messages": [USER, SO], "label": True}, GOOD),
    ("sharegpt", {"conversations": [HUMAN, {"from": "gpt", "value": "So."}]}, DEMONSTRATION),
    ("sharegpt-kto", {"conversations": [HUMAN, {"from": "gpt", "value": "So."}], "kto_tag": True}, GOOD),
    (
        "sharegpt-preference",
        {
            "conversations": [HUMAN],
            "chosen": {"from": "gpt", "value": "So."},
            "rejected": {"from": "gpt", "value": "No."},
        },
        PAIR,
    ),
    (
        "sharegpt",
        {
            "system": "Be brief.",
            "conversations": [
                HUMAN,
                {"from": "function_call", "value": "{}"},
                {"from": "observation", "value": "42"},
                {"from": "gpt", "value": "So."},
            ],
        },
        Demonstration(
            id="x",
            messages=(
                SYSTEM,
                U,
                Message("assistant", "{}"),
                Message("tool", "42"),
                Message("assistant", "So."),
            ),
        ),
    ),
    ("alpaca", {"instruction": "Why?", "input": "", "output": "So."}, DEMONSTRATION),
    (
        "alpaca",
        {
            "instruction": "Say",
            "input": "x",
            "output": "So.",
            "system": "Be brief.",
            "history": [["Why?", "Hm."]],
        },
        Demonstration(
            id="x",
            messages=(
                SYSTEM,
                U,
                Message("assistant", "Hm."),
                Message("user", "Say\nx"),
                Message("assistant", "So."),
            ),
        ),
    ),
    ("alpaca-preference", {"instruction": "Why?", "input": "", "chosen": "So.", "rejected": "No."}, PAIR),
    ("alpaca-kto", {"instruction": "Why?", "output": "So.", "kto_tag": "true"}, GOOD),
    ("hh-rlhf", {"chosen": HH + "So.", "rejected": HH + "No."}, PAIR),
    (
        "openai-preference",
        {"input": {"messages": [USER]}, "preferred_output": [SO], "non_preferred_output": [NO]},
        PAIR,
    ),
    (
        "ultrafeedback",
        {
            "instruction": "Why?",
            "completions": [
                {"response": "No.", "overall_score": 2.0},
                {"response": "So.", "overall_score": 9},
            ],
        },
        Ranking(id="x", prompt=(U,), completions=("So.", "No.")),
    ),
    (
        "ultrafeedback-binarized",
        {
            "prompt": "Why?",
            "chosen": [USER, SO],
            "rejected": [USER, NO],
            "score_chosen": 8.5,
            "score_rejected": 8.0,
        },
        Comparison(id="x", prompt=(U,), chosen="So.", rejected="No.", margin=0.5),
    ),
    (
        "pku-saferlhf",
        {
            "prompt": "Why?",
            "response_0": "No.",
            "response_1": "So.",
            "better_response_id": 1,
            "safer_response_id": 0,
        },
        PAIR,
    ),
    (
        "prm800k-rows",
        {"instruction": "Why?", "responses": ["a"], "next_response": "b", "rating": 0},
        StepLabels(id="x", prompt=(U,), steps=("a", "b"), labels=(None, 0)),
    ),
    (
        "prm800k",
        {
            "question": {"problem": "Why?", "ground_truth_answer": "42"},
            "label": {
                "finish_reason": "found_error",
                "steps": [
                    {
                        "completions": [{"text": "z", "rating": -1}, {"text": "a", "rating": 1}],
                        "chosen_completion": 1,
                    },
                    {
                        "completions": None,
                        "human_completion": {"text": "b", "rating": None},
                        "chosen_completion": None,
                    },
                    {
                        "completions": [{"text": "c", "rating": -1}],
                        "human_completion": None,
                        "chosen_completion": None,
                    },
                ],
            },
        },
        StepLabels(id="x", prompt=(U,), steps=("a", "b", "c"), labels=(1, None, -1)),
    ),
    (
        "verl",
        {"data_source": "maths", "prompt": [USER], "reward_model": {"style": "rule", "ground_truth": "42"}},
        Prompt(id="x", messages=(U,)),
    ),
    ("dolly", {"instruction": "Why?", "context": "", "response": "So."}, DEMONSTRATION),
    ("question-answer", {"question": "Why?", "answer": "So."}, DEMONSTRATION),
    ("math", {"problem": "Why?", "solution": "So.", "answer": "42"}, DEMONSTRATION),
    ("math-answer", {"problem": "Why?", "answer": "42"}, Prompt(id="x", messages=(U,))),
    *[("pandalm", pandalm(*votes), record) for votes, record in PANDALM],
    ("autoj", autoj(0), PAIR),
    ("autoj", autoj(1), TURNED),
    ("autoj", autoj(2), replace(PAIR, soft_label=0.5)),
    ("alpaca-eval", alpaca_eval(1.0), PAIR),
    ("alpaca-eval", alpaca_eval(2), TURNED),
    ("alpaca-eval", alpaca_eval(1.25), replace(PAIR, soft_label=0.75)),
    ("alpaca-eval", alpaca_eval(1.75), replace(TURNED, soft_label=0.75)),
    ("alpaca-eval", alpaca_eval(1.5), replace(PAIR, soft_label=0.5)),
    ("alpaca-eval", alpaca_eval(0), replace(PAIR, soft_label=0.5)),
    (
        "rubric-pair",
        {"chosen_instruction": rubric("Why?", "So."), "rejected_instruction": rubric("Why?", "No.")},
        PAIR,
    ),
    (
        "rubric-pair",
        {
            "chosen_instruction": rubric("Hm?\n\nAssistant: Hm.\n\nHuman: Why?", "So."),
            "rejected_instruction": rubric("Hm?\n\nAssistant: Hm.\n\nHuman: Why?", "No."),
            "tie": 1,
        },
        replace(PAIR, prompt=(Message("user", "Hm?"), Message("assistant", "Hm."), U), soft_label=0.5),
    ),
    ("xstest", xstest("homonyms", "1_full_compliance"), GOOD),
    ("xstest", xstest("homonyms", "3_partial_refusal"), replace(GOOD, label=False)),
    ("xstest", xstest("homonyms", "2_full_refusal"), replace(GOOD, label=False)),
    ("xstest", xstest("contrast_homonyms", "2_full_refusal"), GOOD),
    ("xstest", xstest("contrast_homonyms", "3_partial_refusal"), replace(GOOD, label=False)),
    ("xstest", xstest("contrast_homonyms", "1_full_compliance"), replace(GOOD, label=False)),
]


def one(tmp_path: Path, row: dict[str, Any], **options: Any) -> tuple[str, str, Record]:
    file = tmp_path / "rows.jsonl"
    file.write_text(json.dumps(row) + "\n")
    result = import_file(file, quarantine=tmp_path / "bad.jsonl", **options)
    (record,) = list(result)
    return result.format, result.detected, record


@pytest.mark.parametrize(
    ("name", "row", "expected"), CASES, ids=[f"{n}-{case[0]}" for n, case in enumerate(CASES)]
)
def test_detected_and_read(tmp_path: Path, name: str, row: dict[str, Any], expected: Record) -> None:
    found, words, record = one(tmp_path, {**row, "id": "x"})
    assert found == name and FORMATS[name].words in words and f"{kind_of(expected)} records" in words
    plain = {field: getattr(record, field) for field in record.__slots__ if field != "meta"}
    assert plain == {field: getattr(expected, field) for field in expected.__slots__ if field != "meta"}


def test_every_format_has_a_case() -> None:
    assert {name for name, _, _ in CASES} == set(FORMATS)


def test_other_columns_are_kept(tmp_path: Path) -> None:
    (row,) = [row for name, row, _ in CASES if name == "verl"]
    _, words, record = one(tmp_path, row)
    assert words.endswith("not read, kept in meta.extra: 'data_source'")
    assert record.meta.extra == {
        "data_source": "maths",
        "reward_model": {"style": "rule", "ground_truth": "42"},
    }
    assert record.id == "rows-1" and record.meta.source == "rows.jsonl"


def test_columns_that_are_not_read_are_said(tmp_path: Path) -> None:
    """A label under a name that no format knows must not vanish without a word."""
    _, words, _ = one(tmp_path, {"prompt": "Why?", "id": "x", "which is better": 2})
    assert words.endswith("not read, kept in meta.extra: 'which is better'")
    _, words, _ = one(tmp_path, {"text": "t", **{f"c{n:02}": n for n in range(14)}})
    assert words.endswith("'c11' and 2 more")
    assert "not read" not in one(tmp_path, {"text": "t"})[1]


def test_votes_are_kept_and_are_not_called_unread(tmp_path: Path) -> None:
    _, words, record = one(tmp_path, {**pandalm(2, 0, 2), "cmp_key": "a_b"})
    assert record.meta.extra == {"annotator1": 2, "annotator2": 0, "annotator3": 2, "cmp_key": "a_b"}
    assert record.meta.annotator == "annotator1, annotator2, annotator3"
    assert words.endswith("kept in meta.extra: 'cmp_key'")
    _, words, record = one(tmp_path, xstest("contrast_discr", "2_full_refusal"))
    assert record.meta.extra == {
        "type": "contrast_discr",
        "final_label": "2_full_refusal",
        "prompt_is": "unsafe",
    }
    assert "not read" not in words


def test_standard_and_conversational_are_told_apart(tmp_path: Path) -> None:
    assert "standard" in one(tmp_path, {"prompt": "Why?"})[1]
    assert "conversational" in one(tmp_path, {"prompt": [USER]})[1]


def test_kind_converts(tmp_path: Path) -> None:
    ranking = {
        "instruction": "Why?",
        "completions": [{"response": r, "overall_score": s} for r, s in (("b", 2), ("a", 3), ("c", 1))],
    }
    _, words, record = one(tmp_path, ranking, kind="comparison")
    assert isinstance(record, Comparison) and (record.chosen, record.rejected, record.margin) == (
        "a",
        "c",
        2.0,
    )
    assert "each seen as a comparison" in words
    _, _, prompt = one(tmp_path, {"chosen": HH + "So.", "rejected": HH + "No."}, kind="demonstration")
    assert isinstance(prompt, Demonstration) and prompt.messages == DEMONSTRATION.messages


def test_format_can_be_named(tmp_path: Path) -> None:
    _, _, record = one(tmp_path, {"prompt": "Why?", "text": "t"}, format="trl-text")
    assert isinstance(record, Text) and record.meta.extra == {"prompt": "Why?"}
    with pytest.raises(ConfigError, match="did you mean 'hh-rlhf'"):
        one(tmp_path, {"text": "t"}, format="hh_rlhf")


BAD: list[tuple[dict[str, Any], str]] = [
    (
        {"chosen": HH + "So.", "rejected": HH.replace("Why", "How") + "No."},
        "prompts of chosen and rejected differ",
    ),
    ({"chosen": HH + " ", "rejected": HH + "No."}, "empty last turn"),
    ({"chosen": HH + "So.", "rejected": HH + "So. "}, "identical"),
    ({"chosen": HH + "So.", "rejected": 7}, "a string"),
    ({"chosen": [USER, SO], "rejected": [USER]}, "ends with an assistant message"),
    ({"chosen": [USER, SO], "rejected": [{"role": "user", "content": "How?"}, NO]}, "differ"),
    ({"prompt": "How?", "chosen": [USER, SO], "rejected": [USER, NO]}, "one of the messages of chosen"),
    ({"prompt": "Why?", "completion": "So.", "label": "maybe"}, "true or false"),
    ({"prompt": "Why?", "completions": ["a"], "labels": [1, 1]}, "1 labels, one a step"),
    ({"prompt": "Why?", "chosen": "a", "rejected": "b", "margin": "wide"}, "a number"),
    ({"messages": [USER, {"role": "assistant", "content": None, "tool_calls": [1]}]}, "tool calls"),
    ({"messages": [USER]}, "a prompt and then an assistant message"),
    ({"messages": [USER, {"role": "wizard", "content": "x"}]}, "one of"),
    ({"conversations": [HUMAN, {"from": "gpt", "value": ""}]}, "is empty"),
    ({"instruction": "a", "input": 3, "output": "b"}, "a string"),
    ({"prompt": "a", "response_0": "b", "response_1": "c", "better_response_id": 2}, "0 or 1"),
    ({"text": "a\0b"}, "NUL"),
    (pandalm(1, 1, 3), "one of 0, 1, 2"),
    (pandalm(1, 1, None), "0, 1, 2"),
    ({**pandalm(1, 1, 1), "response2": True}, "a string"),
    ({**pandalm(2, 2, 2), "response1": " "}, "rejected is empty"),
    (autoj("3"), "one of 0, 1, 2"),
    (autoj(True), "0, 1, 2"),
    (alpaca_eval(None), "or 0 for a tie"),
    (alpaca_eval(0.5), "0 for a tie"),
    (alpaca_eval(2.5), "(output_2)"),
    (
        {"chosen_instruction": rubric("Why?", "So."), "rejected_instruction": rubric("How?", "No.")},
        "another instruction",
    ),
    (
        {
            "chosen_instruction": rubric("Why?", "So."),
            "rejected_instruction": rubric("Why?", "No.", scores="-"),
        },
        "another rubric",
    ),
    (
        {
            "chosen_instruction": rubric("Why?", "So."),
            "rejected_instruction": rubric("Why?", "a\n###Response to evaluate:\nb"),
        },
        "###Score Rubrics: once",
    ),
    ({"chosen_instruction": rubric("Why?", "So."), "rejected_instruction": "No."}, "###Feedback:"),
    (xstest("homonyms", "compliance"), "one of 1_full_compliance"),
]


@pytest.mark.parametrize(("row", "expected"), BAD, ids=[words for _, words in BAD])
def test_bad_rows_say_what_was_expected(tmp_path: Path, row: dict[str, Any], expected: str) -> None:
    with pytest.raises(DataError, match="1 of the 1 rows read are bad"):
        one(tmp_path, row)
    (entry,) = [json.loads(line) for line in (tmp_path / "bad.jsonl").read_text().splitlines()]
    assert expected in entry["expected"] and entry["field"] and entry["row"] == 1
    assert json.loads(entry["raw"]) == row
    assert entry["file"].endswith("rows.jsonl")
