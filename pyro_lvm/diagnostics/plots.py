"""Pictures of fits, each a `matplotlib.figure.Figure` of its own: no backend is chosen, no pyplot state is touched.

Components have the numbers that `Fit.predict` gives them, except in `posteriors`, where the labels of all fits are
aligned first: component 0 is there the one with the smallest centre along the first column.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter

from pyro_lvm.diagnostics.factor_plots import loadings_map, scree
from pyro_lvm.diagnostics.labels import align, component_axes
from pyro_lvm.diagnostics.loss_plots import losses
from pyro_lvm.diagnostics.plot_parts import (
    CERTAIN,
    MASSES,
    MAX_COMPONENTS,
    MAX_ENTRIES,
    PROBABILITY,
    Array,
    axis_names,
    colour_of,
    draw_marginal,
    draw_regions,
    entry_name,
    first_draw,
    grid_log_density,
    marker_of,
    new_axes,
    new_figure,
    padded_range,
    panel_entries,
    principal_plane,
    read_rows,
    share_label,
    state_table,
    strip_frame,
)
from pyro_lvm.diagnostics.row_plots import filters, latent, reconstructions, samples
from pyro_lvm.diagnostics.sequence_plots import durations, states, transitions

if TYPE_CHECKING:
    import pandas as pd

    from pyro_lvm.training.result import Fit

__all__ = [
    "comparison",
    "density",
    "durations",
    "filters",
    "latent",
    "loadings_map",
    "losses",
    "posteriors",
    "reconstructions",
    "responsibilities",
    "samples",
    "scree",
    "states",
    "transitions",
]


def density(fit: Fit, x: Any, columns: Sequence[str] | None = None) -> Figure:
    """The fitted density and the rows, coloured by most probable component.

    One column gives a stacked histogram with the density's curve, two columns a scatter over regions of highest
    density, more columns a scatter along the first two principal axes. The density of a posterior is its mean over
    draws, at most 50 of them.

    Args:
        fit: A fit of a model whose only argument is a matrix of continuous rows.
        x: Rows, shape (n, d), converted as in `lvm.fit`.
        columns: Names, with units, for the axes; by default those of `x`, or of the training data.

    Raises:
        ValueError: The rows are not a continuous matrix, or `columns` does not fit them.

    Example:
        >>> import pyro_lvm as lvm
        >>> data = lvm.datasets.load("faithful")
        >>> fit = lvm.fit(lvm.models.GaussianMixture(2), data.x, seed=0, progress=False)
        >>> density(fit, data.x, data.columns).axes[0].get_xlabel()
        'eruptions'
    """
    arguments = fit.arguments(x)
    rows, names = read_rows("density", fit, arguments, columns)
    table = state_table(fit, arguments)
    labels = np.zeros(len(rows), int) if table is None else table.argmax(1)
    groups = [(k, labels == k) for k in range(1 if table is None else table.shape[1])]
    figure = new_figure(6.4, 4.6)
    ax = new_axes(figure)
    what = "posterior predictive density" if fit.latent else "fitted density"
    if rows.shape[1] == 1:
        grid = padded_range(rows[:, 0], 400)
        curve = np.exp(grid_log_density(fit, arguments, grid[:, None]))
        bins = np.histogram_bin_edges(rows[:, 0], min(60, 5 + int(len(rows) ** 0.5)))
        ax.hist(
            [rows[mine, 0] for _, mine in groups],
            bins,
            density=True,
            stacked=True,
            alpha=0.45,
            color=[colour_of(k) for k, _ in groups],
            label=[share_label(k, mine) if table is not None else "rows" for k, mine in groups],
        )
        ax.plot(grid, curve, color="black", linewidth=1.8, label=what)
        ax.set(xlabel=names[0], ylabel=f"density per unit of {names[0]}", title=what.capitalize())
    else:
        plane, names, note = principal_plane(rows, names)
        if rows.shape[1] == 2:
            draw_regions(ax, fit, arguments, plane)
            masses = ", ".join(f"{100 * mass:.0f}" for mass in MASSES[:0:-1])
            note = f"{what.capitalize()}: regions hold {masses} and {100 * MASSES[0]:.0f} % of it"
        for k, mine in groups:
            label = share_label(k, mine) if table is not None else "rows"
            style = {"s": 20, "alpha": 0.85, "linewidths": 0.4, "edgecolors": "white"}
            ax.scatter(*plane[mine].T, color=colour_of(k), marker=marker_of(k), label=label, **style)
        ax.set(xlabel=names[0], ylabel=names[1], title=note)
    if table is not None or rows.shape[1] == 1:
        figure.legend(loc="outside lower center", ncols=3, frameon=False, fontsize=9, columnspacing=1.2)
    return figure


def responsibilities(fit: Fit, x: Any, columns: Sequence[str] | None = None) -> Figure:
    """Posterior probability of each component for each row, one panel per component.

    Rows whose most probable component has less than 90 % are drawn last, larger and with a red ring. With one column
    the probability is the vertical axis; with more than two, rows lie along the first two principal axes.

    Args:
        fit: A fit of a model with one discrete site per row.
        x: Rows, shape (n, d), converted as in `lvm.fit`.
        columns: Names, with units, for the axes; by default those of `x`, or of the training data.

    Raises:
        ValueError: The model has not exactly one discrete site per row, or the rows are not a matrix.
    """
    arguments = fit.arguments(x)
    rows, names = read_rows("responsibilities", fit, arguments, columns)
    table = state_table(fit, arguments)
    if table is None:
        raise ValueError("responsibilities: expected a model with exactly one discrete site per row.")
    shown = np.sort(np.argsort(-table.sum(0), kind="stable")[:MAX_COMPONENTS])
    unsure = table.max(1) < CERTAIN
    order = np.argsort(unsure, kind="stable")
    wide = min(len(shown), 3)
    high = -(-len(shown) // wide)
    figure = new_figure(3.2 * wide + 2, 3.1 * high + 0.6)
    grid = figure.subplots(high, wide, sharex=True, sharey=True, squeeze=False)
    single = rows.shape[1] == 1
    plane, names, note = (rows, [*names, "probability"], "") if single else principal_plane(rows, names)
    sizes, widths = np.where(unsure, 38, 14)[order], np.where(unsure, 1.1, 0.3)[order]
    edges = np.where(unsure, "#D55E00", "white")[order]
    for ax, k in zip(grid.flat, shown, strict=False):
        strip_frame(ax)
        across, up = plane[:, 0], table[:, k] if single else plane[:, 1]
        points = ax.scatter(
            across[order], up[order], c=table[order, k], s=sizes, linewidths=widths, edgecolors=edges,
            cmap=PROBABILITY, vmin=0, vmax=1,
        )  # fmt: skip
        ax.set_title(f"component {k} (mean {100 * table[:, k].mean():.0f} %)", fontsize=10)
    for ax in grid.flat[len(shown) :]:
        ax.set_axis_off()
    figure.supxlabel(names[0], fontsize=10)
    figure.supylabel(names[1], fontsize=10)
    few = f"the {len(shown)} largest of {table.shape[1]} components" if len(shown) < table.shape[1] else ""
    count = f"{unsure.sum()} of {len(rows)} rows uncertain (ringed: no component has {100 * CERTAIN:.0f} %)"
    figure.suptitle("\n".join(filter(None, [count, "; ".join(filter(None, [note, few]))])), fontsize=11)
    bar = figure.colorbar(points, ax=grid, format=PercentFormatter(1), shrink=0.9, pad=0.02)
    bar.set_label("posterior probability")
    bar.outline.set_visible(False)
    return figure


def posteriors(fits: Mapping[str, Fit], x: Any, site: str = "loc", columns: Sequence[str] | None = None) -> Figure:
    """The posteriors of a site's entries under several fits, one panel per entry, labels aligned.

    A fit with many draws is a kernel density estimate (Gaussian, Scott's bandwidth); a fit with one draw, or draws
    that do not vary, is a vertical line. The lower triangle of symmetric matrices is left out.

    Args:
        fits: Fits by name, of models that share the site.
        x: Rows by which components are recognised, converted as in `lvm.fit`.
        site: Name of a continuous latent site or parameter.
        columns: Names for axes of the site as long as the data have columns; by default those of `x`, or of the
            training data.

    Raises:
        ValueError: There are no fits, a fit lacks the site, or its shapes differ.
    """
    if not fits:
        raise ValueError("posteriors: expected at least one fit; got none.")
    draws: dict[str, Array] = {}
    axis: int | None = None
    names: list[str] = []
    for name, fit in fits.items():
        if site not in fit.draws:
            choice = ", ".join(sorted(fit.draws))
            raise ValueError(
                f"posteriors: expected a site of every fit; got {site!r}, not in '{name}'. Choose from {choice}."
            )
        arguments = fit.arguments(x)
        names = names or axis_names("posteriors", fit, arguments, columns)
        found = component_axes(fit, arguments, first_draw(fit))[0].get(site)
        axis = found[0] if axis is None and found else axis
        draws[name] = align(fit, arguments, fit.draws, across_fits=True)[site].flatten(0, 1).double().cpu().numpy()
    shapes = {values.shape[1:] for values in draws.values()}
    if len(shapes) > 1:
        listed = " and ".join(map(str, sorted(shapes)))
        raise ValueError(f"posteriors: expected one shape of {site!r} in all fits; got {listed}.")
    shape = shapes.pop()
    entries, wide = panel_entries(shape, list(draws.values()), axis)
    shown = entries[:MAX_ENTRIES]
    high = -(-len(shown) // wide)
    titles = [entry_name(entry, shape, axis, names) for entry in shown]
    each = max(2.6, 0.085 * max(map(len, titles)))
    figure = new_figure(max(each * wide, 4.5), 1.9 * high + 0.9)
    grid = figure.subplots(high, wide, squeeze=False)
    for ax, entry, title in zip(grid.flat, shown, titles, strict=False):
        for i, (name, values) in enumerate(draws.items()):
            draw_marginal(
                ax, values.reshape(len(values), -1)[:, np.ravel_multi_index(entry, shape)], colour_of(i), name
            )
        strip_frame(ax)
        ax.spines["left"].set_visible(False)
        ax.set_yticks([])
        ax.set_ylim(bottom=0)
        ax.xaxis.set_major_locator(MaxNLocator(4))
        ax.set_title(title, fontsize=9)
    for ax in grid.flat[len(shown) :]:
        ax.set_axis_off()
    part = f" (first {len(shown)} of {len(entries)} entries)" if len(shown) < len(entries) else ""
    figure.suptitle(f"Posterior density of {site}{part}", fontsize=11)
    handles, keys = grid.flat[0].get_legend_handles_labels()
    figure.legend(handles, keys, loc="outside lower center", ncols=min(len(keys), 4), frameon=False, fontsize=9)
    return figure


def comparison(table: pd.DataFrame) -> Figure:
    """The table of `lvm.compare` as dots: difference in elpd from the best fit, with one standard error to each side.

    Args:
        table: What `lvm.compare` returned.

    Raises:
        ValueError: The table is empty or lacks a column.
    """
    missing = [name for name in ("elpd", "elpd_diff", "dse") if name not in table]
    if missing or not len(table):
        got = f"one without {', '.join(missing)}" if missing else "an empty one"
        raise ValueError(f"comparison: expected the table of lvm.compare; got {got}.")
    table = table.sort_values("elpd", ascending=False)
    figure = new_figure(6.8, 1.5 + 0.42 * len(table))
    ax = new_axes(figure)
    places = np.arange(len(table))
    ax.axvline(0, color="#888888", linewidth=1, linestyle=":", zorder=0)
    style = {"fmt": "o", "color": colour_of(0), "markersize": 7, "capsize": 3, "elinewidth": 1.6}
    ax.errorbar(table["elpd_diff"], places, xerr=table["dse"], **style)
    ax.set_yticks(places, [str(name) for name in table.index])
    ax.set_ylim(len(table) - 0.5, -0.5)
    ax.grid(axis="y", color="#e6e6e6")
    ax.set_axisbelow(True)
    right = ax.twinx()
    strip_frame(right)
    right.set_ylim(ax.get_ylim())
    right.set_yticks(places, [f"{value:.1f}" for value in table["elpd"]], fontsize=9)
    right.set_ylabel("elpd (nats)", fontsize=9)
    right.tick_params(length=0)
    rows = {str(text).rpartition(", ")[2] for text in table.get("estimator", [])}
    title = "Expected log predictive density" + (f" ({rows.pop()})" if len(rows) == 1 else "")
    ax.set(xlabel="difference from the best (nats), with one standard error", title=title)
    return figure
