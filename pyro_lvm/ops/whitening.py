"""Where rows are in all directions of one spread: roots of covariances that do not depend on units, and rotations."""

from __future__ import annotations

import torch
from torch import Tensor

from pyro_lvm.ops.missing import column_moments

__all__ = ["dependent_columns", "random_rotation", "whitening"]


def whitening(x: Tensor, sample_weights: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
    """Mean of rows, a square root of their covariance, and the variances along its columns in standard units.

    Args:
        x: Rows, shape (n, d), whose columns vary.
        sample_weights: How often each row counts, shape (n,); once by default.

    Returns:
        Mean (d,), the root S (d, d), whose S S' is the covariance (by n), and the eigenvalues of the correlations (d,),
        by falling size, all float64. Units of the columns change S by their factors alone.
    """
    rows = x.double()
    mean, variance = column_moments(rows, sample_weights)
    scale = variance.sqrt()
    centred = rows - mean
    centred /= scale
    weighted = centred if sample_weights is None else centred * (sample_weights / sample_weights.mean()).unsqueeze(-1)
    values, vectors = (part.flip(-1) for part in torch.linalg.eigh(weighted.mT.to(rows) @ centred / len(x)))
    root = scale.unsqueeze(-1) * vectors * values.clamp_min(0).sqrt()
    return mean, root, values


def dependent_columns(values: Tensor, dtype: torch.dtype) -> int:
    """How many of the eigenvalues of correlations are zero but for rounding in the type of the rows."""
    noise = max((8 * torch.finfo(dtype).eps) ** 2, 64 * torch.finfo(torch.float64).eps)
    return int((values <= noise * len(values) * values[0]).sum())


def random_rotation(k: int) -> Tensor:
    """An orthogonal matrix that the seed of torch's generator tells, of uniform law, shape (k, k), float64.

    No number is drawn from the generator itself: a start that takes steps uphill from here to the same maximum nearly
    always is not to be tried several times.
    """
    generator = torch.Generator().manual_seed(torch.initial_seed())
    q, r = torch.linalg.qr(torch.randn(k, k, dtype=torch.float64, generator=generator))
    return q * r.diagonal().sign()
