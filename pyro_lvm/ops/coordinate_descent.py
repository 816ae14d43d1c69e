r"""Coordinate descent over codes of many rows at once.

.. math:: \min_h \; \tfrac12 h^\top G h - c^\top h + \sum_j \rho_j(h_j)

Of one entry with the others held it is :math:`\tfrac12 a h_j^2 - b h_j + \rho_j(h_j)`, where
:math:`a = G_{jj}` and :math:`b = c_j - \sum_{i \ne j} G_{ij} h_i`. Where that is least, or less than before, is what a
prior of codes says.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

__all__ = ["Shrink", "descend", "times"]

Shrink = Callable[[Tensor, Tensor | float, Tensor, int], Tensor]
"""From b, a, the entry of every row so far, and its number j to a place that is no worse."""

BLOCK = 16  # coordinates between two products with all of G


def descend(products: Tensor, gram: Tensor, shrink: Shrink, codes: Tensor, sweeps: int) -> None:
    """Sweeps over codes, in place.

    Args:
        products: c, transposed: shape (k, n).
        gram: G, shape (k, k), or one for every row, shape (n, k, k).
        shrink: Where an entry moves, the others held.
        codes: h, transposed: shape (k, n).
        sweeps: How often every entry moves.
    """
    if gram.dim() == 3:
        _descend_each(products, gram, shrink, codes, sweeps)
        return
    curvature = gram.diagonal().tolist()
    for _ in range(sweeps):
        for first in range(0, len(gram), BLOCK):
            part = slice(first, min(first + BLOCK, len(gram)))
            within = gram[part, part]
            slopes = torch.addmm(products[part], gram[part], codes, alpha=-1)
            for j, here in enumerate(range(part.start, part.stop)):
                if curvature[here] <= 0:  # a column of zeros
                    continue
                code = codes[here]
                best = shrink(torch.add(slopes[j], code, alpha=curvature[here]), curvature[here], code, here)
                slopes.addr_(within[j], code - best)
                code.copy_(best)


def _descend_each(products: Tensor, gram: Tensor, shrink: Shrink, codes: Tensor, sweeps: int) -> None:
    """The same where every row has products of columns of its own."""
    for _ in range(sweeps):
        slopes = products - times(codes.mT, gram).mT
        for j in range(len(codes)):
            column = gram[:, j]
            curvature = column[:, j]
            best = shrink(slopes[j] + curvature * codes[j], curvature, codes[j], j)
            best = torch.where(curvature > 0, best, codes[j])
            slopes += column.mT * (codes[j] - best)
            codes[j] = best


def times(codes: Tensor, gram: Tensor) -> Tensor:
    """G h of every row, shape (n, k), of one G or of one for every row."""
    return codes @ gram if gram.dim() == 2 else (codes.unsqueeze(-2) @ gram).squeeze(-2)
