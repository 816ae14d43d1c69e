r"""Slow feature analysis in closed form.

Among linear functions of a signal with mean zero and variance one, uncorrelated with those before them, the slowest are
sought: those of least :math:`\Delta(y) = \langle (y_{t+1} - y_t)^2 \rangle`. With S a matrix that whitens the signal,
they are :math:`y = U^\top S (x - \langle x \rangle)`, U the eigenvectors of the second moments of the whitened signal's
differences, the smallest eigenvalue, which is :math:`\Delta`, first. Nonlinear functions are linear ones of an
expansion.

References:
    L. Wiskott, T. Sejnowski (2002), Slow feature analysis: unsupervised learning of invariances, Neural Computation 14.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

__all__ = ["EXPANSIONS", "SlowFeatures", "expanded", "expanded_dim", "slow_features"]

EXPANSIONS = ("linear", "quadratic")

# Least variance of a direction that is one, where the columns have variance one: below, it is rounding.
RANK = 1e-12


class SlowFeatures(NamedTuple):
    """The closed form; r is the number of directions in which the signal varies.

    Attributes:
        loc: Mean of the signal, shape (d,).
        unmixing: From the centred signal to the features, slowest first, shape (r, d).
        weight: Covariances of the signal with the features: the way back, shape (d, r).
        delta: The features' mean squared differences, shape (r,).
    """

    loc: Tensor
    unmixing: Tensor
    weight: Tensor
    delta: Tensor


def expanded_dim(d: int, expansion: str) -> int:
    """Number of columns after an expansion of d."""
    return d if expansion == "linear" else d + d * (d + 1) // 2


def expanded(x: Tensor, expansion: str) -> Tensor:
    """The columns, and behind them, if "quadratic", all their products of two, shape (..., d + d (d + 1) / 2).

    Args:
        x: Shape (..., d); products with NaN are NaN.
        expansion: "linear" or "quadratic".

    Example:
        >>> expanded(torch.tensor([2.0, 3.0]), "quadratic")
        tensor([2., 3., 4., 6., 9.])
    """
    if expansion == "linear":
        return x
    one, other = torch.triu_indices(x.shape[-1], x.shape[-1], device=x.device)
    return torch.cat([x, x[..., one] * x[..., other]], -1)


def slow_features(x: Tensor, known: Tensor, pairs: Tensor, counts: Tensor | None = None) -> SlowFeatures:
    """The closed form, of a signal in one or several sequences.

    Args:
        x: Sequences, shape (n, T, d).
        known: Which steps count, shape (n, T).
        pairs: Which steps from one to the next count, shape (n, T - 1).
        counts: How often each sequence counts, shape (n,); once by default.
    """
    counts = x.new_ones(len(x)) if counts is None else counts.to(x)
    of_steps, of_pairs = (counts.unsqueeze(-1).expand(part.shape)[part].unsqueeze(-1) for part in (known, pairs))
    total = of_steps.sum()
    loc = (of_steps * x[known]).sum(0) / total
    spread = ((of_steps * (x[known] - loc).square()).sum(0) / total).sqrt()
    scale = torch.where(spread > 0, spread, 1.0)
    z = (x - loc) / scale
    covariance = z[known].mT @ (of_steps * z[known]) / total
    values, vectors = torch.linalg.eigh(covariance)
    kept = values > RANK * values[-1]
    whitening = (vectors[:, kept] / values[kept].sqrt()).mT
    moved = (z[:, 1:] - z[:, :-1])[pairs] @ whitening.mT
    delta, turn = torch.linalg.eigh(moved.mT @ (of_pairs * moved) / of_pairs.sum())
    unmixing = turn.mT @ whitening
    weight = covariance @ unmixing.mT
    largest = weight.gather(0, weight.abs().argmax(0, keepdim=True)).squeeze(0)
    sign = torch.where(largest < 0, -1.0, 1.0).to(x)  # so that what a feature adds to most is positive
    unmixing, weight = unmixing * sign.unsqueeze(-1), weight * sign
    return SlowFeatures(loc, unmixing / scale, weight * scale.unsqueeze(-1), delta)
