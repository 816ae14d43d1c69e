r"""The exact E-step: posteriors of all enumerated sites by one forward and one backward pass.

Write the joint density of a program as a product of factors, one per sample site. With every factor's log-density
:math:`\ell_s` a leaf of the autograd graph and the discrete sites summed out by tensor variable elimination,

.. math:: \frac{\partial \log Z}{\partial \ell_s(\text{cell})} = p(\text{cell} \mid x),

the posterior probability of each cell of each factor: responsibilities for observed sites, marginals for root
sites, pairwise marginals for the transitions of a `pyro.markov` chain.

References:
    A. Darwiche (2003), A differential approach to inference in Bayesian networks, JACM 50(3), section 4.
    F. Obermeyer et al. (2019), Tensor variable elimination for plated factor graphs, ICML, section 4.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial, reduce
from typing import Any

import torch
from pyro import poutine
from pyro.infer import config_enumerate
from pyro.poutine.trace_struct import Trace
from torch import Tensor

from pyro_lvm import _pyro
from pyro_lvm.infer.m_step import ClosedForm, ExponentialFamily, Statistics, unwrap
from pyro_lvm.infer.natural import gather, log_density
from pyro_lvm.infer.nonfinite import NonFiniteLoss
from pyro_lvm.infer.parameters import Parameter, Parameters
from pyro_lvm.infer.row_pass import Memory, RowPass, same_scale

__all__ = [
    "Expectation",
    "Factor",
    "Parameter",
    "Parameters",
    "expect",
    "hand_out",
    "row_log_likelihood",
]


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


@dataclass
class Expectation:
    """What an E-step hands to an M-step: weights per factor, the parameters they were found at, and log p(x).

    Attributes:
        log_likelihood: Log-likelihood of all rows, in nats, summed in float64.
        gathered: Statistics of sites for which the E-step had them already.
        has_weights: Whether factors hold their weights.
        totals: Expected number of rows in every state of a site, as far as the E-step found it on the way.
        rows: How the rows were passed over, if they were.
    """

    log_likelihood: float
    factors: dict[str, Factor]
    parameters: dict[str, Parameter]
    trace: Trace
    gathered: dict[str, Statistics] = field(default_factory=dict)
    has_weights: bool = True
    totals: dict[str, Tensor] = field(default_factory=dict)
    rows: RowPass | None = None

    def statistics(self, site: str, form: ClosedForm, variance_floor: float, memory: Memory) -> Statistics:
        """Expected sufficient statistics of a site."""
        if site in self.gathered:
            return self.gathered[site]
        factor = self.factors[site]
        if isinstance(form, ExponentialFamily):
            known = memory.reference(site, factor.value)
            remember = partial(memory.remember, site, factor.value)
            return gather(factor.fn, factor.value, factor.weights, variance_floor, known, remember)
        fn, weights = unwrap(factor.fn, factor.weights)
        return form.statistics(fn, factor.value, weights, variance_floor)

    def marginals(self) -> dict[str, Tensor]:
        """Posterior of every enumerated site, with its states along a new last axis after its plates."""
        return {name: _states_last(factor) for name, factor in self.factors.items() if factor.enumerated}


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


def _contract(trace: Trace, factors: Iterable[Factor], *, scaled: bool) -> Iterator[tuple[frozenset[str], Tensor]]:
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


def expect(
    model: Callable,
    max_plate_nesting: int,
    args: tuple,
    kwargs: dict[str, Any],
    *,
    temperature: float = 1.0,
    corrections: Callable[[dict[str, Factor]], Mapping[str, Tensor]] | None = None,
    unscored: Collection[str] = (),
    memory: Memory | None = None,
    keep_weights: bool = True,
    variance_floor: float = 0.0,
) -> Expectation:
    """One exact E-step.

    Args:
        model: Any Pyro program whose latent sites are all enumerable.
        max_plate_nesting: Batch dimensions reserved for plates (see `pyro_lvm.infer.structure`).
        args: The model's arguments.
        kwargs: The model's keyword arguments.
        temperature: Inverse temperature: the posterior's logarithm is multiplied by it.
        corrections: From factors to what is added to log-densities, on the cells of the unwrapped distributions, nats.
        unscored: Sites whose own density does not count.
        memory: What an earlier E-step left behind.
        keep_weights: Whether weights are wanted; a mixture's statistics come without.
        variance_floor: Smallest variance allowed in statistics, relative to that of the value.

    Raises:
        ValueError: A latent site cannot be enumerated.
        NonFiniteLoss: Some row has probability zero, or a density is not a number.
    """
    with Parameters(leaves=True) as parameters, torch.enable_grad():
        trace, factors = trace_factors(model, max_plate_nesting, args, kwargs)
    if not factors:
        raise ValueError("Exact enumeration: the model has no sample sites. Add pyro.sample(..., obs=x).")
    scored = {name: factor for name, factor in factors.items() if name not in unscored}
    memory = Memory() if memory is None else memory
    with torch.no_grad():
        for name in factors.keys() - scored.keys():
            factors[name].weights = torch.ones(factors[name].fn.batch_shape)
        for name, correction in (corrections(factors) if corrections else {}).items():
            factors[name].correction = correction
        rows = RowPass.of(scored, memory)
        if rows is not None:
            result = rows.run(temperature, keep_weights, variance_floor)
            if not math.isfinite(result.log_likelihood):
                raise NonFiniteLoss(_blame(result.log_likelihood, scored))
            for factor in rows.outside:
                factor.weights = _outside_weights(factor)
            if result.weights is not None:
                hand_out(rows.spread(result.weights), [f for f in scored.values() if f not in rows.outside])
            return Expectation(
                result.log_likelihood,
                factors,
                parameters.found,
                trace,
                result.gathered,
                result.weights is not None,
                {rows.latent.name: result.total},
                rows,
            )
    value = weigh(trace, scored, temperature)
    return Expectation(value, factors, parameters.found, trace)


def hand_out(table: Tensor, factors: Iterable[Factor]) -> None:
    """Give every factor in the plate of the rows its posterior weights."""
    for factor in factors:
        mask = factor.site["mask"]
        factor.weights = table if mask is None else table * torch.as_tensor(mask)


def _outside_weights(factor: Factor) -> Tensor:
    weights = torch.ones_like(factor.log_density) * factor.site["scale"]
    mask = factor.site["mask"]
    return weights if mask is None else weights * torch.as_tensor(mask)


def weigh(trace: Trace, factors: dict[str, Factor], temperature: float = 1.0) -> float:
    """Posterior weights of all cells by one backward pass; returns the log-likelihood, nats."""
    leaves: list[Tensor] = []

    def run(power: float) -> Tensor:
        leaves.clear()
        for factor in factors.values():
            factor.leaf = (factor.log_density * power).requires_grad_()
            leaves.append(factor.leaf)
        terms = [term for _, term in _contract(trace, factors.values(), scaled=True)]
        return torch.stack([term.sum(dtype=torch.float64) for term in terms]).sum()

    with torch.enable_grad():
        log_z = run(temperature)
        found = torch.autograd.grad(log_z, leaves)
    if temperature != 1.0:
        with torch.no_grad():
            log_z = run(1.0)
    value = log_z.item()
    if not math.isfinite(value):
        raise NonFiniteLoss(_blame(value, factors))
    for factor, weights in zip(factors.values(), found, strict=True):
        mask = factor.site["mask"]
        factor.weights = weights * mask if factor.enumerated and mask is not None else weights
    return value


def _blame(value: float, factors: dict[str, Factor]) -> str:
    """Say which site spoils a log-likelihood that is not a number."""
    for name, factor in factors.items():
        if bool(torch.isnan(factor.log_density).any()) or bool(torch.isposinf(factor.log_density).any()):
            return (
                f"Exact enumeration: the log-density of site '{name}' is not finite. "
                "Check the data and the parameters of that site."
            )
    return (
        f"Exact enumeration: the data have probability zero under the model (log-likelihood {value}). "
        "Check the support of the observed sites, or start from other parameters."
    )


def _states_last(factor: Factor) -> Tensor:
    """Move an enumerated site's own dimension to the right end, summing out the others that are not plates."""
    dim = factor.site["infer"]["_enumerate_dim"]
    plates = max([-f.dim for f in factor.site["cond_indep_stack"] if f.vectorized], default=0)
    weights = factor.weights
    if -dim > weights.dim():  # one state: its dimension was never materialised
        return weights.unsqueeze(-1)
    others = [d for d in range(-weights.dim(), -plates) if d != dim]
    weights = weights.sum(others, keepdim=True) if others else weights
    weights = weights.movedim(dim, -1)
    return weights.reshape(weights.shape[weights.dim() - 1 - plates :])


def row_log_likelihood(
    model: Callable,
    max_plate_nesting: int,
    args: tuple,
    kwargs: dict[str, Any],
    *,
    given: dict[str, Tensor] | None = None,
    plate: str | None = None,
) -> Tensor:
    """Log p(row | given) for every index of a plate, discrete sites summed out.

    Args:
        model: Any Pyro program whose latent sites are all enumerable or given.
        max_plate_nesting: Batch dimensions reserved for plates.
        args: The model's arguments.
        kwargs: The model's keyword arguments.
        given: Values of latent sites to condition on; their own densities do not count.
        plate: The plate whose indices are rows; by default "data", else the only outermost plate.

    Returns:
        Shape (n,), nats.
    """
    given = given or {}
    with torch.no_grad():
        trace, factors = trace_factors(poutine.condition(model, given), max_plate_nesting, args, kwargs)
        rows = {name: factor for name, factor in factors.items() if name not in given}
        symbol = _row_symbol(trace, rows.values(), plate)
        total: Tensor | None = None
        for plates, term in _contract(trace, rows.values(), scaled=False):
            if symbol not in plates:
                raise ValueError(
                    "log-likelihood by row: part of the model lies outside the plate of the rows, "
                    "so rows are not independent. Score the whole data set with the inference's loss."
                )
            dims = _pyro.dims_of(term)
            if symbol not in dims:  # a plate of one row was squeezed away
                term = term.sum().reshape(1)
            elif term.dim() > 1:
                term = term.movedim(dims.index(symbol), 0).flatten(1).sum(-1)
            total = term if total is None else total + term
    if total is None:
        raise ValueError("log-likelihood by row: the model observes nothing. Add pyro.sample(..., obs=x).")
    return total.detach()


def _row_symbol(trace: Trace, factors: Iterable[Factor], plate: str | None) -> str:
    stacks = [[f for f in factor.site["cond_indep_stack"] if f.vectorized] for factor in factors]
    names = {f.name for stack in stacks for f in stack}
    if plate is None:
        shared = set.intersection(*({f.name for f in stack} for stack in stacks)) if stacks else set()
        plate = "data" if "data" in names else (sorted(shared)[0] if len(shared) == 1 else None)
    if plate not in names:
        raise ValueError(
            f"log-likelihood by row: expected one plate shared by all sites, found plates {sorted(names)}. "
            'Name the plate of the rows "data".'
        )
    return str(trace.plate_to_symbol[plate])
