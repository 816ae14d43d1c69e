"""Independent normal distributions in unconstrained space."""

from __future__ import annotations

from collections.abc import Callable

from pyro.infer import autoguide

from pyro_lvm.handlers.hide_enumerated import hide_enumerated
from pyro_lvm.handlers.starting_values import StartingValues

__all__ = ["AutoNormal"]


class AutoNormal(autoguide.AutoNormal):
    """Pyro's `AutoNormal` over the continuous sites of a model; discrete sites are left to enumeration.

    Starts where the model's own initialisation says, else at prior medians.

    Args:
        model: Any Pyro program.
        init_scale: Standard deviation at the start, in unconstrained space.

    Example:
        >>> import pyro_lvm as lvm
        >>> guide = lvm.guides.AutoNormal(lvm.models.GaussianMixture(2, data_dim=1, priors=True))
    """

    def __init__(self, model: Callable, init_scale: float = 0.05) -> None:
        super().__init__(hide_enumerated(model), init_loc_fn=StartingValues(model), init_scale=init_scale)
