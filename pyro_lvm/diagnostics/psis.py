"""Can a guide be trusted? The Pareto shape of its importance ratios says.

References:
    A. Vehtari et al. (2024), Pareto smoothed importance sampling, JMLR 25.
    J. Zhang, M. Stephens (2009), A new and efficient estimation method for the generalized Pareto distribution.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

__all__ = ["LEAST", "pareto_k"]

LEAST = 25
"""Draws below which the tail holds too few of them."""


def pareto_k(log_ratios: NDArray[np.floating]) -> float:
    r"""Estimated Pareto shape :math:`\hat k` of importance ratios.

    Below 0.5 importance sampling from the guide is reliable, up to 0.7 usable; above, the guide misses the posterior.

    Args:
        log_ratios: Log p - log q of independent draws from q, shape (s,).

    Returns:
        The shape, or NaN for fewer than 25 draws.
    """
    log_ratios = np.asarray(log_ratios, dtype=np.float64).ravel()
    count = len(log_ratios)
    if count < LEAST or not np.isfinite(log_ratios).all():
        return float("nan")
    tail = int(np.ceil(min(count / 5, 3 * np.sqrt(count))))
    ordered = np.sort(log_ratios - log_ratios.max())
    excess = np.exp(ordered[-tail:]) - np.exp(ordered[-tail - 1])
    if excess[-1] <= 0:
        return float("-inf")  # all ratios alike
    # Zhang and Stephens: average over a grid of 1 / (upper end), weighted by profile likelihood
    points = 30 + int(np.sqrt(tail))
    quartile = excess[int(tail / 4 + 0.5) - 1]
    grid = 1 / excess[-1] + (1 - np.sqrt(points / (np.arange(1, points + 1) - 0.5))) / (3 * max(quartile, 1e-300))
    shape = np.log1p(-grid[:, None] * excess).mean(1)
    profile = tail * (np.log(-(grid / shape)) - shape - 1)
    weights = np.exp(profile - profile.max())
    best = (grid * weights / weights.sum()).sum()
    k = np.log1p(-best * excess).mean()
    return float((tail * k + 5) / (tail + 10))  # a weak prior centred on 0.5, as in the paper
