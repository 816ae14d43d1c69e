r"""Factor analysis of a covariance by EM over the factors, in k x k matrices; many covariances at once.

With covariance :math:`W W^\top + \psi`, :math:`\psi` diagonal, and S the scatter matrix per unit of weight, a sweep is

.. math::

    \beta = W^\top (W W^\top + \psi)^{-1}, \quad M = I - \beta W + \beta S \beta^\top, \quad
    W^* = S \beta^\top M^{-1}, \quad \psi' = \operatorname{diag}(S - W^* \beta S), \quad W' = W^* M^{1/2}.

The last equation is what parameter expansion adds: factors with a covariance of their own, M at its best, are factors
with covariance I under loadings :math:`W^* M^{1/2}`. It costs nothing, the likelihood rises all the same, and faster.

References:
    D. Rubin, D. Thayer (1982), EM algorithms for ML factor analysis, Psychometrika 47(1), equations 5 to 8.
    C. Liu, D. Rubin, Y. Wu (1998), Parameter expansion to accelerate EM: the PX-EM algorithm, Biometrika 85(4).
"""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["expanded_loadings", "factor_moments", "factor_sweeps"]


def factor_moments(scatter: Tensor, weight: Tensor, noise: Tensor, total: Tensor) -> tuple[Tensor, Tensor]:
    """Expected products of rows with factors, and of factors with one another; sums if the scatter is one.

    Args:
        scatter: Of rows about their mean, shape batch + (d, d).
        weight: W, shape batch + (d, k).
        noise: The variances, shape batch + (d,) or (1,).
        total: The weight of the rows, shape batch.

    Returns:
        Shapes batch + (d, k) and batch + (k, k).
    """
    gain = weight / noise.unsqueeze(-1)
    precision = weight.mT @ gain + torch.eye(weight.shape[-1]).to(weight)
    covariance = torch.cholesky_inverse(_root(precision))
    beta = gain @ covariance  # transposed
    cross = scatter @ beta
    second = total[..., None, None] * covariance + beta.mT @ cross
    return cross, 0.5 * (second + second.mT)


def expanded_loadings(cross: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
    r"""Loadings :math:`W^*` given the factors, and :math:`W^* M^{1/2}`; of moments per unit of weight."""
    root = _root(second)
    half = torch.linalg.solve_triangular(root, cross.mT, upper=False).mT  # W* times the root
    return torch.linalg.solve_triangular(root.mT, half.mT, upper=True).mT, half


def factor_sweeps(scatter: Tensor, weight: Tensor, noise: Tensor, floor: Tensor, sweeps: int) -> tuple[Tensor, Tensor]:
    """Loadings and noise variances after so many sweeps, each of which raises the likelihood.

    Args:
        scatter: Covariances S, shape batch + (d, d).
        weight: W, shape batch + (d, k).
        noise: The variances, shape batch + (d,), or (1,) if they are the same for all columns.
        floor: The least they may be, of the shape of `noise`.
        sweeps: How many.

    Returns:
        The new `weight` and `noise`.
    """
    one, diagonal = torch.ones(()).to(scatter), scatter.diagonal(dim1=-2, dim2=-1)
    for _ in range(sweeps):
        cross, second = factor_moments(scatter, weight, noise, one)
        best, weight = expanded_loadings(cross, second)
        left = diagonal - (best * cross).sum(-1)
        noise = torch.maximum(left if noise.shape[-1] > 1 else left.mean(-1, keepdim=True), floor)
    return weight, noise


def _root(matrix: Tensor) -> Tensor:
    """Cholesky factors; NaN where there is none, as in cells without weight."""
    root, failed = torch.linalg.cholesky_ex(matrix)
    return torch.where((failed == 0)[..., None, None], root, torch.nan)
