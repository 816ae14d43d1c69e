"""Pictures of models of sequences: states over series, transitions, and how long states last.

States have the numbers that `Fit.predict` gives them. Each picture is a `matplotlib.figure.Figure` of its own.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter
from numpy.typing import NDArray

from pyro_lvm.diagnostics.forecast import Forecast, forecast
from pyro_lvm.diagnostics.latents import AVERAGED_DRAWS, common_states, thinned
from pyro_lvm.diagnostics.normal_state_plots import draw_normal_states, figure_height
from pyro_lvm.diagnostics.paths import chains_of, decoded, discrete_kinds, how_to_hide_states, ordered, smoothed
from pyro_lvm.diagnostics.plot_parts import PROBABILITY, Array, axis_names, colour_of, new_figure, strip_frame
from pyro_lvm.diagnostics.step_laws import normal_states
from pyro_lvm.ops.whole_number import whole_number
from pyro_lvm.training.data import Arguments

if TYPE_CHECKING:
    from pyro_lvm.training.result import Fit

__all__ = ["durations", "states", "transitions"]

MAX_SERIES, MAX_NUMBERS, MAX_PANELS = 6, 12, 12
COMING = 1000  # draws of what is to come


def states(
    fit: Fit, x: Any, sequence: int = 0, columns: Sequence[str] | None = None, steps: int | None = None
) -> Figure:
    """A sequence, its states, and the steps that follow; one panel per column, at most six, and one for the states.

    Of a hidden Markov site: the most probable path is coloured background, and below stands the posterior probability
    of every state at every step. Of normal states: lines are the means of levels and states given all that is known,
    and bands hold levels, and values as they would be measured, with a probability of 90 %.

    Args:
        fit: A fit of a model with one hidden Markov site, or sequences of normal states.
        x: Sequences, converted as in `lvm.fit`.
        sequence: Which of them to draw.
        columns: Names, with units, for the axes; by default those of `x`, or of the training data.
        steps: How many steps to forecast, with the middle 90 %; a tenth as many as there are for normal states, none
            for others, if None.

    Raises:
        ValueError: The model has no such site, there is no such sequence, or covariates of steps to come are missing.

    Example:
        >>> import torch, pyro_lvm as lvm
        >>> x = lvm.datasets.load("faithful").x[:, :1]
        >>> fit = lvm.fit(lvm.models.GaussianHMM(2), x, seed=0, progress=False)
        >>> states(fit, x, columns=["duration (min)"]).axes[0].get_ylabel()
        'duration (min)'
    """
    arguments = fit.arguments(x)
    steps = None if steps is None else whole_number("states", "steps", steps, least=0)
    normal = normal_states(fit, arguments)
    _, order = ("", None) if normal else _the_path("states", fit, arguments)
    if not 0 <= sequence < arguments.num_rows:
        raise ValueError(f"states: expected sequence from 0 to {arguments.num_rows - 1}; got {sequence}.")
    if normal:
        figure = new_figure(8.6, figure_height(arguments))
        draw_normal_states(figure, fit, arguments, sequence, columns, steps)
        return figure
    one = arguments.rows(slice(sequence, sequence + 1))
    draws = thinned(fit, AVERAGED_DRAWS)
    (path,), (table,) = decoded(fit, one, draws, order).values(), smoothed(fit, one, draws, order).values()
    count = int((path[0] >= 0).sum())
    series = one.main[0].reshape(one.main.shape[1], -1)[:count, :MAX_SERIES].double().cpu().numpy()
    names = axis_names("states", fit, one, columns) if one.main.dim() > 2 else list(columns or ["x"])
    runs = list(_runs(path[0, :count].cpu().numpy()))
    figure = new_figure(8.6, 1.5 + 1.5 * series.shape[1])
    axes = figure.subplots(
        series.shape[1] + 1, 1, sharex=True, squeeze=False, height_ratios=[2.2] * series.shape[1] + [1]
    )[:, 0]
    place, k = np.arange(count), table.shape[-1]
    bands = table[0, :count].double().cpu().numpy()
    coming = forecast(fit, replace(one, layout=None), steps, COMING, {}) if steps else None
    for i, ax in enumerate(axes[:-1]):
        strip_frame(ax)
        _draw_background(ax, runs, k)
        ax.plot(place, series[:, i], color="#222222", linewidth=0.9, marker="o" if count <= 150 else "", markersize=2.5)
        if coming is not None:
            _draw_forecast(ax, coming, i, count)
        ax.set_ylabel(names[i], fontsize=9)
    strip_frame(axes[-1])
    if coming is not None:
        bands = np.concatenate([bands, coming.states[0].double().cpu().numpy()])
        place = np.arange(len(bands))
    axes[-1].stackplot(place, bands.T, colors=[colour_of(j) for j in range(k)], alpha=0.75, linewidth=0, step="mid")
    axes[-1].set(ylim=(0, 1), xlim=(-0.5, len(place) - 0.5), xlabel="step", ylabel="probability")
    axes[-1].yaxis.set_major_formatter(PercentFormatter(1))
    which = f" of sequence {sequence}" if arguments.num_rows > 1 else ""
    axes[0].set_title(f"Most probable path{which}: {len(runs)} runs in {count} steps")
    keys, labels = axes[0].get_legend_handles_labels()
    figure.legend(keys, labels, loc="outside lower center", ncols=min(k, 6), frameon=False, fontsize=9)
    return figure


def transitions(fit: Fit, x: Any) -> Figure:
    """Probabilities of the next state, row by previous state, as a heat map with numbers.

    Of a posterior their means over draws; of transitions that change with time their means over the steps; of
    semi-Markov models the shares of moves, stays included, that are expected in the sequences.

    Args:
        fit: A fit of a model with one hidden Markov site.
        x: Sequences, converted as in `lvm.fit`; states of a posterior's draws are recognised by them.

    Raises:
        ValueError: The model has no hidden Markov site.
    """
    table = _mean_transitions("transitions", fit, fit.arguments(x))
    k = len(table)
    figure = new_figure(2.6 + 0.55 * k, 2.0 + 0.5 * k)
    ax = figure.subplots()
    image = ax.imshow(table, cmap=PROBABILITY, vmin=0, vmax=1)
    if k <= MAX_NUMBERS:
        for i, j in np.ndindex(k, k):
            text = "0" if table[i, j] == 0 else f"{table[i, j]:.2f}"
            ax.text(j, i, text, ha="center", va="center", color="white" if table[i, j] > 0.4 else "black", fontsize=9)
    ax.set(xlabel="next state", ylabel="previous state", title="Transition probabilities")
    ax.title.set_fontsize(11)
    for axis in (ax.xaxis, ax.yaxis):
        axis.set_major_locator(MaxNLocator(integer=True, nbins=min(k, 12)))
    ax.spines[:].set_visible(False)
    ax.tick_params(length=0, labelsize=9)
    bar = figure.colorbar(image, ax=ax, format=PercentFormatter(1), shrink=0.85)
    bar.outline.set_visible(False)
    return figure


def durations(fit: Fit, x: Any) -> Figure:
    r"""How long each state lasts, against the law that a Markov chain implies for it, one panel per state.

    Runs of the most probable paths, but for the last of each sequence, which is cut off; the line is the geometric law
    :math:`a_{kk}^{d-1} (1 - a_{kk})`. Bars far from it ask for more states, or for a hidden semi-Markov model.

    Args:
        fit: A fit of a model with one hidden Markov site.
        x: Sequences, converted as in `lvm.fit`.

    Raises:
        ValueError: The model has no hidden Markov site.
    """
    arguments = fit.arguments(x)
    _, order = _the_path("durations", fit, arguments)
    (paths,) = decoded(fit, arguments, thinned(fit, AVERAGED_DRAWS), order).values()
    stay = _mean_transitions("durations", fit, arguments).diagonal()
    found: list[list[int]] = [[] for _ in stay]
    for path in paths.reshape(-1, paths.shape[-1]).cpu().numpy():
        for state, start, stop in list(_runs(path[path >= 0]))[:-1]:
            found[state].append(stop - start)
    shown = range(min(len(stay), MAX_PANELS))
    wide = min(len(shown), 4)
    figure = new_figure(2.9 * wide + 0.6, 2.4 * -(-len(shown) // wide) + 0.7)
    grid = figure.subplots(-(-len(shown) // wide), wide, squeeze=False)
    for k, ax in zip(shown, grid.flat, strict=False):
        strip_frame(ax)
        _draw_durations(ax, np.array(found[k]), float(stay[k]), colour_of(k))
        ax.set_title(f"state {k}: {len(found[k])} runs", fontsize=10)
    for ax in grid.flat[len(shown) :]:
        ax.set_axis_off()
    figure.supxlabel("steps in a row", fontsize=10)
    figure.supylabel("share of runs", fontsize=10)
    few = f" (first {len(shown)} of {len(stay)} states)" if len(shown) < len(stay) else ""
    figure.suptitle(f"How long states last, and the geometric law{few}", fontsize=11)
    return figure


def _draw_durations(ax: Any, lasted: NDArray[np.int64], stay: float, colour: str) -> None:
    longest = max(int(lasted.max()) if len(lasted) else 1, min(int(np.ceil(3 / max(1 - stay, 0.01))), 300), 2)
    width = max(1, longest // 25)
    edges = np.arange(0.5, longest + width + 0.5, width)
    if len(lasted):
        ax.hist(lasted, edges, weights=np.full(len(lasted), 1 / len(lasted)), color=colour, alpha=0.45)
    law = stay ** (edges[:-1] - 0.5) - stay ** (edges[1:] - 0.5)
    ax.plot((edges[:-1] + edges[1:]) / 2, law, color="black", linewidth=1.4, marker=".", markersize=4)
    ax.xaxis.set_major_locator(MaxNLocator(4, integer=True))


def _draw_forecast(ax: Any, coming: Forecast, i: int, count: int) -> None:
    """Means of a column in the steps to come, and where the middle 90 % of them lie."""
    table = [part[0].reshape(len(part[0]), -1) for part in (coming.mean, *coming.interval())]
    if len({part.shape for part in table}) > 1:  # the means of symbols are probabilities
        raise ValueError("states: expected steps of numbers to forecast; got symbols. Use fit.forecast(x, steps).")
    mean, low, high = (part[:, i].double().cpu().numpy() for part in table)
    place = np.arange(count, count + len(mean))
    ax.fill_between(place, low, high, color="#222222", alpha=0.15, linewidth=0)
    ax.plot(place, mean, color="#222222", linewidth=1.3, linestyle=":")
    ax.axvline(count - 0.5, color="#888888", linewidth=0.8, linestyle="--")


def _draw_background(ax: Any, runs: list[tuple[int, int, int]], states: int) -> None:
    for k in range(states):
        spans = [(start - 0.5, stop - start) for state, start, stop in runs if state == k]
        ax.broken_barh(
            spans or [(0, 0)],
            (0, 1),
            transform=ax.get_xaxis_transform(),
            color=colour_of(k),
            alpha=0.3,
            linewidth=0,
            label=f"state {k}",
        )


def _runs(path: NDArray[np.int64]) -> Iterator[tuple[int, int, int]]:
    """State, start and end of every run."""
    cuts = np.flatnonzero(np.diff(path)) + 1
    for start, stop in zip([0, *cuts], [*cuts, len(path)], strict=True):
        yield int(path[start]), int(start), int(stop)


def _the_path(caller: str, fit: Fit, arguments: Arguments) -> tuple[str, Any]:
    """The name of the only hidden path, and the order of the states of each draw."""
    hidden = discrete_kinds(fit, arguments)[1]
    if len(hidden) != 1:
        raise ValueError(
            f"{caller}: expected a model with one hidden Markov site; got {', '.join(hidden) or 'none'}. "
            f"{how_to_hide_states(fit, arguments)}"
        )
    return hidden[0], common_states(fit, arguments, thinned(fit, AVERAGED_DRAWS))


def _mean_transitions(caller: str, fit: Fit, arguments: Arguments) -> Array:
    _, order = _the_path(caller, fit, arguments)
    draws = thinned(fit, AVERAGED_DRAWS)
    total = np.zeros(())
    for where, sites in chains_of(fit, arguments, draws):
        (chain,) = sites.values()
        law = chain.laws[-1]
        if law.num_positions == law.num_states:
            table = chain.transition.exp().flatten(1, -3).mean(1)
        else:  # a chain of more positions than states, as in semi-Markov models: moves as they are expected to occur
            table = chain.smooth()[1].flatten(1, -3).sum(1)
            table = table / table.sum(-1, keepdim=True).clamp_min(1e-300)
        table = ordered(table, None if order is None else order[where], 2)
        total = total + table.sum(0).double().cpu().numpy()
    return np.asarray(total / len(draws))
