"""Sums of log(1 + exp(f)), with one logarithm for many terms."""

from __future__ import annotations

import math

from torch import Tensor

__all__ = ["softplus_rests", "softplus_sums"]

FACTORS = 32


def softplus_sums(fields: Tensor, probs: Tensor) -> Tensor:
    r"""Sums of :math:`\log(1 + e^f)` over the last axis, in half of the time of summing each.

    :math:`\log(1 + e^f) = \max(f, 0) - \log \max(p, 1 - p)` with :math:`p = \mathrm{sigmoid}(f)`; where 32 or another
    power of two divides m, as many of these factors, all between 1/2 and 1, are multiplied before the logarithm.

    Args:
        fields: f, shape (..., m).
        probs: p, shape (..., m).

    Returns:
        Shape (...).
    """
    return fields.clamp_min(0).sum(-1) + softplus_rests(probs)


def softplus_rests(probs: Tensor) -> Tensor:
    r"""Sums of :math:`\log(1 + e^f) - \max(f, 0) = -\log \max(p, 1 - p)` over the last axis, all of them small.

    Args:
        probs: :math:`p = \mathrm{sigmoid}(f)`, shape (..., m).

    Returns:
        Shape (...).
    """
    size = math.gcd(probs.shape[-1], FACTORS)
    factors = (1 - probs).clamp_min_(probs).unflatten(-1, (probs.shape[-1] // size, size))
    return -factors.prod(-1).log_().sum(-1)
