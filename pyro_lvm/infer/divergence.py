r"""Divergences of a guide from its model's priors: closed forms site by site, and whether they may stand in the bound.

A law that a transform T bends has none, but the closed form of what it bends takes out most of the noise of a draw:

.. math::

    \mathrm{KL}(T_\# q \,\|\, p) = \mathrm{KL}(q \,\|\, p) + \mathrm{E}_{z \sim q} \Bigl[
    \log \frac{T_\# q(Tz)}{p(Tz)} - \log \frac{q(z)}{p(z)} \Bigr]

whose expectation is taken at the draw: it does not vary where T is the identity.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from pyro.poutine.trace_struct import Trace
from torch import Tensor
from torch.distributions import TransformedDistribution, constraints, kl_divergence

from pyro_lvm.distributions.partly_known import PartlyKnown
from pyro_lvm.infer.at_guide import is_point
from pyro_lvm.infer.structure import structure

__all__ = ["divergence_at", "has_closed_divergence"]


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
    return any(divergence_at(mine["fn"], prior["fn"], mine["value"]) is not None for mine, prior in pairs)


def divergence_at(q: Any, p: Any, value: Tensor) -> Tensor | None:
    """The divergence of `q` from `p` by batch, nats, or an unbiased estimate at a draw of `q` that it is bent from.

    Args:
        q: A distribution.
        p: A distribution of the same batch shape.
        value: A draw of `q`; it matters only to a transformed `q`.

    Returns:
        None if there is no closed form.
    """
    if isinstance(q, PartlyKnown):
        elsewhere = divergence_at(q.base_dist, p, q.behind(value))
        return None if elsewhere is None else q.divergence(p, elsewhere, value)
    if isinstance(q, TransformedDistribution):
        return _bent(q, p, value)
    try:
        nats = kl_divergence(q, p)
    except NotImplementedError:
        return None
    return nats if getattr(nats, "shape", None) == q.batch_shape else None


def _bent(q: TransformedDistribution, p: Any, value: Tensor) -> Tensor | None:
    base = q.base_dist
    if base.event_shape != p.event_shape or not _is_real(base.support) or not _is_real(p.support):
        return None
    known = divergence_at(base, p, value)
    if known is None:
        return None
    start = value
    for transform in reversed(q.transforms):
        start = transform.inv(start)  # the forward pass is remembered by the transforms
    return known + q.log_prob(value) - p.log_prob(value) - base.log_prob(start) + p.log_prob(start)


def _is_real(support: Any) -> bool:
    return getattr(support, "base_constraint", support) is constraints.real


def _is_comparable(mine: dict[str, Any], prior: dict[str, Any]) -> bool:
    scales = [torch.as_tensor(site["scale"]) for site in (mine, prior)]
    return (
        getattr(mine["fn"], "has_rsample", False)
        and not is_point(mine["fn"])
        and mine["fn"].batch_shape == prior["fn"].batch_shape
        and torch.equal(*scales)
        and mine["mask"] is None
        and prior["mask"] is None
    )
