"""Pictures of factors: what they mean, and how many there are."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from pyro_lvm.diagnostics.loadings import loadings, parts
from pyro_lvm.diagnostics.plot_parts import colour_of, new_axes, new_figure
from pyro_lvm.ops.missing import column_moments

if TYPE_CHECKING:
    from pyro_lvm.training.result import Fit

__all__ = ["draw_loadings", "draw_scree", "loadings_map", "scree"]

SHUFFLES = 50
QUANTILE = 0.95


def loadings_map(fit: Fit, rotation: str | None = None) -> Figure:
    """The loadings as a map, a line for every column of the data and a column for every factor, with their numbers.

    Args:
        fit: A fit of a linear factor model.
        rotation: As `diagnostics.loadings` takes it.

    Raises:
        ValueError: The model has no loadings.
    """
    table = loadings(fit, rotation)
    figure = new_figure(2.6 + 0.7 * (table.shape[1] - 1), 1.4 + 0.28 * len(table))
    draw_loadings(figure, fit, rotation)
    return figure


def draw_loadings(figure: Any, fit: Fit, rotation: str | None = None) -> None:
    """Draw the map into a figure, or a part of one."""
    table = loadings(fit, rotation)
    values = table.drop(columns=["communality", "uniqueness"]).to_numpy()
    ax = new_axes(figure)
    shown = ax.imshow(values, cmap="RdBu_r", vmin=-1, vmax=1, aspect="auto")
    ax.set_yticks(range(len(table)), table.index)
    shares = (values**2).mean(0)
    ax.set_xticks(range(values.shape[1]), [f"{j}\n{100 * share:.0f} %" for j, share in enumerate(shares)])
    ax.set_xlabel("factor, and its share of the columns' variance")
    ax.set_title(f"Loadings{f', {rotation}' if rotation else ''}")
    if values.size <= 400:
        for (i, j), value in np.ndenumerate(values):
            colour = "white" if abs(value) > 0.6 else "black"
            ax.text(j, i, f"{value:.2f}", ha="center", va="center", fontsize=7, color=colour)
    figure.colorbar(shown, ax=ax, label="correlation of column and factor", shrink=0.8)


def scree(fit: Fit, x: Any) -> Figure:
    """Eigenvalues of the rows' correlation, falling, beside those of rows whose columns have been shuffled.

    Factors whose eigenvalue is above what shuffled columns reach (95 % of 50 shuffles) are worth keeping: Horn's
    parallel analysis. A line shows how many factors the fit has.

    Args:
        fit: A fit of a linear factor model.
        x: Rows, shape (n, d).

    References:
        J. Horn (1965), A rationale and test for the number of factors in factor analysis, Psychometrika 30.

    Raises:
        ValueError: The model has no loadings.
    """
    figure = new_figure(6.4, 4.2)
    draw_scree(figure, fit, fit.arguments(x).main)
    return figure


def draw_scree(figure: Any, fit: Fit, x: torch.Tensor) -> None:
    """Draw the eigenvalues into a figure, or a part of one."""
    num_factors = parts(fit, "scree")[0].shape[1]
    mean, variance = column_moments(x.double().cpu())
    scaled = torch.nan_to_num((x.double().cpu() - mean) / variance.clamp_min(torch.finfo(torch.double).tiny).sqrt())
    generator = torch.Generator().manual_seed(0)

    def eigenvalues(rows: torch.Tensor) -> torch.Tensor:
        return torch.linalg.svdvals(rows).square() / len(rows)

    def shuffled() -> torch.Tensor:
        order = torch.rand(scaled.shape, generator=generator).argsort(0)
        return eigenvalues(scaled.gather(0, order))

    found = eigenvalues(scaled).numpy()
    chance = torch.stack([shuffled() for _ in range(SHUFFLES)]).quantile(QUANTILE, dim=0).numpy()
    ax, ranks = new_axes(figure), np.arange(1, len(found) + 1)
    ax.plot(ranks, found, "o-", color=colour_of(0), label="rows", markersize=4)
    ax.plot(ranks, chance, "--", color="0.5", label=f"shuffled columns, {100 * QUANTILE:.0f} %")
    ax.axvline(num_factors + 0.5, color="0.8", zorder=0)
    ax.annotate(
        f"{num_factors} in the fit", (num_factors + 0.5, found[0]), xytext=(4, 0), textcoords="offset points", va="top"
    )
    worth = int((found > chance).cumprod().sum())
    ax.set_title(f"Eigenvalues of the correlation: {worth} above chance")
    ax.set_xlabel("number of the eigenvalue")
    ax.set_ylabel("variance, in columns")
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    ax.legend(frameon=False)
