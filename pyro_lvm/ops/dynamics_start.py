"""Starts of linear dynamical systems: principal components of windows of steps, and how they move on."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["dynamics_start", "filled_steps"]

SPECIFIC = 0.05  # least share of a column's variance that is noise at the start
STEADY = 0.99  # largest modulus of an eigenvalue of the transition at the start
JITTER = 0.01  # share of a component's variance that moves add to it at the start, at least


def filled_steps(x: Tensor) -> Tensor:
    """Sequences, shape (n, T, d), whose missing entries are interpolated over time; the column's mean if none is known.

    Args:
        x: NaN where missing.
    """
    known = ~x.isnan()
    if bool(known.all()):
        return x
    total = x.shape[1]
    place = torch.arange(total, device=x.device).reshape(1, -1, 1).expand(x.shape)
    before = torch.where(known, place, -1).cummax(1).values
    after = torch.where(known, place, total).flip(1).cummin(1).values.flip(1)
    none = (before < 0) & (after == total)
    left = torch.where(before < 0, after, before).clamp_max(total - 1)
    right = torch.where(after == total, before, after).clamp_min(0)
    values = torch.where(known, x, 0.0)
    share = (place - left).to(x) / (right - left).clamp_min(1)
    between = torch.lerp(values.gather(1, left), values.gather(1, right), share)
    return torch.where(none, x.flatten(0, 1).nanmean(0), between)


def dynamics_start(x: Tensor, inside: Tensor, latent_dim: int) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Components of windows of steps, and least squares: from components to steps, and to the next components.

    With no more latent dimensions than columns a window is one step.

    Args:
        x: Complete sequences, shape (n, T, d).
        inside: Which steps are no padding, shape (n, T).
        latent_dim: k.

    Returns:
        Transition (k, k), weights (d, k), loc (d,), variances of the noise (d,), mean (k,) and covariance (k, k) of
        first states, in coordinates in which moves have the identity as their covariance.
    """
    n, total, d = x.shape
    loc = x[inside].mean(0)
    centred = x - loc
    variance = centred[inside].square().mean(0)
    scaled = centred / variance.sqrt()
    width = -(-latent_dim // d)
    place = torch.arange(total, device=x.device)
    windows = torch.cat([scaled[:, (place - lag).clamp_min(0)] for lag in range(width)], -1)
    rows = windows[inside]
    _, _, axes = torch.linalg.svd(rows.mT @ rows / len(rows))
    states = windows @ axes[:latent_dim].mT
    moved = inside[:, 1:]
    before, after = states[:, :-1][moved], states[:, 1:][moved]
    spread = (states[inside].square().mean(0)).clamp_min(1e-6)
    ridge = (JITTER * len(before) * spread + 1e-6).diag()
    transition = torch.linalg.solve(before.mT @ before + ridge, before.mT @ after).mT
    modulus = float(torch.linalg.eigvals(transition).abs().max())
    transition = transition * min(1.0, STEADY / modulus) if modulus > 0 else transition
    errors = after - before @ transition.mT
    moves = errors.mT @ errors / max(1, len(errors)) + (JITTER * spread).diag()
    flat = states[inside]
    weight = torch.linalg.solve(flat.mT @ flat + ridge / max(1, len(before)), flat.mT @ centred[inside]).mT
    noise = (centred[inside] - flat @ weight.mT).square().mean(0).maximum(SPECIFIC * variance)
    first = states[:, 0]
    around = first - first.mean(0)
    initial = around.mT @ around / n + (JITTER * spread).diag()
    return rescaled(transition, weight, loc, noise, first.mean(0), initial, moves)


def rescaled(
    transition: Tensor,
    weight: Tensor,
    loc: Tensor,
    noise: Tensor,
    initial_loc: Tensor,
    initial_covariance: Tensor,
    moves: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    r"""The same law in coordinates :math:`Q^{-1/2} h`, in which moves have the identity as their covariance.

    Args:
        transition: A, shape (k, k).
        weight: C, shape (d, k).
        loc: b, shape (d,).
        noise: R, shape (d,).
        initial_loc: Shape (k,).
        initial_covariance: Shape (k, k).
        moves: Q, shape (k, k), positive definite.
    """
    values, vectors = torch.linalg.eigh(moves)
    root, inverse = (vectors * values.sqrt()) @ vectors.mT, (vectors / values.sqrt()) @ vectors.mT
    first = inverse @ initial_covariance @ inverse
    return inverse @ transition @ root, weight @ root, loc, noise, inverse @ initial_loc, 0.5 * (first + first.mT)
