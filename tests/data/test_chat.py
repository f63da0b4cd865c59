"""Chat rendering: prompts are prefixes, spans end on stop tokens, one begin token, nothing lost silently."""

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.data.tokenizers import CHATML, LLAMA2, LLAMA3, NO_SYSTEM, PLAIN, SPECIAL, TEMPLATES, tiny_tokenizer
from trueward.core.errors import DataError
from trueward.data.chat import (
    Dropped,
    TokenGroup,
    chat_format,
    stop_ids,
    template_hash,
    tokenise_comparison,
    tokenise_demonstration,
    tokenise_many,
    tokenise_prompt,
    tokenise_prompts,
    tokenise_text,
    tokenise_texts,
)
from trueward.data.preflight import preflight
from trueward.data.records import Comparison, Demonstration, Label, Message, Prompt, Ranking, Text

TOKENIZERS = {name: tiny_tokenizer(template) for name, template in TEMPLATES.items()}
TOKENIZERS["chatml+bos"] = tiny_tokenizer(CHATML, add_bos=True)
TOKENIZERS["llama3+bos"] = tiny_tokenizer(LLAMA3, add_bos=True)
TOKENIZERS["plain pad=eos"] = tiny_tokenizer(PLAIN, pad_token="</s>")
ALL = pytest.mark.parametrize("name", TOKENIZERS)


def talk(*contents: str) -> tuple[Message, ...]:
    return tuple(Message(("user", "assistant")[n % 2], text) for n, text in enumerate(contents))


def demonstration(*contents: str) -> Demonstration:
    return Demonstration(id="d", messages=talk(*contents))


def group(result: TokenGroup | Dropped) -> TokenGroup:
    assert isinstance(result, TokenGroup), result
    return result


def test_chatml_by_hand() -> None:
    tokenizer = TOKENIZERS["chatml"]
    result = group(tokenise_demonstration(tokenizer, demonstration("Hi", "Yo")))
    assert tokenizer.decode(result.prompt_ids) == "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
    # The newline that the template writes after the stop token is not part of the completion.
    assert tokenizer.decode(result.completions[0].ids) == "Yo<|im_end|>"
    assert result.completions[0].trained == (True, True, True)


@pytest.mark.parametrize(
    ("name", "stops"),
    [
        ("chatml", {"<|im_end|>", "</s>"}),
        ("llama2", {"</s>"}),
        ("llama3", {"<|eot|>", "</s>"}),
        ("plain", {"</s>"}),
    ],
)
def test_stop_ids(name: str, stops: set[str]) -> None:
    assert {TOKENIZERS[name].decode([index]) for index in stop_ids(TOKENIZERS[name])} == stops


@pytest.mark.parametrize(
    ("name", "prepend", "has"),
    [
        ("chatml", False, False),
        ("chatml+bos", True, True),
        ("llama3", False, True),
        ("llama3+bos", False, True),
        ("llama2", False, True),
    ],
)
def test_begin_token_written_once(name: str, prepend: bool, has: bool) -> None:
    tokenizer = TOKENIZERS[name]
    form = chat_format(tokenizer)
    assert (form.prepend_bos, form.bos_id is not None) == (prepend, has)
    ids = group(tokenise_demonstration(tokenizer, demonstration("Hi", "Yo"))).prompt_ids
    assert ids.count(tokenizer.bos_token_id) == has
    assert not has or ids[0] == tokenizer.bos_token_id


@ALL
def test_all_turns_are_trained_up_to_their_stop_token(name: str) -> None:
    tokenizer = TOKENIZERS[name]
    record = demonstration("a", "first answer", "b", "second answer")
    result = group(tokenise_demonstration(tokenizer, record, train_on="all"))
    (completion,) = result.completions
    spans, run = [], []
    for index, on in zip((*completion.ids, -1), (*completion.trained, False), strict=True):
        if on:
            run.append(index)
        elif run:
            spans.append(tokenizer.decode(run))
            run = []
    assert len(spans) == 2
    for span, answer in zip(spans, ("first answer", "second answer"), strict=True):
        assert span.strip().startswith(answer)
        assert any(span.endswith(stop) for stop in SPECIAL)
    assert preflight([result], tokenizer).num_trained == sum(completion.trained)


@ALL
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_prompt_is_a_prefix_and_preflight_passes(name: str, data: st.DataObject) -> None:
    tokenizer = TOKENIZERS[name]
    words = st.text(
        st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1, max_size=12
    )
    texts = data.draw(st.lists(words.filter(str.strip), min_size=2, max_size=6))
    contents = texts[: len(texts) // 2 * 2]
    train_on = data.draw(st.sampled_from(["last", "all"]))
    record = demonstration(*contents)
    result = tokenise_demonstration(tokenizer, record, train_on=train_on)
    if isinstance(result, Dropped):
        # The only ways out: a token that spans newlines at the prompt's end, or a template that trims.
        assert "prefix" in result.reason or any(text != text.strip() for text in contents)
        return
    prompt = record.messages[:1] if train_on == "all" else record.messages[:-1]
    assert result.prompt_ids == tokenise_prompt(tokenizer, prompt)
    form = chat_format(tokenizer)
    assert result.completions[0].ids[-1] in form.stop_ids
    preflight([result], tokenizer)


def test_a_token_that_spans_the_boundary_is_dropped_not_trained() -> None:
    result = tokenise_demonstration(TOKENIZERS["chatml"], demonstration("Hi", "\nYo"))
    assert isinstance(result, Dropped) and "prefix" in result.reason


def test_comparison_ranking_label() -> None:
    tokenizer = TOKENIZERS["llama3"]
    both = group(
        tokenise_comparison(tokenizer, Comparison(id="c", prompt=talk("Hi"), chosen="good", rejected="bad"))
    )
    assert [tokenizer.decode(c.ids) for c in both.completions] == ["good<|eot|>", "bad<|eot|>"]
    records = [
        Ranking(id="r", prompt=talk("Hi"), completions=("a", "b", "c")),
        Label(id="l", prompt=talk("Hi"), completion="a", label=False),
    ]
    found = [group(result) for result in tokenise_many(tokenizer, records)]
    assert [len(g.completions) for g in found] == [3, 1]
    assert all(g.prompt_ids == both.prompt_ids for g in found)
    assert [g.id for g in found] == ["r", "l"]


def test_many_equals_one_by_one_across_batches() -> None:
    tokenizer = TOKENIZERS["llama3"]
    records = [demonstration(f"q{n}", f"a{n}", "more", "x" * (n % 50 + 1)) for n in range(300)]
    for train_on in ("last", "all"):
        many = list(tokenise_many(tokenizer, records, train_on=train_on, max_tokens=90))
        assert many == [
            tokenise_demonstration(tokenizer, r, train_on=train_on, max_tokens=90) for r in records
        ]
        assert {type(item) for item in many} == {TokenGroup, Dropped}


def test_too_long_is_dropped_whole_with_its_length() -> None:
    record = Comparison(id="c", prompt=talk("Hi"), chosen="x", rejected="x" * 100)
    result = tokenise_comparison(TOKENIZERS["chatml"], record, max_tokens=64)
    assert isinstance(result, Dropped)
    assert (result.reason, result.id) == ("longer than max_tokens", "c") and "at most 64" in result.detail
    assert isinstance(tokenise_comparison(TOKENIZERS["chatml"], record, max_tokens=200), TokenGroup)


def test_special_token_as_text_is_dropped() -> None:
    tokenizer = TOKENIZERS["chatml"]
    result = tokenise_demonstration(tokenizer, demonstration("say <|im_end|>", "no"))
    assert isinstance(result, Dropped) and result.detail == "<|im_end|>"
    with pytest.raises(DataError, match="special token"):
        tokenise_prompt(tokenizer, talk("say </s>"))
    assert isinstance(next(tokenise_prompts(tokenizer, [Prompt(id="p", messages=talk("</s>"))])), Dropped)


def test_a_template_that_refuses_or_leaves_out() -> None:
    roles = (Message("user", "a"), Message("user", "b"), Message("assistant", "c"))
    refused = tokenise_demonstration(TOKENIZERS["llama2"], Demonstration(id="d", messages=roles))
    assert isinstance(refused, Dropped) and "alternate" in refused.detail
    system = Demonstration(id="d", messages=(Message("system", "Be kind."), *talk("a", "b")))
    left_out = tokenise_demonstration(tiny_tokenizer(NO_SYSTEM), system)
    assert isinstance(left_out, Dropped) and left_out.detail == "Be kind."


def test_a_generation_prompt_that_begins_no_answer_names_the_record() -> None:
    broken = CHATML.replace("{{ '<|im_start|>assistant\n' }}", "{{ '<|im_start|>assistant\n<think>' }}")
    with pytest.raises(DataError, match=r"record d: .*no prefix"):
        tokenise_demonstration(tiny_tokenizer(broken), demonstration("Hi", "Yo"))


def test_prompts() -> None:
    tokenizer = TOKENIZERS["llama3"]
    prompts = [Prompt(id=str(n), messages=talk("x" * n)) for n in range(1, 40)]
    found = list(tokenise_prompts(tokenizer, prompts, max_tokens=40))
    kept = [item for item in found if isinstance(item, TokenGroup)]
    assert 0 < len(kept) < len(prompts)
    assert all(
        item.prompt_ids == tokenise_prompt(tokenizer, prompts[int(item.id) - 1].messages) for item in kept
    )


@pytest.mark.parametrize("add_bos", [False, True])
def test_text(add_bos: bool) -> None:
    tokenizer = tiny_tokenizer(None, add_bos=add_bos)
    assert tokenizer.decode(tokenise_text(tokenizer, "ab")) == ("<s>" if add_bos else "") + "ab</s>"
    found = list(tokenise_texts(tokenizer, [Text(id="1", text="a <pad> b"), Text(id="2", text="c")]))
    assert isinstance(found[0], Dropped) and found[1] == tokenise_text(tokenizer, "c")
    with pytest.raises(DataError, match="special token"):
        tokenise_text(tokenizer, "a</s>")


def test_template_hash_sees_template_and_tokens() -> None:
    hashes = {template_hash(TOKENIZERS[name]) for name in ("chatml", "llama2", "llama3", "plain")}
    assert len(hashes) == 4
    assert template_hash(TOKENIZERS["chatml"]) == template_hash(TOKENIZERS["chatml+bos"])
    assert template_hash(tiny_tokenizer(CHATML, eos_token="<|im_end|>")) not in hashes
    with pytest.raises(DataError, match="no chat template"):
        template_hash(tiny_tokenizer(None))


def test_llama2_prompt_by_hand() -> None:
    tokenizer = TOKENIZERS["llama2"]
    result = group(tokenise_demonstration(tokenizer, demonstration("a", "b", "c", "d")))
    assert tokenizer.decode(result.prompt_ids) == "<s>[INST] a [/INST] b </s><s>[INST] c [/INST]"
    assert tokenizer.decode(result.completions[0].ids) == " d </s>"
    assert tokenizer.chat_template == LLAMA2
