"""What sums of log(1 + exp(f)) are more than those of max(f, 0), with one logarithm for many terms."""

from __future__ import annotations

import math

from torch import Tensor

__all__ = ["softplus_rests"]

FACTORS = 32


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
