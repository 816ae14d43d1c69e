"""The model as a guide sees it: without the discrete sites that inference sums out."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from pyro import poutine
from pyro.infer import config_enumerate

__all__ = ["hide_enumerated"]


def hide_enumerated(model: Callable) -> Callable:
    """Mark every enumerable latent site of a model for parallel enumeration, and hide those sites.

    Args:
        model: Any Pyro program.

    Returns:
        A program with the same continuous sites, from which Pyro's autoguides can be made.

    Example:
        >>> import pyro_lvm as lvm
        >>> from pyro.infer.autoguide import AutoNormal
        >>> model = lvm.models.GaussianMixture(2, data_dim=1, priors=True)
        >>> guide = AutoNormal(lvm.handlers.hide_enumerated(model))
    """
    return poutine.block(config_enumerate(model), hide_fn=_is_enumerated)


def _is_enumerated(msg: Any) -> bool:
    return msg["type"] == "sample" and not msg["is_observed"] and msg["infer"].get("enumerate") == "parallel"
