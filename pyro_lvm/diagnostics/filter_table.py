"""The parameter of a fit that says something of every column: filters of units, means of components."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch

from pyro_lvm import _pyro
from pyro_lvm.diagnostics.plot_parts import Array
from pyro_lvm.training.arguments import Arguments

if TYPE_CHECKING:
    from pyro_lvm.training.result import Fit

__all__ = ["filter_table"]

COLUMN_AXES = {"column", "dimension", "question", "visible"}
"""What models call the axis of the columns among those of their parameters."""


def filter_table(fit: Fit, arguments: Arguments, site: str | None = None) -> tuple[str, Array]:
    """The parameter that says something of every column, one row a unit; its name.

    Raises:
        ValueError: There is none.
    """
    width = int(np.prod(arguments.main.shape[1 if arguments.layout is None else 2 :]))
    params = {}
    for name, value in fit.params.items():
        inside = "." in name  # of a network, whose layers have their outputs first
        if value.dim() == 2 and width in (value.shape[:1] if inside else value.shape):
            params[name] = value
    dims = getattr(fit.model, "dims", {})
    params = {n: v for n, v in params.items() if not dims.get(n) or COLUMN_AXES & set(dims[n])} or params
    if len(params) > 1:
        params = {name: params[name] for name in _by_column(fit, arguments, list(params))} or params
    if site is not None and site not in params:
        choice = f"Choose from {', '.join(params)}." if params else "There is none."
        raise ValueError(
            f"filters: expected a matrix with an axis of {width}, as long as a row; got {site!r}. {choice}"
        )
    if not params:
        raise ValueError(f"filters: expected a parameter that is a matrix with an axis of {width}, as long as a row.")
    name = site or next(iter(params))
    table = params[name].detach().double().cpu().numpy()
    axes = list(dims.get(name, ()))
    by_row = table.shape[1] == width and (table.shape[0] != width or axes[-1:] == ["dimension"])
    return name, table if by_row else table.T


def _by_column(fit: Fit, arguments: Arguments, names: list[str]) -> list[str]:
    """Those parameters of which only the first slice matters to the mean of the first column."""
    few = arguments.rows(slice(0, 20)).unweighted()
    parameters = fit.parameters(guide=False)
    tensors = {name: parameters[name].unconstrained for name in names if name in parameters}
    with fit.scope(), torch.random.fork_rng(), torch.enable_grad(), _pyro.validation(False):
        trace = _pyro.plain_trace(fit.program, few.args, few.kwargs)
        laws = [trace.nodes[name]["fn"] for name in trace.observation_nodes]
        try:
            first = sum(law.mean.reshape(*law.batch_shape, -1)[..., 0].sum() for law in laws)
            slopes = torch.autograd.grad(first, list(tensors.values()), allow_unused=True)
        except (NotImplementedError, RuntimeError):  # a law without a mean, or one that no parameter moves
            return []
    found = []
    for (name, _), slope in zip(tensors.items(), slopes, strict=True):
        if slope is not None and any(bool(slope.any()) and not bool(rest.any()) for rest in (slope[1:], slope[:, 1:])):
            found.append(name)
    return found
