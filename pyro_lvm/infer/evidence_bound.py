r"""The evidence lower bound of guides with reparameterised draws, with divergences in closed form where they stand in.

.. math::

    \mathcal{L} = \mathrm{E}_{z \sim q}\Bigl[\sum_i s_i \log p(x_i \mid z)\Bigr]
    - \sum_j s_j\, \mathrm{E}_{z_{<j} \sim q}\, \mathrm{KL}\bigl(q(z_j \mid z_{<j}) \,\|\, p(z_j \mid z_{<j})\bigr)

over observed sites i and latent sites j with scales s; a site without a closed form has the difference of its
log-densities at the draw instead.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pyro.distributions as dist
import torch
from pyro import poutine
from pyro.distributions.util import is_validation_enabled, scale_and_mask
from pyro.infer.elbo import ELBO
from pyro.infer.enum import get_importance_trace
from pyro.poutine.messenger import Messenger
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits

from pyro_lvm import _pyro
from pyro_lvm.infer.divergence import divergence_at, has_closed_divergence
from pyro_lvm.infer.structure import plate_nesting, structure
from pyro_lvm.ops.constructor_repr import ConstructorRepr
from pyro_lvm.ops.whole_number import whole_number

__all__ = ["EvidenceBound", "is_reparameterised"]

Sites = dict[str, Any]


class EvidenceBound(ELBO, ConstructorRepr):
    """The evidence lower bound of reparameterised draws: the loss and gradients of Pyro's bounds in less time.

    With closed forms it equals `pyro.infer.TraceMeanField_ELBO`, without them `pyro.infer.Trace_ELBO`. Every program
    runs once for each draw under two light handlers. Pyro's own checks of the programs are made when validation is on,
    as it is in the first step of `lvm.fit`.

    Args:
        num_particles: Draws of the guide for a step, >= 1.
        vectorize: Whether to run the programs once on all draws, in a dimension to the left of their plates, or once
            for every draw, which any program allows.
        closed_divergence: Whether divergences may have their closed forms; if None they have where the guide at the
            first call draws the model's sites in the model's order.

    Raises:
        ValueError: The guide draws a site without a reparameterised gradient.

    References:
        D. Kingma, M. Welling (2014), Auto-encoding variational Bayes, ICLR, equations 6 and 7.

    Example:
        >>> import pyro_lvm as lvm
        >>> svi = lvm.infer.SVI(loss=lvm.infer.EvidenceBound(num_particles=3), learning_rate=1e-3)
        >>> x = lvm.datasets.load("digits234").x
        >>> fit = lvm.fit(lvm.models.VAE(2, hidden=[16]), x, inference=svi, max_epochs=2, seed=0, progress=False)
        >>> len(fit.history["loss"])
        2
    """

    def __init__(self, num_particles: int = 1, vectorize: bool = False, closed_divergence: bool | None = None) -> None:
        particles = whole_number("EvidenceBound", "num_particles", num_particles)
        self.vectorize = bool(vectorize)
        self.closed_divergence = closed_divergence
        self._closed = closed_divergence
        super().__init__(num_particles=particles, vectorize_particles=self.vectorize)
        self.max_plate_nesting: float = math.inf

    def loss(self, model: Callable, guide: Callable, *args: Any, **kwargs: Any) -> float:
        """Minus the bound, nats."""
        with torch.no_grad():
            return float(self.differentiable_loss(model, guide, *args, **kwargs))

    def differentiable_loss(self, model: Callable, guide: Callable, *args: Any, **kwargs: Any) -> Tensor:
        """Minus the bound, nats, scalar."""
        self._prepare(model, guide, args, kwargs)
        return torch.stack([self._part(*sites) for sites in self._get_traces(model, guide, args, kwargs)]).sum()

    def loss_and_grads(self, model: Callable, guide: Callable, *args: Any, **kwargs: Any) -> float:
        """Minus the bound, nats; gradients are left in `.grad`, those of one run of the programs at a time."""
        self._prepare(model, guide, args, kwargs)
        total = 0.0
        for sites in self._get_traces(model, guide, args, kwargs):
            loss = self._part(*sites)
            if loss.requires_grad:
                loss.backward()
            total += loss.item()
        return total

    def _prepare(self, model: Callable, guide: Callable, args: tuple, kwargs: dict[str, Any]) -> None:
        """Find at the first call what does not change, without a draw, so that a resumed run draws the same."""
        if self._closed is None:
            self._closed = has_closed_divergence(structure(model, args, kwargs), guide, args, kwargs)
        if self.vectorize and self.num_particles > 1 and math.isinf(self.max_plate_nesting):
            self.max_plate_nesting = plate_nesting(model, args, kwargs) + 1

    def _get_trace(self, model: Callable, guide: Callable, args: tuple, kwargs: dict[str, Any]) -> tuple[Sites, Sites]:
        """Sites of the model on the guide's draws, and of the guide."""
        if is_validation_enabled() or isinstance(poutine.unwrap(guide), Messenger):
            traces = get_importance_trace("flat", self.max_plate_nesting, model, guide, args, kwargs)
            ours, theirs = ({n: s for n, s in t.nodes.items() if s["type"] == "sample"} for t in traces)
            return ours, theirs
        with _Run({}) as drawn:
            guide(*args, **kwargs)
        with _Run(drawn.every) as scored:
            model(*args, **kwargs)
        return scored.sites, drawn.sites

    def _part(self, ours: Sites, theirs: Sites) -> Tensor:
        """Minus what one run of the programs adds to the bound, nats."""
        bound = _Sum()
        for name, site in theirs.items():
            if not is_reparameterised(site):
                raise ValueError(
                    f"EvidenceBound: expected reparameterised sites in the guide; site '{name}' "
                    f"({type(site['fn']).__name__}) is not. Use another objective, as TraceGraph_ELBO."
                )
            prior = ours.get(name)
            divergence = _divergence(site, prior) if self._closed and prior is not None else None
            if divergence is not None:
                bound.add(-1, site, divergence)
            else:
                bound.add(-1, site)
                if prior is not None:
                    bound.add(1, prior)
        for name, site in ours.items():
            if name not in theirs:
                bound.add(1, site)
        return bound.total(-1 / self.num_particles)


class _Sum:
    """A sum of scaled and masked nats, with one multiplication for all that have the same number as their scale."""

    def __init__(self) -> None:
        self.by_scale: dict[float, Tensor] = {}

    def add(self, sign: int, site: dict[str, Any], nats: Any = None) -> None:
        """Add or take away nats of a site by batch, by default its log-density."""
        scale, mask = site["scale"], site["mask"]
        if mask is not None or isinstance(scale, Tensor):
            nats = site["fn"].log_prob(site["value"], *site["args"], **site["kwargs"]) if nats is None else nats
            nats, scale = scale_and_mask(torch.as_tensor(nats), scale, mask), 1.0
        total = _summed_density(site) if nats is None else nats.sum()
        before = self.by_scale.get(scale)
        if before is None:
            self.by_scale[scale] = total if sign > 0 else -total
        else:
            self.by_scale[scale] = before + total if sign > 0 else before - total

    def total(self, factor: float) -> Tensor:
        """All of it, multiplied by a number."""
        parts = [part * (scale * factor) for scale, part in self.by_scale.items()]
        return torch.stack(parts).sum() if len(parts) > 1 else parts[0] if parts else torch.zeros(())


class _Run(Messenger):
    """Collects sample sites; a latent site that was drawn before has that draw."""

    def __init__(self, before: Sites) -> None:
        super().__init__()
        self.before = before
        self.every: Sites = {}

    @property
    def sites(self) -> Sites:
        """All but the draws of subsamples."""
        return {name: site for name, site in self.every.items() if not _pyro.site_is_subsample(site)}

    def _pyro_sample(self, msg: Any) -> None:
        drawn = self.before.get(msg["name"])
        if drawn is None or msg["is_observed"]:
            return
        if drawn["is_observed"]:
            raise RuntimeError(f"site {msg['name']} must be sampled in trace")
        msg["value"], msg["infer"], msg["done"] = drawn["value"], drawn["infer"], True

    def _pyro_post_sample(self, msg: Any) -> None:
        if msg["name"] in self.every:
            raise RuntimeError(f"Multiple sample sites named '{msg['name']}'")
        self.every[msg["name"]] = msg.copy()


def is_reparameterised(site: dict[str, Any]) -> bool:
    """Whether the gradient of a guide's site is that of its draw alone."""
    fn = site["fn"]
    return getattr(fn, "has_rsample", False) and not isinstance(fn, dist.Rejector)  # whose draws have a score as well


def _summed_density(site: dict[str, Any]) -> Tensor:
    """The log-density of a site summed over its batch, nats; that of zeros and ones by one kernel."""
    fn, value = site["fn"], site["value"]
    base = fn.base_dist if type(fn) is dist.Independent else fn
    logits = base.__dict__.get("logits") if type(base) is dist.Bernoulli else None
    if logits is not None and logits.shape == value.shape and logits.dtype == value.dtype:
        if base._validate_args:
            base._validate_sample(value)
        return -binary_cross_entropy_with_logits(logits, value, reduction="sum")
    return torch.as_tensor(fn.log_prob(value, *site["args"], **site["kwargs"])).sum()


def _divergence(site: dict[str, Any], prior: dict[str, Any]) -> Tensor | None:
    """Divergence of a guide's site from its prior by batch, nats; None where there is no closed form of it."""
    if prior["is_observed"] or not (_same(site["scale"], prior["scale"]) and _same(site["mask"], prior["mask"])):
        return None
    return divergence_at(site["fn"], prior["fn"], site["value"])


def _same(first: Any, second: Any) -> bool:
    if isinstance(first, Tensor) or isinstance(second, Tensor):
        return first is second or (
            isinstance(first, Tensor) and isinstance(second, Tensor) and torch.equal(first, second)
        )
    return first == second
