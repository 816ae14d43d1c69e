"""Where a mixture over real vectors starts: moments of k-means clusters, from what is known of each row."""

from __future__ import annotations

import torch
from jaxtyping import Float, Num
from torch import Tensor

from pyro_lvm.ops.kmeans import kmeans
from pyro_lvm.ops.missing import fill

__all__ = ["cluster_moments", "member_moments"]


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
    filled, _ = fill(x, sample_weights)
    assignment = kmeans(filled, num_clusters, sample_weights=sample_weights)
    members = torch.nn.functional.one_hot(assignment, num_clusters).to(x)
    members = members if sample_weights is None else members * sample_weights.to(x).unsqueeze(-1)
    return member_moments(x, members)


def member_moments(
    x: Float[Tensor, "n d"], members: Float[Tensor, "n k"]
) -> tuple[Float[Tensor, " k"], Float[Tensor, "k d"], Float[Tensor, "k d d"]]:
    """Shares, means and covariances of clusters, from what is known of each row.

    Args:
        x: Rows, shape (n, d), NaN where missing.
        members: How often every row counts in every cluster, shape (n, k).

    Returns:
        Shares, shape (k,), all positive; means, shape (k, d); positive-definite covariances, shape (k, d, d).
    """
    d, k = x.shape[1], members.shape[1]
    known = ~x.isnan()
    value, seen = torch.where(known, x, 0.0), known.to(x)
    every, count = members.sum(1) @ seen, members.T @ seen
    mean = members.sum(1) @ value / torch.where(every > 0, every, 1)
    variance = members.sum(1) @ (seen * (value - mean)).square() / torch.where(every > 0, every, 1)
    loc = torch.where(count > 0, members.T @ value / torch.where(count > 0, count, 1), mean)
    within = torch.stack(
        [(w.unsqueeze(-1) * (c := seen * (value - m))).T @ c for w, m in zip(members.T, loc, strict=True)]
    )
    # a cluster of few rows has no covariance of its own: add d rows' worth of a shrunken overall one
    share = variance.diag_embed() / k ** (2 / d)
    rows = (count + d).sqrt()
    within = (within + d * share) / (rows.unsqueeze(-1) * rows.unsqueeze(-2))
    return (members.sum(0) + 1) / (members.sum() + k), loc, within
