"""Where a guide or a chain starts: at the model's own initial values where it has them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from pyro.infer.autoguide.initialization import init_to_median
from torch import Tensor

__all__ = ["StartingValues"]


class StartingValues:
    """An initialisation strategy for Pyro's autoguides and MCMC kernels.

    The model's `initial_values` are looked up when the guide is set up, not when it is made, so that a guide may be
    made before the model has seen data.

    Args:
        model: Any Pyro program, with or without an `initial_values` dict.
        values: Values that take precedence over the model's own.
        fallback: Strategy for sites without one.
    """

    def __init__(
        self, model: Callable, values: Mapping[str, Tensor] | None = None, fallback: Callable = init_to_median
    ) -> None:
        self.model = model
        self.values = dict(values or {})
        self.fallback = fallback

    def __call__(self, site: Any = None) -> Tensor | StartingValues:
        """The starting value of a site."""
        if site is None:
            return self
        values = {**getattr(self.model, "initial_values", {}), **self.values}
        if site["name"] in values:
            return values[site["name"]].detach().clone()
        return self.fallback(site)
