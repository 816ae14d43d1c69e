"""The factors of a program: one per sample site, and the sum over discrete sites of their product."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator
from functools import reduce
from typing import Any

import torch
from pyro.infer import config_enumerate
from pyro.poutine.trace_struct import Trace
from torch import Tensor

from pyro_lvm import _pyro
from pyro_lvm.handlers.counted import same_scale
from pyro_lvm.infer.log_density import log_density

__all__ = ["Factor", "contract", "trace_factors"]


class Factor:
    """One sample site: its log-density over its cells, computed when first asked for, and the posterior of each cell.

    Attributes:
        weights: Posterior probability times the site's scale, shaped like `log_density`; 0 where masked.
    """

    def __init__(self, name: str, site: dict, differentiable: bool = False) -> None:
        self.name = name
        self.site = site
        self.differentiable = differentiable
        self.weights = torch.empty(0)
        self.correction: Tensor | None = None
        self.leaf: Tensor | None = None
        self._log_density: Tensor | None = None

    @property
    def log_density(self) -> Tensor:
        """Log-density of every cell, nats; a leaf of the graph unless differentiable."""
        if self._log_density is None:
            with torch.set_grad_enabled(self.differentiable):
                value = log_density(
                    self.fn, self.value, *self.site["args"], correction=self.correction, **self.site["kwargs"]
                )
                value = torch.as_tensor(value)
            self._log_density = value if self.differentiable else value.detach()
        return self._log_density

    @property
    def fn(self) -> Any:
        """The site's distribution."""
        return self.site["fn"]

    @property
    def value(self) -> Tensor:
        """The observed value, or the whole support of an enumerated site."""
        return self.site["value"]

    @property
    def enumerated(self) -> bool:
        """Whether the site was summed out."""
        return self.site["infer"].get("_enumerate_dim") is not None


def trace_factors(
    model: Callable,
    max_plate_nesting: int,
    args: tuple,
    kwargs: dict[str, Any],
    *,
    differentiable: bool = False,
) -> tuple[Trace, dict[str, Factor]]:
    """Run the enumerated model once; log-densities are constants of the graph unless `differentiable`."""
    trace = _pyro.enumerated_trace(config_enumerate(model), max_plate_nesting, args, kwargs)
    factors = {}
    for name, site in trace.nodes.items():
        if site["type"] == "sample":
            _require_enumerable(name, site)
            factors[name] = Factor(name, site, differentiable)
    return trace, factors


def _require_enumerable(name: str, site: dict) -> None:
    if site["is_observed"] or site["infer"].get("_enumerate_dim") is not None:
        return
    kind = type(site["fn"]).__name__
    raise ValueError(
        f"Exact enumeration: site '{name}' ({kind}) is latent and its support cannot be enumerated. "
        "Observe it, make it a parameter, or use inference='svi' or 'mcmc'."
    )


def contract(trace: Trace, factors: Iterable[Factor], *, scaled: bool) -> Iterator[tuple[frozenset[str], Tensor]]:
    """Sum the discrete sites out of the product of all factors.

    Yields packed log-densities that together make up log p, each with the plates it stands in. As in Pyro, masks act
    inside the sum over a discrete site and a common scale outside of it.
    """
    factors = list(factors)
    densities = {f.name: f.log_density if f.leaf is None else f.leaf for f in factors}
    dtype = reduce(torch.promote_types, (density.dtype for density in densities.values()), torch.float32)
    sum_dims = {f.site["infer"]["_enumerate_symbol"] for f in factors if f.enumerated}
    tree: _pyro.PackedTree = OrderedDict()
    common: list[dict] = []
    for factor in factors:
        site, plates = factor.site, _pyro.plate_symbols(trace, factor.site)
        term = _pyro.pack(densities[factor.name].to(dtype), site)
        if site["mask"] is not None and not factor.enumerated:
            term = _pyro.pack_mask(term, _pyro.pack(site["mask"], site))
        if sum_dims.isdisjoint(_pyro.dims_of(term)):
            yield plates, _scale(term, site) if scaled else term
            continue
        tree.setdefault(plates, []).append(term)
        common.append(site)
    if scaled and any(not same_scale(site["scale"], common[0]["scale"]) for site in common):
        raise ValueError(
            "Exact enumeration: expected one scale for all sites that share a discrete site, got "
            f"{sorted({str(site['scale']) for site in common})}. Scale all of them, or none."
        )
    if tree:
        present = sum_dims & {dim for terms in tree.values() for term in terms for dim in _pyro.dims_of(term)}
        for plates, terms in _pyro.contract(tree, present).items():
            for term in terms:
                yield plates, _scale(term, common[0]) if scaled else term


def _scale(term: Tensor, site: dict) -> Tensor:
    scale = site["scale"]
    if not isinstance(scale, Tensor):
        return _pyro.pack_scale(term, scale) if scale != 1.0 else term
    return _pyro.pack_scale(term, _pyro.pack(scale, site))
