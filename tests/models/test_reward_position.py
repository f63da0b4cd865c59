"""A reward is read at the last token by position, whatever ids stand before it and however rows are put
together."""

from dataclasses import replace

import pytest
import torch

from tests.models.rows import MIXED, plain_copy, random_groups
from trueward.data.chat import TokenGroup
from trueward.models.heads import reward_from_causal
from trueward.models.packing import pack
from trueward.models.scoring import sequence_rewards
from trueward.models.tiny import tiny_model, tiny_tokenizer

PAD, STOP = 0, 2


def conversations() -> list[TokenGroup]:
    """Several turns: the stop token and even the padding id stand in the middle of every prompt."""
    return [
        replace(group, prompt_ids=(*group.prompt_ids, STOP, PAD, 40 + index, STOP, 9))
        for index, group in enumerate(random_groups(8, MIXED))
    ]


@pytest.mark.parametrize("together", [True, False], ids=["one row", "row by row"])
def test_ids_in_the_middle_do_not_end_the_text(together: bool) -> None:
    model = reward_from_causal(tiny_model("llama", 1), tiny_tokenizer(), seed=3)
    plain, groups = plain_copy(model), conversations()
    rows = [[*group.prompt_ids, *c.ids] for group in groups for c in group.completions]
    with torch.no_grad():
        got = (
            sequence_rewards(model, pack(groups))
            if together
            else torch.cat([sequence_rewards(model, pack([group])) for group in groups])
        )
        # The backbone alone, without padding, and the head on the last position: nothing to search for.
        last = [plain.model(input_ids=torch.tensor([row])).last_hidden_state[0, -1] for row in rows]
        expected = plain.score(torch.stack(last))[:, 0]
    torch.testing.assert_close(got, expected, atol=1e-5, rtol=1e-5)
    assert expected.std() > 1e-3
