"""Preflight refuses what would train on the wrong thing, and says which row."""

from dataclasses import replace

import pytest

from tests.data.test_chat import ALL, TOKENIZERS, demonstration, group, talk
from tests.data.tokenizers import NO_END, tiny_tokenizer
from trueward.core.errors import PreflightError
from trueward.data.chat import (
    Completion,
    Dropped,
    TokenGroup,
    template_hash,
    tokenise_demonstration,
    tokenise_prompts,
)
from trueward.data.preflight import coloured_example, preflight
from trueward.data.records import Prompt


def good(name: str = "llama3") -> TokenGroup:
    return group(tokenise_demonstration(TOKENIZERS[name], demonstration("Hi", "Yo there")))


def with_completion(base: TokenGroup, ids: tuple[int, ...], trained: tuple[bool, ...]) -> TokenGroup:
    return replace(base, completions=(Completion(ids, trained),))


@ALL
def test_report(name: str) -> None:
    tokenizer, row = TOKENIZERS[name], good(name)
    dropped = [Dropped("x", "longer than max_tokens", "99 tokens")]
    report = preflight(
        [row, row, row], tokenizer, dropped=dropped, template_hash_expected=template_hash(tokenizer)
    )
    assert (report.num_rows, report.num_trained) == (3, 3 * len(row.completions[0].ids))
    assert report.longest * 3 == report.num_tokens
    assert report.pad_is_stop == (name == "plain pad=eos")
    text = "\n".join(report.lines())
    assert "3 of 4 rows" in text and "dropped 1 of 4 (25.0%): longer than max_tokens" in text


def test_stop_token_must_be_there() -> None:
    tokenizer = tiny_tokenizer(NO_END)
    row = group(tokenise_demonstration(tokenizer, demonstration("Hi", "Yo")))
    with pytest.raises(PreflightError, match="row d: a trained span does not end on a stop token"):
        preflight([row], tokenizer)


def test_stop_token_must_be_trained_also_where_pad_is_eos() -> None:
    row = good("plain pad=eos")
    ids = row.completions[0].ids
    masked_by_pad_id = tuple(index != TOKENIZERS["plain pad=eos"].pad_token_id for index in ids)
    with pytest.raises(PreflightError, match=r"stop token.*never one that searches for the padding id"):
        preflight([with_completion(row, ids, masked_by_pad_id)], TOKENIZERS["plain pad=eos"])


def test_every_span_is_checked() -> None:
    tokenizer = TOKENIZERS["chatml"]
    row = group(tokenise_demonstration(tokenizer, demonstration("a", "b", "c", "d"), train_on="all"))
    ids, trained = row.completions[0].ids, list(row.completions[0].trained)
    trained[1] = False  # the first turn's stop token
    with pytest.raises(PreflightError, match="does not end on a stop token"):
        preflight([with_completion(row, ids, tuple(trained))], tokenizer)


def test_zero_trained_tokens() -> None:
    row = good()
    ids = row.completions[0].ids
    with pytest.raises(PreflightError, match="not one token"):
        preflight([with_completion(row, ids, (False,) * len(ids))], TOKENIZERS["llama3"])


def test_untrained_tail() -> None:
    row = good()
    done = row.completions[0]
    with pytest.raises(PreflightError, match="last token of a completion is not trained"):
        preflight([with_completion(row, (*done.ids, 40), (*done.trained, False))], TOKENIZERS["llama3"])


@pytest.mark.parametrize("count", [0, 2])
def test_begin_token(count: int) -> None:
    row, tokenizer = good(), TOKENIZERS["llama3"]
    bad = replace(row, prompt_ids=(tokenizer.bos_token_id,) * count + row.prompt_ids[1:])
    with pytest.raises(PreflightError, match="begin token"):
        preflight([bad], tokenizer)


def test_begin_token_in_a_completion() -> None:
    row, tokenizer = good(), TOKENIZERS["llama3"]
    done = row.completions[0]
    bad = with_completion(row, (tokenizer.bos_token_id, *done.ids), (True, *done.trained))
    with pytest.raises(PreflightError, match="trained token is the begin token"):
        preflight([bad], tokenizer)


def test_padding_in_the_data() -> None:
    row, tokenizer = good(), TOKENIZERS["llama3"]
    with pytest.raises(PreflightError, match="padding tokens in the data"):
        preflight([replace(row, prompt_ids=(*row.prompt_ids, tokenizer.pad_token_id))], tokenizer)


def test_template_hash() -> None:
    with pytest.raises(PreflightError, match="chat template is not the expected one"):
        preflight([good()], TOKENIZERS["llama3"], template_hash_expected=template_hash(TOKENIZERS["chatml"]))


def test_nothing_left_or_too_much_dropped() -> None:
    dropped = [Dropped(str(n), "longer than max_tokens", "99 tokens") for n in range(3)]
    for rows in ([], [good()]):
        with pytest.raises(PreflightError, match=r"3 of \d rows are dropped.*record 0: 99 tokens"):
            preflight(rows, TOKENIZERS["llama3"], dropped=dropped)
    assert preflight([good()], TOKENIZERS["llama3"], dropped=dropped, max_dropped=0.8).dropped
    with pytest.raises(PreflightError, match="no data at all"):
        preflight([], TOKENIZERS["llama3"])


def test_prompts_have_no_completions() -> None:
    tokenizer = TOKENIZERS["llama3"]
    prompts = [group(item) for item in tokenise_prompts(tokenizer, [Prompt(id="p", messages=talk("Hi"))])]
    assert preflight(prompts, tokenizer, completions=False).num_trained == 0
    with pytest.raises(PreflightError, match="a prompt with completions"):
        preflight(prompts, tokenizer)


def test_coloured_example_is_literal() -> None:
    tokenizer = TOKENIZERS["llama3"]
    row = group(tokenise_demonstration(tokenizer, demonstration("[red]Hi[/red]\x1b[31m", "[bold]Yo")))
    shown = coloured_example(row, tokenizer)
    assert "[red]Hi[/red]\\x1b[31m" in shown.plain and "\x1b" not in shown.plain
    styles = {shown.plain[span.start : span.end]: str(span.style) for span in shown.spans}
    assert styles == {"[bold]Yo": "green", "<|eot|>": "bold green"}
    assert str(shown.style) == "dim"
