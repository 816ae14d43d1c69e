"""A start for EM that depends on the data: posterior weights from k-means++ clusters in place of an E-step."""

from __future__ import annotations

import torch
from torch import Tensor

from pyro_lvm.infer.chains import Chain
from pyro_lvm.infer.enumeration import hand_out
from pyro_lvm.infer.expectation import Expectation
from pyro_lvm.infer.row_pass import RowPass
from pyro_lvm.ops.kmeans import kmeans

__all__ = ["reseed"]

# Weight of a row in its own cluster; the rest is shared, lest a probability start at zero.
CONFIDENCE = 0.95


def reseed(expectation: Expectation) -> None:
    """Replace the posterior weights of an E-step, drawn from torch's random generator.

    In a mixture, rows are clustered by k-means++ on the values of all sites in natural form. Any other program has its
    weights multiplied by exponential noise.

    Args:
        expectation: The E-step, with weights.
    """
    rows = expectation.rows
    expectation.gathered = {}
    if expectation.chains:
        for chain in expectation.chains:
            _reseed_chain(chain)
        return
    if rows is None:
        for factor in expectation.factors.values():
            noise = torch.empty_like(factor.weights).exponential_()
            factor.weights = factor.weights * noise
        return
    counts = rows.scale.expand(rows.rows) if isinstance(rows.scale, Tensor) else None
    assignment = kmeans(_table(rows), min(rows.states, rows.rows), sample_weights=counts).to(rows.constant.device)
    hard = torch.nn.functional.one_hot(assignment, rows.states).T
    weights = CONFIDENCE * hard + (1 - CONFIDENCE) / rows.states
    weights = weights.to(expectation.factors[rows.latent.name].weights.dtype) * rows.scale
    inside = [factor for factor in expectation.factors.values() if factor not in rows.outside]
    hand_out(rows.spread(weights), inside)


def _reseed_chain(chain: Chain) -> None:
    """Steps clustered by k-means++ on their values; the weights of first states and transitions stay as they are."""
    batch = (*chain.batch, chain.num_steps)
    last = [parts[-1] for parts in chain.emissions]
    values = torch.cat([factor.value.expand(*batch, *factor.fn.event_shape).reshape(*batch, -1) for factor in last], -1)
    there = torch.ones(batch, dtype=torch.bool, device=values.device)
    for factor in last:
        there = there & torch.as_tensor(True if factor.site["mask"] is None else factor.site["mask"])
    assignment = torch.zeros(batch, dtype=torch.long, device=values.device)
    assignment[there] = kmeans(values[there].double(), min(chain.num_states, int(there.sum())))
    hard = torch.nn.functional.one_hot(assignment, chain.num_states).movedim(-1, 0)
    weights = CONFIDENCE * hard + (1 - CONFIDENCE) / chain.num_states
    for part in [part for parts in chain.emissions for part in parts]:
        part.weights = part.weights.sum(-len(batch) - 1, keepdim=True) * weights.to(part.weights.dtype)


def _table(rows: RowPass) -> Tensor:
    """The values that rows can be told apart by, (n, columns)."""
    columns = [kernel.cells.rows.reshape(rows.rows, -1).double() for kernel in rows.kernels.values()]
    return torch.cat(columns, 1) if columns else torch.rand(rows.rows, 1, dtype=torch.float64)
