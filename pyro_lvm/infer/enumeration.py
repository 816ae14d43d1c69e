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
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Any

import torch
from pyro.poutine.trace_struct import Trace
from torch import Tensor
from torch.distributions import constraints

from pyro_lvm.infer.chains import Chain
from pyro_lvm.infer.expectation import Expectation
from pyro_lvm.infer.factors import Factor, contract
from pyro_lvm.infer.m_step import innermost
from pyro_lvm.infer.markov import opened_factors
from pyro_lvm.infer.masks import check_masks
from pyro_lvm.infer.nonfinite import NonFiniteLoss
from pyro_lvm.infer.parameters import Parameters
from pyro_lvm.infer.row_pass import Memory, RowPass

__all__ = ["expect", "hand_out"]

# Supports that do not depend on parameters, and whose violation a natural form does not see.
FIXED = (
    constraints.boolean,
    constraints.nonnegative,
    constraints.nonnegative_integer,
    constraints.positive,
    constraints.simplex,
    constraints.unit_interval,
)


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
    memory = Memory() if memory is None else memory
    with Parameters(leaves=True) as parameters, torch.enable_grad():
        trace, factors, chains, memory.markov = opened_factors(model, max_plate_nesting, args, kwargs, memory.markov)
    if not factors:
        raise ValueError("Exact enumeration: the model has no sample sites. Add pyro.sample(..., obs=x).")
    scored = {name: factor for name, factor in factors.items() if name not in unscored}
    with torch.no_grad():
        for factor in scored.values():
            _check_support(factor, memory)
        for name in factors.keys() - scored.keys():
            factors[name].weights = torch.ones(factors[name].fn.batch_shape)
        for name, correction in (corrections(factors) if corrections else {}).items():
            factors[name].correction = correction
        if chains:
            found = Expectation(0.0, factors, parameters.found, has_weights=keep_weights, markov=memory.markov)
            terms = [chain.run(temperature, memory, keep_weights, variance_floor) for chain in chains]
            return _add_chains(found, chains, terms, scored)
        rows = RowPass.of(scored, memory)
        if rows is not None:
            result = rows.run(temperature, keep_weights, variance_floor, memory.scratch)
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
                result.gathered,
                result.weights is not None,
                {rows.latent.name: result.total},
                rows,
            )
    value = weigh(trace, scored, temperature)
    return Expectation(value, factors, parameters.found, markov=memory.markov)


def _add_chains(found: Expectation, chains: list[Chain], terms: list[float], scored: dict[str, Factor]) -> Expectation:
    """The E-step of a program whose latent sites are the states of chains, from their log-likelihoods."""
    parts = {part.name for chain in chains for part in chain.factors}
    for name, factor in scored.items():
        if name not in parts:
            factor.weights = _outside_weights(factor)
            density = factor.log_density.masked_fill(factor.weights == 0, 0.0)  # masked, it may be infinite
            terms.append(float((factor.weights * density).sum(dtype=torch.float64)))
    found.log_likelihood, found.chains = math.fsum(terms), chains
    for chain in chains:
        found.gathered.update(chain.gathered)
        if chain.totals is not None:
            found.totals[chain.name] = chain.totals
    if not math.isfinite(found.log_likelihood):
        raise NonFiniteLoss(_blame(found.log_likelihood, scored))
    return found


def _check_support(factor: Factor, memory: Memory) -> None:
    """Raise a ValueError for observed values outside of the support, the first time that they are seen."""
    value, mask = factor.value, factor.site["mask"]
    if factor.enumerated or not isinstance(value, Tensor) or value.requires_grad or mask is not None:
        return
    if not memory.is_new(factor.name, value):
        return
    fn = innermost(factor.fn)
    if not any(type(fn).support is support for support in FIXED):
        return
    inside = fn.support.check(value)
    if not bool(inside.all()):
        place = (~inside).nonzero()[0].tolist()
        wrong = value[tuple(place)] if value.dim() else value
        shown = f"{wrong.item():g}" if wrong.numel() == 1 else str(wrong.tolist())
        raise ValueError(
            f"Exact enumeration: site '{factor.name}' ({type(fn).__name__}): expected values in the support "
            f"{fn.support}; got {shown} at {tuple(place)}. Drop such rows, or mask them."
        )


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
    check_masks(factors.values())

    def run(power: float) -> Tensor:
        leaves.clear()
        for factor in factors.values():
            factor.leaf = (factor.log_density * power).requires_grad_()
            leaves.append(factor.leaf)
        terms = [term for _, term in contract(trace, factors.values(), scaled=True)]
        return torch.stack([term.sum(dtype=torch.float64) for term in terms]).sum()

    with torch.enable_grad():
        log_z = run(temperature)
        found = torch.autograd.grad(log_z, leaves, materialize_grads=True)
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
