"""Laws of missing values: a gap in a row is summed out, and filled by what it is expected to be."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from pyro_lvm.testing.checks import require
from pyro_lvm.training import Fit

__all__ = ["missing_entries_are_marginalised"]

# Points of the trapezoidal rule over a column's mean plus or minus this many standard deviations: for a density that is
# smooth on the scale of the spacing the rule's error falls faster than any power of it.
POINTS, REACH = 8001, 20.0


def missing_entries_are_marginalised(
    fit: Fit,
    rows: Float[Tensor, " n *d"],
    *,
    support: Sequence[tuple[Float[Tensor, " m"], float]] | None = None,
    num_rows: int = 4,
) -> None:
    r"""A row with a gap has density :math:`\int p(x)\,dx_j`, and `fit.impute` fills it with the mean, to 1e-6.

    Answers without an order have no mean: they may be filled with the most probable.

    The integral is over a grid for each entry of a row in turn. A row of which nothing is known has log-density 0.

    Args:
        fit: A fit of a model with `handles_missing`.
        rows: Complete rows, shape (n, ...), n > 1, in float64.
        support: For every entry of a row the values to sum over and the width of each, as `oracles.grid` gives them; by
            default all are real.
        num_rows: How many of the rows to look at.

    Raises:
        AssertionError: A log-density or a filled-in value is off.
    """
    shape = rows.shape[1:]
    rows = rows[:: max(1, len(rows) // num_rows)][:num_rows].flatten(1)
    for column in range(rows.shape[1]):
        if support is None:
            centre, spread = float(rows[:, column].mean()), float(rows[:, column].std())
            grid = torch.linspace(centre - REACH * spread, centre + REACH * spread, POINTS, dtype=rows.dtype)
            log_step = math.log(float(grid[1] - grid[0]))
        else:
            grid, log_step = support[column][0].to(rows), math.log(support[column][1])
        every = rows.repeat_interleave(len(grid), 0)
        every[:, column] = grid.repeat(len(rows))
        density = fit.log_likelihood(every.unflatten(1, shape)).double().reshape(len(rows), -1) + log_step
        gaps = rows.clone()
        gaps[:, column] = torch.nan
        gap = float((fit.log_likelihood(gaps.unflatten(1, shape)).double() - density.logsumexp(-1)).abs().max())
        require(
            gap <= 1e-6,
            f"missing_entries_are_marginalised: without column {column} the log-density is off by {gap:.3g} nats.",
        )
        if fit.latent:  # a posterior's imputations average over draws, not over draws weighted by the row's density
            continue
        mean, mode = (density.softmax(-1) * grid).sum(-1), grid[density.argmax(-1)]
        filled = fit.impute(gaps.unflatten(1, shape)).flatten(1)
        scale = float(grid.std())
        off = min(float((filled[:, column] - best).abs().max()) for best in (mean, mode)) / scale
        require(
            off <= 1e-6,
            f"missing_entries_are_marginalised: column {column} is filled in {off:.3g} of its spread off the mean.",
        )
        require(
            bool((filled == rows).sum() >= rows.numel() - len(rows)),
            "missing_entries_are_marginalised: fit.impute changed a known entry.",
        )
    nothing = float(fit.log_likelihood(torch.full_like(rows, torch.nan).unflatten(1, shape)).abs().max())
    require(
        nothing <= 1e-6,
        f"missing_entries_are_marginalised: a row of which nothing is known has log-density {nothing:.3g}, not 0.",
    )
