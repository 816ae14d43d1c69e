"""The prior of continuous latent vectors: independent standard normal coordinates."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import pyro.distributions as dist
import torch
from pyro.distributions.util import is_validation_enabled
from torch import Tensor

__all__ = ["StandardNormal", "standard_normal"]


class StandardNormal(dist.Normal):
    """A normal law of mean 0 and standard deviation 1 everywhere."""


def standard_normal(rows: int, size: int, like: Tensor) -> Any:
    """Independent standard normal vectors, batch shape (rows,), event shape (size,).

    The law of the last few sizes is kept, as a program asks for it at every step; it takes no memory for its rows.

    Args:
        rows: n >= 0.
        size: Length of every vector.
        like: A tensor of the type and on the device of its draws.

    Example:
        >>> import torch
        >>> standard_normal(3, 2, torch.zeros(1)).log_prob(torch.zeros(3, 2)).shape
        torch.Size([3])
    """
    return _law(rows, size, like.dtype, like.device, is_validation_enabled(), torch.is_inference_mode_enabled())


@lru_cache(maxsize=16)
def _law(rows: int, size: int, dtype: torch.dtype, device: torch.device, checked: bool, inference: bool) -> Any:
    """One for every setting: arguments are checked from then on, or not; tensors of inference allow no gradients."""
    zero, one = torch.zeros((), dtype=dtype, device=device), torch.ones((), dtype=dtype, device=device)
    return StandardNormal(zero.expand(rows, size), one.expand(rows, size), validate_args=checked).to_event(1)
