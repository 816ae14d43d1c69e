"""A point at the posterior mode."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from pyro.infer.autoguide import AutoDelta
from torch import Tensor

from pyro_lvm.handlers.hide_enumerated import hide_enumerated
from pyro_lvm.handlers.starting_values import StartingValues

__all__ = ["MAP"]


class MAP(AutoDelta):
    """Pyro's `AutoDelta` over the continuous sites of a model; discrete sites are left to enumeration.

    Starts at `initial_values`, else where the model's own initialisation says, else at prior medians.

    Args:
        model: Any Pyro program.
        initial_values: Where to start sites, by name, in the model's space.

    Example:
        >>> import pyro_lvm as lvm
        >>> guide = lvm.guides.MAP(lvm.models.GaussianMixture(2, data_dim=1, priors=True))
    """

    def __init__(self, model: Callable, initial_values: Mapping[str, Tensor] | None = None) -> None:
        super().__init__(hide_enumerated(model), init_loc_fn=StartingValues(model, initial_values))
