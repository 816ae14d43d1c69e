r"""The most probable factor analysis of a covariance, by its noise alone.

Given the noise variances :math:`\psi`, the best loadings are known: with the largest eigenvalues :math:`\theta_j` and
eigenvectors :math:`u_j` of :math:`\psi^{-1/2} S \psi^{-1/2}`, they are :math:`\psi^{1/2} u_j (\theta_j - 1)^{1/2}`.
What is left is a function of d numbers,

.. math::

    f(\psi) = \sum_i \log \psi_i + \sum_{j \le k} (1 + \log \theta_j) + \sum_{j > k} \theta_j, \qquad
    \frac{\partial f}{\partial \log \psi_i} = \frac{(W W^\top + \psi - S)_{ii}}{\psi_i},

where an eigenvalue below one stands on the right-hand side. Bounds on it hold Heywood cases.

References:
    D. Lawley, A. Maxwell (1971), Factor analysis as a statistical method, chapter 4.
    K. Jöreskog (1967), Some contributions to maximum likelihood factor analysis, Psychometrika 32.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import linalg, optimize
from torch import Tensor

__all__ = ["HEYWOOD", "NOISE_FLOOR", "canonical", "factor_parts", "signs"]

NOISE_FLOOR = 1e-6
"""Least share of a column's variance that is noise."""

HEYWOOD = 1e-4
"""Share of a column's variance below which its noise is as good as none."""

STEPS = 1000


def factor_parts(covariance: Tensor, num_factors: int) -> tuple[Tensor, Tensor]:
    r"""Loadings and noise variances of the highest likelihood, :math:`W^\top \psi^{-1} W` diagonal and falling.

    The start is the usual one of Jöreskog: noise is what a column has that the others do not explain.

    Args:
        covariance: S, shape (d, d), with a positive diagonal.
        num_factors: k <= d.

    Returns:
        W of shape (d, k), and the variances, shape (d,).
    """
    scale = covariance.double().diagonal().sqrt()
    correlation = (covariance.double() / scale / scale.unsqueeze(-1)).cpu().numpy()
    d = len(correlation)

    def profile(log_noise: NDArray[np.floating]) -> tuple[float, NDArray[np.floating]]:
        weight, values = _best(correlation, np.exp(log_noise), num_factors)
        explained = np.maximum(values[:num_factors], 1.0)
        cost = log_noise.sum() + np.log(explained).sum() + num_factors
        cost += values[num_factors:].sum() + np.minimum(values[:num_factors] - 1.0, 0.0).sum()
        excess = (weight**2).sum(1) + np.exp(log_noise) - 1.0
        return float(cost), excess / np.exp(log_noise)

    specific = (1 - num_factors / (2 * d)) / np.diag(linalg.pinvh(correlation + NOISE_FLOOR * np.eye(d)))
    start = np.log(np.clip(specific, 10 * NOISE_FLOOR, 1.0))
    found = optimize.minimize(
        profile,
        start,
        jac=True,
        method="L-BFGS-B",
        bounds=[(np.log(NOISE_FLOOR), np.log(2.0))] * d,
        options={"maxiter": STEPS, "maxfun": 2 * STEPS, "ftol": 1e-15, "gtol": 1e-9, "maxcor": 30},
    )
    noise = torch.from_numpy(np.exp(found.x))
    weight = torch.from_numpy(_best(correlation, np.exp(found.x), num_factors)[0])
    weight = canonical(weight, noise) * scale.cpu().unsqueeze(-1)
    return weight.to(covariance), (noise * scale.cpu().square()).to(covariance)


def canonical(weight: Tensor, noise: Tensor) -> Tensor:
    r"""Rotated loadings, :math:`W^\top \psi^{-1} W` diagonal and falling, signs by :math:`\psi^{-1/2} W`: any units do.

    Args:
        weight: W, shape batch + (d, k).
        noise: The variances, shape batch + (d,) or ().

    Returns:
        Of the shape of `weight`: columns by how much they tell; :math:`W W^\top` is what it was.
    """
    scale = noise.double().sqrt().expand(weight.shape[:-1]).unsqueeze(-1)
    left, sizes, _ = torch.linalg.svd(weight.double() / scale, full_matrices=False)
    return (left * (signs(left) * sizes).unsqueeze(-2) * scale).to(weight)


def signs(weight: Tensor) -> Tensor:
    """Of each column, -1 if its entry of largest size is negative, else 1; shape batch + (k,)."""
    largest = weight.gather(-2, weight.abs().argmax(-2, keepdim=True)).squeeze(-2)
    return torch.where(largest < 0, -1.0, 1.0).to(weight)


def _best(
    covariance: NDArray[np.floating], noise: NDArray[np.floating], num_factors: int
) -> tuple[NDArray[np.floating], NDArray[np.floating]]:
    """The best loadings given the noise, and all eigenvalues, falling."""
    root = np.sqrt(noise)
    values, vectors = linalg.eigh(covariance / root / root[:, None])
    values, vectors = values[::-1], vectors[:, ::-1]
    size = np.sqrt(np.maximum(values[:num_factors] - 1.0, 0.0))
    return root[:, None] * vectors[:, :num_factors] * size, values
