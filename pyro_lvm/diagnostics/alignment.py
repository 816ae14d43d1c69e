"""Word alignments as sets of links: how good they are, and how those of two directions are made one.

A link is a pair (source position, target position), from 0.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from matplotlib.figure import Figure

from pyro_lvm.diagnostics.plot_parts import PROBABILITY, new_figure

__all__ = [
    "AlignmentScores",
    "alignment_error_rate",
    "alignment_plot",
    "alignment_scores",
    "read_links",
    "symmetrise",
    "transpose",
]

Link = tuple[int, int]
Links = Collection[Link]

NEIGHBOURS = ((-1, 0), (0, -1), (1, 0), (0, 1), (-1, -1), (-1, 1), (1, -1), (1, 1))


@dataclass(frozen=True)
class AlignmentScores:
    """How predicted links compare to a gold standard of sure and possible ones, over all sentence pairs.

    Attributes:
        precision: Share of the predicted links that are possible.
        recall: Share of the sure links that were predicted.
        error_rate: Alignment error rate.
    """

    precision: float
    recall: float
    error_rate: float


def alignment_scores(
    predicted: Sequence[Links], sure: Sequence[Links], possible: Sequence[Links] | None = None
) -> AlignmentScores:
    r"""Precision, recall and alignment error rate.

    .. math:: \mathrm{AER} = 1 - \frac{|A \cap S| + |A \cap P|}{|A| + |S|}

    Args:
        predicted: Predicted links A, one collection for each sentence pair.
        sure: Links S that everyone agrees on.
        possible: Links P that are no mistake; sure links are possible. Only the sure ones if None: the error rate is
            then one minus the harmonic mean of precision and recall.

    Raises:
        ValueError: They are not about the same sentence pairs, or there is no link at all.

    References:
        F. Och, H. Ney (2003), A systematic comparison of various statistical alignment models, Computational
            Linguistics 29(1), section 5.1.

    Example:
        >>> alignment_scores([{(0, 0), (1, 2)}], sure=[{(0, 0)}], possible=[{(1, 1), (1, 2)}])
        AlignmentScores(precision=1.0, recall=1.0, error_rate=0.0)
    """
    possible = sure if possible is None else possible
    if not len(predicted) == len(sure) == len(possible):
        raise ValueError(
            "alignment_error_rate: expected links of the same sentence pairs; got "
            f"{len(predicted)} predicted, {len(sure)} sure and {len(possible)} possible. Give one set for each pair."
        )
    made = wanted = found = allowed = 0
    for links, must, may in zip(predicted, sure, possible, strict=True):
        links, must = set(links), set(must)
        may = must.union(may)
        made += len(links)
        wanted += len(must)
        found += len(links & must)
        allowed += len(links & may)
    if not made + wanted:
        raise ValueError("alignment_error_rate: expected some links; got none, neither predicted nor sure.")
    return AlignmentScores(
        precision=allowed / made if made else 0.0,
        recall=found / wanted if wanted else 0.0,
        error_rate=1 - (found + allowed) / (made + wanted),
    )


def alignment_error_rate(
    predicted: Sequence[Links], sure: Sequence[Links], possible: Sequence[Links] | None = None
) -> float:
    """Alignment error rate, from 0 to 1; see `alignment_scores`.

    Args:
        predicted: Predicted links, one collection for each sentence pair.
        sure: Links that everyone agrees on.
        possible: Links that are no mistake; only the sure ones if None.

    Raises:
        ValueError: They are not about the same sentence pairs, or there is no link at all.

    Example:
        >>> alignment_error_rate([{(0, 0), (1, 1)}], [{(0, 0), (1, 2)}])
        0.5
    """
    return alignment_scores(predicted, sure, possible).error_rate


def transpose(links: Iterable[Link]) -> set[Link]:
    """Links with source and target exchanged."""
    return {(target, source) for source, target in links}


def read_links(text: str) -> set[Link]:
    """Links from their usual notation, "0-0 1-2" (source-target, from 0)."""
    return {(int(source), int(target)) for source, target in (part.split("-") for part in text.split())}


def symmetrise(forward: Sequence[Links], backward: Sequence[Links], method: str = "grow-diag-final") -> list[set[Link]]:
    """Make one alignment of two, found in opposite directions, in which words on both sides may have several links.

    "intersection" and "union" speak for themselves. "grow-diag" starts from the intersection and adds, again and again,
    links of the union that are next to a link (diagonally too) and align a word that is not aligned yet.
    "grow-diag-final" then adds all links, forward ones first, that align such a word; "grow-diag-final-and" those that
    align two.

    Args:
        forward: Links (source, target), one collection for each sentence pair.
        backward: Links of a model that was trained in the other direction, also (source, target): see `transpose`.
        method: "intersection", "union", "grow-diag", "grow-diag-final" or "grow-diag-final-and".

    Raises:
        ValueError: The method is unknown, or the numbers of sentence pairs differ.

    References:
        P. Koehn, F. Och, D. Marcu (2003), Statistical phrase-based translation, NAACL, section 4.1.
        P. Koehn et al. (2005), Edinburgh system description for the 2005 IWSLT evaluation (grow-diag-final).

    Example:
        >>> symmetrise([{(0, 0), (1, 1)}], [{(0, 0), (2, 1)}], "intersection")
        [{(0, 0)}]
    """
    if method not in METHODS:
        raise ValueError(f"symmetrise: expected method to be one of {', '.join(METHODS)}; got {method!r}.")
    if len(forward) != len(backward):
        raise ValueError(
            f"symmetrise: expected both directions of the same sentence pairs; got {len(forward)} and {len(backward)}."
        )
    return [METHODS[method](set(one), set(other)) for one, other in zip(forward, backward, strict=True)]


class _Growing:
    """A set of links that grows, and which words it aligns."""

    def __init__(self, links: set[Link]) -> None:
        self.links = set(links)
        self.sources = {source for source, _ in links}
        self.targets = {target for _, target in links}

    def free(self, link: Link) -> int:
        """How many of the link's two words are not aligned."""
        return (link[0] not in self.sources) + (link[1] not in self.targets)

    def add(self, link: Link) -> None:
        self.links.add(link)
        self.sources.add(link[0])
        self.targets.add(link[1])


def _grown(forward: set[Link], backward: set[Link]) -> _Growing:
    growing, union = _Growing(forward & backward), forward | backward
    added = True
    while added:
        added = False
        for source, target in sorted(union):
            if (source, target) not in growing.links:
                continue
            for across, along in NEIGHBOURS:
                link = source + across, target + along
                if link in union and link not in growing.links and growing.free(link):
                    growing.add(link)
                    added = True
    return growing


def _grow_diag(forward: set[Link], backward: set[Link]) -> set[Link]:
    return _grown(forward, backward).links


def _finish(forward: set[Link], backward: set[Link], least: int) -> set[Link]:
    growing = _grown(forward, backward)
    for links in (forward, backward):
        for link in sorted(links):
            if growing.free(link) >= least:
                growing.add(link)
    return growing.links


METHODS: dict[str, Callable[[set[Link], set[Link]], set[Link]]] = {
    "intersection": set.intersection,
    "union": set.union,
    "grow-diag": _grow_diag,
    "grow-diag-final": lambda forward, backward: _finish(forward, backward, least=1),
    "grow-diag-final-and": lambda forward, backward: _finish(forward, backward, least=2),
}


def alignment_plot(
    source: Sequence[str],
    target: Sequence[str],
    probabilities: Any,
    links: Links = (),
) -> Figure:
    """One sentence pair as a matrix: how probable each link is, and which links a gold standard has.

    Args:
        source: Source words, from left to right.
        target: Target words, from top to bottom.
        probabilities: Probability of each link, shape (target words, source words): one row of a model's `posterior`
            without the empty word, say.
        links: Links to draw as rings, (source, target).

    Raises:
        ValueError: The matrix has another shape.

    Example:
        >>> import torch
        >>> alignment_plot(["the", "house"], ["la", "casa"], torch.eye(2)).axes[0].get_xticklabels()[1].get_text()
        'house'
    """
    table = [[float(value) for value in row] for row in probabilities]
    if len(table) != len(target) or any(len(row) != len(source) for row in table):
        got = (len(table), len(table[0]) if table else 0)
        raise ValueError(
            f"alignment_plot: expected probabilities of shape ({len(target)}, {len(source)}), target by source words; "
            f"got {got}. Cut off the empty word and the padding."
        )
    figure = new_figure(1.6 + 0.34 * len(source), 1.2 + 0.3 * len(target))
    ax = figure.subplots()
    image = ax.imshow(table, cmap=PROBABILITY, vmin=0, vmax=1, aspect="auto")
    ax.set_xticks(range(len(source)), source, rotation=60, ha="right", rotation_mode="anchor")
    ax.set_yticks(range(len(target)), target)
    ax.tick_params(length=0, labelsize=9)
    ax.spines[:].set_visible(False)
    if links:
        across, down = zip(*sorted(links), strict=True)
        style = {"s": 70, "facecolors": "none", "edgecolors": "#D55E00", "linewidths": 1.6}
        ax.scatter(across, down, label="gold link", **style)
        figure.legend(loc="outside lower center", frameon=False, fontsize=9)
    figure.colorbar(image, ax=ax, label="posterior probability", shrink=0.8)
    return figure
