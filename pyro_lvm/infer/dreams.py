"""How a dream reaches a guide: in place of the argument that the model observes."""

from __future__ import annotations

from typing import Any

import torch
from pyro import poutine
from torch import Tensor

__all__ = ["dreamt_arguments"]


def dreamt_arguments(
    dreamed: poutine.Trace, args: tuple, kwargs: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Arguments with every observation replaced by what was dreamed; all others stay as they are.

    An observation is found by identity: it is the value of an observed site. Where a plate has picked rows of it, those
    rows are replaced. A tensor by the name of a site that was dreamed holds known values of that site, of which a dream
    has none: it is left out.

    Args:
        dreamed: A trace of `handlers.dream(model)` on the arguments.
        args: Arguments of model and guide.
        kwargs: Their keyword arguments.

    Raises:
        ValueError: An observed value is no argument.
    """
    values: dict[Any, Any] = {**dict(enumerate(args)), **kwargs}
    for name, site in dreamed.nodes.items():
        if site["type"] != "sample" or not site["infer"].get("was_observed"):
            continue
        given, dream = site["infer"]["obs"], site["value"]
        same = [key for key, value in (*enumerate(args), *kwargs.items()) if value is given]
        for key in same:
            values[key] = dream.to(given.dtype)
        if not same and not _put_rows(values, dreamed, site):
            raise ValueError(
                f"WakeSleep: expected the value that the model observes at site '{name}' to be one of its arguments, "
                "through which dreams reach the guide; it is none. Pass it as an argument, and observe it unchanged."
            )
    known = {name for name in dreamed.stochastic_nodes if not dreamed.nodes[name]["infer"].get("was_observed")}
    own = {n: values[n] for n, value in kwargs.items() if n not in known or not isinstance(value, Tensor)}
    return tuple(values[i] for i in range(len(args))), own


def _put_rows(values: dict[Any, Any], dreamed: poutine.Trace, site: Any) -> bool:
    """Write a dream into the rows of an argument that a plate has picked; whether there is one."""
    given, dream = site["infer"]["obs"], site["value"]
    for frame in site["cond_indep_stack"]:
        if not frame.vectorized or frame.name not in dreamed.nodes:
            continue
        rows, axis = dreamed.nodes[frame.name]["value"], frame.dim - site["fn"].event_dim
        size = dreamed.nodes[frame.name]["fn"].size
        for key, value in values.items():
            if not isinstance(value, Tensor) or value.dim() != given.dim() or value.shape[axis] != size:
                continue
            if torch.equal(value.index_select(axis, rows), given):
                values[key] = value.index_copy(axis, rows, dream.to(value.dtype))
                return True
    return False
