r"""Squared extrapolation: EM in far fewer steps where components overlap and plain EM crawls.

From :math:`\theta_0`, two EM steps give :math:`r = \theta_1 - \theta_0` and :math:`v = (\theta_2 - \theta_1) - r`. The
third starts at :math:`\theta_0 + 2 a r + a^2 v`, with :math:`a = -r \cdot v / v \cdot v`, if the log-likelihood there
is no lower than at :math:`\theta_1`; else at :math:`\theta_2`, so that the log-likelihood never falls. All parameters
are one vector, unconstrained, so that every extrapolation is valid.

References:
    R. Varadhan, C. Roland (2008), Simple and globally convergent methods for accelerating the convergence of any EM
    algorithm, Scandinavian Journal of Statistics 35, section 3 (step length S1).
"""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["extrapolate", "put"]

# Extrapolating by less changes nothing.
NO_STEP = 1.01


def extrapolate(first: list[Tensor], second: list[Tensor], third: list[Tensor]) -> list[Tensor] | None:
    """The point to try after two EM steps; None if it is the third point itself or not finite.

    Args:
        first: Unconstrained parameters before the steps.
        second: The same after one step.
        third: The same after two.
    """
    start, one, two = (torch.cat([t.reshape(-1).double() for t in point]) for point in (first, second, third))
    r = one - start
    v = (two - one) - r
    curvature = v @ v
    if not bool(curvature > 0):
        return None
    length = float(-(r @ v) / curvature)
    if not length > NO_STEP:
        return None
    target = start + 2 * length * r + length**2 * v
    if not bool(torch.isfinite(target).all()):
        return None
    parts = target.split([t.numel() for t in first])
    return [part.reshape(t.shape).to(t.dtype) for part, t in zip(parts, first, strict=True)]


def put(tensors: list[Tensor], values: list[Tensor]) -> None:
    """Write values into tensors in place."""
    for tensor, value in zip(tensors, values, strict=True):
        tensor.data.copy_(value)
