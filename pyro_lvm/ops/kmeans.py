"""A start for clusters: k-means++ and Lloyd's algorithm, by scipy, on standardised columns."""

from __future__ import annotations

import warnings

import numpy as np
import torch
from jaxtyping import Float, Int, Num
from scipy.cluster.vq import kmeans2
from torch import Tensor

__all__ = ["kmeans"]

# Rows used to place the centres; more change them little and cost time.
SAMPLE = 20_000


def kmeans(
    x: Float[Tensor, "n d"],
    num_clusters: int,
    iterations: int = 10,
    sample_weights: Num[Tensor, " n"] | None = None,
) -> Int[Tensor, " n"]:
    """Assign rows to clusters, seeded from torch's generator.

    Args:
        x: Rows, shape (n, d), without missing values.
        num_clusters: Number of clusters, at most n.
        iterations: Lloyd iterations.
        sample_weights: How often each row counts; once by default.

    Returns:
        Cluster numbers in [0, num_clusters), shape (n,), in order of the centres' first column.

    References:
        D. Arthur, S. Vassilvitskii (2007), k-means++: the advantages of careful seeding, SODA.
    """
    if num_clusters == 1:
        return torch.zeros(len(x), dtype=torch.long, device=x.device)
    generator = np.random.default_rng(int(torch.randint(2**31, (1,)).item()))
    rows = x.detach().double().cpu().numpy()
    counted = rows if sample_weights is None else rows.repeat(_repetitions(sample_weights), 0)
    mean, scale = counted.mean(0), counted.std(0)
    scale = np.where(scale > 0, scale, 1.0)
    rows = (rows - mean) / scale
    sample = counted[generator.choice(len(counted), SAMPLE, replace=False)] if len(counted) > SAMPLE else counted
    sample = (sample - mean) / scale
    with warnings.catch_warnings(), np.errstate(invalid="ignore"):  # fewer different rows than clusters
        warnings.simplefilter("ignore", UserWarning)  # an empty cluster is a fair start
        centres, _ = kmeans2(sample, num_clusters, iter=iterations, minit="++", rng=generator)
    centres = centres[np.lexsort(centres.T[::-1])]
    assignment = np.concatenate(
        [
            (-2 * block @ centres.T + (centres**2).sum(-1)).argmin(-1)
            for block in np.array_split(rows, -(-len(rows) // SAMPLE))
        ]
    )
    return torch.from_numpy(assignment).to(x.device)


def _repetitions(sample_weights: Tensor) -> np.ndarray:
    """How often each row stands in a sample: as often as it counts, or by systematic sampling in proportion."""
    weights = sample_weights.detach().double().cpu().numpy()
    size = min(SAMPLE, max(len(weights), round(weights.sum())))
    edges = np.floor(weights.cumsum() * (size / weights.sum()) + 0.5)
    return np.diff(edges, prepend=0.0).astype(int)
