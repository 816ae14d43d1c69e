"""What the pictures in `pyro_lvm.diagnostics.plots` are made of."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from numpy.typing import NDArray
from scipy.stats import gaussian_kde

from pyro_lvm import _pyro
from pyro_lvm.diagnostics.labels import component_axes
from pyro_lvm.diagnostics.latents import thinned
from pyro_lvm.evidence.exact import nesting
from pyro_lvm.infer.by_row import row_log_likelihood
from pyro_lvm.training.data import Arguments
from pyro_lvm.training.guide_draws import draws_rows
from pyro_lvm.training.sites import check_plate

if TYPE_CHECKING:
    from pyro_lvm.training.result import Fit

__all__: list[str] = []  # parts of `plots`, not of the public interface

Array = NDArray[np.float64]

# M. Okabe, K. Ito (2008), Color Universal Design; yellow, too pale for points on white, left out
PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
MARKERS = "osD^vP*"
SHADES = ("#f3f3f0", "#e3e3df", "#d0d0cb", "#b9b9b3")
PROBABILITY = LinearSegmentedColormap.from_list("probability", ["#e2e2dd", "#7fb8dc", "#0072B2", "#00284a"])
CERTAIN = 0.9
MASSES = (0.95, 0.75, 0.5, 0.25)
GRID, DRAWS = 90, 50  # 8100 points under 50 draws take about a second
MAX_COMPONENTS, MAX_ENTRIES = 6, 24


def new_figure(width: float, height: float) -> Any:
    """An empty figure, sizes in inches."""
    return Figure(figsize=(width, height), dpi=130, layout="constrained")


def new_axes(figure: Any) -> Any:
    """One pair of axes in a figure."""
    ax = figure.subplots()
    strip_frame(ax)
    return ax


def strip_frame(ax: Any) -> None:
    """Take away what frames a plot without saying anything."""
    ax.spines[["top", "right"]].set_visible(False)
    ax.title.set_fontsize(11)
    ax.tick_params(labelsize=9)


def colour_of(k: int) -> str:
    """The colour of component or fit k."""
    return PALETTE[k % len(PALETTE)]


def marker_of(k: int) -> str:
    """The marker of component k, which changes once colours repeat."""
    return MARKERS[k // len(PALETTE) % len(MARKERS)] if k >= len(PALETTE) else "o"


def share_label(k: int, mine: NDArray[np.bool_]) -> str:
    """A legend entry with the component's share of rows."""
    return f"component {k} ({100 * mine.mean():.0f} %)"


def first_draw(fit: Fit) -> dict[str, torch.Tensor]:
    """One value of every site."""
    return {name: values[0, 0] for name, values in fit.draws.items()}


def read_rows(caller: str, fit: Fit, arguments: Arguments, columns: Sequence[str] | None) -> tuple[Array, list[str]]:
    """The rows as a matrix, and a name for each column."""
    if draws_rows(fit):
        raise ValueError(
            f"{caller}: expected a fit that sums out the latent sites of rows; the guide of {fit.name} draws them. "
            "Use kind='latent' or kind='samples'."
        )
    x = arguments.main
    if len(arguments.values) > 1 or x.dim() > 2 or not x.is_floating_point():
        raise ValueError(
            f"{caller}: expected one continuous matrix of rows, shape (n, d); got {len(arguments.values)} argument(s), "
            f"the first of shape {tuple(x.shape)} and {x.dtype}."
        )
    return x.reshape(len(x), -1).double().cpu().numpy(), axis_names(caller, fit, arguments, columns)


def axis_names(caller: str, fit: Fit, arguments: Arguments, columns: Sequence[str] | None) -> list[str]:
    """Names of the columns: given, the data's own, the fit's, or numbers."""
    x = arguments.main
    width = x.shape[-1] if x.dim() > 1 else 1
    if columns is not None and (isinstance(columns, str) or len(columns) != width):
        raise ValueError(f"{caller}: expected {width} column names; got {columns!r}.")
    for names in (columns, arguments.names, fit.columns):
        if names is not None and len(names) == width:
            return [str(name) for name in names]
    return [f"column {i}" for i in range(width)]


def state_table(fit: Fit, arguments: Arguments) -> Array | None:
    """Posterior of the only discrete site of every row, shape (n, states); None if there is not exactly one."""
    if not component_axes(fit, arguments, first_draw(fit))[1]:
        return None
    table = fit.predict_proba(arguments)
    matrix = isinstance(table, torch.Tensor) and table.dim() == 2 and len(table) == arguments.num_rows
    return table.double().cpu().numpy() if matrix else None


def principal_plane(rows: Array, names: list[str]) -> tuple[Array, list[str], str]:
    """Rows of more than two columns along their first two principal axes; the axes' names; what was done."""
    if rows.shape[1] == 2:
        return rows, names, ""
    centred = rows - rows.mean(0)
    spread = centred.std(0)
    u, s, _ = np.linalg.svd(centred / np.where(spread > 0, spread, 1), full_matrices=False)
    share = np.append(s**2, 0.0) / max((s**2).sum(), np.finfo(float).tiny)
    labels = [f"principal axis {i + 1} ({100 * share[i]:.0f} % of variance)" for i in range(2)]
    plane = np.zeros((len(rows), 2))
    plane[:, : len(s)] = (u * s)[:, :2]
    return plane, labels, f"First two principal axes of {len(names)} standardised columns"


def padded_range(values: Array, count: int) -> Array:
    """Evenly spaced points a little beyond the values."""
    margin = 0.25 * np.ptp(values) or 1.0
    return np.linspace(values.min() - margin, values.max() + margin, count)


def grid_log_density(fit: Fit, arguments: Arguments, points: Array) -> Array:
    """Log density at points, nats, shape (n,): at the fit's point, or the log mean over some draws."""
    main = arguments.main
    tensor = torch.from_numpy(points).to(main).reshape(-1, *main.shape[1:])
    grid = Arguments((tensor,)) if arguments.args else Arguments(kwargs=dict.fromkeys(arguments.kwargs, tensor))
    check_plate(fit, grid)
    with fit.scope(), _pyro.validation(False):
        depth = nesting(fit, grid)
        values = torch.stack(
            [
                row_log_likelihood(fit.model, depth, grid.args, grid.kwargs, given=given, plate=fit.plate)
                for given in thinned(fit, DRAWS)
            ]
        )
    return (values.double().logsumexp(0) - np.log(len(values))).cpu().numpy()


def draw_regions(ax: Any, fit: Fit, arguments: Arguments, rows: Array) -> None:
    """The smallest regions that hold given shares of the probability within the picture, as filled contours."""
    across, up = (padded_range(column, GRID) for column in rows.T)
    points = np.stack([m.ravel() for m in np.meshgrid(across, up)], 1)
    height = np.exp(grid_log_density(fit, arguments, points)).reshape(GRID, GRID)
    ranked = np.sort(height, axis=None)[::-1]
    held = ranked.cumsum() / ranked.sum()
    levels = np.unique([ranked[np.searchsorted(held, mass)] for mass in MASSES])
    ax.contourf(across, up, height, [*levels, 1.001 * ranked[0]], colors=SHADES[-len(levels) :])
    ax.contour(across, up, height, levels, colors="#7d7d78", linewidths=0.6)


def panel_entries(shape: tuple[int, ...], values: list[Array], axis: int | None) -> tuple[list[tuple[int, ...]], int]:
    """Indices of the entries to show, those of one component together, and how many panels make a row."""
    entries = list(product(*map(range, shape)))
    square = len(shape) > 1 and shape[-1] == shape[-2] and axis not in (len(shape) - 1, len(shape) - 2)
    if square and all(np.allclose(v, v.swapaxes(-1, -2), rtol=1e-4) for v in values):
        entries = [entry for entry in entries if entry[-2] <= entry[-1]]
    if axis is None:
        return entries, min(len(entries), 4)
    entries.sort(key=lambda entry: entry[axis])
    each = len(entries) // shape[axis]
    return entries, each if 1 < each <= 6 else min(len(entries), 4)


def entry_name(entry: tuple[int, ...], shape: tuple[int, ...], axis: int | None, names: list[str]) -> str:
    """What one entry of a parameter is about."""
    parts = [
        f"component {i}" if a == axis else names[i] if shape[a] == len(names) else str(i) for a, i in enumerate(entry)
    ]
    return ", ".join(parts) or "value"


def draw_marginal(ax: Any, values: Array, colour: str, label: str) -> None:
    """A smooth density of draws, or a line for a point."""
    if np.ptp(values) <= 1e-9 * max(abs(values).max(), 1e-300):
        style = {"color": colour, "linewidth": 1.6, "linestyle": "--", "label": label}
        ax.plot([values.mean()] * 2, [0, 1], transform=ax.get_xaxis_transform(), **style)
        return
    kernel = gaussian_kde(values)
    margin = 3 * kernel.factor * values.std(ddof=1)
    grid = np.linspace(values.min() - margin, values.max() + margin, 300)
    ax.plot(grid, kernel(grid), color=colour, linewidth=1.6, label=label)
    ax.fill_between(grid, kernel(grid), color=colour, alpha=0.12, linewidth=0)


def smoothed(curve: Array) -> Array:
    """A centred moving average; the curve itself if it is short or rarely goes up."""
    width = len(curve) // 20
    if width < 3 or (np.diff(curve) > 0).mean() < 0.1:
        return curve
    finite = np.isfinite(curve)
    total, count = (np.convolve(v, np.ones(width), "same") for v in (np.where(finite, curve, 0), finite))
    return np.where(count > 0, total / np.maximum(count, 1), np.nan)


def readable_range(curves: list[Array]) -> tuple[float, float, bool]:
    """Limits that show all but the steep start of every curve, and whether anything is left out."""
    finite = [curve[np.isfinite(curve)] for curve in curves]
    ends = [curve[min(len(curve) // 10 + 1, len(curve) - 1) :] for curve in finite if len(curve)]
    low, high = min(curve.min() for curve in finite if len(curve)), max(np.quantile(end, 0.99) for end in ends)
    margin = 0.06 * (high - low) or 1e-3 * max(abs(high), 1.0)
    top = high + margin
    return low - margin, top, any(bool((curve > top).any()) for curve in finite)
