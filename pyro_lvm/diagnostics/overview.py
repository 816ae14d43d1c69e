"""The picture that a fit calls for, chosen by the sites of its model, or one that is asked for by name."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from matplotlib.figure import Figure

from pyro_lvm.diagnostics import plots
from pyro_lvm.diagnostics.alignment_plots import alignment, draw_alignment
from pyro_lvm.diagnostics.factor_plots import draw_loadings
from pyro_lvm.diagnostics.filter_table import filter_table
from pyro_lvm.diagnostics.inner_latents import inner_posterior, inner_units
from pyro_lvm.diagnostics.latents import thinned
from pyro_lvm.diagnostics.loadings import has_loadings
from pyro_lvm.diagnostics.loss_plots import draw_losses, loss_curves
from pyro_lvm.diagnostics.normal_state_plots import draw_normal_states, figure_height
from pyro_lvm.diagnostics.paths import discrete_kinds
from pyro_lvm.diagnostics.plot_parts import new_figure
from pyro_lvm.diagnostics.row_plots import (
    Look,
    draw_filters,
    draw_latent,
    draw_reconstructions,
    draw_samples,
    generated,
    look_of,
)
from pyro_lvm.diagnostics.step_laws import normal_states
from pyro_lvm.training.arguments import Arguments
from pyro_lvm.training.guide_draws import draws_rows
from pyro_lvm.training.sites import check_plate

if TYPE_CHECKING:
    from pyro_lvm.training.result import Fit

__all__ = ["KINDS", "plot"]

INVENTED = 400  # rows to draw where none are given


def _history(fit: Fit) -> Figure:
    return plots.losses({fit.name: fit})


KINDS: dict[str, Callable[..., Figure]] = {
    "alignment": alignment,
    "density": plots.density,
    "durations": plots.durations,
    "filters": plots.filters,
    "history": _history,
    "latent": plots.latent,
    "loadings": plots.loadings_map,
    "reconstructions": plots.reconstructions,
    "responsibilities": plots.responsibilities,
    "samples": plots.samples,
    "scree": plots.scree,
    "states": plots.states,
    "transitions": plots.transitions,
}
"""Pictures by name: functions of a fit and, where they look at some, of rows."""


def plot(fit: Fit, x: Any = None, kind: str | None = None, **options: Any) -> Figure:
    """Draw a fit; see `Fit.plot`."""
    if kind is None:
        return _overview(fit, x, **_known("plot", _overview, options))
    if kind not in KINDS:
        raise ValueError(f"plot: expected kind out of {', '.join(KINDS)}; got {kind!r}.")
    draw = KINDS[kind]
    parameters = inspect.signature(draw).parameters
    options = _known(f"plot, kind='{kind}'", draw, options)
    if "x" not in parameters:
        return draw(fit, **options)
    if x is None and parameters["x"].default is inspect.Parameter.empty:
        x = _invented(fit)
    return draw(fit, x, **options)


def _known(caller: str, draw: Callable[..., Figure], options: dict[str, Any]) -> dict[str, Any]:
    """The options that were given, if the picture has them."""
    given = {name: value for name, value in options.items() if value is not None}
    known = [name for name in inspect.signature(draw).parameters if name not in ("fit", "x")]
    for name in given:
        if name not in known:
            raise ValueError(f"{caller}: expected options out of {', '.join(known) or 'none'}; got '{name}'.")
    return given


def _invented(fit: Fit) -> Any:
    """Rows that the fit generates, to look at it without data."""
    prototype = fit.prototype(1)
    count = INVENTED if prototype.layout is None else 1
    check_plate(fit, fit.prototype(count))
    try:
        rows = generated(fit, prototype, count)
        return fit.arguments(torch.from_numpy(rows).to(prototype.main))
    except (ValueError, TypeError, KeyError, RuntimeError) as error:
        raise ValueError(
            f"plot: expected rows x of {fit.name}, which generates none by itself. Pass x=rows."
        ) from error


def _overview(
    fit: Fit,
    x: Any = None,
    image_shape: Any = None,
    columns: Any = None,
    labels: Any = None,
    sequence: int = 0,
    steps: int | None = None,
) -> Figure:
    """All that the structure of the model gives to see, in one figure."""
    arguments = fit.arguments(_invented(fit) if x is None else x)
    enumerated, hidden = ([], []) if draws_rows(fit) else discrete_kinds(fit, arguments)
    if hidden:
        return plots.states(fit, arguments, sequence, columns, steps)
    look = look_of("plot", fit, arguments, image_shape, columns, labels)
    points = look.shape is None and len(arguments.values) == 1 and arguments.main.is_floating_point()
    if enumerated and points and arguments.main.dim() <= 2 and not _whole(arguments):
        return plots.density(fit, arguments, columns)
    panels = _panels(fit, arguments, look, bool(enumerated), given=x is not None)
    wide = len(panels) if len(panels) < 4 else -(-len(panels) // 2)
    high = -(-len(panels) // wide)
    if not (enumerated or draws_rows(fit)) and normal_states(fit, arguments):
        above = figure_height(arguments)
        figure = new_figure(max(8.6, 5.2 * wide), above + 4.4 * high)
        top, rest = figure.subfigures(2, 1, height_ratios=[above, 4.4 * high])
        draw_normal_states(top, fit, arguments, sequence, columns, steps)
    else:
        figure = rest = new_figure(5.2 * wide, 4.4 * high)
    parts = rest.subfigures(high, wide, squeeze=False)
    for part, draw in zip(parts.flat, panels, strict=False):
        draw(part)
    return figure


def _panels(fit: Fit, arguments: Arguments, look: Look, enumerated: bool, given: bool) -> list[Callable[[Any], None]]:
    """What can be drawn of this fit, each a function of a part of a figure."""
    rest = (fit, arguments, look)
    first = thinned(fit, 1)
    aligned = inner_posterior(fit, arguments, first) if not (enumerated or draws_rows(fit)) else {}
    units = bool(aligned) and bool(inner_units(fit, arguments, first))
    if aligned and not units:
        return [lambda part: draw_alignment(part, fit, arguments), *_training(fit)]
    panels: list[Callable[[Any], None]] = []
    named = has_loadings(fit) and look.shape is None
    if named:
        panels.append(lambda part: draw_loadings(part, fit))
    if draws_rows(fit) or units or enumerated:
        panels.append(lambda part: draw_reconstructions(part, *rest))
    if draws_rows(fit) or units:
        panels.append(lambda part: draw_latent(part, *rest))
    if not named and _has_filters(fit, arguments):
        panels.append(lambda part: draw_filters(part, *rest))
    panels.append(lambda part: draw_samples(part, *rest, given))
    return [*panels, *_training(fit)]


def _training(fit: Fit) -> list[Callable[[Any], None]]:
    fits = {fit.name: fit}
    try:
        curves = loss_curves(fits)
    except ValueError:  # a sampler has no loss
        return []
    return [partial(draw_losses, fits=fits, panels=curves)]


def _has_filters(fit: Fit, arguments: Arguments) -> bool:
    try:
        filter_table(fit, arguments)
    except ValueError:
        return False
    return True


def _whole(arguments: Arguments) -> bool:
    """Whether all values are whole numbers: counts, or zeros and ones, which have no density to draw."""
    known = arguments.main[~arguments.main.isnan()]
    return bool((known == known.round()).all())
