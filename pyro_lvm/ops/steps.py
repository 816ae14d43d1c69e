"""The steps of sequences as rows of one table."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["Steps"]


@dataclass(frozen=True)
class Steps:
    """Steps of which something is known, of sequences that count.

    Attributes:
        rows: Shape (m, d), NaN where missing.
        counts: How often each counts, shape (m,); at least m in all, so that what a start adds does not drown them.
        progress: How far into its sequence each stands, shape (m,), in [0, 1).
    """

    rows: Tensor
    counts: Tensor
    progress: Tensor

    @classmethod
    def of(cls, x: Tensor, lengths: Tensor | None, sample_weights: Tensor | None) -> Steps:
        """Take sequences apart.

        Args:
            x: Shape (n, T, d), NaN where missing.
            lengths: Number of steps of every sequence, shape (n,); T if None.
            sample_weights: How often each sequence counts, shape (n,); once if None.
        """
        n, total = x.shape[:2]
        length = x.new_full((n,), total) if lengths is None else lengths.to(x)
        weight = x.new_ones(n) if sample_weights is None else sample_weights.to(x)
        time = torch.arange(total).to(x)
        used = (time < length.unsqueeze(-1)) & (weight > 0).unsqueeze(-1) & ~x.isnan().all(-1)
        counts = weight.unsqueeze(-1).expand(n, total)[used]
        counts = counts * (len(counts) / counts.sum()).clamp_min(1)
        return cls(x[used], counts, (time / length.unsqueeze(-1))[used])
