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

from collections import OrderedDict
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import torch
from pyro import poutine
from pyro.infer import config_enumerate
from pyro.poutine.messenger import Messenger
from pyro.poutine.trace_struct import Trace
from torch import Tensor

from pyro_lvm import _pyro
from pyro_lvm.ops.log_density import log_density

__all__ = ["Expectation", "Factor", "Parameter", "Parameters", "expect", "plate_nesting", "row_log_likelihood"]


@dataclass
class Parameter:
    """One `param` site: its value in the model's space, and the tensor an optimizer may write to."""

    name: str
    value: Tensor
    unconstrained: Tensor
    constraint: Any

    def write(self, value: Tensor) -> None:
        """Set a new constrained value in place, so that optimizers keep their state."""
        with torch.no_grad():
            inverse = torch.distributions.transform_to(self.constraint).inv(value.to(self.unconstrained.dtype))
            self.unconstrained.data.copy_(inverse)


class Parameters(Messenger):
    """Collect every `param` message; with `leaves=True` the model reads a detached leaf per parameter.

    All reads of one name give one tensor, so that the graph from a parameter to a distribution argument can be probed.
    """

    def __init__(self, leaves: bool = False) -> None:
        super().__init__()
        self.leaves = leaves
        self.found: dict[str, Parameter] = {}

    def _pyro_param(self, msg: Any) -> None:
        if msg["name"] in self.found:
            msg["value"] = self.found[msg["name"]].value
            msg["done"] = True

    def _pyro_post_param(self, msg: Any) -> None:
        name, value = msg["name"], msg["value"]
        if name in self.found or value is None:
            return
        unconstrained = value.unconstrained() if hasattr(value, "unconstrained") else value
        if self.leaves and not value.is_leaf:
            value = value.detach().requires_grad_()
            value.unconstrained = lambda tensor=unconstrained: tensor
            msg["value"] = value
        constraint = msg["kwargs"].get("constraint", torch.distributions.constraints.real)
        self.found[name] = Parameter(name, value, unconstrained, constraint)


@dataclass
class Factor:
    """The log-density of one sample site over its cells, and the posterior weight of each cell.

    Attributes:
        weights: Posterior probability times the site's scale, shaped like `log_density`; 0 where masked.
    """

    name: str
    site: dict
    log_density: Tensor
    weights: Tensor = field(default_factory=lambda: torch.empty(0))

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
    """

    log_likelihood: float
    factors: dict[str, Factor]
    parameters: dict[str, Parameter]
    trace: Trace

    def marginals(self) -> dict[str, Tensor]:
        """Posterior of every enumerated site, with its states along a new last axis after its plates."""
        return {name: _states_last(factor) for name, factor in self.factors.items() if factor.enumerated}


def plate_nesting(model: Callable, args: tuple, kwargs: dict[str, Any]) -> int:
    """The number of batch dimensions that plates use, found by one run without enumeration."""
    trace = _pyro.plain_trace(model, args, kwargs)
    dims = [
        frame.dim
        for site in trace.nodes.values()
        if site["type"] == "sample"
        for frame in site["cond_indep_stack"]
        if frame.vectorized
    ]
    return -min(dims) if dims else 0


def trace_factors(
    model: Callable, max_plate_nesting: int, args: tuple, kwargs: dict[str, Any], *, differentiable: bool = False
) -> tuple[Trace, dict[str, Factor]]:
    """Run the enumerated model once; log-densities are leaves of the graph unless `differentiable`."""
    trace = _pyro.enumerated_trace(config_enumerate(model), max_plate_nesting, args, kwargs)
    factors = {}
    for name, site in trace.nodes.items():
        if site["type"] != "sample":
            continue
        _require_enumerable(name, site)
        with torch.set_grad_enabled(differentiable):
            value = log_density(site["fn"], site["value"], *site["args"], **site["kwargs"])
        if isinstance(value, Tensor):
            factors[name] = Factor(name, site, value if differentiable else value.detach().requires_grad_())
    return trace, factors


def _require_enumerable(name: str, site: dict) -> None:
    if site["is_observed"] or site["infer"].get("_enumerate_dim") is not None:
        return
    kind = type(site["fn"]).__name__
    raise ValueError(
        f"Exact enumeration: site '{name}' ({kind}) is latent and its support cannot be enumerated. "
        "Observe it, make it a parameter, or use inference='svi' or 'mcmc'."
    )


def _log_factor_tree(trace: Trace, factors: Iterable[Factor]) -> tuple[_pyro.PackedTree, set[str], Any]:
    """Packed, masked log-densities by plate context; the dimensions to sum; and their common scale."""
    tree: _pyro.PackedTree = OrderedDict()
    sum_dims: set[str] = set()
    scales: dict[Any, Any] = {}
    for factor in factors:
        site = factor.site
        term = _pyro.pack(factor.log_density, site)
        if factor.enumerated:
            sum_dims.add(site["infer"]["_enumerate_symbol"])
        elif site["mask"] is not None:
            term = _pyro.pack_scale(term, mask=_pyro.pack(site["mask"], site))
        tree.setdefault(_pyro.plate_symbols(trace, site), []).append(term)
        scale = site["scale"]
        scales[scale if isinstance(scale, (int, float)) else id(scale)] = (scale, site)
    if len(scales) > 1:
        raise ValueError(
            "Exact enumeration: expected one common scale for all sites, got "
            f"{sorted({str(s[0]) for s in scales.values()})}. Scale the whole model, or none of it."
        )
    scale, site = next(iter(scales.values()))
    return tree, sum_dims & set("".join(t._pyro_dims for ts in tree.values() for t in ts)), (  # type: ignore[attr-defined]
        _pyro.pack(scale, site) if isinstance(scale, Tensor) else scale
    )


def expect(model: Callable, max_plate_nesting: int, args: tuple, kwargs: dict[str, Any]) -> Expectation:
    """One exact E-step.

    Args:
        model: Any Pyro program whose latent sites are all enumerable.
        max_plate_nesting: Batch dimensions reserved for plates (see `plate_nesting`).
        args: The model's arguments.
        kwargs: The model's keyword arguments.

    Raises:
        ValueError: A latent site cannot be enumerated, or some row has probability zero.
    """
    with Parameters(leaves=True) as parameters, torch.enable_grad():
        trace, factors = trace_factors(model, max_plate_nesting, args, kwargs)
    return weigh(trace, factors, parameters.found)


def weigh(trace: Trace, factors: dict[str, Factor], parameters: dict[str, Parameter]) -> Expectation:
    """The backward pass: posterior weights of all cells of the given factors."""
    if not factors:
        raise ValueError("Exact enumeration: the model has no sample sites. Add pyro.sample(..., obs=x).")
    tree, sum_dims, scale = _log_factor_tree(trace, factors.values())
    with torch.enable_grad():
        terms = [
            _pyro.pack_scale(term, scale=scale)
            for terms in _pyro.contract(tree, sum_dims).values()
            for term in terms
        ]
        log_z = torch.stack([term.sum(dtype=torch.float64) for term in terms]).sum()
    value = log_z.item()
    if value == float("-inf"):
        raise ValueError(
            "Exact enumeration: the data have probability zero under the model (log-likelihood is -inf). "
            "Check the support of the observed sites, or start from other parameters."
        )
    for factor, weights in zip(
        factors.values(), torch.autograd.grad(log_z, [f.log_density for f in factors.values()]), strict=True
    ):
        mask = factor.site["mask"]
        if factor.enumerated and mask is not None:
            weights = weights * mask
        factor.weights = weights
        factor.log_density = factor.log_density.detach()
    return Expectation(value, factors, parameters, trace)


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
        tree, sum_dims, _ = _log_factor_tree(trace, rows.values())
        symbol = _row_symbol(trace, rows.values(), plate)
        total: Tensor | None = None
        for ordinal, terms in _pyro.contract(tree, sum_dims).items():
            for term in terms:
                if symbol not in ordinal:
                    raise ValueError(
                        "log-likelihood by row: part of the model lies outside the plate of the rows, "
                        "so rows are not independent. Score the whole data set with the inference's loss."
                    )
                dims = term._pyro_dims  # type: ignore[attr-defined]
                if symbol not in dims:  # a plate of one row was squeezed away
                    term = term.sum().reshape(1)
                else:
                    term = term.movedim(dims.index(symbol), 0).flatten(1).sum(-1) if term.dim() > 1 else term
                total = term if total is None else total + term
    assert total is not None  # noqa: S101 - trace_factors found at least one site
    return total


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
