"""The closed-form part of an M-step: statistics per site, scatter-added over a parameter's uses, solved by block."""

from __future__ import annotations

import torch
from torch import Tensor

from pyro_lvm.infer.enumeration import Expectation, Factor
from pyro_lvm.infer.m_step import Statistics, unwrap
from pyro_lvm.infer.plan import ParameterPlan, Plan, Use
from pyro_lvm.infer.row_pass import Memory

__all__ = ["maximise"]


def maximise(plan: Plan, expectation: Expectation, variance_floor: float, memory: Memory) -> dict[str, Tensor]:
    """New values of all parameters with a closed form.

    Args:
        plan: The M-step of every parameter.
        expectation: The E-step's posterior weights.
        variance_floor: Smallest variance relative to that of the observed value.
        memory: Where the values of each site lie.

    Returns:
        Constrained values by name. Later arguments (scales) see the new values of earlier ones (locations).
    """
    with torch.no_grad():
        sites: dict[str, _Site] = {}
        for entry in plan.closed:
            for use in entry.uses:
                if use.site not in sites:
                    statistics = expectation.statistics(use.site, use.form, variance_floor, memory)
                    sites[use.site] = _Site(expectation.factors[use.site], use, statistics)
        updates = {}
        for entry in plan.closed:
            updates[entry.name] = new = _solve(entry, expectation.parameters[entry.name].value.detach(), sites)
            for use in entry.uses:
                sites[use.site].now[use.argument.name] = use.view.decode(use.blocks.read(new))
        return updates


class _Site:
    """Expected sufficient statistics of a site and the current values of its distribution's arguments."""

    def __init__(self, factor: Factor, use: Use, statistics: Statistics) -> None:
        fn, _ = unwrap(factor.fn, factor.weights)
        self.statistics = statistics
        self.now = {argument.name: argument.read(fn).detach() for argument in use.form.arguments}
        self.cells = self.statistics.cells


def _solve(entry: ParameterPlan, old: Tensor, sites: dict[str, _Site]) -> Tensor:
    first = entry.uses[0]
    argument, cells = first.argument, sites[first.site].cells
    accumulate, solve = argument.accumulate, argument.solve
    if (
        argument.same_cells is not None
        and len(entry.uses) == 1
        and first.blocks.injective
        and first.blocks.padded(cells) == cells
    ):
        accumulate, solve = argument.same_cells
    sums: list[Tensor] = []
    for use in entry.uses:
        site = sites[use.site]
        parts = [use.blocks.scatter(part, site.cells) for part in accumulate(site.statistics, site.now)]
        sums = [a + b for a, b in zip(sums, parts, strict=True)] if sums else parts
    blocks = first.view.encode(solve(*sums))
    elements = first.blocks.elements
    kept = old.reshape(-1)[elements].to(blocks.dtype)
    finite = torch.isfinite(blocks).reshape(len(blocks), -1).all(-1).reshape(-1, *([1] * (blocks.dim() - 1)))
    return first.blocks.write(old, torch.where(finite, blocks, kept))
