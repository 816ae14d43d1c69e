"""A model at the point that a guide gives: its continuous sites observed at the guide's values."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from pyro import poutine

__all__ = ["at_guide"]


def at_guide(model: Callable, guide: Callable | None) -> Callable:
    """The model with every site of the guide conditioned on the guide's value.

    Parameters of the guide are seen by handlers outside, its sample sites are not: with a guide of point masses the
    program's joint density is the one that MAP estimation maximises.

    Args:
        model: Any Pyro program.
        guide: A guide over its continuous sites, or None.
    """
    if guide is None:
        return model

    def program(*args: Any, **kwargs: Any) -> Any:
        with poutine.block(hide_fn=_is_sample):
            trace = poutine.trace(guide).get_trace(*args, **kwargs)
        values = {
            name: trace.nodes[name]["value"]
            for name in trace.stochastic_nodes
            if not trace.nodes[name]["infer"].get("is_auxiliary")
        }
        return poutine.condition(model, data=values)(*args, **kwargs)

    return program


def _is_sample(msg: Any) -> bool:
    return msg["type"] == "sample"
