"""Where regressions by cluster start: weighted least squares that borrow from the regression through all rows."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from pyro_lvm.ops.missing import column_moments

__all__ = ["centre_and_spread", "member_regressions"]


def centre_and_spread(
    covariates: Float[Tensor, "n q"], counts: Float[Tensor, " n"]
) -> tuple[Float[Tensor, " q"], Float[Tensor, " q"]]:
    """Means and standard deviations of covariates; 1 in place of that of a constant one.

    Args:
        covariates: Shape (n, q).
        counts: How often each row counts, shape (n,).
    """
    centre, variance = column_moments(covariates, counts)
    rounding = 8 * torch.finfo(covariates.dtype).eps * centre.abs()
    return centre, torch.where(variance.sqrt() > rounding, variance.sqrt(), 1.0)


def member_regressions(
    x: Float[Tensor, "n d"], covariates: Float[Tensor, "n q"], members: Float[Tensor, "n k"]
) -> tuple[Float[Tensor, "k d q"], Float[Tensor, "k d"], Float[Tensor, "k d"]]:
    """Slopes, intercepts and residual scales of clusters.

    Args:
        x: Rows, shape (n, d), NaN where missing: such rows are left out.
        covariates: Shape (n, q).
        members: How often every row counts in every cluster, shape (n, k).

    Returns:
        Shapes (k, d, q), (k, d) and (k, d); scales are positive.
    """
    known = ~x.isnan().any(-1)
    x, covariates, members = x[known], covariates[known], members[known]
    q, every = covariates.shape[1], members.sum(1)
    centre, spread = centre_and_spread(covariates, every)
    design = torch.nn.functional.pad((covariates - centre) / spread, (0, 1), value=1.0)
    # a cluster of few rows borrows as many of the regression through all rows as that has columns
    identity = torch.eye(q + 1).to(x)
    counted = every.unsqueeze(-1) * design
    shared = torch.linalg.solve(counted.mT @ design + 1e-6 * every.sum() * identity, counted.mT @ x)
    gram = torch.einsum("nk,ni,nj->kij", members, design, design) + identity
    moment = torch.einsum("nk,ni,nd->kid", members, design, x) + shared
    solution = torch.linalg.solve(gram, moment)
    residual = x.unsqueeze(1) - torch.einsum("ni,kid->nkd", design, solution)
    overall = every @ (x - design @ shared).square() / every.sum() + 1e-6 * column_moments(x, every)[1]
    weight = members.sum(0).unsqueeze(-1)
    squared = (torch.einsum("nk,nkd->kd", members, residual.square()) + (q + 1) * overall) / (weight + q + 1)
    slopes = solution[:, :-1].mT / spread
    return slopes, solution[:, -1] - slopes @ centre, squared.sqrt()
