"""Labelled answers as comparisons: who is paired with whom, and what is left out."""

from trueward.data.pairing import PairedLabels
from trueward.data.records import Comparison, Label, Message, Meta, Prompt, Record

WHY, HOW = (Message("user", "Why?"),), (Message("user", "How?"),)


def label(id: str, text: str, good: bool, prompt: tuple[Message, ...] = WHY) -> Label:
    meta = Meta(source=f"{id}.csv", extra={"final_label": text})
    return Label(id=id, prompt=prompt, completion=text, label=good, meta=meta)


def pairs(*records: Record) -> tuple[PairedLabels, list[tuple[str, str, str]]]:
    paired = PairedLabels(records)
    made = [record for record in paired if isinstance(record, Comparison)]
    return paired, [(pair.id, pair.chosen, pair.rejected) for pair in made]


def test_good_over_bad_each_once() -> None:
    """Two good and three bad answers give two pairs, in order; the third bad one is left and counted."""
    paired, made = pairs(
        label("a", "bad 1", False),
        label("b", "good 1", True),
        label("c", "bad 2", False),
        label("d", "good 2", True),
        label("e", "bad 3", False),
    )
    assert made == [("b>a", "good 1", "bad 1"), ("d>c", "good 2", "bad 2")]
    assert (paired.num_labels, paired.num_pairs, paired.num_left) == (5, 2, 1)
    assert "2 comparisons from 5 labelled answers" in paired.summary() and "1 have no" in paired.summary()


def test_never_across_prompts() -> None:
    paired, made = pairs(label("a", "yes", True), label("b", "no", False, HOW))
    assert made == [] and paired.num_left == 2
    context = (Message("user", "Hm?"), Message("assistant", "Hm."), *WHY)
    assert pairs(label("a", "yes", True), label("b", "no", False, context))[1] == []


def test_the_same_text_is_not_paired_with_itself() -> None:
    """Judged good once and bad once: the pair would say nothing, and the next bad answer is taken."""
    _, made = pairs(label("a", "so", True), label("b", "so", False), label("c", "no", False))
    assert made == [("a>c", "so", "no")]


def test_other_records_pass_and_both_sides_are_known() -> None:
    prompt = Prompt(id="p", messages=WHY)
    found = list(PairedLabels([label("a", "yes", True), prompt, label("b", "no", False)]))
    assert found[0] == prompt and isinstance(found[1], Comparison)
    assert found[1].meta.extra == {
        "chosen": {"id": "a", "source": "a.csv", "final_label": "yes"},
        "rejected": {"id": "b", "source": "b.csv", "final_label": "no"},
    }
