"""What the pictures in `row_plots` are made of: mosaics of images, points, tables of shades, lines."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.ticker import FixedLocator, MaxNLocator
from numpy.typing import NDArray

from pyro_lvm.diagnostics.plot_parts import PROBABILITY, Array, colour_of, marker_of, new_axes, strip_frame

__all__ = [
    "STANDARD",
    "draw_lines",
    "draw_mosaic",
    "draw_points",
    "draw_table",
    "far_apart",
    "image_shape_of",
    "mosaic",
    "of_columns",
    "standardised",
]

UNEQUAL = 5  # so many times a column's range may all values spread for one scale of shades to show it
REACH = 3.0  # standard deviations from a column's mean at which shades end
STANDARD = "standard deviations from the column's mean"
SMALLEST = 4  # pixels on a side: four columns of a table are no image of two by two


def image_shape_of(
    caller: str, row_shape: Sequence[int], named: bool, given: Sequence[int] | None
) -> tuple[int, ...] | None:
    """The shape of the images that rows are; None if they are none.

    Args:
        caller: Who asks, for the error.
        row_shape: Shape of a row.
        named: Whether the columns have names, as those of tables do, that differ in more than numbers.
        given: Height and width, and 3 for colours; an empty one if rows are no images. If None, rows of shape (h, w)
            or (h, w, 3) are images, and so are rows of at least 16 columns without such names whose number is a square.

    Raises:
        ValueError: The given shape does not hold as many numbers as a row.
    """
    size = math.prod(row_shape)
    if given is not None:
        shape = tuple(int(side) for side in given)
        if not shape:
            return None
        if len(shape) not in (2, 3) or (len(shape) == 3 and shape[2] != 3) or math.prod(shape) != size:
            raise ValueError(
                f"{caller}: expected image_shape=(height, width) or (height, width, 3) with a product of {size}, the "
                f"length of a row; got {shape}. Pass image_shape=() for rows that are no images."
            )
        return shape
    if len(row_shape) == 2 or (len(row_shape) == 3 and row_shape[2] == 3):
        return tuple(row_shape)
    side = math.isqrt(size)
    return (side, side) if len(row_shape) == 1 and side**2 == size and side >= SMALLEST and not named else None


def mosaic(images: Array, wide: int) -> Array:
    """Images side by side with a pixel of NaN between them.

    Args:
        images: Shape (n, h, w) or (n, h, w, 3).
        wide: Images in a line.

    Returns:
        Shape (lines * (h + 1) - 1, wide * (w + 1) - 1), and 3 if in colour.
    """
    n, h, w = images.shape[:3]
    high = -(-n // wide)
    table = np.full((high * (h + 1), wide * (w + 1), *images.shape[3:]), np.nan)
    for i, image in enumerate(images):
        top, left = (i // wide) * (h + 1), (i % wide) * (w + 1)
        table[top : top + h, left : left + w] = image
    return table[:-1, :-1]


def draw_mosaic(figure: Any, images: NDArray[Any], title: str, wide: int, *, signed: bool = False) -> None:
    """Draw images into a figure, all on one scale; around zero, blue below and red above, if they have a sign."""
    images = np.asarray(images, dtype=float)
    ax = figure.subplots()
    table = mosaic(images, min(wide, len(images)))
    finite = images[np.isfinite(images)]
    low, high = (float(finite.min()), float(finite.max())) if len(finite) else (0.0, 1.0)
    if table.ndim == 3:
        table = np.nan_to_num((table - low) / ((high - low) or 1.0), nan=1.0)
        ax.imshow(table, interpolation="nearest")
    elif signed:
        most = max(abs(low), abs(high)) or 1.0
        shown = ax.imshow(table, cmap="RdBu_r", vmin=-most, vmax=most, interpolation="nearest")
        bar = figure.colorbar(shown, ax=ax, shrink=0.7, pad=0.02)
        bar.outline.set_visible(False)
        bar.ax.tick_params(labelsize=8)
    else:
        ax.imshow(table, cmap="gray_r", vmin=low, vmax=high, interpolation="nearest")
    ax.set_axis_off()
    ax.set_title(title, fontsize=11)


def draw_points(figure: Any, groups: list[tuple[str, Array]], names: list[str], title: str) -> None:
    """Rows of one column as histograms, of two as points; the first of several groups of rows in grey if so named."""
    ax = new_axes(figure)
    for i, (name, rows) in enumerate(groups):
        grey = len(groups) > 1 and name == "rows"
        colour = "#999999" if grey else colour_of(i)
        if rows.reshape(len(rows), -1).shape[1] == 1:
            ax.hist(rows.reshape(-1), 30, density=True, alpha=0.5, color=colour, label=name)
            continue
        style = {"s": 16, "alpha": 0.4 if grey else 0.8, "linewidths": 0.3, "edgecolors": "white"}
        ax.scatter(*rows.reshape(len(rows), -1).T, color=colour, marker=marker_of(i), label=name, **style)
    single = len(names) == 1
    ax.set(xlabel=names[0], ylabel="density" if single else names[1], title=title)
    ax.title.set_fontsize(11)
    if len(groups) > 1:
        ax.legend(frameon=False, fontsize=9)


def far_apart(table: Array) -> bool:
    """Whether columns lie so far apart, or differ so much in size, that no one scale of shades shows all of them.

    Args:
        table: Shape (n, d), NaN where missing.
    """
    flat = table.reshape(len(table), -1)
    flat = flat[:, ~np.isnan(flat).all(0)]
    if not flat.size:
        return False
    ranges = np.nanmax(flat, 0) - np.nanmin(flat, 0)
    varying = ranges[ranges > 0]
    return len(varying) > 1 and bool(np.nanmax(flat) - np.nanmin(flat) > UNEQUAL * varying.min())


def standardised(reference: Array, *tables: Array) -> tuple[tuple[Array, ...], tuple[float, float], str]:
    """Tables to draw with shades of one scale, that scale, and what it shows.

    Where columns lie too far apart for one scale, it is that of standard deviations from the mean of each.

    Args:
        reference: Rows that give means and standard deviations, shape (n, d).
        tables: Rows of the same columns.
    """
    every = np.concatenate([table.reshape(len(table), -1) for table in tables])
    if not far_apart(reference):
        return tables, (float(np.nanmin(every)), float(np.nanmax(every))), ""
    return tuple(of_columns(table, reference) for table in tables), (-REACH, REACH), STANDARD


def of_columns(table: Array, reference: Array, centred: bool = True) -> Array:
    """Entries in standard deviations of their columns, from the means of these if so wanted.

    Args:
        table: Shape (m, d).
        reference: Rows that give means and standard deviations, shape (n, d), NaN where missing.
        centred: Whether the means are taken off.
    """
    flat = reference.reshape(len(reference), -1)
    spread = np.nanstd(flat, 0)
    mean = np.nanmean(flat, 0) if centred else 0.0
    return (table.reshape(len(table), -1) - mean) / np.where(spread > 0, spread, 1.0)


def draw_table(
    figure: Any,
    table: Array,
    names: list[str],
    title: str,
    scale: tuple[float, float] | None = None,
    rows: str = "row",
    label: str = "",
) -> None:
    """A table as shades of one scale, one line a row; around zero, blue below and red above, if that is its middle."""
    flat = table.reshape(len(table), -1)
    ax = figure.subplots()
    low, high = scale or (float(np.nanmin(flat)), float(np.nanmax(flat)))
    colours = "RdBu_r" if low == -high else PROBABILITY
    shown = ax.imshow(flat, aspect="auto", interpolation="nearest", cmap=colours, vmin=low, vmax=high)
    ax.set(xlabel="column", ylabel=rows, title=title)
    ax.title.set_fontsize(11)
    ax.tick_params(length=0, labelsize=8)
    for axis, count in ((ax.xaxis, flat.shape[1]), (ax.yaxis, len(flat))):
        axis.set_major_locator(MaxNLocator(integer=True) if count > 1 else FixedLocator([0]))
    if names and len(names) <= 20 and not names[0].startswith("column "):
        ax.set_xticks(range(len(names)), names, rotation=60, ha="right")
        ax.set_xlabel("")
    bar = figure.colorbar(shown, ax=ax, shrink=0.8)
    bar.outline.set_visible(False)
    bar.set_label(label, fontsize=8)


def draw_lines(figure: Any, rows: Array, title: str) -> None:
    """Sequences as lines, one panel each; of several columns a line each."""
    axes = figure.subplots(len(rows), 1, sharex=True, squeeze=False)[:, 0]
    for ax, series in zip(axes, rows.reshape(*rows.shape[:2], -1), strict=True):
        strip_frame(ax)
        for i, column in enumerate(series.T[:6]):
            ax.plot(column, color=colour_of(i), linewidth=0.9)
    axes[0].set_title(title, fontsize=11)
    axes[-1].set_xlabel("step")
