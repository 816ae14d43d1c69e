"""Where the steps of many chains lie when all blocks of all chains are worked on at once."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from pyro_lvm.ops.scratch import Scratch

__all__ = ["Blocks", "Matrices", "cut", "multiply"]


@dataclass(frozen=True)
class Blocks:
    """The transitions of N chains, cut into M blocks of at most S, longest first, place by place in time.

    Longest first, the blocks that reach a place are a slice, and no work is done on padding. Values at the places have
    shape (..., S, M), blocks last: states are few, and loops over the last axis should be long.

    Attributes:
        reach: How many blocks reach each place, S numbers.
        chain: The chain of each block, shape (M,).
        number: Which block of its chain it is, shape (M,).
        steps: The step t >= 1 after the transition at each place, shape (S, M); 0 where a block does not reach.
        rows: The same as row numbers of tensors of shape (N * T, ...).
        per_chain: The most blocks of a chain.
        num_steps: T.
        padded: Whether there may be padding.
    """

    reach: list[int]
    chain: Tensor
    number: Tensor
    steps: Tensor
    rows: Tensor
    per_chain: int
    num_steps: int
    padded: bool

    @property
    def whole(self) -> bool:
        """Whether every block reaches every place."""
        return not self.reach or self.reach[-1] == len(self.chain)

    @property
    def single(self) -> bool:
        """Whether no chain has a second block."""
        return self.per_chain <= 1

    def by_place(self, values: Tensor) -> list[Tensor]:
        """Values of shape (..., S, M) at each place, shape (..., count): those of the blocks that reach it."""
        # taken apart at once: in loops over places, indexing takes as long as computing
        whole = zip(values.unbind(-2), self.reach, strict=True)
        return [value if count == values.shape[-1] else value[..., :count] for value, count in whole]

    def gather(self, values: Tensor, scratch: Scratch | None = None) -> Tensor:
        """Values of shape (N, T, m) where the blocks have their steps, shape (m, S, M)."""
        rows = values.movedim(-1, 0).flatten(1).contiguous()
        index = self.rows.flatten().expand(len(rows), -1)
        out = (scratch or Scratch()).take("gathered", index.shape, rows)
        found = torch.gather(rows, 1, index, out=out)
        return found.view(len(rows), *self.rows.shape)

    def in_order(self, first: Tensor, later: Tensor, scratch: Scratch | None = None) -> Tensor:
        """Values of first steps, shape (..., N), and at the places, shape (..., S, M), as (..., N, T), else zero."""
        shape = (*first.shape, self.num_steps)
        result = (scratch or Scratch()).take("in order", shape, first)
        result = result.zero_() if self.padded else result
        later = later.flatten(-2)
        result.flatten(-2).scatter_(-1, self.rows.flatten().expand_as(later), later)
        result[..., 0] = first  # after what blocks have at places that they do not reach, which is sent here
        return result


def cut(num_chains: int, num_steps: int, lengths: Tensor | None, block: int, device: torch.device) -> Blocks:
    """Cut the T - 1 transitions of each of N chains into blocks."""
    block = min(block, num_steps - 1)
    per_chain = -(-(num_steps - 1) // max(1, block))
    begin = torch.arange(per_chain, device=device) * block
    ends = torch.full((num_chains,), num_steps, device=device) if lengths is None else lengths
    size, order = (ends.unsqueeze(-1) - 1 - begin).clamp(0, block).flatten().sort(descending=True, stable=True)
    size = size[: int(size.count_nonzero())]
    order = order[: len(size)]
    chain, number = order // max(1, per_chain), order % max(1, per_chain)
    place = torch.arange(block, device=device).unsqueeze(-1)
    filled = place < size
    steps = torch.where(filled, number * block + 1 + place, 0)
    return Blocks(
        reach=filled.sum(1).tolist(),
        chain=chain,
        number=number,
        steps=steps,
        rows=chain * num_steps + steps,
        per_chain=per_chain,
        num_steps=num_steps,
        padded=lengths is not None,
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
            self._fixed = transition[0].unbind(0)
        elif steady:
            self._fixed = (transition[:, 0].index_select(0, blocks.chain),)
        else:
            offset = 0 if shared else blocks.chain * transition.shape[1]
            self._rows = (blocks.steps - 1).clamp_min(0) + offset
            self._all = transition.flatten(0, 1)

    def at(self, place: int, count: int) -> Tensor:
        """The matrix of all blocks, shape (K, K), or those of the first few, shape (count, K, K)."""
        if self._rows is not None:
            return self._all.index_select(0, self._rows[place, :count])
        fixed = self._fixed[place if len(self._fixed) > 1 else 0]
        return fixed if fixed.dim() == 2 else fixed[:count]


def multiply(matrix: Tensor, values: Tensor, out: Tensor) -> None:
    """Products of one matrix, shape (K, K), or one for each block, shape (M, K, K), and values, shape (K, [R,] M)."""
    if matrix.dim() == 2:
        values, out = (values, out) if values.dim() == 2 else (values.flatten(1), out.flatten(1))
        torch.mm(matrix, values, out=out)
    else:
        # contiguous: the product of views is twenty times slower than that of a copy
        columns = (values if values.dim() == 3 else values.unsqueeze(1)).permute(2, 0, 1).contiguous()
        out.copy_(torch.bmm(matrix, columns).permute(1, 2, 0).reshape(out.shape))
