r"""Where each of many blocks of a chain starts and ends, found along a balanced tree in few operations.

A node stands for neighbouring blocks; its matrix is the product of its children's, up to its largest number. On the way
down, with :math:`L` and :math:`R` the matrices of a node's children, :math:`a` the law of the state at its start and
:math:`b` the likelihood of what follows, given the state at its end, the place between the children has

.. math::

    a' = a L / \sum (a L), \qquad b' = R b / (a' \cdot R b).

What is lost. A product below the least float `tiny` vanishes from the matrix of a node; with c the sum of a times that
matrix before it was rescaled, that puts the posterior off by at most `tiny` times the largest b over c, times the
states. Each node adds that to the losses.

References:
    G. Blelloch (1990), Prefix sums and their applications, CMU-CS-90-190.
    S. Särkkä, Á. García-Fernández (2021), Temporal parallelization of Bayesian smoothers, IEEE Transactions on
        Automatic Control 66.
"""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["Tree"]


class Tree:
    """The blocks of N chains of K states, all in float64.

    Args:
        first: Law of the first state, shape (N, K).
        leaves: The matrix of each block, [previous, next], up to a factor and at most 1, shape (N, B, K, K); B is a
            power of two, and what makes it one are identities.

    Attributes:
        starts: Law of the state before each block given the data up to there, shape (N, B, K).
        losses: The sum of 1 / c over the nodes, shape (N,); not a number where nothing is left of a chain.
    """

    def __init__(self, first: Tensor, leaves: Tensor) -> None:
        levels, largest = [leaves], []
        while levels[-1].shape[1] > 1:
            left, right = _children(levels[-1])
            product = left @ right
            largest.append(product.amax((-2, -1)).clamp_min_(torch.finfo(product.dtype).tiny))
            levels.append(product.div_(largest[-1][..., None, None]))
        starts = first.unsqueeze(1)
        scale = _after(starts, levels.pop()).sum(-1)
        self._splits: list[tuple[Tensor, Tensor, Tensor]] = []
        for matrices, factor in zip(reversed(levels), reversed(largest), strict=True):
            left, right = _children(matrices)
            between = _after(starts, left)
            of_left = between.sum(-1, keepdim=True)
            between.div_(of_left)
            kept = scale * factor
            self._splits.append((right, between, kept))
            starts = torch.stack([starts, between], 2).flatten(1, 2)
            scale = torch.stack([of_left.squeeze(-1), kept / of_left.squeeze(-1)], 2).flatten(1, 2)
        self.starts, self._scale = starts, scale
        self.losses = sum((kept.reciprocal().sum(1) for *_, kept in self._splits), scale.reciprocal().sum(1))

    def ends(self) -> tuple[Tensor, Tensor]:
        """What follows each block given the state at its end, a . b = 1 there, shape (N, B, K).

        Returns:
            That, and the sum of the largest b over c, shape (N,).
        """
        ends = torch.ones_like(self.starts[:, :1])
        losses = torch.zeros_like(self.losses)
        for right, between, kept in self._splits:
            losses += (ends.amax(-1) / kept).sum(1)
            earlier = (right @ ends.unsqueeze(-1)).squeeze(-1)
            earlier.div_((between * earlier).sum(-1, keepdim=True))
            ends = torch.stack([earlier, ends], 2).flatten(1, 2)
        return ends, losses + (ends.amax(-1) / self._scale).sum(1)


def _children(matrices: Tensor) -> tuple[Tensor, Tensor]:
    """The left and the right child of each node above."""
    left, right = matrices.unflatten(1, (-1, 2)).unbind(2)
    return left, right


def _after(starts: Tensor, matrices: Tensor) -> Tensor:
    return (starts.unsqueeze(-2) @ matrices).squeeze(-2)
