"""Log-likelihood of every row, discrete sites summed out."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from pyro import poutine
from pyro.poutine.trace_struct import Trace
from torch import Tensor

from pyro_lvm import _pyro
from pyro_lvm.infer.factors import Factor, contract, trace_factors

__all__ = ["row_log_likelihood"]


def row_log_likelihood(
    model: Callable,
    max_plate_nesting: int,
    args: tuple,
    kwargs: dict[str, Any],
    *,
    given: dict[str, Tensor] | None = None,
    plate: str | None = None,
) -> Tensor:
    """Log p(row | given) for every index of a plate, discrete sites summed out.

    Args:
        model: Any Pyro program whose latent sites are all enumerable or given.
        max_plate_nesting: Batch dimensions reserved for plates.
        args: The model's arguments.
        kwargs: The model's keyword arguments.
        given: Values of latent sites to condition on; their own densities do not count.
        plate: The plate whose indices are rows; by default "data", else the only outermost plate.

    Returns:
        Shape (n,), nats.
    """
    given = given or {}
    with torch.no_grad():
        trace, factors = trace_factors(poutine.condition(model, given), max_plate_nesting, args, kwargs)
        rows = {name: factor for name, factor in factors.items() if name not in given}
        symbol = _row_symbol(trace, rows.values(), plate)
        total: Tensor | None = None
        for plates, term in contract(trace, rows.values(), scaled=False):
            if symbol not in plates:
                raise ValueError(
                    "log-likelihood by row: part of the model lies outside the plate of the rows, "
                    "so rows are not independent. Score the whole data set with the inference's loss."
                )
            dims = _pyro.dims_of(term)
            if symbol not in dims:  # a plate of one row was squeezed away
                term = term.sum().reshape(1)
            elif term.dim() > 1:
                term = term.movedim(dims.index(symbol), 0).flatten(1).sum(-1)
            total = term if total is None else total + term
    if total is None:
        raise ValueError("log-likelihood by row: the model observes nothing. Add pyro.sample(..., obs=x).")
    return total.detach()


def _row_symbol(trace: Trace, factors: Iterable[Factor], plate: str | None) -> str:
    stacks = [[f for f in factor.site["cond_indep_stack"] if f.vectorized] for factor in factors]
    names = {f.name for stack in stacks for f in stack}
    if plate is None:
        shared = set.intersection(*({f.name for f in stack} for stack in stacks)) if stacks else set()
        plate = "data" if "data" in names else (sorted(shared)[0] if len(shared) == 1 else None)
    if not names:
        raise ValueError(
            "log-likelihood by row: expected a plate of rows; the program has none, so that all of its data are one "
            'observation. Put its sites in pyro.plate("data", 1), or a series each; the loss of EM in fit.history is '
            "minus the log-likelihood of all."
        )
    if plate not in names:
        raise ValueError(
            f"log-likelihood by row: expected one plate shared by all sites, found plates {sorted(names)}. "
            'Name the plate of the rows "data".'
        )
    return str(trace.plate_to_symbol[plate])
