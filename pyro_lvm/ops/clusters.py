"""Where a mixture over real vectors starts: moments of k-means clusters, from what is known of each row."""

from __future__ import annotations

import torch
from jaxtyping import Float, Num
from torch import Tensor

from pyro_lvm.ops.kmeans import kmeans
from pyro_lvm.ops.missing import column_moments, fill

__all__ = ["cluster_moments"]


def cluster_moments(
    x: Float[Tensor, "n d"], num_clusters: int, sample_weights: Num[Tensor, " n"] | None = None
) -> tuple[Float[Tensor, " k"], Float[Tensor, "k d"], Float[Tensor, "k d d"]]:
    """Shares, means and covariances of k-means clusters; other random states give other clusters.

    Missing entries stand at their column's mean for the clusters; the moments are those of what is known.

    Args:
        x: Rows, shape (n, d), NaN where missing.
        num_clusters: Number of clusters k, at most n.
        sample_weights: How often each row counts; once by default.

    Returns:
        Shares, shape (k,), all positive; means, shape (k, d); positive-definite covariances, shape (k, d, d).
    """
    d = x.shape[1]
    filled, known = fill(x, sample_weights)
    seen = torch.ones_like(x) if known is None else known.to(x)
    assignment = kmeans(filled, num_clusters, sample_weights=sample_weights)
    members = torch.nn.functional.one_hot(assignment, num_clusters).to(x)
    members = members if sample_weights is None else members * sample_weights.to(x).unsqueeze(-1)
    count = members.T @ seen
    mean, variance = column_moments(x, sample_weights)
    loc = torch.where(count > 0, members.T @ (seen * filled) / torch.where(count > 0, count, 1), mean)
    centred = seen * (filled - loc[assignment])
    within = torch.einsum("nk,ni,nj->kij", members, centred, centred)
    # a cluster of few rows has no covariance of its own: add d rows' worth of a shrunken overall one
    share = variance.diag_embed() / num_clusters ** (2 / d)
    rows = (count + d).sqrt()
    within = (within + d * share) / (rows.unsqueeze(-1) * rows.unsqueeze(-2))
    return (members.sum(0) + 1) / (members.sum() + num_clusters), loc, within
