"""Independent normal distributions in unconstrained space."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from pyro.infer import autoguide
from torch import Tensor

from pyro_lvm.handlers.hide_enumerated import hide_enumerated
from pyro_lvm.handlers.starting_values import StartingValues

__all__ = ["AutoNormal"]


class AutoNormal(autoguide.AutoNormal):
    """Pyro's `AutoNormal` over the continuous sites of a model; discrete sites are left to enumeration.

    Starts at `initial_values`, else where the model's own initialisation says, else at prior medians.

    Args:
        model: Any Pyro program.
        initial_values: Where to start sites, by name, in the model's space.
        init_scale: Standard deviation at the start, in unconstrained space.

    Example:
        >>> import pyro_lvm as lvm
        >>> guide = lvm.guides.AutoNormal(lvm.models.GaussianMixture(2, data_dim=1, priors=True))
    """

    def __init__(
        self, model: Callable, initial_values: Mapping[str, Tensor] | None = None, init_scale: float = 0.05
    ) -> None:
        start = StartingValues(model, initial_values)
        super().__init__(hide_enumerated(model), init_loc_fn=start, init_scale=init_scale)
