"""Pictures of training: the loss by epoch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, StrMethodFormatter

from pyro_lvm.diagnostics.plot_parts import Array, colour_of, new_figure, readable_range, smoothed, strip_frame
from pyro_lvm.training.choices import describe

if TYPE_CHECKING:
    from pyro_lvm.training.result import Fit

__all__ = ["draw_losses", "loss_curves", "losses"]


def losses(fits: Mapping[str, Fit]) -> Figure:
    """Loss by epoch, one panel per kind of inference, since a negative ELBO is no negative log-likelihood.

    The vertical axis leaves out the steep start, so that the end can be read; the legend gives the final loss. A
    curve that goes up and down is drawn pale, with its moving average over a twentieth of the epochs.

    Args:
        fits: Fits by name; those without a history of losses (samplers) are left out.

    Raises:
        ValueError: No fit has a history.
    """
    panels = loss_curves(fits)
    figure = new_figure(5.2 * len(panels), 3.8)
    draw_losses(figure, fits, panels)
    return figure


def loss_curves(fits: Mapping[str, Fit]) -> dict[str, dict[str, Array]]:
    """Curves by kind of loss and by name of the fit.

    Raises:
        ValueError: No fit has a history.
    """
    panels: dict[str, dict[str, Array]] = {}
    for name, fit in fits.items():
        for key, values in fit.history.items():
            curve = np.array(values, float)
            if np.isfinite(curve).any():
                kind = f"{describe(fit.inference)}: {key.replace('_', ' ')}"
                panels.setdefault(kind, {})[name] = curve
    if not panels:
        raise ValueError("losses: expected at least one fit with a history of losses; got none. Samplers have none.")
    return panels


def draw_losses(figure: Any, fits: Mapping[str, Fit], panels: Mapping[str, dict[str, Array]]) -> None:
    """Draw one panel for each kind into a figure, or a part of one."""
    colours = {name: colour_of(i) for i, name in enumerate(fits)}
    for ax, (kind, curves) in zip(figure.subplots(1, len(panels), squeeze=False).flat, panels.items(), strict=True):
        strip_frame(ax)
        for name, curve in curves.items():
            epochs = np.arange(1, len(curve) + 1)
            smooth = smoothed(curve)
            if smooth is not curve:
                ax.plot(epochs, curve, color=colours[name], alpha=0.25, linewidth=0.7)
            label = f"{name}: {smooth[np.isfinite(smooth)][-1]:.1f}"
            ax.plot(epochs, smooth, color=colours[name], linewidth=1.8, label=label, marker="o", markevery=[-1])
        low, high, cut = readable_range(list(curves.values()))
        lengths = [len(curve) for curve in curves.values()]
        if max(lengths) > 8 * min(lengths):
            ax.set_xscale("log")
            ax.xaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
        else:
            ax.xaxis.set_major_locator(MaxNLocator(integer=True))
        ax.set(
            ylim=(low, high),
            xlabel="epoch",
            ylabel="loss (nats)",
            title=kind + (" (start cut off)" if cut else ""),
        )
        ax.legend(title="final loss", frameon=False, fontsize=9, title_fontsize=9)
