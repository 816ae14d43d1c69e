r"""The divergence of a guide's law from its prior: in closed form, or as nearly so as the law allows.

Of a law that transforms another, :math:`z = T(z^0), z^0 \sim q^0`, only the transform's part is left to the draw:

.. math::

    \mathrm{KL}(q^0 \,\|\, p) + \log p(z^0) - \log p(z) - \log |\det \partial z / \partial z^0|

has the mean :math:`\mathrm{KL}(q \,\|\, p)`, and no noise where T is the identity.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from pyro.poutine.trace_struct import Trace
from torch import Tensor
from torch.distributions import TransformedDistribution, kl_divergence

from pyro_lvm.infer.structure import structure

__all__ = ["divergence", "has_closed_divergence"]


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


def divergence(q: Any, p: Any, value: Tensor) -> Tensor | None:
    """An unbiased estimate of the divergence of one law from another, with as much in closed form as there is.

    Args:
        q: The law of a guide's site.
        p: Its prior, of the same batch and event shapes.
        value: A draw of `q` with its gradient.

    Returns:
        Nats, of the batch shape of `q`; None if nothing is known in closed form.
    """
    if not isinstance(q, TransformedDistribution):
        return _closed(q, p)
    base = _closed(q.base_dist, p)
    if base is None:
        return None
    start = value
    for transform in reversed(q.transforms):
        start = transform.inv(start)
    return base + (p.log_prob(start) - q.base_dist.log_prob(start)) - (p.log_prob(value) - q.log_prob(value))


def _closed(q: Any, p: Any) -> Tensor | None:
    try:
        known = kl_divergence(q, p)
    except NotImplementedError:
        return None
    return known if getattr(known, "shape", None) == q.batch_shape else None


def _is_known(q: Any, p: Any) -> bool:
    return _closed(q.base_dist if isinstance(q, TransformedDistribution) else q, p) is not None
