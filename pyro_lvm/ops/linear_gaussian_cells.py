r"""Rows against several laws of rows with few factors, one a cell (a mixture component), in k x k matrices.

.. math::

    h \sim \mathrm{Normal}(0, I), \qquad x \mid h \sim \mathrm{Normal}(b_c + W_c h, \mathrm{diag}(\psi_c)), \qquad
    M_c = I + W_c^\top \psi_c^{-1} W_c = L_c L_c^\top, \\
    -2 \log p_c(x) = \log |2 \pi \psi_c| + \log |M_c| + (x - b_c)^\top \psi_c^{-1} (x - b_c)
        - \lVert L_c^{-1} W_c^\top \psi_c^{-1} (x - b_c) \rVert^2

The squares are linear in :math:`(x^2, x)`, and what is taken away is the size of k linear forms of x, so all cells are
scored by two matrix products: memory grows with rows times cells times k, never with rows times cells times columns.
Where entries are missing every sum runs over the known ones; :math:`M_c` then differs by pattern.

References:
    Z. Ghahramani, G. Hinton (1996), The EM algorithm for mixtures of factor analyzers, Toronto CRG-TR-96-1.
    Z. Ghahramani, M. Jordan (1994), Supervised learning from incomplete data via an EM approach, NIPS 6.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from pyro_lvm.ops.linear_gaussian import LinearGaussian
from pyro_lvm.ops.missing import has_gaps, patterns

__all__ = ["cells_log_likelihood", "each_moments", "each_posterior", "expected_moments", "factor_law"]

# How often a log-density, or a nat if that is more, the terms may hold whose difference it is: nine digits are left.
LIMIT = 1e7
# Numbers in one block of linear forms.
BLOCK = 1 << 18
# Share of the largest weight below which a row adds less to a sum of doubles than rounding does, a million of them too.
NOTHING = 1e-24


def cells_log_likelihood(loc: Tensor, weight: Tensor, noise: Tensor, x: Tensor) -> Tensor | None:
    """Log-density of what is known of every row under every law, nats.

    Args:
        loc: b, shape (c, d).
        weight: W, shape (c, d, k).
        noise: The variances, shape (c, d).
        x: Rows, shape (n, d), NaN where missing.

    Returns:
        Shape (c, n); None where the products would lose decimals.
    """
    cells, d, k = weight.shape
    complete = not has_gaps(x)
    if complete:
        seen, number, centre = x.new_ones(1, d), None, x.detach().mean(0)
    else:
        known = ~x.isnan()
        kinds, number, _ = patterns(known)
        seen, centre = kinds.to(x), torch.nanmean(x.detach(), 0).nan_to_num()
    offset, precision = loc - centre, noise.reciprocal()
    gain = weight * precision.unsqueeze(-1)
    products = (gain.unsqueeze(-1) * weight.unsqueeze(-2)).flatten(2)  # (c, d, k * k)
    factor = torch.linalg.cholesky((seen @ products).unflatten(-1, (k, k)) + torch.eye(k).to(x))
    eye = torch.eye(k).to(x).expand_as(factor)
    inverse = torch.linalg.solve_triangular(factor, eye, upper=False)  # (c, p, k, k)
    moved = offset * precision
    constant = seen @ ((2 * math.pi * noise).log() + offset * moved).mT
    constant = constant + 2 * factor.diagonal(dim1=-2, dim2=-1).log().sum(-1).mT  # (p, c)
    across = gain.permute(1, 0, 2).flatten(1)  # (d, c * k)
    shift = (seen @ (gain * offset.unsqueeze(-1))).permute(1, 0, 2)  # (p, c, k)
    if complete:  # one pattern: its factor goes into the forms
        across = (gain @ inverse[:, 0].mT).permute(1, 0, 2).flatten(1)
        shift = (inverse[:, 0] @ shift[0].unsqueeze(-1)).squeeze(-1).unsqueeze(0)
    across = torch.cat([-2 * moved.mT, across], 1)
    found: list[Tensor] = []
    for start in range(0, len(x), size := max(1, BLOCK // (cells * k * (1 if complete else k)))):
        part = x[start : start + size] - centre
        part = part if complete else torch.where(known[start : start + size], part, 0.0)
        place = 0 if number is None else number[start : start + size]
        linear, signal = (part @ across).split([cells, cells * k], 1)
        distance = part.square() @ precision.mT + linear + constant[place]
        signal = signal.unflatten(-1, (cells, k)) - shift[place]
        if number is not None:
            signal = (inverse[:, place].transpose(0, 1) @ signal.unsqueeze(-1)).squeeze(-1)
        density = -0.5 * (distance - signal.square().sum(-1))
        if bool((distance.detach() > LIMIT * density.detach().abs().clamp_min(1)).any()):
            return None
        found.append(density.mT)
    return torch.cat(found, 1)


def each_posterior(loc: Tensor, weight: Tensor, noise: Tensor, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Factors of rows that each have a law of their own; all arguments broadcast.

    Args:
        loc: b, shape batch + (d,).
        weight: W, shape batch + (d, k).
        noise: The variances, shape batch + (d,).
        x: Rows, shape batch + (d,), NaN where missing.

    Returns:
        Means, batch + (k,); Cholesky factors of the covariances, batch + (k, k); log-densities, nats, batch.
    """
    known = ~x.isnan()
    rest = torch.where(known, x - loc, 0.0)
    precision = noise.reciprocal()
    if not bool(known.all()):
        precision = precision * known
    gain = weight * precision.unsqueeze(-1)
    factor = torch.linalg.cholesky(gain.mT @ weight + torch.eye(weight.shape[-1]).to(x))
    covariance = torch.cholesky_inverse(factor)
    mean = (covariance @ (gain.mT @ rest.unsqueeze(-1))).squeeze(-1)
    rest = rest - (weight @ mean.unsqueeze(-1)).squeeze(-1)
    distance = (rest.square() * precision).sum(-1) + mean.square().sum(-1)
    log_det = 2 * factor.diagonal(dim1=-2, dim2=-1).log().sum(-1) + (known * (2 * math.pi * noise).log()).sum(-1)
    return mean, torch.linalg.cholesky(covariance), -0.5 * (log_det + distance)


def expected_moments(
    loc: Tensor, weight: Tensor, noise: Tensor, x: Tensor, weights: Tensor, centre: Tensor
) -> tuple[Tensor, Tensor]:
    r"""Moments of rows under one law, expected given what is known of them.

    :math:`\sum_n w_n \mathrm{E}[x_n - c]` and :math:`\sum_n w_n \mathrm{E}[(x_n - c)(x_n - c)^\top]`. Rows whose weight
    is as nothing beside the largest are left out: in many columns most rows belong to one component alone.

    Args:
        loc: b, shape (d,).
        weight: W, shape (d, k).
        noise: The variances, shape (d,).
        x: Rows, shape (n, d), NaN where missing.
        weights: Shape (n,).
        centre: c, shape (d,).

    Returns:
        Shapes (d,) and (d, d).
    """
    rows = (weights > NOTHING * weights.max()).nonzero().squeeze(1)
    if len(rows) < len(x):
        x, weights = x[rows], weights[rows]
    missing = x.isnan()
    gaps = bool(missing.any())
    if gaps:
        found = factor_law(loc, weight, noise).posterior(x)
        x = torch.where(missing, loc + found.loc @ weight.mT, x)
    filled = (x - centre) * weights.sqrt().unsqueeze(-1)
    first, second = weights.sqrt() @ filled, filled.mT @ filled
    if not gaps:
        return first, second
    count = weights.new_zeros(len(found.covariance)).index_add_(0, found.pattern, weights)
    example = torch.empty_like(count, dtype=torch.long)
    example[found.pattern.flip(0)] = torch.arange(len(x), device=x.device).flip(0)
    lacking = missing[example].to(x)  # (p, d)
    roots = (found.scale_tril * count.sqrt()[:, None, None]).mT  # (p, k, k)
    second += (count @ lacking * noise).diag()
    for start in range(0, len(count), size := max(1, BLOCK // weight.numel())):
        part = slice(start, start + size)
        spread = ((roots[part] @ weight.mT) * lacking[part].unsqueeze(1)).flatten(0, 1)  # (p * k, d)
        second += spread.mT @ spread
    return first, second


def each_moments(loc: Tensor, weight: Tensor, noise: Tensor, x: Tensor, centre: Tensor) -> tuple[Tensor, Tensor]:
    """What `expected_moments` sums, of rows that each have a law of their own, as for `each_posterior`."""
    mean, root, _ = each_posterior(loc, weight, noise, x)
    missing = x.isnan()
    filled = torch.where(missing, loc + (weight @ mean.unsqueeze(-1)).squeeze(-1), x) - centre
    spread = (root.mT @ weight.mT) * missing.unsqueeze(-2)
    second = filled.unsqueeze(-1) * filled.unsqueeze(-2) + spread.mT @ spread + (noise * missing).diag_embed()
    return filled, second


def factor_law(loc: Tensor, weight: Tensor, noise: Tensor) -> LinearGaussian:
    """One law, of shapes (d,), (d, k) and (d,)."""
    k = weight.shape[-1]
    return LinearGaussian(loc, weight, noise, weight.new_zeros(k), weight.new_ones(k))
