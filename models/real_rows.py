"""What mixtures over real vectors ask of their rows and of sample weights."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from pyro import poutine
from torch import Tensor

__all__ = ["check_learnable", "check_matrix", "check_sample_weights", "counted"]


def check_matrix(name: str, x: Tensor, data_dim: int | None) -> None:
    """Raise a ValueError unless `x` is a matrix with `data_dim` columns."""
    if x.dim() != 2 or (data_dim is not None and x.shape[1] != data_dim):
        shape = tuple(x.shape)
        hint = "Reshape it to a matrix, one row per observation."
        if x.dim() == 2:
            hint = f"Pass data_dim={shape[1]}, or give {data_dim} columns."
        elif x.dim() == 1:
            hint = "Pass x.reshape(-1, 1) for a single column."
        raise ValueError(f"{name}: expected x of shape (n, {data_dim or 'd'}); got {shape}. {hint}")


def check_learnable(name: str, x: Tensor, num_components: int) -> None:
    """Raise a ValueError for fewer rows than components, fewer than two rows, or a constant or empty column."""
    if len(x) < num_components:
        raise ValueError(
            f"{name}: expected at least as many rows as components ({num_components}); got {len(x)}. "
            "Lower num_components or add rows."
        )
    if len(x) < 2:
        raise ValueError(f"{name}: expected at least 2 rows, since one row has no covariance; got 1. Add rows.")
    least, most = (torch.where(x.isnan(), sign * torch.inf, x) for sign in (1, -1))
    least, most = least.amin(0), most.amax(0)
    unknown = (least > most).nonzero().flatten().tolist()
    if unknown:
        raise ValueError(
            f"{name}: expected columns with known entries; all of column {unknown[0]} is missing (NaN). Drop it."
        )
    constant = (least == most).nonzero().flatten().tolist()
    if constant:
        raise ValueError(
            f"{name}: expected columns that vary; got constant column {constant[0]} "
            f"(always {least[constant[0]].item():g}), whose likelihood is unbounded. Drop it."
        )


def check_sample_weights(name: str, x: Tensor, sample_weights: Tensor) -> None:
    """Raise a ValueError unless there is one weight a row, none negative and not all zero."""
    if sample_weights.shape != x.shape[:1]:
        raise ValueError(
            f"{name}: expected sample_weights of shape ({len(x)},), one a row; "
            f"got {tuple(sample_weights.shape)}. Drop or repeat entries."
        )
    if not bool((sample_weights >= 0).all() & (sample_weights.sum() > 0)):
        raise ValueError(
            f"{name}: expected sample_weights >= 0, not all 0; got {sample_weights.min().item():g} as the least. "
            "Leave rows out that do not count."
        )


def counted(sample_weights: Tensor | None, like: Tensor) -> AbstractContextManager[Any]:
    """Count every row as often as its weight says."""
    if sample_weights is None:
        return nullcontext()
    # Pyro wants a scale > 0: the smallest there is makes no difference to any sum
    return poutine.scale(scale=sample_weights.to(like).clamp_min(torch.finfo(like.dtype).tiny))
