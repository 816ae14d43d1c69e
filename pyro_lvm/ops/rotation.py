"""Rotations of loadings towards simple structure: every column of the data with few factors, every factor with few.

References:
    H. Kaiser (1958), The varimax criterion for analytic rotation in factor analysis, Psychometrika 23.
    A. Hendrickson, P. White (1964), Promax: a quick method for rotation to oblique simple structure, British Journal of
        Statistical Psychology 17.
"""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["promax", "varimax"]

STEPS, TOLERANCE = 1000, 1e-12
POWER = 4
STARTS = 10  # the criterion has local maxima


def varimax(weight: Tensor) -> Tensor:
    r"""The orthogonal matrix A for which the squares of :math:`L = W A` vary most within columns, rows of length one.

    Args:
        weight: W, shape (d, k).

    Returns:
        Shape (k, k).
    """
    size = weight.norm(dim=-1, keepdim=True)
    rows = torch.where(size > 0, weight / size, 0.0)  # Kaiser's normalisation: every column of the data counts alike
    k = weight.shape[1]
    generator = torch.Generator().manual_seed(0)
    starts = [torch.eye(k)] + [torch.randn(k, k, generator=generator) for _ in range(STARTS if k > 1 else 0)]
    found = [_climbed(rows, torch.linalg.qr(start.to(weight))[0]) for start in starts]
    return max(found, key=lambda turn: _criterion(rows @ turn))


def promax(weight: Tensor) -> Tensor:
    r"""The matrix A of oblique factors: :math:`W A` is nearest to the varimax loadings with their contrasts raised.

    Factors :math:`A^{-1} h` have variance one, and correlations :math:`A^{-1} A^{-\top}`.

    Args:
        weight: W, shape (d, k).

    Returns:
        Shape (k, k).
    """
    turn = varimax(weight)
    straight = weight @ turn
    oblique = torch.linalg.lstsq(straight, straight * straight.abs() ** (POWER - 1)).solution
    turn = turn @ oblique
    inverse = torch.linalg.inv(turn)
    return turn * (inverse @ inverse.mT).diagonal().sqrt()


def _criterion(loadings: Tensor) -> float:
    return float(loadings.square().var(0, correction=0).sum())


def _climbed(rows: Tensor, turn: Tensor) -> Tensor:
    """The local maximum of the criterion that an orthogonal matrix leads to."""
    before = -1.0
    for _ in range(STEPS):
        loadings = rows @ turn
        slope = rows.mT @ (loadings**3 - loadings * loadings.square().mean(0))
        left, _, right = torch.linalg.svd(slope)
        turn = left @ right
        now = _criterion(rows @ turn)
        if now <= before + TOLERANCE * abs(before):
            break
        before = now
    return turn
