r"""Forward and backward recursions over probabilities, rescaled at every step, on all blocks of all chains at once.

With :math:`a_t = p(z_t \mid x_{1 \ldots t})`, :math:`c_t = p(x_t \mid x_{1 \ldots t - 1})` up to the largest emission,

.. math::

    a_t c_t = (a_{t-1} A_t) \circ e_t, \qquad b_{t-1} = A_t (e_t \circ b_t / c_t), \qquad
    p(z_t \mid x) = a_t \circ b_t, \qquad \log p(x) = \sum_t \log c_t.

A long chain is cut into blocks. The matrix of each block comes from the same recursion started in each of the K states,
the blocks are a chain of matrices, and its messages start the recursions within the blocks.

What these recursions lose. Every product below the least float `tiny` vanishes, a share of at most `tiny` / c_t of
a_t; it is missed only by as much as the data to come favour its state, which is b_t. So every step puts the posterior
off by at most `tiny` times the largest b_t / c_t, times the states. That is computed from the very numbers at hand,
and where its sum exceeds the rounding of floats the chain is done again in logarithms. What vanishes from b_t is never
missed: it is multiplied by a_t <= 1 before it counts.

References:
    L. Rabiner (1989), A tutorial on hidden Markov models, Proceedings of the IEEE 77, section V.A.
"""

from __future__ import annotations

import torch
from torch import Tensor

from pyro_lvm.ops.chains.blocks import Blocks, Matrices, cut

__all__ = ["Backward", "Forward", "negligible"]


def negligible(losses: Tensor, num_states: int, dtype: torch.dtype) -> Tensor:
    """Whether what has underflowed, a sum of b / c over the steps, stays below rounding."""
    limits = torch.finfo(dtype)
    return losses <= limits.eps / limits.tiny / num_states


class Forward:
    """The forward recursion of N chains.

    Args:
        blocks: Where the steps are.
        first: Probabilities of the first state and its data, shape (N, K).
        transition: Probabilities, shape (N or 1, T - 1 or 1, K, K).
        emission: e after each transition, shape (S, M, K).

    Attributes:
        first: a_0, shape (N, K).
        first_scale: c_0, shape (N, 1).
        before: a before it, shape (S, M, K).
        after: a after it, shape (S, M, K).
        scale: c after it, shape (S, M, 1).
        losses: The sum of 1 / c over the steps, shape (N,); not a number where nothing is left of a chain.
    """

    def __init__(self, blocks: Blocks, first: Tensor, transition: Tensor, emission: Tensor) -> None:
        self.blocks, self.emission = blocks, emission
        self.matrices = Matrices(transition, blocks)
        self.first_scale = first.sum(-1, keepdim=True)
        self.first = first / self.first_scale
        self.between: Forward | None = None
        starts = self.first[blocks.chain]
        if not blocks.single:
            self.between = between = self._of_blocks()
            starts = between.in_order()[blocks.chain, blocks.number].to(starts.dtype)
        self._recur(starts)
        self.losses = self.first_scale.reciprocal().squeeze(-1).double()
        self.losses.index_add_(0, blocks.chain, self.scale.reciprocal().sum((0, 2), dtype=torch.float64))
        if self.between is not None:
            self.losses += self.between.losses

    def in_order(self) -> Tensor:
        """a at every step of the chains, shape (N, T, K), zero in the padding."""  # noqa: D403
        return self.blocks.in_order(self.first, self.after)

    def _of_blocks(self) -> Forward:
        """The chains of blocks: from the start of each to the start of the next."""
        blocks, chains = self.blocks, len(self.first)
        products = self._products()
        states = products.shape[-1]
        transition = products.new_zeros(chains, blocks.per_chain, states, states)
        transition[blocks.chain, blocks.number] = products
        lengths = torch.bincount(blocks.chain, minlength=chains) + 1
        above = cut(chains, blocks.per_chain + 1, lengths, len(blocks.reach), products.device)
        return Forward(above, self.first.double(), transition, products.new_ones(*above.rows.shape, states))

    def _products(self) -> Tensor:
        """The matrix of each block up to its largest number, float64, shape (M, K, K)."""
        size, states = self.emission.shape[1:]
        product = torch.eye(states).to(self.emission).repeat(size, 1, 1)
        other = torch.empty_like(product)
        scale = torch.empty_like(product[..., :1])
        logarithm = torch.zeros_like(scale, dtype=torch.float64)
        least = torch.finfo(product.dtype).tiny  # a state that leads nowhere has a row of zeros
        for place, count in enumerate(self.blocks.reach):
            old, new, factor = product[:count], other[:count], scale[:count]
            matrix = self.matrices.at(place, count)
            if matrix.dim() == 2:
                torch.mm(old.view(-1, states), matrix, out=new.view(-1, states))
            else:
                torch.bmm(old, matrix, out=new)
            new.mul_(self.emission[place, :count].unsqueeze(1))
            torch.sum(new, -1, keepdim=True, out=factor)
            new.div_(factor.clamp_min_(least))
            logarithm[:count] += factor.log()
            other[count:] = product[count:]
            product, other = other, product
        logarithm -= logarithm.amax(1, keepdim=True)
        return product.double().mul_(logarithm.exp_())

    def _recur(self, starts: Tensor) -> None:
        places, size, states = self.emission.shape
        messages = self.blocks.room(places + 1, size, states, like=self.emission)
        messages[0] = starts
        self.before, self.after = messages[:-1], messages[1:]
        self.scale = self.emission.new_ones(places, size, 1)
        for place, count in enumerate(self.blocks.reach):
            old, new, scale = self.before[place, :count], self.after[place, :count], self.scale[place, :count]
            matrix = self.matrices.at(place, count)
            if matrix.dim() == 2:
                torch.mm(old, matrix, out=new)
            else:
                torch.bmm(old.unsqueeze(1), matrix, out=new.unsqueeze(1))
            new.mul_(self.emission[place, :count])
            torch.sum(new, -1, keepdim=True, out=scale)
            new.div_(scale)


class Backward:
    """The backward recursion, after the forward one, whose emissions it writes over.

    Attributes:
        first: b_0, shape (N, K).
        after: b after each transition, shape (S, M, K).
        weighed: e b / c after it, shape (S, M, K), zero where a block does not reach.
        losses: The sum of the largest b / c over the steps, shape (N,); not a number where nothing is left of a chain.
    """

    def __init__(self, forward: Forward) -> None:
        self._forward, self.blocks = forward, forward.blocks
        blocks = self.blocks
        self.first = torch.ones_like(forward.first)
        ends = self.first[blocks.chain]
        between = None if forward.between is None else Backward(forward.between)
        if between is not None:
            ends = between.in_order()[blocks.chain, blocks.number + 1].to(ends.dtype)
        self._recur(ends)
        self.losses = (self.first.amax(-1) / forward.first_scale.squeeze(-1)).double()
        growth = self.after.amax(-1) / forward.scale.squeeze(-1)
        self.losses.index_add_(0, blocks.chain, growth.sum(0, dtype=torch.float64))
        if between is not None:
            self.losses += between.losses

    def in_order(self) -> Tensor:
        """b at every step of the chains, shape (N, T, K), zero in the padding."""  # noqa: D403
        return self.blocks.in_order(self.first, self.after)

    def _recur(self, current: Tensor) -> None:
        forward, blocks = self._forward, self.blocks
        self.weighed, self.after = forward.emission, blocks.room(*forward.emission.shape, like=forward.emission)
        for place in reversed(range(len(blocks.reach))):
            count = blocks.reach[place]
            here, weighed = current[:count], self.weighed[place, :count]
            self.after[place, :count] = here
            weighed.mul_(here).div_(forward.scale[place, :count])
            self.weighed[place, count:] = 0.0
            matrix = forward.matrices.at(place, count)
            if matrix.dim() == 2:
                torch.mm(weighed, matrix.mT, out=here)
            else:
                torch.bmm(matrix, weighed.unsqueeze(-1), out=here.unsqueeze(-1))
        leading = blocks.number == 0
        self.first[blocks.chain[leading]] = current[leading]
