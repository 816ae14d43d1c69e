r"""Forward and backward recursions over probabilities, rescaled at every step, on all blocks of all chains at once.

With :math:`a_t = p(z_t \mid x_{1 \ldots t})`, :math:`c_t = p(x_t \mid x_{1 \ldots t - 1})` up to the largest emission,

.. math::

    a_t c_t = (a_{t-1} A_t) \circ e_t, \qquad b_{t-1} = A_t (e_t \circ b_t / c_t), \qquad
    p(z_t \mid x) = a_t \circ b_t, \qquad \log p(x) = \sum_t \log c_t.

A long chain is cut into blocks. The matrix of each block comes from the same recursion started in each of the K states,
the blocks are a chain of matrices, and its messages start the recursions within the blocks.

What these recursions lose. Every product below the least float `tiny` vanishes, a share of at most `tiny` / c_t of
a_t; it is missed only by as much as the data to come favour its state, which is b_t. So the posterior is off by at most
`tiny` times the largest b_t / c_t, times the states, in every step. That is computed from the very numbers at hand, and
where its sum exceeds the rounding of floats a chain is reported as lost.

References:
    L. Rabiner (1989), A tutorial on hidden Markov models, Proceedings of the IEEE 77, section V.A.
"""

from __future__ import annotations

import torch
from torch import Tensor

from pyro_lvm.ops.chains.blocks import Matrices, cut

__all__ = ["Scaled", "largest_growth"]


def largest_growth(num_states: int, dtype: torch.dtype) -> float:
    """The largest sum of b / c over the steps with which what underflows stays below rounding."""
    limits = torch.finfo(dtype)
    return limits.eps / limits.tiny / num_states


class Scaled:
    """The two recursions of N chains.

    Attributes:
        first: a_0, shape (N, K).
        first_onwards: b_0, shape (N, K).
        before: a before each transition, shape (S, M, K).
        after: a after it, shape (S, M, K).
        onwards: b after it, shape (S, M, K).
        weighed: e b / c after it, shape (S, M, K).
        scale: c after it, shape (S, M, 1).
        growth: The sum over the steps of the largest b / c, shape (N,), not a number where the recursions broke down.
    """

    def __init__(
        self,
        start: Tensor,
        transition: Tensor,
        emission: Tensor,
        lengths: Tensor | None,
        block: int,
    ) -> None:
        chains, steps, _ = emission.shape
        self._steps = steps
        self.blocks = blocks = cut(chains, steps, lengths, min(block, steps - 1), emission.device)
        self._matrices = Matrices(transition, blocks)
        self._emission = blocks.gather(emission)
        first = start * emission[:, 0]
        self.first_scale = first.sum(-1, keepdim=True)
        self.first = first / self.first_scale
        self.growth = torch.zeros_like(self.first_scale.squeeze(-1), dtype=torch.float64)
        starts, ends = self._between(chains, steps, block)
        self._forward(starts)
        self._backward(ends)

    def _between(self, chains: int, steps: int, block: int) -> tuple[Tensor, Tensor]:
        """Messages a before and b after each block, shape (M, K)."""
        blocks = self.blocks
        if blocks.single:
            return self.first[blocks.chain], torch.ones_like(self.first)[blocks.chain]
        products = self._products()
        most = -(-(steps - 1) // block)
        transition = products.new_zeros(chains, most, *products.shape[1:])
        transition[blocks.chain, blocks.number] = products
        lengths = torch.bincount(blocks.chain, minlength=chains) + 1
        upper = Scaled(
            self.first.double(),
            transition,
            products.new_ones(chains, most + 1, products.shape[-1]),
            lengths,
            block,
        )
        self.growth += upper.growth
        starts, ends = upper.in_order()
        place = blocks.chain, blocks.number
        return starts[place].to(self.first.dtype), ends[:, 1:][place].to(self.first.dtype)

    def _products(self) -> Tensor:
        """The matrix of each block up to its largest number, float64, shape (M, K, K)."""
        emission, blocks = self._emission, self.blocks
        size, states = emission.shape[1:]
        product = torch.eye(states, dtype=emission.dtype, device=emission.device).repeat(size, 1, 1)
        other = torch.empty_like(product)
        scale = torch.empty_like(product[..., :1])
        logarithm = torch.zeros(size, states, 1, dtype=torch.float64, device=emission.device)
        least = torch.finfo(emission.dtype).tiny
        for place, count in enumerate(blocks.reach):
            matrix = self._matrices.at(place, count)
            old, new = product[:count], other[:count]
            if matrix.dim() == 2:
                torch.mm(old.flatten(0, 1), matrix, out=new.view(-1, states))
            else:
                torch.bmm(old, matrix, out=new)
            new.mul_(emission[place, :count].unsqueeze(-2))
            torch.sum(new, -1, keepdim=True, out=scale[:count])
            new.div_(scale[:count].clamp_min_(least))
            logarithm[:count] += scale[:count].log()
            if count < size:
                new_rest = other[count:]
                new_rest.copy_(product[count:])
            product, other = other, product
        logarithm -= logarithm.amax(1, keepdim=True)
        return product.double().mul_(logarithm.exp_())

    def _forward(self, start: Tensor) -> None:
        emission = self._emission
        places, size, states = emission.shape
        messages = emission.new_zeros(places + 1, size, states)
        messages[0] = start
        self.scale = emission.new_ones(places, size, 1)
        for place, count in enumerate(self.blocks.reach):
            old, new, scale = messages[place, :count], messages[place + 1, :count], self.scale[place, :count]
            matrix = self._matrices.at(place, count)
            if matrix.dim() == 2:
                torch.mm(old, matrix, out=new)
            else:
                torch.bmm(old.unsqueeze(1), matrix, out=new.unsqueeze(1))
            new.mul_(emission[place, :count])
            torch.sum(new, -1, keepdim=True, out=scale)
            new.div_(scale)
        self.before, self.after = messages[:-1], messages[1:]

    def _backward(self, end: Tensor) -> None:
        blocks = self.blocks
        self.weighed, self.onwards = self._emission, torch.zeros_like(self._emission)
        current = end
        for place in reversed(range(len(blocks.reach))):
            count = blocks.reach[place]
            here, weighed = current[:count], self.weighed[place, :count]
            self.onwards[place, :count] = here
            torch.mul(weighed, here, out=weighed).div_(self.scale[place, :count])
            matrix = self._matrices.at(place, count)
            if matrix.dim() == 2:
                torch.mm(weighed, matrix.mT, out=here)
            else:
                torch.bmm(matrix, weighed.unsqueeze(-1), out=here.unsqueeze(-1))
            if not blocks.whole:
                self.weighed[place, count:] = 0.0
        self.first_onwards = torch.ones_like(self.first)
        is_first = blocks.number == 0
        self.first_onwards[blocks.chain[is_first]] = current[is_first]
        growth = (self.onwards.amax(-1) / self.scale.squeeze(-1)).sum(0, dtype=torch.float64)
        self.growth.index_add_(0, blocks.chain, growth)
        self.growth += self.first_onwards.amax(-1) / self.first_scale.squeeze(-1)

    def in_order(self) -> tuple[Tensor, Tensor]:
        """Messages a and b at every step of the chains, shape (N, T, K), zero in the padding."""
        results = []
        for first, later in ((self.first, self.after), (self.first_onwards, self.onwards)):
            result = first.new_zeros(len(first), self._steps, first.shape[-1])
            result[:, 0] = first
            self.blocks.scatter(later, result)
            results.append(result)
        return results[0], results[1]
