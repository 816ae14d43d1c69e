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
from typing import Any, ClassVar

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
from pyro_lvm.distributions.standard_normal import StandardNormal
from pyro_lvm.infer.divergence import divergence_at, has_closed_divergence
from pyro_lvm.infer.lean_sums import bernoulli_cost, normal_divergence, standard_divergence
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

    sums_out: ClassVar[bool] = False

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
        for ours, theirs in self._get_traces(model, guide, args, kwargs):
            loss = self._part(ours, theirs, once=True)
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

    def _part(self, ours: Sites, theirs: Sites, once: bool = False) -> Tensor:
        """Minus what one run of the programs adds to the bound, nats; `once` if no second derivatives are wanted."""
        loss = _Loss(once)
        for name, site in theirs.items():
            if not is_reparameterised(site):
                raise ValueError(
                    f"EvidenceBound: expected reparameterised sites in the guide; site '{name}' "
                    f"({type(site['fn']).__name__}) is not. Use another objective, as TraceGraph_ELBO."
                )
            prior = ours.get(name)
            if not (self._closed and prior is not None and loss.add_divergence(site, prior)):
                loss.add_density(site, -1)
                if prior is not None:
                    loss.add_density(prior)
        for name, site in ours.items():
            if name not in theirs:
                loss.add_density(site)
        return loss.total(1 / self.num_particles)


class _Loss:
    """A sum of scaled and masked nats, with one multiplication for all that have the same number as their scale.

    Args:
        once: Whether it is to be differentiated only once, which takes less time.
    """

    def __init__(self, once: bool) -> None:
        self.once = once
        self.by_scale: dict[float, Tensor] = {}

    def add_density(self, site: dict[str, Any], sign: int = 1) -> None:
        """Take away the log-density of a site, or add it with a sign of -1."""
        if _is_plain(site):
            cost = _summed_cost(site, self.once)
            self._add(site["scale"], cost if sign > 0 else -cost)
        else:
            nats = site["fn"].log_prob(site["value"], *site["args"], **site["kwargs"])
            self._add(1.0, -sign * scale_and_mask(torch.as_tensor(nats), site["scale"], site["mask"]).sum())

    def add_divergence(self, site: dict[str, Any], prior: dict[str, Any]) -> bool:
        """Add the divergence of a guide's site from its prior, if there is a closed form of it; whether there is."""
        if prior["is_observed"] or not (_same(site["scale"], prior["scale"]) and _same(site["mask"], prior["mask"])):
            return False
        q, p = (_base(law["fn"]) for law in (site, prior))
        if self.once and _is_plain(site) and type(q) is dist.Normal and q.batch_shape == p.batch_shape:
            if isinstance(p, StandardNormal):
                self._add(site["scale"], standard_divergence(q))
                return True
            if type(p) is dist.Normal:
                self._add(site["scale"], normal_divergence(q, p))
                return True
        nats = divergence_at(site["fn"], prior["fn"], site["value"])
        if nats is None:
            return False
        if _is_plain(site):
            self._add(site["scale"], nats.sum())
        else:
            self._add(1.0, scale_and_mask(nats, site["scale"], site["mask"]).sum())
        return True

    def _add(self, scale: float, nats: Tensor) -> None:
        before = self.by_scale.get(scale)
        self.by_scale[scale] = nats if before is None else before + nats

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


def _is_plain(site: dict[str, Any]) -> bool:
    """Whether all entries of a site count alike."""
    return site["mask"] is None and not isinstance(site["scale"], Tensor)


def _base(fn: Any) -> Any:
    return fn.base_dist if type(fn) is dist.Independent else fn


def _summed_cost(site: dict[str, Any], once: bool) -> Tensor:
    """Minus the log-density of a site summed over its batch, nats; that of zeros and ones by one kernel."""
    base, value = _base(site["fn"]), site["value"]
    logits = base.__dict__.get("logits") if type(base) is dist.Bernoulli else None
    if logits is None or logits.shape != value.shape or logits.dtype != value.dtype:
        return -torch.as_tensor(site["fn"].log_prob(value, *site["args"], **site["kwargs"])).sum()
    if base._validate_args:
        base._validate_sample(value)
    if once and not value.requires_grad:
        return bernoulli_cost(logits, value)
    return binary_cross_entropy_with_logits(logits, value, reduction="sum")


def _same(first: Any, second: Any) -> bool:
    if isinstance(first, Tensor) or isinstance(second, Tensor):
        return first is second or (
            isinstance(first, Tensor) and isinstance(second, Tensor) and torch.equal(first, second)
        )
    return first == second
