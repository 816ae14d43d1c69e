r"""What estimators of several draws share: one vectorised run of guide and model, and its terms by draw and row.

A *row* is what all sites have in common: a cell of the plates that every site of guide and model stands in (the whole
data set if there is no such plate). Bounds and weights are formed within rows, never across them. A row's common scale
(minibatch, subsampled plate, row weights) multiplies its bound and stays out of its weights; a masked row counts 0.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from pyro.infer import ELBO
from pyro.poutine import Trace
from torch import Tensor

from pyro_lvm import _pyro
from pyro_lvm.infer.estimators.rows import Rows, counted
from pyro_lvm.infer.structure import plate_nesting
from pyro_lvm.ops.constructor_repr import ConstructorRepr
from pyro_lvm.ops.whole_number import whole_number

__all__ = ["Draws", "MultiSampleELBO"]


@dataclass
class Draws:
    """Terms of K draws of every row, each of shape (K, rows...), nats, without the rows' scale.

    Attributes:
        log_joint: Log p(x, z).
        log_guide: Log q(z).
        score: Log q of the sites without reparameterised draws: its gradient is the score of a draw.
        entropy: Log q of the other sites, whose draws carry gradients themselves.
        scale: How much each row counts, shape (rows...).
        model_sites: The model's sites, as in its trace.
        guide_sites: The guide's, likewise.
        rows: How sites are brought to rows.
    """

    log_joint: Tensor
    log_guide: Tensor
    score: Tensor
    entropy: Tensor
    scale: Tensor
    model_sites: list[Any]
    guide_sites: list[Any]
    rows: Rows

    @property
    def log_weight(self) -> Tensor:
        """Log p(x, z) - log q(z)."""
        return self.log_joint - self.log_guide

    @property
    def observed(self) -> Tensor:
        """What the model observes in a row, shape (K, rows..., entries); NaN where it is masked.

        What the model computes is not among it, as it may depend on the draws: `pyro.deterministic`, and entries that
        `handlers.clamp` leaves to the guide.
        """
        seen = [self.log_joint.new_zeros(*self.rows.shape, 0)]
        for site in self.model_sites:
            kept, law = counted(site)
            if site["is_observed"] and not isinstance(law, (dist.Delta, dist.Unit)):
                value = torch.where(kept, site["value"].to(self.log_joint), torch.nan)
                seen.append(self.rows.entries(value, site["fn"].event_dim))
        return torch.cat(seen, -1).detach()


class MultiSampleELBO(ELBO, ConstructorRepr):
    """An objective that estimates its gradient from several draws of every row.

    A further estimator is a subclass that says what its bound is, and which surrogate has its gradient.

    Args:
        num_samples: Draws of the guide for each row, K >= 2 unless a subclass does with fewer.
        max_plate_nesting: Number of batch dimensions that plates of model and guide use; by default found by a run.

    Raises:
        ValueError: `num_samples` is not a whole number >= 2.
    """

    least_samples = 2
    max_plate_nesting: float

    def __init__(self, num_samples: int = 5, max_plate_nesting: int | None = None) -> None:
        if whole_number(type(self).__name__, "num_samples", num_samples) < self.least_samples:
            raise ValueError(
                f"{type(self).__name__}: expected num_samples >= 2, since draws are compared with each other; "
                f"got {num_samples}."
            )
        nesting = {} if max_plate_nesting is None else {"max_plate_nesting": max_plate_nesting}
        super().__init__(num_particles=num_samples, vectorize_particles=False, **nesting)
        self.num_samples = num_samples

    @abstractmethod
    def bound(self, draws: Draws) -> Tensor:
        """The lower bound on log p(x) of every row, nats, shape (rows...)."""

    @abstractmethod
    def surrogate(self, draws: Draws) -> Tensor:
        """What has the estimate of the bound's gradient as its gradient, shape (rows...)."""

    def loss(self, model: Callable, guide: Callable, *args: Any, **kwargs: Any) -> float:
        """Minus the bound, summed over rows, nats."""
        with torch.no_grad():
            draws = self.draw(model, guide, args, kwargs)
            return -float((draws.scale * self.bound(draws)).sum())

    def loss_and_grads(self, model: Callable, guide: Callable, *args: Any, **kwargs: Any) -> float:
        """Minus the bound, summed over rows, nats; gradients are added to the parameters' `.grad`."""
        loss, surrogate = self._both(model, guide, args, kwargs)
        if surrogate.requires_grad:
            surrogate.backward()
        return float(loss)

    def differentiable_loss(self, model: Callable, guide: Callable, *args: Any, **kwargs: Any) -> Tensor:
        """Minus the bound, with the estimator's gradient."""
        loss, surrogate = self._both(model, guide, args, kwargs)
        return loss + (surrogate - surrogate.detach())

    def draw(self, model: Callable, guide: Callable, args: tuple, kwargs: dict[str, Any]) -> Draws:
        """Run guide and model once for all draws."""
        traces = self._get_trace(model, guide, args, kwargs)
        ours, theirs = ([s for s in trace.nodes.values() if s["type"] == "sample"] for trace in traces)
        _check(type(self).__name__, ours, theirs)
        rows = Rows.common(ours + theirs)
        reparameterised = [s for s in theirs if getattr(s["fn"], "has_rsample", False) or s["is_observed"]]
        log_guide, entropy = rows.total(theirs), rows.total(reparameterised)
        scale = rows.scale.expand(rows.shape).select(0, 0)
        return Draws(rows.total(ours), log_guide, log_guide - entropy, entropy, scale, ours, theirs, rows)

    def _get_trace(self, model: Callable, guide: Callable, args: tuple, kwargs: dict[str, Any]) -> tuple[Trace, Trace]:
        """Traces of model and guide in an outermost plate of draws."""
        if self.max_plate_nesting == float("inf"):
            self.max_plate_nesting = max(plate_nesting(program, args, kwargs) for program in (model, guide))
        with pyro.plate("num_samples", self.num_samples, dim=-1 - int(self.max_plate_nesting)):
            guided = poutine.trace(guide).get_trace(*args, **kwargs)
            modelled = poutine.trace(poutine.replay(model, trace=guided)).get_trace(*args, **kwargs)
        modelled, guided = _pyro.prune_subsample_sites(modelled), _pyro.prune_subsample_sites(guided)
        modelled.compute_log_prob()
        guided.compute_log_prob()
        return modelled, guided

    def _both(self, model: Callable, guide: Callable, args: tuple, kwargs: dict[str, Any]) -> tuple[Tensor, Tensor]:
        """The loss, and what has its gradient."""
        draws = self.draw(model, guide, args, kwargs)
        loss = -(draws.scale * self.bound(draws)).sum().detach()
        return loss, -(draws.scale * self.surrogate(draws)).sum()


def _check(name: str, ours: list[Any], theirs: list[Any]) -> None:
    latent = {site["name"] for site in ours if not site["is_observed"]}
    drawn = {site["name"] for site in theirs if not site["is_observed"] and not site["infer"].get("is_auxiliary")}
    if latent != drawn:
        raise ValueError(
            f"{name}: expected a guide that draws the latent sites of the model ({', '.join(sorted(latent))}); "
            f"got {', '.join(sorted(drawn)) or 'none'}. Draw each of them in the guide."
        )
