"""Whether the divergence of a guide from its model's priors is known in closed form, site by site."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from pyro.poutine.trace_struct import Trace
from torch.distributions import kl_divergence

from pyro_lvm.infer.structure import structure

__all__ = ["has_closed_divergence"]


def has_closed_divergence(model_trace: Trace, guide: Callable, args: tuple, kwargs: dict[str, Any]) -> bool:
    r"""Whether the sum of :math:`\mathrm{KL}(q(z_i \mid z_{<i}) \,\|\, p(z_i \mid z_{<i}))` may stand in the bound.

    It may if guide and model draw the same reparameterised sites in the same order, each under one scale and no mask:
    what a site depends on in the model then is never something that depends on it in the guide. Some sites may lack the
    closed form, not all.

    Args:
        model_trace: A trace of the model.
        guide: A guide without discrete sites.
        args: The arguments of both.
        kwargs: Their keyword arguments.
    """
    theirs = structure(guide, args, kwargs, fresh=False)
    names = list(model_trace.stochastic_nodes)
    if list(theirs.stochastic_nodes) != names:
        return False
    pairs = [(theirs.nodes[name], model_trace.nodes[name]) for name in names]
    if not all(_is_comparable(mine, prior) for mine, prior in pairs):
        return False
    return any(_is_known(mine["fn"], prior["fn"]) for mine, prior in pairs)


def _is_comparable(mine: dict[str, Any], prior: dict[str, Any]) -> bool:
    scales = [torch.as_tensor(site["scale"]) for site in (mine, prior)]
    return (
        getattr(mine["fn"], "has_rsample", False)
        and not _is_point(mine["fn"])
        and mine["fn"].batch_shape == prior["fn"].batch_shape
        and torch.equal(*scales)
        and mine["mask"] is None
        and prior["mask"] is None
    )


def _is_point(fn: Any) -> bool:
    while hasattr(fn, "base_dist"):
        fn = fn.base_dist
    return type(fn).__name__ == "Delta"


def _is_known(q: Any, p: Any) -> bool:
    try:
        return kl_divergence(q, p).shape == q.batch_shape
    except NotImplementedError:
        return False
