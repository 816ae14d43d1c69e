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

The matrices of blocks are rescaled only every few steps. The same holds for them, with the product of all c since they
were rescaled in place of c_t.

References:
    L. Rabiner (1989), A tutorial on hidden Markov models, Proceedings of the IEEE 77, section V.A.
"""

from __future__ import annotations

import torch
from torch import Tensor

from pyro_lvm.ops.chains.blocks import Blocks, Matrices, multiply
from pyro_lvm.ops.chains.tree import Tree
from pyro_lvm.ops.scratch import Scratch

__all__ = ["Backward", "Forward", "negligible"]

# Steps between two rescalings of the matrices of blocks: more gains little, and single precision has few to spare.
RESCALED = {torch.float32: 4, torch.float64: 8}


def negligible(losses: Tensor, num_states: int, dtype: torch.dtype) -> Tensor:
    """Whether what has underflowed, a sum of b / c over the steps, stays below rounding."""
    limits = torch.finfo(dtype)
    return losses <= limits.eps / limits.tiny / num_states


def _unit(like: Tensor) -> float:
    """What is lost in float64, in units of what is lost in the type of these numbers."""
    return torch.finfo(torch.float64).tiny / torch.finfo(like.dtype).tiny


class Forward:
    """The forward recursion of N chains.

    Args:
        blocks: Where the steps are.
        first: Probabilities of the first state and its data, shape (K, N).
        transition: Probabilities, shape (N or 1, T - 1 or 1, K, K).
        emission: e after each transition, shape (K, S, M).
        scratch: Where the results go.

    Attributes:
        first: a_0, shape (K, N).
        first_scale: c_0, shape (N,).
        before: a before it, shape (K, S, M).
        after: a after it, shape (K, S, M).
        scale: c after it, shape (S, M).
        kept: The product of c since anything was rescaled, shape (S, M).
        losses: The sum of 1 / kept over the steps, shape (N,); not a number where nothing is left of a chain.
    """

    def __init__(
        self, blocks: Blocks, first: Tensor, transition: Tensor, emission: Tensor, scratch: Scratch | None = None
    ) -> None:
        self.blocks, self.emission, self.scratch = blocks, emission, scratch or Scratch()
        self._every = 1 if blocks.single else RESCALED[emission.dtype]
        self.matrices = Matrices(transition, blocks)
        self.first_scale = first.sum(0)
        self.first = first / self.first_scale
        self.tree: Tree | None = None
        starts = self.first[:, blocks.chain]
        if not blocks.single:
            self.tree = self._of_blocks()
            starts = self.tree.starts[blocks.chain, blocks.number].mT.to(starts.dtype)
        self._recur(starts)
        self.kept = self.scale if blocks.single else self._since_rescaled()
        self.losses = self.first_scale.reciprocal().double()
        self.losses.index_add_(0, blocks.chain, self.kept.reciprocal().sum(0, dtype=torch.float64))
        if self.tree is not None:
            self.losses += self.tree.losses * _unit(emission)

    def in_order(self) -> Tensor:
        """a at every step of the chains, shape (K, N, T), zero in the padding."""  # noqa: D403
        return self.blocks.in_order(self.first, self.after)

    def _of_blocks(self) -> Tree:
        """The chains of blocks: from the start of each to the start of the next."""
        blocks, (states, chains) = self.blocks, self.first.shape
        count = 1 << (blocks.per_chain - 1).bit_length()
        leaves = torch.zeros(chains * count, states, states, dtype=torch.float64, device=self.first.device)
        leaves.diagonal(dim1=-2, dim2=-1).fill_(1.0)
        # rows of plain memory: an index over matrices takes ten times as long
        rows = self._products().permute(2, 1, 0).flatten(1)
        leaves.flatten(1).index_copy_(0, blocks.chain * count + blocks.number, rows)
        return Tree(self.first.mT.double(), leaves.unflatten(0, (chains, count)))

    def _products(self) -> Tensor:
        """The matrix of each block up to its largest number, float64, shape (K next, K previous, M)."""
        states, _, size = self.emission.shape
        product = torch.eye(states).to(self.emission).unsqueeze(-1).repeat(1, 1, size)
        other = torch.empty_like(product)
        logarithm = torch.zeros(states, size, dtype=torch.float64, device=product.device)
        every = RESCALED[product.dtype]
        for place, emission in enumerate(self.emission.unsqueeze(1).unbind(-2)):
            multiply(self.matrices.at(place, size).mT, product, out=other)
            other.mul_(emission)
            if (count := self.blocks.reach[place]) < size:
                other[..., count:] = product[..., count:]
            product, other = other, product
            if (place + 1) % every == 0 or place + 1 == len(self.blocks.reach):
                # a state that leads nowhere has nothing but zeros
                scale = product.sum(0).clamp_min_(torch.finfo(product.dtype).tiny)
                product.div_(scale)
                logarithm += scale.log_()
        logarithm -= logarithm.amax(0)
        return product.double().mul_(logarithm.exp_())

    def _recur(self, starts: Tensor) -> None:
        (states, places, size), blocks = self.emission.shape, self.blocks
        messages = self.scratch.take("forward", (states, places + 1, size), self.emission)
        messages[:, 0] = starts
        self.before, self.after = messages[:, :-1], messages[:, 1:]
        self.scale = self.emission.new_ones(places, size)
        by_place = (blocks.by_place(values) for values in (self.before, self.after, self.emission, self.scale))
        for place, (old, new, emission, scale) in enumerate(zip(*by_place, strict=True)):
            count = blocks.reach[place]
            multiply(self.matrices.at(place, count).mT, old, out=new)
            new.mul_(emission)
            torch.sum(new, 0, out=scale)
            new.div_(scale)
            if count < size:
                self.after[:, place, count:] = 0.0

    def _since_rescaled(self) -> Tensor:
        kept = self.scale.clone()
        for place in range(len(kept)):
            if place % self._every:
                kept[place] *= kept[place - 1]
        return kept

    def log_scale(self) -> Tensor:
        """The sum of log c over the places of each block, float64, shape (M,)."""
        total = self.kept[self._every - 1 :: self._every].double().log().sum(0)
        return total + self.kept[-1].double().log() if len(self.kept) % self._every else total


class Backward:
    """The backward recursion, after the forward one, whose emissions it writes over.

    Attributes:
        first: b_0, shape (K, N).
        joint: a b after each transition, shape (K, S, M), zero where a block does not reach, as what follows.
        weighed: e b / c after it, shape (K, S, M).
        losses: The sum of the largest b / kept over the steps, shape (N,); no number where nothing is left of a chain.
    """

    def __init__(self, forward: Forward) -> None:
        self._forward, self.blocks = forward, forward.blocks
        blocks = self.blocks
        self.first = torch.ones_like(forward.first)
        ends = self.first[:, blocks.chain]
        lost = torch.zeros_like(forward.losses)
        if forward.tree is not None:
            found, lost = forward.tree.ends()
            ends = found[blocks.chain, blocks.number].mT.to(ends.dtype).contiguous()
        self._recur(ends)
        self.losses = (self.first.amax(0) / forward.first_scale).double()
        growth = self._largest.div_(forward.kept)
        self.losses.index_add_(0, blocks.chain, growth.sum(0, dtype=torch.float64))
        self.losses += lost * _unit(growth)

    def _recur(self, current: Tensor) -> None:
        forward, blocks, size = self._forward, self.blocks, current.shape[-1]
        self.weighed = forward.emission
        self.joint = forward.scratch.take("backward", self.weighed.shape, self.weighed)
        self._largest = torch.zeros_like(forward.scale)
        results = (blocks.by_place(values) for values in (self.weighed, self.joint, self._largest))
        given = (blocks.by_place(values) for values in (forward.after, forward.scale))
        steps = list(zip(*results, *given, strict=True))
        for place in reversed(range(len(steps))):
            weighed, joint, largest, message, scale = steps[place]
            count = blocks.reach[place]
            here = current if count == size else current[:, :count]
            torch.amax(here, 0, out=largest)
            torch.mul(here, message, out=joint)
            weighed.mul_(here).div_(scale)
            if count < size:
                self.joint[:, place, count:] = 0.0
                self.weighed[:, place, count:] = 0.0
            multiply(forward.matrices.at(place, count), weighed, out=here)
        leading = blocks.number == 0
        self.first[:, blocks.chain[leading]] = current[:, leading]
