"""Where the steps of many chains lie when all blocks of all chains are worked on at once."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["Blocks", "Matrices", "cut"]


@dataclass(frozen=True)
class Blocks:
    """The transitions of N chains, cut into M blocks of at most S, longest first, place by place in time.

    Longest first, the blocks that reach a place are a slice, and no work is done on padding.

    Attributes:
        reach: How many blocks reach each place, S numbers.
        chain: The chain of each block, shape (M,).
        number: Which block of its chain it is, shape (M,).
        steps: The step t >= 1 after the transition at each place, shape (S, M); 0 where a block does not reach.
        rows: The same as row numbers of tensors of shape (N * T, ...).
        whole: Whether every block reaches every place.
        single: Whether no chain has a second block.
    """

    reach: list[int]
    chain: Tensor
    number: Tensor
    steps: Tensor
    rows: Tensor
    whole: bool
    single: bool

    def gather(self, values: Tensor) -> Tensor:
        """Values of shape (N, T, m) where the blocks have their steps, shape (S, M, m)."""
        return values.flatten(0, 1).index_select(0, self.rows.flatten()).unflatten(0, self.rows.shape)

    def scatter(self, values: Tensor, target: Tensor) -> None:
        """Put values of shape (S, M, m) where a tensor of shape (N, T, m) has their steps."""
        rows, values = self.rows.flatten(), values.flatten(0, 1)
        if not self.whole:
            used = self.steps.flatten().nonzero().squeeze(-1)
            rows, values = rows[used], values[used]
        target.flatten(0, 1).index_copy_(0, rows, values)


def cut(num_chains: int, num_steps: int, lengths: Tensor | None, block: int, device: torch.device) -> Blocks:
    """Cut the T - 1 transitions of each of N chains into blocks."""
    per_chain = -(-(num_steps - 1) // max(1, block))
    begin = torch.arange(per_chain, device=device) * block
    transitions = torch.full((num_chains,), num_steps, device=device) if lengths is None else lengths
    size = (transitions.unsqueeze(-1) - 1 - begin).clamp(0, block).flatten()
    size, order = size.sort(descending=True, stable=True)
    order = order[: int((size > 0).sum())]
    size = size[: len(order)]
    chain, number = order // max(1, per_chain), order % max(1, per_chain)
    place = torch.arange(block, device=device).unsqueeze(-1)
    filled = place < size
    steps = torch.where(filled, number * block + 1 + place, 0)
    reach = filled.sum(1).tolist()
    return Blocks(
        reach=reach,
        chain=chain,
        number=number,
        steps=steps,
        rows=chain * num_steps + steps,
        whole=all(count == len(order) for count in reach),
        single=per_chain <= 1,
    )


class Matrices:
    """The transition matrices, as probabilities, at the places of blocks.

    Args:
        transition: Shape (N or 1, T - 1 or 1, K, K).
        blocks: The places.
    """

    def __init__(self, transition: Tensor, blocks: Blocks) -> None:
        shared, steady = len(transition) == 1, transition.shape[1] == 1
        self._rows: Tensor | None = None
        if shared and (steady or blocks.single):
            self._fixed = list(transition[0].unbind(0))
        elif steady:
            self._fixed = [transition[:, 0].index_select(0, blocks.chain)]
        else:
            self._fixed = []
            self._all = transition.flatten(0, 1)
            offset = 0 if shared else blocks.chain * transition.shape[1]
            self._rows = (blocks.steps - 1).clamp_min(0) + offset

    def at(self, place: int, count: int) -> Tensor:
        """The matrix of all blocks, shape (K, K), or those of the first few, shape (count, K, K)."""
        if self._rows is not None:
            return self._all.index_select(0, self._rows[place, :count])
        fixed = self._fixed[place if len(self._fixed) > 1 else 0]
        return fixed if fixed.dim() == 2 else fixed[:count]
