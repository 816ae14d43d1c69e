"""What a program is made of, found by running it on a few rows: its sites, its plates, how deep they nest."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import pyro
import torch
from pyro import poutine
from pyro.poutine.trace_struct import Trace
from torch import Tensor

from pyro_lvm import _pyro
from pyro_lvm.handlers.rows import row_plate, rows

__all__ = ["REFUSALS", "first_rows", "plate_nesting", "row_plate", "structure"]

# Without enumeration a mixture gathers a covariance per row: on all rows that costs more than many EM steps.
FEW_ROWS = 50

# What a program raises that fixes its number of rows.
REFUSALS = (RuntimeError, ValueError, TypeError, IndexError)


def structure(model: Callable, args: tuple, kwargs: dict[str, Any], *, fresh: bool = True) -> Trace:
    """A trace of `model` on the first rows of its arguments, or on all if it insists.

    Nothing outlives the run: the random state is restored, and parameters that the program creates are dropped, since
    their starting values may depend on the rows. With `fresh=False` the program sees the parameters there are.

    Args:
        model: Any Pyro program.
        args: Its arguments.
        kwargs: Its keyword arguments.
        fresh: Whether to run with a parameter store of its own.
    """
    store = _own_store if fresh else nullcontext
    few = first_rows(args, kwargs)
    with torch.random.fork_rng(), torch.no_grad(), rows(search=False):
        if few is not None:
            try:
                with store():
                    return _pyro.plain_trace(model, *few)
            except REFUSALS:
                pass
        with store():
            return _pyro.plain_trace(model, args, kwargs)


@contextmanager
def _own_store() -> Iterator[None]:
    """A parameter store of its own, whose short-lived parameters no handler outside may take for the program's."""
    with pyro.get_param_store().scope(), poutine.block(hide_types=["param"]):
        yield


def plate_nesting(model: Callable, args: tuple, kwargs: dict[str, Any]) -> int:
    """The number of batch dimensions that the plates of a program use."""
    dims = [
        frame.dim
        for site in structure(model, args, kwargs).nodes.values()
        if site["type"] == "sample"
        for frame in site["cond_indep_stack"]
        if frame.vectorized
    ]
    return -min(dims) if dims else 0


def first_rows(args: tuple, kwargs: dict[str, Any]) -> tuple[tuple, dict[str, Any]] | None:
    """The arguments cut to their first rows, or None if there are no more than that."""
    tensors = [v for v in (*args, *kwargs.values()) if isinstance(v, Tensor) and v.dim()]
    rows = len(tensors[0]) if tensors else 0
    if rows <= FEW_ROWS:
        return None

    def cut(value: Any) -> Any:
        return value[:FEW_ROWS] if isinstance(value, Tensor) and value.dim() and len(value) == rows else value

    return tuple(cut(a) for a in args), {name: cut(v) for name, v in kwargs.items()}
