"""Pictures of sequences with normal states: what was measured, the level behind it, the states, what is to come.

Levels are the values without their noise. A dark band holds a level with a probability of 90 %, a pale one the value
that would be measured: beneath known entries, in gaps, and in the steps to come alike.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from pyro_lvm.diagnostics.forecast import lengthened
from pyro_lvm.diagnostics.latents import AVERAGED_DRAWS, thinned
from pyro_lvm.diagnostics.plot_parts import Array, axis_names, colour_of, strip_frame
from pyro_lvm.diagnostics.step_laws import steps_at
from pyro_lvm.training.arguments import Arguments

if TYPE_CHECKING:
    from pyro_lvm.distributions.linear_gaussian_chain import StepLaw
    from pyro_lvm.training.result import Fit

__all__ = ["draw_normal_states", "figure_height"]

MAX_SERIES, MAX_STATES = 6, 6
REACH = 1.6448536269514722  # standard deviations to each side that hold 90 % of a normal law
AHEAD = 10  # of so many steps one more is forecast


def figure_height(arguments: Arguments) -> float:
    """Inches that the picture takes."""
    return 2.4 + 1.5 * min(MAX_SERIES, arguments.main[0, 0].numel())


def draw_normal_states(
    figure: Any,
    fit: Fit,
    arguments: Arguments,
    sequence: int = 0,
    columns: Sequence[str] | None = None,
    steps: int | None = None,
) -> None:
    """Draw one sequence into a figure, or a part of one; see `pyro_lvm.diagnostics.plots.states`."""
    one = arguments.rows(slice(sequence, sequence + 1))
    total = int(one.main.shape[1] if one.steps is None else one.steps.sum())
    law, count = _law(fit, one, total, steps)
    series = one.main[0, :total].reshape(total, -1)[:, :MAX_SERIES].double().cpu().numpy()
    names = axis_names("states", fit, one, columns)
    here = np.arange(total)
    levels = law.mean.shape[-1] == one.main[0, 0].numel()  # else the law is that of something made of the columns
    if not levels and steps is None:
        law, count = _law(fit, one, total, 0)
    axes = figure.subplots(
        series.shape[1] + 1, 1, sharex=True, squeeze=False, height_ratios=[2.2] * series.shape[1] + [1.6]
    )[:, 0]
    for i, ax in enumerate(axes[:-1]):
        strip_frame(ax)
        if levels:
            _draw_level(ax, law, i, total)
        dots = {"marker": "o", "markersize": 2.5} if total <= 400 else {}
        ax.plot(here, series[:, i], color="#222222", linewidth=0.5, label="measured", **dots)
        gone = np.flatnonzero(np.isnan(series[:, i]))
        if len(gone):
            floor = ax.get_xaxis_transform()
            ax.plot(gone, np.zeros(len(gone)), "|", color=colour_of(1), transform=floor, clip_on=False, label="missing")
        ax.set_ylabel(names[i], fontsize=9)
    _draw_states(axes[-1], law, fit)
    for ax in axes:
        if count:
            ax.axvline(total - 0.5, color="#888888", linewidth=0.8, linestyle="--")
    axes[-1].set(xlim=(-0.5, total + count - 0.5), xlabel="step", ylabel="states")
    which = f" of sequence {sequence}" if arguments.num_rows > 1 else ""
    ahead = f", and the {count} that follow" if count else ""
    few = f" (the first {MAX_SERIES} of {len(names)} columns)" if len(names) > MAX_SERIES else ""
    axes[0].set_title(f"{'Smoothed steps' if levels else 'Steps and their states'}{which}{ahead}{few}")
    keys: dict[str, Any] = {}
    for ax in axes[:-1]:
        keys.update(zip(*reversed(ax.get_legend_handles_labels()), strict=True))
    figure.legend(keys.values(), keys.keys(), loc="outside lower center", ncols=5, frameon=False, fontsize=9)


def _law(fit: Fit, one: Arguments, total: int, steps: int | None) -> tuple[StepLaw, int]:
    """The law of all steps of one sequence and of those to come, and how many these are."""
    count = -(-total // AHEAD) if steps is None else steps
    longer = one
    if count:
        try:
            longer, _ = lengthened(fit, one, count, {})
        except ValueError:  # covariates of steps to come are not known
            if steps is not None:
                raise
            count = 0
    place = torch.arange(total + count, device=one.main.device).unsqueeze(0)
    return steps_at(fit, longer, place, thinned(fit, AVERAGED_DRAWS)), count


def _draw_level(ax: Any, law: StepLaw, i: int, total: int) -> None:
    """The level of a column and the bands about it; from the last step on in another colour."""
    mean = _numbers(law.mean[0, :, i])
    inner, outer = (_numbers(c[0, :, i, i].clamp_min(0).sqrt()) for c in (law.level_covariance, law.covariance))
    for part, colour, name in ((slice(0, total), 0, "level"), (slice(total - 1, None), 2, "forecast")):
        place = np.arange(len(mean))[part]
        if len(place) < 2 and colour:
            continue
        about = "90 % of levels and values" if not colour else None
        for spread, alpha, label in ((outer, 0.15, None), (inner, 0.3, about)):
            low, high = (mean + side * REACH * spread for side in (-1, 1))
            band = {"color": colour_of(colour), "linewidth": 0, "alpha": alpha, "label": label}
            ax.fill_between(place, low[part], high[part], **band)
        ax.plot(place, mean[part], color=colour_of(colour), linewidth=1.3, label=name)


def _draw_states(ax: Any, law: StepLaw, fit: Fit) -> None:
    """Means of the states, and the band that holds 90 % of each."""
    strip_frame(ax)
    mean = _numbers(law.states[0])
    spread = _numbers(law.state_covariance[0].diagonal(dim1=-2, dim2=-1).clamp_min(0).sqrt())
    place = np.arange(len(mean))
    for j in range(min(MAX_STATES, mean.shape[1])):
        low, high = (mean[:, j] + side * REACH * spread[:, j] for side in (-1, 1))
        ax.fill_between(place, low, high, color=colour_of(j), alpha=0.2, linewidth=0)
        ax.plot(place, mean[:, j], color=colour_of(j), linewidth=1.1)
        ax.text(1.005, 0.95 - 0.14 * j, f"{j}", transform=ax.transAxes, color=colour_of(j), fontsize=9, va="top")


def _numbers(values: Tensor) -> Array:
    return values.double().cpu().numpy()
