"""Tell guides that keep something for every row which rows those of a step are."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

from pyro.poutine.messenger import Messenger
from pyro.poutine.runtime import effectful
from pyro.poutine.trace_struct import Trace
from torch import Tensor

__all__ = ["row_plate", "rows", "rows_at_hand", "settled"]


class rows(Messenger):  # noqa: N801 - handlers are verbs, as in Pyro
    """Inside of this context the rows at hand are some of a data set, or new ones.

    `lvm.fit` opens it around every step. Open it when stepping by hand in minibatches with a guide that keeps
    parameters of every row, as `guides.LocalGaussian` does. Of several contexts the innermost counts.

    Args:
        index: Which rows of the data set they are, integers of shape (n,); None if they are new.
        total: Number of rows of the data set.
        search: Whether a guide should search for the posterior of new rows, and whether laws that are drawn from by
            long Markov chains should run them; not where only the sites of programs matter.

    Raises:
        ValueError: The index comes without the total.

    Example:
        >>> import torch, pyro_lvm as lvm
        >>> from pyro_lvm.handlers.rows import rows_at_hand
        >>> with lvm.handlers.rows(torch.tensor([4, 7]), total=10):
        ...     rows_at_hand().index
        tensor([4, 7])
    """

    def __new__(cls, index: Tensor | None = None, total: int | None = None, *, search: bool = True) -> rows:
        """Listen to sample sites only where only they matter: every step of a training is inside of such a context."""
        return super().__new__(cls if search else _SitesAlone)

    def __init__(self, index: Tensor | None = None, total: int | None = None, *, search: bool = True) -> None:
        if index is not None and total is None:
            raise ValueError("rows: expected the number of rows of the data set with their index. Pass total=.")
        super().__init__()
        self.index = index
        self.total = total
        self.search = search

    def _pyro_rows(self, msg: Any) -> None:
        if msg["value"] is None:
            msg["value"] = self


class _SitesAlone(rows):
    """Laws that are drawn from by long Markov chains make short ones."""

    def _pyro_sample(self, msg: Any) -> None:
        if not msg["is_observed"] and hasattr(msg["fn"], "sample_steps"):
            msg["fn"] = copy.copy(msg["fn"])
            msg["fn"].sample_steps = 1


def rows_at_hand() -> rows | None:
    """What the innermost `rows` says; None outside of any."""
    return _ask()


def _nothing() -> None:
    """What is known outside of any `rows`."""


_ask: Callable[[], rows | None] = effectful(_nothing, type="rows")


def row_plate(trace: Trace) -> str:
    """The plate of the rows: "data", or the largest of the outermost ones."""
    frames = {
        frame.name: frame.size
        for site in trace.nodes.values()
        if site["type"] == "sample" and site["is_observed"]
        for frame in [f for f in site["cond_indep_stack"] if f.vectorized][:1]
    }
    if "data" in frames or not frames:
        return "data"
    return max(frames, key=lambda name: frames[name])


def settled(guide: Callable, args: tuple, kwargs: dict[str, Any]) -> Callable:
    """A guide that has searched for the laws of these rows, taken as new, once and for all calls.

    Call it with the same rows; with some of them, or with copies, inside of `rows(index, total)`. A guide that does not
    search, which is one without a method `settle`, is returned as it is.

    Args:
        guide: Any guide.
        args: Its arguments.
        kwargs: Its keyword arguments.
    """
    settle = getattr(guide, "settle", None)
    return guide if settle is None else settle(*args, **kwargs)
