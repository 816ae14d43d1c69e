"""What an E-step hands to an M-step."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor

from pyro_lvm.infer.chains import Chain
from pyro_lvm.infer.factors import Factor
from pyro_lvm.infer.gather import gather
from pyro_lvm.infer.m_step import ClosedForm, ExponentialFamily, Statistics, unwrap
from pyro_lvm.infer.markov import Markov
from pyro_lvm.infer.parameters import Parameter
from pyro_lvm.infer.row_pass import Memory, RowPass

__all__ = ["Expectation"]


@dataclass
class Expectation:
    """What an E-step hands to an M-step: weights per factor, the parameters they were found at, and log p(x).

    Attributes:
        log_likelihood: Log-likelihood of all rows, in nats, summed in float64.
        gathered: Statistics of sites for which the E-step had them already.
        has_weights: Whether factors hold their weights; those of the laws of chains' states always do.
        totals: Expected number of rows in every state of a site, as far as the E-step found it on the way.
        rows: How the rows were passed over, if they were.
        chains: Hidden Markov chains.
        markov: The program's shape, if it was recognised as a chain.
        completed: The program that was run, and its arguments.
    """

    log_likelihood: float
    factors: dict[str, Factor]
    parameters: dict[str, Parameter]
    gathered: dict[str, Statistics] = field(default_factory=dict)
    has_weights: bool = True
    totals: dict[str, Tensor] = field(default_factory=dict)
    rows: RowPass | None = None
    chains: list[Chain] = field(default_factory=list)
    markov: Markov | bool | None = None
    completed: Any = None

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
        """Posterior of every enumerated site, with its states along a new last axis after its plates (and steps)."""
        if self.chains:
            return {name: table for chain in self.chains for name, table in chain.posterior().items()}
        tables = {name: _states_last(factor) for name, factor in self.factors.items() if factor.enumerated}
        totals = {name: table.sum(-1, keepdim=True) for name, table in tables.items()}  # their scales
        return {name: torch.where(totals[name] > 0, table / totals[name], table) for name, table in tables.items()}


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
