"""Rows that count more or less often than once."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from pyro import poutine
from torch import Tensor

__all__ = ["counted", "same_scale"]


def counted(sample_weights: Tensor | None, like: Tensor) -> AbstractContextManager[Any]:
    """Count every row as often as its weight says, once if None.

    Args:
        sample_weights: Shape (n,), >= 0.
        like: A tensor of the program's type and device.
    """
    if sample_weights is None:
        return nullcontext()
    # Pyro wants a scale > 0: the smallest there is makes no difference to any sum
    return poutine.scale(scale=sample_weights.to(like).clamp_min(torch.finfo(like.dtype).tiny))


def same_scale(a: Any, b: Any) -> bool:
    """Whether two scales, numbers or tensors, are equal."""
    if a is b:
        return True
    if isinstance(a, Tensor) or isinstance(b, Tensor):
        return isinstance(a, Tensor) and isinstance(b, Tensor) and a.shape == b.shape and bool((a == b).all())
    return bool(a == b)
