"""Own decoding: greedy equals transformers, log-probs equal the trainer's, draws follow the distribution
and the seed.
"""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.models.rows import plain_copy
from trueward.core.errors import ModelError
from trueward.data.chat import Completion, TokenGroup
from trueward.models.packing import pack
from trueward.models.scoring import fallbacks, score_completions
from trueward.models.tiny import KINDS, Kind, tiny_model
from trueward.rollouts.decoding import PlainDecoder, SharedDecoder
from trueward.rollouts.engine import Rollout
from trueward.rollouts.local import LocalEngine

STOP = 2


def prompts(seed: int, lengths: list[int]) -> list[list[int]]:
    rng = np.random.default_rng(seed)
    return [[int(i) for i in rng.integers(3, 263, length)] for length in lengths]


def rescored(
    model: torch.nn.Module, asked: list[list[int]], rollouts: list[Rollout], temperature: float
) -> list[float]:
    groups = [
        TokenGroup(tuple(asked[r.prompt]), (Completion(r.ids, (True,) * len(r.ids)),)) for r in rollouts
    ]
    with torch.no_grad():
        return score_completions(model, pack(groups), temperature=temperature).logps_N.tolist()


@pytest.mark.parametrize("kind", KINDS)
def test_greedy_equals_transformers(kind: Kind) -> None:
    model = tiny_model(kind, 3)
    asked = prompts(0, [3, 11, 7, 20, 1])
    rollouts = LocalEngine(model, [STOP]).generate(
        asked, num_completions=1, max_new_tokens=20, temperature=0.0, seed=0
    )
    other = plain_copy(model)
    for prompt, rollout in zip(asked, rollouts, strict=True):
        ids = torch.tensor([prompt])
        output = other.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            do_sample=False,
            max_new_tokens=20,
            eos_token_id=STOP,
            pad_token_id=0,
        )
        assert list(rollout.ids) == output[0, len(prompt) :].tolist()
    assert len({rollout.ids for rollout in rollouts}) == len(rollouts)


@pytest.mark.parametrize("kind", KINDS)
def test_sampler_logps_equal_the_trainer(kind: Kind) -> None:
    model = tiny_model(kind, 4)
    asked = prompts(1, [4, 9, 9, 30])
    asked.append(asked[1])
    stops = list(range(2, 40))
    rollouts = LocalEngine(model, stops).generate(
        asked, num_completions=3, max_new_tokens=24, temperature=0.8, seed=5
    )
    assert [r.prompt for r in rollouts] == [p for p in range(5) for _ in range(3)]
    assert len({len(r.ids) for r in rollouts}) > 3, "rows must leave the batch at different steps"
    got = [logp for rollout in rollouts for logp in rollout.logps]
    torch.testing.assert_close(
        torch.tensor(got), torch.tensor(rescored(model, asked, rollouts, 0.8)), atol=1e-4, rtol=0
    )
    for rollout in rollouts:
        assert rollout.finished == (rollout.ids[-1] in stops)
        assert not set(rollout.ids[:-1]) & set(stops)
        assert rollout.finished or len(rollout.ids) == 24


def test_a_draw_depends_on_its_own_indices_only() -> None:
    model = tiny_model("llama", 2)
    asked = prompts(2, [5, 6, 12])
    engine = LocalEngine(model, [STOP])
    all_of_them = engine.generate(asked, num_completions=4, max_new_tokens=12, temperature=1.0, seed=7)
    few = engine.generate(asked[:1], num_completions=2, max_new_tokens=8, temperature=1.0, seed=7)
    small = LocalEngine(model, [STOP], kv_bytes=1).generate(
        asked, num_completions=4, max_new_tokens=12, temperature=1.0, seed=7
    )
    assert [r.ids for r in few] == [r.ids[:8] for r in all_of_them[:2]]
    assert [r.ids for r in small] == [r.ids for r in all_of_them]
    other = engine.generate(asked, num_completions=4, max_new_tokens=12, temperature=1.0, seed=8)
    assert [r.ids for r in other] != [r.ids for r in all_of_them]


@pytest.mark.parametrize("temperature", [1.0, 0.5])
def test_draws_follow_the_distribution(temperature: float) -> None:
    model = tiny_model("llama", 1, vocab_size=8, scale=2.0)
    prompt, count = [3, 4, 5], 4000
    rollouts = LocalEngine(model, [0]).generate(
        [prompt], num_completions=count, max_new_tokens=2, temperature=temperature, seed=3
    )
    logits = model(input_ids=torch.tensor([prompt])).logits[0, -1]
    expected = torch.softmax(logits / temperature, -1).detach().double() * count
    seen = torch.bincount(torch.tensor([r.ids[0] for r in rollouts]), minlength=8).double()
    # 7 degrees of freedom: chi-square above 24.3 happens once in a thousand seeds.
    assert float(((seen - expected) ** 2 / expected).sum()) < 24.3
    seconds = [r for r in rollouts if len(r.ids) == 2 and r.ids[0] == int(seen[1:].argmax()) + 1]
    logits = model(input_ids=torch.tensor([[*prompt, seconds[0].ids[0]]])).logits[0, -1]
    expected = torch.softmax(logits / temperature, -1).detach().double() * len(seconds)
    seen = torch.bincount(torch.tensor([r.ids[1] for r in seconds]), minlength=8).double()
    assert float(((seen - expected) ** 2 / expected.clamp_min(1e-9)).sum()) < 24.3


def test_the_plain_decoder_gives_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_model("mistral", 3)
    asked = prompts(3, [4, 13])
    options = {"num_completions": 3, "max_new_tokens": 15, "temperature": 1.0, "seed": 1}
    fast = LocalEngine(model, [STOP, 9, 17]).generate(asked, **options)
    monkeypatch.setattr("trueward.rollouts.local.SharedDecoder", PlainDecoder)
    slow = LocalEngine(model, [STOP, 9, 17]).generate(asked, **options)
    assert [r.ids for r in slow] == [r.ids for r in fast]
    torch.testing.assert_close(
        [list(r.logps) for r in slow], [list(r.logps) for r in fast], atol=1e-4, rtol=0
    )


def test_the_training_mode_is_put_back() -> None:
    model = tiny_model("gpt2").train()
    model.lm_head.eval()
    LocalEngine(model, [STOP]).generate([[3]], num_completions=1, max_new_tokens=2, temperature=1.0, seed=0)
    assert model.training
    assert model.transformer.h[0].training
    assert not model.lm_head.training


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"temperature": -1.0}, ValueError, "temperature"),
        ({"max_new_tokens": 0}, ValueError, "max_new_tokens"),
        ({"max_new_tokens": 600}, ModelError, "positions"),
    ],
    ids=["temperature", "tokens", "positions"],
)
def test_bad_requests_are_refused(options: dict[str, float], error: type[Exception], message: str) -> None:
    asked = {"num_completions": 1, "max_new_tokens": 4, "temperature": 1.0, "seed": 0, **options}
    with pytest.raises(error, match=message):
        LocalEngine(tiny_model("llama"), [STOP]).generate([[3, 4]], **asked)  # type: ignore[arg-type]


def test_no_prompts_give_no_rollouts() -> None:
    engine = LocalEngine(tiny_model("llama"), [STOP])
    assert engine.generate([], num_completions=1, max_new_tokens=4, temperature=1.0, seed=0) == []


def test_progress_counts_finished_completions() -> None:
    seen: list[tuple[int, int]] = []
    LocalEngine(tiny_model("llama", 4), list(range(2, 60)), kv_bytes=1 << 14).generate(
        prompts(0, [3, 5, 9]),
        num_completions=4,
        max_new_tokens=10,
        temperature=1.0,
        seed=0,
        on_progress=lambda done, total: seen.append((done, total)),
    )
    assert seen == sorted(seen)
    assert seen[-1] == (12, 12)
    assert len({done for done, _ in seen}) > 3


def test_mapped_weights_decode_as_they_lie_and_are_counted(tmp_path: Path) -> None:
    model = tiny_model("llama", 3)
    model.save_pretrained(str(tmp_path))
    mapped = type(model).from_pretrained(str(tmp_path))
    options = {"num_completions": 2, "max_new_tokens": 16, "temperature": 1.0, "seed": 1}
    asked = prompts(3, [4, 13])
    ours, theirs = (LocalEngine(m, [STOP]).generate(asked, **options) for m in (model, mapped))
    assert [r.ids for r in ours] == [r.ids for r in theirs]
    assert fallbacks(model) == {}
    ((reason, count),) = fallbacks(mapped).items()
    assert "mapped from a file" in reason
    assert count == 1


def test_prompts_run_before_the_weights_are_laid_out(monkeypatch: pytest.MonkeyPatch) -> None:
    # Its weights are as large in the other order.
    model = tiny_model("llama", 1, vocab_size=320, width=128, scale=2.0)
    # Whether its steps can be lean is tried first, by steps.
    with torch.no_grad():
        SharedDecoder(model, [[3, 4]], [0])
    seen: list[tuple[str, bool]] = []
    for name in ("start", "step"):
        plain = getattr(SharedDecoder, name)

        def watched(self: SharedDecoder, *rest: Tensor, name: str = name, plain: Any = plain) -> Tensor:
            seen.append((name, model.lm_head.weight.numel() == 0))
            result: Tensor = plain(self, *rest)
            return result

        monkeypatch.setattr(SharedDecoder, name, watched)
    # Keys of one prompt's two rows at a time: the second prompt comes while weights lie in the other order.
    row_bytes = (2 + 16) * 2 * 2 * 64 * 4
    engine = LocalEngine(model, [2], kv_bytes=2 * row_bytes)
    drawn = engine.generate([[3, 4], [5, 6]], num_completions=2, max_new_tokens=16, temperature=1.0, seed=0)
    assert seen[0] == ("start", False) and ("start", True) in seen
    assert {laid for name, laid in seen if name == "step"} == {True}
    assert model.lm_head.weight.numel() > 0
    # Too few steps; and a row alone, which the usual order serves faster.
    for rows, steps in ((2, 15), (1, 16)):
        few = LocalEngine(model, [2]).generate(
            [[3, 4]], num_completions=rows, max_new_tokens=steps, temperature=1.0, seed=0
        )
        assert seen[-1] == ("step", False)
        # The order of the weights changes sums by rounding only.
        assert few[0].ids[:8] == drawn[0].ids[:8]
