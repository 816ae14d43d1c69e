r"""Whether sources are flatter than the normal law, or more peaked.

Of a source u of mean zero and variance one, extended infomax takes the density of two humps where

.. math:: \mathrm{E}[\operatorname{sech}^2 u] - \mathrm{E}[u \tanh u] < 0,

which is zero of the normal law, and the condition under which a peaked density does not hold such a source in its
place. Its error over rows includes that of the variance.

References:
    T.-W. Lee, M. Girolami, T. Sejnowski (1999), Independent component analysis using an extended infomax algorithm for
        mixed subgaussian and supergaussian sources, Neural Computation 11, equation 2.24.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

__all__ = ["flatness"]


def flatness(y: Float[Tensor, "n k"], weights: Float[Tensor, " n"] | None = None) -> Float[Tensor, " k"]:
    """How much flatter than the normal law sources are, in standard errors; negative where they are more peaked.

    Args:
        y: Sources.
        weights: How much each row counts; all alike if None.

    Example:
        >>> import torch
        >>> flatness(torch.linspace(-1, 1, 1000).unsqueeze(-1)) > 3
        tensor([True])
    """
    share = y.new_full((len(y),), 1 / len(y)) if weights is None else weights / weights.sum()
    y = y - share @ y
    u = y / (share @ y.square()).sqrt().clamp_min(torch.finfo(y.dtype).tiny)
    bend = u.tanh()
    slope = 1 - bend.square()
    value = slope - u * bend
    by_variance = share @ (u * slope * bend + 0.5 * u * bend + 0.5 * u.square() * slope)
    mean = share @ value
    error = share.square() @ (value - mean + by_variance * (u.square() - 1)).square()
    return -mean / error.sqrt().clamp_min(torch.finfo(y.dtype).tiny)
