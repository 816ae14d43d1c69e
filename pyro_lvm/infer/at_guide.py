"""A model at the point that a guide gives: its continuous sites observed at the guide's values."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pyro.distributions as dist
from pyro import poutine

from pyro_lvm import _pyro
from pyro_lvm.ops.plain_error import PlainError

__all__ = ["at_guide", "is_point"]


def at_guide(model: Callable, guide: Callable | None) -> Callable:
    """The model with every site of the guide conditioned on the guide's value.

    Parameters of the guide are seen by handlers outside, its sample sites are not: with a guide of point masses the
    program's joint density is the one that MAP estimation maximises.

    Args:
        model: Any Pyro program.
        guide: A guide of points over its continuous sites, or None.

    Raises:
        ValueError: The program is run, and the guide draws one of its sites at random.
    """
    if guide is None:
        return model

    def program(*args: Any, **kwargs: Any) -> Any:
        with poutine.block(hide_fn=_is_sample):
            trace = poutine.trace(guide).get_trace(*args, **kwargs)
        sites = {n: site for n in trace.stochastic_nodes if not _pyro.site_is_subsample(site := trace.nodes[n])}
        for name, site in sites.items():
            if not is_point(site["fn"]):
                raise PlainError(
                    f"EM: expected a guide of points; got one that draws site '{name}' ({type(site['fn']).__name__}). "
                    "Pass lvm.guides.MAP(model), or use inference='svi'."
                )
        values = {name: site["value"] for name, site in sites.items() if not site["infer"].get("is_auxiliary")}
        return poutine.condition(model, data=values)(*args, **kwargs)

    return program


def is_point(fn: Any) -> bool:
    """Whether a law puts all of its mass on one point."""
    while hasattr(fn, "base_dist"):
        fn = fn.base_dist
    return isinstance(fn, dist.Delta)


def _is_sample(msg: Any) -> bool:
    return msg["type"] == "sample"
