"""Which rows has a fit seen? A hash per row, kept with the fit, tells in-sample from held-out scores."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

if TYPE_CHECKING:
    from pyro_lvm.training.data import Arguments
    from pyro_lvm.training.result import Fit

__all__ = ["merge", "remember", "row_hashes", "share_seen"]

LIMIT = 2**17
"""Hashes that a fit keeps, 1 MB; of more rows the smallest are kept, which are a uniform sample."""


def row_hashes(rows: Tensor) -> Tensor:
    """A 64-bit hash of every row's numbers.

    Args:
        rows: Shape (n, ...).

    Returns:
        int64, shape (n,); equal rows have equal hashes.
    """
    table = rows.detach().cpu().double().reshape(len(rows), -1).numpy() + 0.0  # -0.0 becomes 0.0
    table[np.isnan(table)] = np.nan  # one of the many bit patterns
    bits = np.ascontiguousarray(table).view(np.uint64)
    multipliers = np.random.default_rng(0).integers(1, 2**63, size=bits.shape[1], dtype=np.uint64) * 2 + 1
    with np.errstate(over="ignore"):
        mixed = (bits ^ (bits >> np.uint64(29))) * multipliers
        mixed ^= mixed >> np.uint64(32)
        hashes = mixed.sum(1, dtype=np.uint64)
    return torch.from_numpy(hashes.view(np.int64).copy())


def merge(hashes: Tensor) -> Tensor:
    """The set of some hashes, sorted and no larger than `LIMIT`."""
    return torch.unique(hashes)[:LIMIT]


def share_seen(seen: Tensor, hashes: Tensor) -> float:
    """The share of rows whose hash is in a set made by `merge`; estimated from the rows sampled if it is full."""
    if len(seen) == LIMIT:
        hashes = hashes[hashes <= seen[-1]]
    return float(torch.isin(hashes, seen).double().mean()) if len(hashes) else 0.0


def remember(fit: Fit, batches: Iterable[Arguments]) -> Iterator[Arguments]:
    """The same batches; their rows are noted in the fit, so that comparisons know in-sample from held-out."""
    total, pending, waiting = torch.tensor(0), [fit.seen], 0
    try:
        for batch in batches:
            hashes = row_hashes(batch.unpadded)
            total = total + hashes.sum()
            pending.append(hashes)
            waiting += len(hashes)
            if waiting > LIMIT:
                pending, waiting = [merge(torch.cat(pending))], 0
            yield batch
    finally:  # also of an epoch that is interrupted
        fit.seen = merge(torch.cat(pending))
    fit.trained_on = sorted({*fit.trained_on, int(total)})
