"""A vocabulary that is embedding table and head at once, in the order that the head's products read fastest.

Both modules read it in blocks of words, so that it is there once: the head multiplies block by block, and the
embeddings take their few words out of the blocks these lie in. Not here: which models this is for (see
relaid).
Axes: N tokens, V vocabulary, D width.
"""

import torch
from torch import Tensor, nn

from trueward.models import onednn
from trueward.models.backend import forget_pages, forget_range

__all__ = ["LaidTable", "takes_table"]

_BLOCK_WORDS = 2048


class LaidTable:
    """The blocks of one vocabulary, and how both modules read them until `put_back`."""

    def __init__(self, head: nn.Linear, embeddings: nn.Embedding) -> None:
        self._head, self._embeddings = head, embeddings
        self._dense_VD = head.weight.data
        self._blocks: list[Tensor] = []
        self._places = _places(self._dense_VD)
        try:
            for block_BD in torch.split(self._dense_VD, _BLOCK_WORDS):
                self._blocks.append(onednn.packed(block_BD))
                # Block by block, or the table would be there twice for a moment.
                forget_pages(block_BD)
        except BaseException:
            self._refill()
            raise
        # The one parameter of both has no elements meanwhile: who reads it fails.
        head.weight.data = self._dense_VD.new_empty(0)
        head.forward = self._logits  # type: ignore[method-assign, assignment]  # of this one, meanwhile
        embeddings.forward = self._rows  # type: ignore[method-assign, assignment]  # of this one, meanwhile

    def _logits(self, hidden_ND: Tensor) -> Tensor:
        parts = [onednn.product(hidden_ND, block, None) for block in self._blocks]
        logits_NV = torch.cat(parts, dim=-1)
        return logits_NV if self._head.bias is None else logits_NV + self._head.bias

    def _rows(self, ids: Tensor) -> Tensor:
        flat_N = ids.flatten()
        rows_ND = self._dense_VD.new_empty(len(flat_N), self._dense_VD.shape[1])
        block_N = flat_N // _BLOCK_WORDS
        for block in torch.unique(block_N).tolist():
            at_n = (block_N == block).nonzero().squeeze(1)
            laid = self._blocks[block]
            words_O, columns_D = self._places[laid.shape]
            places_nD = words_O[flat_N[at_n] - block * _BLOCK_WORDS].unsqueeze(1) + columns_D
            rows_ND[at_n] = onednn.elements(laid, rows_ND.dtype)[places_nD]
        return rows_ND.view(*ids.shape, -1)

    def _refill(self) -> None:
        for rows_BD, block in zip(torch.split(self._dense_VD, _BLOCK_WORDS), self._blocks, strict=False):
            rows_BD.copy_(block.to_dense())
            # Freed, but kept by the allocator: weights that come back would lie beside all of these.
            forget_range(*onednn.bounds(block))

    def put_back(self) -> None:
        """The weight, bit by bit, where it was."""
        self._refill()
        self._head.weight.data = self._dense_VD
        del self._head.forward, self._embeddings.forward


def _places(dense_VD: Tensor) -> dict[torch.Size, tuple[Tensor, Tensor]]:
    """Where words and columns lie in blocks of each shape, if all can be laid out and read; empty if not."""
    found = {}
    for block_BD in {block.shape: block for block in torch.split(dense_VD, _BLOCK_WORDS)}.values():
        places = onednn.places(block_BD) if onednn.works(block_BD) else None
        if places is None:
            return {}
        found[block_BD.shape] = places
    return found


def takes_table(head: nn.Linear, readers: list[nn.Module]) -> nn.Embedding | None:
    """The plain embedding table that is the head's weight too, if nothing else reads it and every block of it
    can be laid out."""
    others = [module for module in readers if module is not head]
    if len(others) != 1 or type(others[0]) is not nn.Embedding or "forward" in vars(others[0]):
        return None
    table = others[0]
    plain = table.max_norm is None and not table._forward_hooks and not table._forward_pre_hooks
    return table if plain and _places(head.weight.data) else None
