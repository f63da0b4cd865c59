"""A vocabulary that is embedding table and head at once, in the order that the head's products read fastest.

Both modules read it in blocks of words, so that it is there once: the head multiplies block by block, and the
embeddings take their few words from where these lie. A last block that would be larger in the other order
stays as it is. Not here: which models this is for (see relaid).
Axes: N tokens, V vocabulary, D width.
"""

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from trueward.models import onednn

__all__ = ["LaidTable", "takes_table"]

# A multiple of every width that the order comes in (64, 48).
_BLOCK_WORDS = 3072


class LaidTable:
    """The blocks of one vocabulary, and how both modules read them until `put_back`."""

    def __init__(self, head: nn.Linear, embeddings: nn.Embedding) -> None:
        self._head, self._embeddings = head, embeddings
        self._dense_VD = head.weight.data
        self._dense = torch.split(self._dense_VD, _BLOCK_WORDS)
        # Of the blocks that are moved: these come first.
        self._laid: list[Tensor] = []
        self._places = _places(self._dense_VD)
        try:
            for block_BD in self._dense:
                if not onednn.works(block_BD):
                    break
                self._laid.append(onednn.moved(block_BD))
        except BaseException:
            self._refill()
            raise
        # The one parameter of both has no elements meanwhile: who reads it fails.
        head.weight.data = self._dense_VD.new_empty(0)
        head.forward = self._logits  # type: ignore[method-assign, assignment]  # of this one, meanwhile
        embeddings.forward = self._rows  # type: ignore[method-assign, assignment]  # of this one, meanwhile

    def _logits(self, hidden_ND: Tensor) -> Tensor:
        parts = [onednn.product(hidden_ND, block, None) for block in self._laid]
        parts += [linear(hidden_ND, block_BD) for block_BD in self._dense[len(self._laid) :]]
        logits_NV = torch.cat(parts, dim=-1)
        return logits_NV if self._head.bias is None else logits_NV + self._head.bias

    def _rows(self, ids: Tensor) -> Tensor:
        flat_N = ids.flatten()
        rows_ND = self._dense_VD.new_empty(len(flat_N), self._dense_VD.shape[1])
        block_N = flat_N // _BLOCK_WORDS
        for block in torch.unique(block_N).tolist():
            at_n = (block_N == block).nonzero().squeeze(1)
            block_BD, words_n = self._dense[block], flat_N[at_n] - block * _BLOCK_WORDS
            if block < len(self._laid):
                words_O, columns_D = self._places[block_BD.shape]
                rows_ND[at_n] = block_BD.flatten()[words_O[words_n].unsqueeze(1) + columns_D]
            else:
                rows_ND[at_n] = block_BD[words_n]
        return rows_ND.view(*ids.shape, -1)

    def _refill(self) -> None:
        for block_BD, laid in zip(self._dense, self._laid, strict=False):
            onednn.move_back(block_BD, laid)

    def put_back(self) -> None:
        """The weight, bit by bit, where it was."""
        self._refill()
        self._head.weight.data = self._dense_VD
        del self._head.forward, self._embeddings.forward


def _places(dense_VD: Tensor) -> dict[torch.Size, tuple[Tensor, Tensor]]:
    """Where words and columns lie in moved blocks of each shape; empty if none is moved, or one that is
    cannot be read."""
    found = {}
    for block_BD in {block.shape: block for block in torch.split(dense_VD, _BLOCK_WORDS)}.values():
        if not onednn.works(block_BD):
            break
        places = onednn.places(block_BD)
        if places is None:
            return {}
        found[block_BD.shape] = places
    return found


def takes_table(head: nn.Linear, readers: list[nn.Module]) -> nn.Embedding | None:
    """The plain embedding table that is the head's weight too, if nothing else reads it and it can be laid
    out in blocks."""
    others = [module for module in readers if module is not head]
    if len(others) != 1 or type(others[0]) is not nn.Embedding or "forward" in vars(others[0]):
        return None
    table = others[0]
    plain = table.max_norm is None and not table._forward_hooks and not table._forward_pre_hooks
    return table if plain and _places(head.weight.data) else None
