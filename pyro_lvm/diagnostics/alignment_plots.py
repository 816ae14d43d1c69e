"""Pictures of aligned sentences."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from pyro_lvm.diagnostics.inner_latents import inner_posterior, inner_units
from pyro_lvm.diagnostics.latents import thinned
from pyro_lvm.diagnostics.plot_parts import PROBABILITY, new_figure
from pyro_lvm.training.arguments import Arguments

if TYPE_CHECKING:
    from pyro_lvm.training.result import Fit

__all__ = ["alignment", "draw_alignment"]


def alignment(
    fit: Fit,
    x: Any,
    sequence: int = 0,
    source: Sequence[str] | None = None,
    target: Sequence[str] | None = None,
) -> Figure:
    """Which source word each target word translates, as a posterior; the first column is the empty word.

    Args:
        fit: A fit of a model of sentence pairs.
        x: Sentence pairs, as in `lvm.fit`.
        sequence: Which pair to draw.
        source: The words of its source sentence.
        target: The words of its target sentence.

    Raises:
        ValueError: The model aligns nothing, or there is no such pair.
    """
    figure = new_figure(6.4, 5.4)
    draw_alignment(figure, fit, fit.arguments(x), sequence, source, target)
    return figure


def draw_alignment(
    figure: Any,
    fit: Fit,
    arguments: Arguments,
    sequence: int = 0,
    source: Sequence[str] | None = None,
    target: Sequence[str] | None = None,
) -> None:
    """Draw one pair into a figure, or a part of one."""
    n = arguments.num_rows
    if not 0 <= sequence < n:
        raise ValueError(f"alignment: expected sequence from 0 to {n - 1}; got {sequence}.")
    one = arguments.rows(slice(sequence, sequence + 1))
    tables = list(inner_posterior(fit, one, thinned(fit, 1)).values())
    if not tables or inner_units(fit, one, thinned(fit, 1)):
        raise ValueError(f"alignment: expected a model whose law sums out alignments; got {fit.name}.")
    table = tables[0][0].double().cpu().numpy()
    words, positions = int((table.sum(1) > 0).sum()), int((table.sum(0) > 0).nonzero()[0].max()) + 1
    ax = figure.subplots()
    shown = ax.imshow(table[:words, :positions], cmap=PROBABILITY, vmin=0, vmax=1, aspect="auto")
    names = [str(i) for i in range(1, positions)] if source is None else [str(word) for word in source][: positions - 1]
    ax.set_xticks(range(1 + len(names)), ["(empty)", *names], rotation=60, ha="right", fontsize=9)
    if target is not None:
        ax.set_yticks(range(words), [str(word) for word in target][:words], fontsize=9)
    ax.set(xlabel="source word", ylabel="target word", title=f"Alignment of sentence pair {sequence}")
    ax.title.set_fontsize(11)
    ax.tick_params(length=0)
    bar = figure.colorbar(shown, ax=ax, format=PercentFormatter(1), shrink=0.85)
    bar.outline.set_visible(False)
