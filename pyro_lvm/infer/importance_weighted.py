r"""The importance-weighted bound: several draws of the guide for every row, weighted against each other.

.. math::

    \mathcal{L}_K = \sum_n s_n\, \mathrm{E}_{z_{n1}, \dots, z_{nK} \sim q} \log \frac{1}{K} \sum_{i=1}^K
    \frac{p(x_n, z_{ni})}{q(z_{ni} \mid x_n)}

with :math:`s_n` the scale of row n, as a minibatch's: outside of the logarithm.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import torch
from pyro.distributions.util import scale_and_mask
from pyro.infer.elbo import ELBO
from pyro.infer.enum import get_importance_trace
from pyro.infer.util import get_dependent_plate_dims, torch_sum
from torch import Tensor

from pyro_lvm.infer.structure import plate_nesting
from pyro_lvm.ops.constructor_repr import ConstructorRepr
from pyro_lvm.ops.whole_number import whole_number

__all__ = ["ImportanceWeighted"]


class ImportanceWeighted(ELBO, ConstructorRepr):
    r"""A bound on the log evidence that tightens with the number of draws; one draw gives the evidence lower bound.

    Weights are by the plates that all sites stand in: by row, where every latent site belongs to a row. A latent site
    that rows share joins all rows in one weight. A scale that all sites have, as of a minibatch or of rows that count
    several times, multiplies the bounds of the rows; scales that differ from site to site stay in the weights.

    Differs from `pyro.infer.RenyiELBO(alpha=0)`, whose weights contain the scale of a minibatch.

    Args:
        num_samples: K >= 1.
        vectorize: Whether to run the programs once on all draws, in a dimension to the left of their plates, or once
            for every draw, which any program allows.

    Raises:
        ValueError: The guide draws a site without a reparameterised gradient.

    References:
        Y. Burda, R. Grosse, R. Salakhutdinov (2016), Importance weighted autoencoders, ICLR, equation 8.

    Example:
        >>> import pyro_lvm as lvm
        >>> svi = lvm.infer.SVI(loss=lvm.infer.ImportanceWeighted(num_samples=5), learning_rate=1e-3)
        >>> x = lvm.datasets.load("digits234").x
        >>> fit = lvm.fit(lvm.models.VAE(2, hidden=[16]), x, inference=svi, max_epochs=2, seed=0, progress=False)
        >>> len(fit.history["loss"])
        2
    """

    def __init__(self, num_samples: int = 5, vectorize: bool = True) -> None:
        self.num_samples = whole_number("ImportanceWeighted", "num_samples", num_samples)
        self.vectorize = bool(vectorize)
        super().__init__(num_particles=self.num_samples, vectorize_particles=self.vectorize)
        self.max_plate_nesting: float = math.inf

    def loss(self, model: Callable, guide: Callable, *args: Any, **kwargs: Any) -> float:
        """Minus the bound, nats."""
        with torch.no_grad():
            return float(self.differentiable_loss(model, guide, *args, **kwargs))

    def loss_and_grads(self, model: Callable, guide: Callable, *args: Any, **kwargs: Any) -> float:
        """Minus the bound, nats; gradients are left in `.grad`."""
        loss = self.differentiable_loss(model, guide, *args, **kwargs)
        if loss.requires_grad:
            loss.backward()
        return float(loss.detach())

    def differentiable_loss(self, model: Callable, guide: Callable, *args: Any, **kwargs: Any) -> Tensor:
        """Minus the bound, nats, scalar."""
        if math.isinf(self.max_plate_nesting):  # found here without a draw, so that a resumed run draws the same
            several = self.vectorize and self.num_samples > 1
            self.max_plate_nesting = plate_nesting(model, args, kwargs) + several
        weights, scales = [], []
        for model_trace, guide_trace in self._get_traces(model, guide, args, kwargs):
            log_weight, scale = _log_weights(model_trace, guide_trace)
            weights.append(log_weight)
            scales.append(scale)
        stacked = weights[0] if len(weights) == 1 and self.vectorize and self.num_samples > 1 else torch.stack(weights)
        bounds = stacked.logsumexp(0) - math.log(self.num_samples)
        return -(bounds * scales[0]).sum()

    def _get_trace(self, model: Callable, guide: Callable, args: tuple, kwargs: dict[str, Any]) -> tuple[Any, Any]:
        """Traces of the guide and of the model on the guide's draws."""
        return get_importance_trace("flat", self.max_plate_nesting, model, guide, args, kwargs)


def _log_weights(model_trace: Any, guide_trace: Any) -> tuple[Tensor, Any]:
    """Log-weights by the plates that all sites share, and the scale that they share."""
    ours, theirs = list(_sites(model_trace)), list(_sites(guide_trace))
    for name, site in theirs:
        if not getattr(site["fn"], "has_rsample", False):
            raise ValueError(
                f"ImportanceWeighted: expected reparameterised sites in the guide; site '{name}' "
                f"({type(site['fn']).__name__}) is not. Use another objective, as TraceGraph_ELBO."
            )
    every = [site for _, site in [*ours, *theirs]]
    summed = get_dependent_plate_dims(every)
    scale = _common_scale([site["scale"] for site in every], summed)
    total: Any = 0.0
    for sign, sites in ((1.0, ours), (-1.0, theirs)):
        for _, site in sites:
            density = site["log_prob"] if scale is None else _unscaled(site)
            total = total + sign * torch_sum(density, summed)
    if scale is None:
        return total, 1.0
    return total, torch_sum(scale, summed) if isinstance(scale, Tensor) else scale


def _sites(trace: Any) -> Iterator[tuple[str, Any]]:
    return ((name, site) for name, site in trace.nodes.items() if site["type"] == "sample")


def _unscaled(site: Any) -> Tensor:
    return scale_and_mask(site["unscaled_log_prob"], 1.0, site["mask"])


def _common_scale(scales: list[Any], summed: list[int]) -> Any:
    """The scale of all sites, or None if they differ or it varies along dimensions that a weight joins."""
    first = scales[0]
    if not isinstance(first, Tensor):
        return first if all(not isinstance(scale, Tensor) and scale == first for scale in scales) else None
    varies = any(-dim <= first.dim() and first.shape[dim] != 1 for dim in summed)
    same = all(isinstance(scale, Tensor) and torch.equal(scale, first) for scale in scales)
    return first if same and not varies else None
