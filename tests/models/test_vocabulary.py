"""The vocabulary: no table of tokens x words is ever held, and special tokens stay what they were."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from trueward.models import head as head_module
from trueward.models.checkpoint import save_causal
from trueward.models.head import Head, score_tokens
from trueward.models.load import load_causal
from trueward.models.lora import LoraSettings
from trueward.models.tiny import tiny_model, tiny_tokenizer

N, D, V, CHUNK = 64, 8, 1000, 5


class Largest(TorchDispatchMode):
    """Elements of the largest tensor that any operation makes."""

    def __init__(self) -> None:
        super().__init__()
        self.elements = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        made = [item for item in torch.utils._pytree.tree_leaves(result) if isinstance(item, torch.Tensor)]
        self.elements = max([self.elements, *(item.numel() for item in made)])
        return result


def test_no_operation_makes_a_table_of_tokens_and_words(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(head_module, "_CHUNK_ELEMENTS", CHUNK * V)
    monkeypatch.setattr(head_module, "_KEPT_ELEMENTS", 0)
    linear = nn.Linear(D, V, bias=False)
    hidden = torch.randn(N, D, generator=torch.Generator().manual_seed(0)).requires_grad_()
    labels = torch.arange(N)
    with Largest() as largest:
        score_tokens(
            Head(linear, None), hidden, labels, temperature=1.0, entropy=True
        ).logps_N.sum().backward()
    # The matrix of the head, and its gradient, are the largest tensors; the table would be eight times that.
    assert largest.elements <= max(D * V, CHUNK * V) < N * V
    assert hidden.grad is not None and linear.weight.grad is not None


@pytest.mark.parametrize("lora", [None, LoraSettings(r=2)], ids=["whole", "lora"])
def test_special_tokens_are_never_overwritten(tmp_path: Path, lora: LoraSettings | None) -> None:
    tokenizer = tiny_tokenizer()
    before = dict(tokenizer.special_tokens_map), tokenizer.get_added_vocab()
    save_causal(tiny_model("llama", 1), tokenizer, tmp_path / "base", "A test model.")
    loaded = load_causal(tmp_path / "base", lora=lora, seed=0)
    save_causal(loaded.model, loaded.tokenizer, tmp_path / "again", "The same.")
    after = load_causal(tmp_path / "again").tokenizer
    assert (dict(after.special_tokens_map), after.get_added_vocab()) == before
    ids = ("pad_token_id", "bos_token_id", "eos_token_id")
    assert [getattr(after, name) for name in ids] == [getattr(tokenizer, name) for name in ids]
