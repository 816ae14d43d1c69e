r"""EM for linear dynamics: expected sufficient statistics, and what maximises given them.

With :math:`\langle \cdot \rangle` the sum over sequences and steps of posterior expectations, w times each sequence,

.. math::

    A = \langle h_{t+1} h_t^\top \rangle \langle h_t h_t^\top \rangle^{-1}, \quad
    [C_j, b_j] = \langle x_j \tilde h^\top \rangle_j \langle \tilde h \tilde h^\top \rangle_j^{-1}, \;
    \tilde h = (h, 1), \quad
    R_j = \langle (x_j - b_j - C_j h)^2 \rangle_j / \langle 1 \rangle_j

where the sums of a column j are over the steps in which it is known, so that missing entries are summed out exactly.

References:
    R. Shumway, D. Stoffer (1982), An approach to time series smoothing and forecasting using the EM algorithm.
    Z. Ghahramani, G. Hinton (1996), Parameter estimation for linear dynamical systems, CRG-TR-96-2.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from pyro_lvm.ops.kalman_gains import LinearDynamics
from pyro_lvm.ops.kalman_smoother import Smoothed

__all__ = [
    "DynamicsStatistics",
    "dynamics_statistics",
    "first_state_update",
    "initial_update",
    "observation_update",
    "slow_update",
    "transition_update",
]

TOLD = 1e-9  # least share of the variance of a first state that a series takes away where it tells anything of it
BUDGET = 2**21  # numbers of products of states held at once


class DynamicsStatistics(NamedTuple):
    """Sums over sequences, of steps as the observation's loc leaves them.

    Attributes:
        sequences: Number of sequences.
        first: Of first states, shape (k,).
        first_moment: Of their products, shape (k, k).
        first_spread: Of their covariances, shape (k, k).
        moves: Number of transitions.
        later: Products of states that are moved to, shape (k, k).
        cross: Products of those with the ones before, shape (k, k).
        earlier: Products of states that are left, shape (k, k).
        known: Number of known entries, shape (d,).
        squares: Of them, shape (d,).
        products: Of them with states and 1, shape (d, k + 1).
        moments: Products of states and 1 in those steps, shape (d or 1, k + 1, k + 1).
    """

    sequences: Tensor
    first: Tensor
    first_moment: Tensor
    first_spread: Tensor
    moves: Tensor
    later: Tensor
    cross: Tensor
    earlier: Tensor
    known: Tensor
    squares: Tensor
    products: Tensor
    moments: Tensor


def dynamics_statistics(
    dynamics: LinearDynamics, x: Tensor, smoothed: Smoothed, weights: Tensor | None = None
) -> DynamicsStatistics:
    """Expected sufficient statistics.

    Args:
        dynamics: The law that gave the posterior.
        x: Sequences, shape (n, T, d), NaN where unknown.
        smoothed: Their states.
        weights: How often each sequence counts, shape (n,); once by default.
    """
    patterns, (total, n, k) = smoothed.filtered.patterns, smoothed.loc.shape
    w = x.new_ones(n) if weights is None else weights.to(x)
    of_group = w.sum().reshape(1)
    if patterns.group is not None:
        of_group = w.new_zeros(patterns.known.shape[1]).index_add(0, patterns.group, w)
    inside = patterns.by_sequence(patterns.inside, n) * w  # (T, n)
    spread = patterns.inside * of_group  # (T, g)
    loc, moves = smoothed.loc, inside[1:].unsqueeze(-1)
    later = _products(loc[1:] * moves, loc[1:]) + _sum(smoothed.covariance[1:], spread[1:])
    earlier = _products(loc[:-1] * moves, loc[:-1]) + _sum(smoothed.covariance[:-1], spread[1:])
    cross = _products(loc[1:] * moves, loc[:-1]) + _sum(smoothed.cross_covariance, spread[1:])
    first = w @ loc[0]
    spread_first = _sum(smoothed.covariance[:1], of_group.unsqueeze(0))
    first_moment = _products(loc[0] * w.unsqueeze(-1), loc[0]) + spread_first
    residual = (x - dynamics.loc).transpose(0, 1)
    extended = torch.cat([loc, loc.new_ones(total, n, 1)], -1)
    if patterns.complete:
        moments = loc.new_zeros(k + 1, k + 1)
        moments[:k, :k] = _sum(smoothed.covariance, spread)
        moments = (moments + _products(extended * inside.unsqueeze(-1), extended)).unsqueeze(0)
        counted = inside.unsqueeze(-1)
        known = w.sum().mul(total).expand(x.shape[-1])
    else:
        counted = patterns.by_sequence(patterns.known, n) * w.unsqueeze(-1)
        residual = torch.where(counted > 0, residual, 0.0)
        moments = _known_products(counted, extended)
        weight = (patterns.known * of_group.unsqueeze(-1)).flatten(0, 1)
        moments[:, :k, :k] += (weight.mT @ smoothed.covariance.flatten(0, 1).flatten(1)).unflatten(-1, (k, k))
        known = counted.sum((0, 1))
    weighted = residual * counted
    squares, products = (weighted * residual).sum((0, 1)), _products(weighted, extended)
    states = (w.sum(), first, first_moment, spread_first, inside[1:].sum(), later, cross, earlier)
    return DynamicsStatistics(*states, known, squares, products, moments)


def _products(one: Tensor, other: Tensor) -> Tensor:
    """Sum of outer products over all axes but the last."""
    return one.reshape(-1, one.shape[-1]).mT @ other.reshape(-1, other.shape[-1])


def _sum(covariances: Tensor, weights: Tensor) -> Tensor:
    """Weighted sum of matrices, shape (T, g, k, k), by weights (T, g)."""
    return torch.tensordot(weights, covariances, 2)


def _known_products(counted: Tensor, extended: Tensor) -> Tensor:
    """Sums of outer products over the steps in which each column is known, shape (d, k + 1, k + 1)."""
    rows, states = counted.flatten(0, 1), extended.flatten(0, 1)
    size = states.shape[1]
    total = states.new_zeros(rows.shape[1], size * size)
    for part, state in zip(*(t.split(max(1, BUDGET // (size * size))) for t in (rows, states)), strict=True):
        total += part.mT @ (state.unsqueeze(-1) * state.unsqueeze(-2)).flatten(1)
    return total.unflatten(-1, (size, size))


def observation_update(found: DynamicsStatistics, loc: Tensor, floor: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Weights C, loc b and variances R of the columns that maximise; of columns never known none that is finite.

    Args:
        found: The statistics.
        loc: The loc that they are about, shape (d,).
        floor: Least variances, shape (d,).
    """
    solution = torch.linalg.solve(found.moments, found.products.unsqueeze(-1)).squeeze(-1)
    explained = 2 * (solution * found.products).sum(-1)
    fitted = (solution.unsqueeze(-2) @ found.moments @ solution.unsqueeze(-1)).reshape(-1)
    variance = (found.squares - explained + fitted) / found.known
    return solution[:, :-1], loc + solution[:, -1], variance.maximum(floor)


def transition_update(found: DynamicsStatistics) -> tuple[Tensor, Tensor]:
    """Transition A, and the covariance Q of what comes to it, that maximise."""
    transition = torch.linalg.solve(found.earlier, found.cross.mT).mT
    crossed = transition @ found.cross.mT
    covariance = (found.later - crossed - crossed.mT + transition @ found.earlier @ transition.mT) / found.moves
    return transition, 0.5 * (covariance + covariance.mT)


def initial_update(found: DynamicsStatistics) -> tuple[Tensor, Tensor]:
    """Mean and covariance of the first state that maximise."""
    loc = found.first / found.sequences
    return loc, found.first_moment / found.sequences - loc.outer(loc)


def first_state_update(found: DynamicsStatistics, loc: Tensor, variance: float) -> tuple[Tensor, Tensor]:
    r"""The mean of the first state of a single series that maximises the likelihood itself, and what it gains, nats.

    Where the covariance of that state is a multiple c of the identity, the likelihood is normal in its mean m: with E
    and V of that state given the series, its gradient is :math:`(E - m) / c` and its curvature
    :math:`-(c - V) / c^2`. EM would come closer by a share of :math:`1 - V / c` in a step only.

    Args:
        found: The statistics.
        loc: m, shape (k,).
        variance: c.
    """
    away, eye = found.first / found.sequences - loc, torch.eye(len(loc)).to(loc)
    told, vectors = torch.linalg.eigh(eye - found.first_spread / found.sequences / variance)
    share = torch.where(told > TOLD, (vectors.mT @ away) / told.clamp_min(TOLD), 0.0)
    return loc + vectors @ share, 0.5 * found.sequences * (told * share.square()).sum() / variance


def slow_update(found: DynamicsStatistics) -> Tensor:
    r"""Autocorrelations that maximise where each state is by itself, of variance one.

    With a, b, c the means of :math:`h_{t+1}^2`, :math:`h_t^2` and :math:`h_{t+1} h_t`, the derivative of
    :math:`-\frac12 \log(1 - \lambda^2) - (a - 2 c \lambda + b \lambda^2) / 2 (1 - \lambda^2)` vanishes where
    :math:`\lambda^3 - c \lambda^2 + (a + b - 1) \lambda - c = 0`; of up to three roots in (-1, 1) the best is taken.
    """
    a, b, c = ((part.diagonal() / found.moves).unsqueeze(-1) for part in (found.later, found.earlier, found.cross))
    companion = a.new_zeros(len(a), 3, 3)
    companion[:, 1, 0] = companion[:, 2, 1] = 1.0
    companion[:, :, 2] = torch.cat([c, 1 - a - b, c], -1)
    roots = torch.linalg.eigvals(companion)
    rate = roots.real
    inside = (rate.abs() < 1) & (roots.imag.abs() <= 1e-6 * roots.abs().clamp_min(1e-6))
    left = torch.where(inside, 1 - rate.square(), 1.0)
    value = -0.5 * left.log() - 0.5 * (a - 2 * c * rate + b * rate.square()) / left
    best = torch.where(inside, value, -torch.inf).argmax(-1, keepdim=True)
    return rate.gather(-1, best).squeeze(-1)
