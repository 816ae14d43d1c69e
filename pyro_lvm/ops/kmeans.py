"""A start for clusters: k-means++ and Lloyd's algorithm, by scipy, on standardised columns."""

from __future__ import annotations

import warnings

import numpy as np
import torch
from jaxtyping import Float, Int
from scipy.cluster.vq import kmeans2
from torch import Tensor

__all__ = ["kmeans"]

# Rows used to place the centres; more change them little and cost time.
SAMPLE = 20_000


def kmeans(x: Float[Tensor, "n d"], num_clusters: int, iterations: int = 10) -> Int[Tensor, " n"]:
    """Assign rows to clusters, seeded from torch's generator.

    Args:
        x: Rows, shape (n, d), without missing values.
        num_clusters: Number of clusters, at most n.
        iterations: Lloyd iterations.

    Returns:
        Cluster numbers in [0, num_clusters), shape (n,), in order of the centres' first column.

    References:
        D. Arthur, S. Vassilvitskii (2007), k-means++: the advantages of careful seeding, SODA.
    """
    if num_clusters == 1:
        return torch.zeros(len(x), dtype=torch.long, device=x.device)
    generator = np.random.default_rng(int(torch.randint(2**31, (1,)).item()))
    rows = x.detach().double().cpu().numpy()
    scale = rows.std(0)
    rows = (rows - rows.mean(0)) / np.where(scale > 0, scale, 1.0)
    sample = rows[generator.choice(len(rows), SAMPLE, replace=False)] if len(rows) > SAMPLE else rows
    with warnings.catch_warnings():
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
