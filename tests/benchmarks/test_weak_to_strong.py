"""The pairs of the weak-to-strong benchmark: in no order, ties counted, none lost."""

from benchmarks.weak_to_strong import make_pairs

from trueward.models.load import load_causal
from trueward.pipeline.testbed_base import shipped_base
from trueward.testbed import gold_reward, make_world, prompts, task_of


def test_pairs() -> None:
    asked = prompts(make_world(), 300, held_out=False, seed=1)
    made = make_pairs(load_causal(shipped_base()), asked, 2)
    assert len(made.groups) == len(made.records) == len(made.first_better)
    assert len(made.groups) + made.ties == 300
    assert 0.4 < sum(made.first_better) / len(made.first_better) < 0.6
    tasks = {prompt.id: task_of(prompt.meta) for prompt in asked}
    for record, better in zip(made.records, made.first_better, strict=True):
        golds = [gold_reward(tasks[record.id], text).total for text in (record.chosen, record.rejected)]
        assert (golds[0] > golds[1], golds[0] == golds[1]) == (better == 1, False)
    assert {pair.soft_label for pair in made.labelled(made.first_better)} == {0.0, 1.0}
