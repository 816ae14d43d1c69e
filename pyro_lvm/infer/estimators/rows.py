"""The rows that sites have in common, and what sites are row by row."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pyro.distributions as dist
import torch
from torch import Tensor

__all__ = ["Rows", "counted"]

WRAPPERS = (dist.Independent, dist.MaskedDistribution, dist.ExpandedDistribution)


@dataclass(frozen=True)
class Rows:
    """The cells of the plates that all sites stand in, among them the plate of draws.

    Attributes:
        kept: Dimensions of these plates, negative, counted among batch dimensions.
        shape: Their sizes, and 1 for dimensions in between, shape (K, rows...).
        scale: How much each row counts, broadcasts to `shape`.
    """

    kept: frozenset[int]
    shape: torch.Size
    scale: Tensor

    @classmethod
    def common(cls, sites: list[Any]) -> Rows:
        """The rows of some sites of a trace."""
        every = [frozenset(f for f in site["cond_indep_stack"] if f.vectorized) for site in sites]
        common = frozenset.intersection(*every)
        outermost = [site for site, frames in zip(sites, every, strict=True) if frames == common] or sites[:1]
        scale: Any = torch.ones(())
        for k, site in enumerate(outermost):
            given = torch.as_tensor(site["scale"]).to(site["log_prob"])
            scale = given if k == 0 else torch.maximum(scale, given)
        sizes = {frame.dim: frame.size for frame in common}
        nesting = -min(sizes)
        shape = torch.Size(sizes.get(dim, 1) for dim in range(-nesting, 0))
        return cls(frozenset(sizes), shape, scale.reshape((1,) * (nesting - scale.dim()) + scale.shape))

    def total(self, sites: list[Any]) -> Tensor:
        """Log-probabilities summed to rows, without their scale, nats, shape (K, rows...)."""
        value = self.scale.new_zeros(self.shape)
        for site in sites:
            own, mask = site["unscaled_log_prob"], site["mask"]
            if mask is not None:
                own = torch.where(torch.as_tensor(mask, device=own.device), own, torch.zeros_like(own))
            own = own * self.relative_scale(site)
            inside = [d for d in range(-own.dim(), 0) if d not in self.kept and own.shape[d] != 1]
            value = value + (own.sum(inside, keepdim=True) if inside else own).expand(self.shape)
        return value

    def entries(self, value: Tensor, event_dim: int) -> Tensor:
        """The entries of each row on one axis, shape (K, rows..., entries).

        Args:
            value: Shape batch + event; on the left, batch dimensions may be missing.
            event_dim: Number of event dimensions.
        """
        nesting, event = len(self.shape), value.shape[value.dim() - event_dim :]
        value = value.reshape((1,) * (nesting + event_dim - value.dim()) + value.shape)
        sizes = [size if k - nesting in self.kept else value.shape[k] for k, size in enumerate(self.shape)]
        order = sorted(range(nesting), key=lambda k: k - nesting not in self.kept)
        moved = value.expand(*sizes, *event).permute(*order, *range(nesting, nesting + event_dim))
        return moved.reshape(*self.shape, -1)

    def relative_scale(self, site: Any) -> Tensor:
        """A site's scale beyond the row's own."""
        own = torch.as_tensor(site["scale"]).to(self.scale)
        return torch.where(self.scale > 0, own / self.scale, torch.ones_like(self.scale))


def counted(site: Any) -> tuple[Tensor, Any]:
    """Which entries of a site's value are not masked, broadcasts to it, and its distribution without wrappers."""
    fn, device = site["fn"], site["value"].device
    kept = _left(torch.as_tensor(True if site["mask"] is None else site["mask"], device=device), fn.event_dim)
    while isinstance(fn, WRAPPERS):
        if isinstance(fn, dist.MaskedDistribution):
            kept = kept & _left(torch.as_tensor(fn._mask, device=device), fn.event_dim)
        fn = fn.base_dist
    return kept, fn


def _left(mask: Tensor, event_dim: int) -> Tensor:
    """A mask of batch dimensions, left of event dimensions."""
    return mask.reshape(mask.shape + (1,) * event_dim)
