"""Pictures of rows and of what a fit makes of them: samples, reconstructions, filters, the latent space.

Rows that are images are drawn as images, few continuous columns as points, all others as tables of shades. Which rows
are images is told by `image_shape`; see `image_shape_of` for what is assumed without it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from matplotlib.figure import Figure

from pyro_lvm.diagnostics.filter_table import filter_table
from pyro_lvm.diagnostics.latents import generate
from pyro_lvm.diagnostics.plot_parts import (
    Array,
    axis_names,
    colour_of,
    new_axes,
    new_figure,
    principal_plane,
)
from pyro_lvm.diagnostics.row_plot_parts import (
    draw_lines,
    draw_mosaic,
    draw_points,
    draw_table,
    far_apart,
    image_shape_of,
    of_columns,
    standardised,
)
from pyro_lvm.training.arguments import WEIGHTS, Arguments
from pyro_lvm.training.guide_draws import draws_rows
from pyro_lvm.training.labels import labels_of
from pyro_lvm.training.sequences import LENGTHS

if TYPE_CHECKING:
    from pyro_lvm.training.result import Fit

__all__ = ["Look", "filters", "generated", "latent", "look_of", "reconstructions", "samples"]

TILES, PAIRS, TABLE_ROWS, LINES = 64, 16, 60, 6
POINTS = 2000


@dataclass(frozen=True)
class Look:
    """How rows look.

    Attributes:
        shape: That of an image; None if rows are none.
        names: Of the columns.
        labels: A group for every row, shape (n,), or None.
    """

    shape: tuple[int, ...] | None
    names: list[str]
    labels: Array | None = None


def look_of(
    caller: str,
    fit: Fit,
    arguments: Arguments,
    image_shape: Sequence[int] | None = None,
    columns: Sequence[str] | None = None,
    labels: Any = None,
) -> Look:
    """How the rows of a fit look."""
    x = arguments.main
    names = columns or arguments.names or fit.columns or ()
    named = len({re.sub(r"\d+", "", str(name)) for name in names}) > 1  # "pixel 1", "pixel 2" are but numbers
    shape = None if arguments.layout is not None else image_shape_of(caller, x.shape[1:], named, image_shape)
    groups = None if labels is None else np.asarray(labels).reshape(-1)
    if groups is not None and len(groups) != len(x):
        raise ValueError(f"{caller}: expected one label for each of {len(x)} rows; got {len(groups)}.")
    shown = [] if shape is not None or x.dim() > 2 else axis_names(caller, fit, arguments, columns)
    return Look(shape, shown, groups)


def samples(
    fit: Fit, x: Any = None, image_shape: Sequence[int] | None = None, columns: Sequence[str] | None = None
) -> Figure:
    """Rows that the fit generates; where a guide draws latent sites of rows, their means given the latent sites.

    Args:
        fit: A fit.
        x: Rows to compare with, drawn in grey, where rows are points; covariates are taken from them.
        image_shape: Height and width of rows that are images, and 3 if in colour.
        columns: Names, with units, of the columns.

    Example:
        >>> import pyro_lvm as lvm
        >>> x = lvm.datasets.load("digits234").x
        >>> fit = lvm.fit(lvm.models.RBM(8), x, max_epochs=2, seed=0, progress=False)
        >>> samples(fit).axes[0].get_title()
        '64 generated rows'
    """
    arguments = fit.prototype(1) if x is None else fit.arguments(x)
    return _figure(
        draw_samples, fit, arguments, look_of("samples", fit, arguments, image_shape, columns), x is not None
    )


def reconstructions(
    fit: Fit, x: Any, image_shape: Sequence[int] | None = None, columns: Sequence[str] | None = None
) -> Figure:
    """Rows, and below each what is expected of it given its latent sites (`Fit.reconstruct`).

    Args:
        fit: A fit.
        x: Rows, converted as in `lvm.fit`; the first few are drawn.
        image_shape: Height and width of rows that are images, and 3 if in colour.
        columns: Names of the columns.
    """
    arguments = fit.arguments(x)
    return _figure(
        draw_reconstructions, fit, arguments, look_of("reconstructions", fit, arguments, image_shape, columns)
    )


def filters(
    fit: Fit,
    x: Any = None,
    site: str | None = None,
    image_shape: Sequence[int] | None = None,
    columns: Sequence[str] | None = None,
) -> Figure:
    """What every unit, component or state says of the columns: a parameter with one axis as long as a row.

    Args:
        fit: A fit.
        x: Rows, only for the names of their columns.
        site: Name of the parameter, out of `fit.params`; by default the first matrix with such an axis.
        image_shape: Height and width of rows that are images, and 3 if in colour.
        columns: Names of the columns.

    Raises:
        ValueError: There is no such parameter.
    """
    arguments = fit.prototype(1) if x is None else fit.arguments(x)
    look = look_of("filters", fit, arguments, image_shape, columns)
    return _figure(draw_filters, fit, arguments, look, site)


def latent(fit: Fit, x: Any, labels: Any = None) -> Figure:
    """Posterior means of the latent sites of rows (`Fit.transform`), along their first two principal axes if many.

    Args:
        fit: A fit of a model with continuous latent sites of rows, or with hidden units.
        x: Rows, converted as in `lvm.fit`.
        labels: A group for every row, which gives the colours.

    Raises:
        ValueError: Rows have no such latent sites, or labels do not fit.
    """
    arguments = fit.arguments(x)
    return _figure(draw_latent, fit, arguments, look_of("latent", fit, arguments, labels=labels))


def _figure(draw: Callable[..., None], fit: Fit, arguments: Arguments, look: Look, *more: Any) -> Figure:
    figure = new_figure(6.4, 5.4)
    draw(figure, fit, arguments, look, *more)
    return figure


# Into a figure, or a part of one


def draw_samples(figure: Any, fit: Fit, arguments: Arguments, look: Look, given: bool = True) -> None:
    """Generated rows; over the given ones, if there are any and rows are points."""
    continuous = arguments.main.is_floating_point() and len(look.names) in (1, 2)
    count = 500 if continuous else TILES if look.shape else LINES if arguments.layout is not None else TABLE_ROWS
    means = look.shape is not None and draws_rows(fit)
    rows = generated(fit, arguments, count, means)
    if arguments.layout is None and rows[0].size != arguments.main[0].numel():  # what was passed explains the rows
        look, given = Look(None, [f"column {i}" for i in range(rows[0].size)]), False
    title = f"Means of {count} generated rows" if means else f"{count} generated rows"
    if look.shape is not None:
        draw_mosaic(figure, rows.reshape(count, *look.shape), title, 8)
    elif arguments.layout is not None:
        draw_lines(figure, rows, f"{count} generated sequences")
    elif continuous and len(look.names) in (1, 2):
        draw_points(figure, [("rows", arguments.main.cpu().numpy())] * given + [("generated", rows)], look.names, title)
    else:
        (shades,), scale, label = standardised(rows, rows)
        draw_table(figure, shades, look.names, title, scale, label=label)


def draw_reconstructions(figure: Any, fit: Fit, arguments: Arguments, look: Look) -> None:
    """Rows and what is expected of them."""
    count = PAIRS if look.shape else 300 if len(look.names) == 2 else TABLE_ROWS
    few = arguments.rows(slice(0, count)) if arguments.layout is None else arguments
    expected = fit.reconstruct(few)
    if arguments.layout is not None:
        raise ValueError("reconstructions: expected rows of a table; got sequences. Use kind='states'.")
    rows, made = (torch.as_tensor(table).double().cpu().numpy() for table in (few.main, expected))
    count = len(rows)
    if look.shape is None and len(look.names) == 2:
        title = f"Rows and their reconstructions{_only_first(count, arguments.num_rows)}"
        draw_points(figure, [("rows", rows), ("reconstructed", made)], look.names, title)
    elif look.shape is None:
        (rows, made), scale, label = standardised(_numbers(arguments), rows, made)
        left, right = figure.subfigures(1, 2)
        draw_table(left, rows, look.names, f"{count} rows{_only_first(count, arguments.num_rows)}", scale)
        draw_table(right, made, look.names, "reconstructed", scale, label=label)
    else:
        wide = min(count, 8)
        lines = [part for i in range(0, count, wide) for part in _padded(rows[i : i + wide], made[i : i + wide], wide)]
        images = np.concatenate(lines).reshape(-1, *look.shape)
        draw_mosaic(figure, images, "Rows (upper lines) and their reconstructions (lower)", wide)


def draw_filters(figure: Any, fit: Fit, arguments: Arguments, look: Look, site: str | None = None) -> None:
    """One picture for every unit, those of the largest norm first."""
    name, table = filter_table(fit, arguments, site)
    most = float(np.abs(table).max()) or 1.0
    signed = bool((table < 0).any())
    order = np.argsort(-np.linalg.norm(table, axis=1), kind="stable") if len(table) > TILES else np.arange(len(table))
    shown = table[order[:TILES]]
    few = f" (the {TILES} largest of {len(table)})" if len(shown) < len(table) else ""
    title = f"Filters: {name}{few}"
    if look.shape is not None:
        draw_mosaic(figure, shown.reshape(-1, *look.shape), title, 8 if len(shown) > 4 else len(shown), signed=signed)
    else:
        data = _numbers(arguments)
        scale, label = ((-most, most) if signed else None), ""
        if far_apart(data):
            shown, label = of_columns(shown, data, centred=name == "loc"), "standard deviations of the column"
            scale = -float(np.abs(shown).max()), float(np.abs(shown).max())
        draw_table(figure, shown, look.names, title, scale, rows="unit", label=label)


def draw_latent(figure: Any, fit: Fit, arguments: Arguments, look: Look) -> None:
    """Posterior means as points."""
    found = fit.transform(arguments)
    site, table = next(iter(found.items())) if isinstance(found, dict) else ("", found)
    points = table.double().cpu().numpy().reshape(len(table), -1)[:POINTS]
    names = [f"{site or 'latent'} {i}" for i in range(points.shape[1])]
    groups = None if look.labels is None else look.labels[:POINTS]
    title = f"Posterior means of {site or 'the latent sites'}{_only_first(len(points), len(table))}"
    if points.shape[1] == 1:
        ax = new_axes(figure)
        kinds = [None] if groups is None else list(np.unique(groups))
        parts = [points[:, 0] if kind is None else points[groups == kind, 0] for kind in kinds]
        colours = [colour_of(i) for i in range(len(parts))]
        ax.hist(parts, 30, stacked=True, color=colours, label=None if groups is None else [str(k) for k in kinds])
        ax.set(xlabel=names[0], ylabel="rows", title=title)
        if groups is not None:
            ax.legend(frameon=False, fontsize=9)
        return
    plane, names, note = principal_plane(points, names)
    named = [("rows", plane)] if groups is None else [(str(k), plane[groups == k]) for k in np.unique(groups)]
    draw_points(figure, named, names, "\n".join(filter(None, [title, note])))


def generated(fit: Fit, arguments: Arguments, count: int, means: bool = False) -> Array:
    """New rows by the fit's own seed, or their means given their latent sites; covariates are those of given rows."""
    covariates = {
        name: value[torch.arange(count) % len(value)]
        for name, value in arguments.kwargs.items()
        if torch.is_tensor(value) and name not in ("x", LENGTHS, WEIGHTS, *labels_of(fit.model, arguments.kwargs))
    }
    with torch.random.fork_rng():
        torch.manual_seed(fit.seed)
        rows = generate(fit, count, covariates, means=means)
    return next(iter(rows.values())).double().cpu().numpy()


def _numbers(arguments: Arguments) -> Array:
    """All rows, or all steps of sequences, one line each."""
    x, steps = arguments.main, arguments.steps
    x = x if steps is None else x[steps]
    return x.reshape(len(x), -1).double().cpu().numpy()


def _only_first(shown: int, count: int) -> str:
    """What a title says where not all rows are drawn."""
    return f" (the first {shown} of {count})" if shown < count else ""


def _padded(rows: Array, made: Array, wide: int) -> list[Array]:
    """Two lines of images of one length."""
    gap = np.full((wide - len(rows), *rows.shape[1:]), np.nan)
    return [np.concatenate([rows, gap]), np.concatenate([made, gap])]
