"""The closed-form part of an M-step: statistics per site, scatter-added over a parameter's uses, solved by block."""

from __future__ import annotations

import torch
from torch import Tensor

from pyro_lvm.infer.enumeration import Expectation, Factor
from pyro_lvm.infer.m_step import Joint, Statistics, unwrap
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
        values = {entry.name: expectation.parameters[entry.name].value.detach() for entry in plan.closed}
        updates: dict[str, Tensor] = {}
        for entries in _groups(plan):
            joint = _joint(entries)
            for _ in range(1 if joint else max(use.form.sweeps for entry in entries for use in entry.uses)):
                old = [values[entry.name] for entry in entries]
                if joint:
                    new = _solve_jointly(joint, entries, old, sites)
                    for entry, value in zip(entries, new, strict=True):
                        _set(entry, value, values, sites)
                else:
                    for entry in entries:
                        _set(entry, _solve(entry, values[entry.name], sites), values, sites)
                now = [values[entry.name] for entry in entries]
                if all(torch.allclose(a, b, rtol=1e-12, atol=0.0) for a, b in zip(old, now, strict=True)):
                    break
            updates.update({entry.name: values[entry.name] for entry in entries})
        return updates


def _set(entry: ParameterPlan, new: Tensor, values: dict[str, Tensor], sites: dict[str, _Site]) -> None:
    """Let everything that follows see the new value."""
    values[entry.name] = new
    for use in entry.uses:
        sites[use.site].now[use.argument.name] = use.view.decode(use.blocks.read(new))


def _groups(plan: Plan) -> list[list[ParameterPlan]]:
    """Parameters of one site after one another, locations before scales; sites that share a parameter go together."""
    groups: list[list[ParameterPlan]] = []
    for entry in plan.closed:
        sites = {use.site for use in entry.uses}
        near = [g for g in groups if any(use.site in sites for e in g for use in e.uses)]
        groups = [g for g in groups if g not in near] + [[*(e for g in near for e in g), entry]]
    order = {entry.name: i for i, entry in enumerate(plan.closed)}
    return [sorted(group, key=lambda entry: order[entry.name]) for group in groups]


def _joint(entries: list[ParameterPlan]) -> Joint | None:
    """The joint maximum, if every argument it needs has a parameter of its own, cut into the same blocks."""
    first = entries[0].uses[0]
    joint = first.form.joint
    if joint is None or any(len(entry.uses) != 1 or entry.uses[0].site != first.site for entry in entries):
        return None
    uses = [entry.uses[0] for entry in entries]
    if [use.argument.name for use in uses] != list(joint.names):
        return None
    same = all(
        use.blocks.batch == first.blocks.batch and torch.equal(use.blocks.block, first.blocks.block) for use in uses
    )
    return joint if same and not any(entry.priors for entry in entries) else None


def _solve_jointly(
    joint: Joint, entries: list[ParameterPlan], old: list[Tensor], sites: dict[str, _Site]
) -> list[Tensor]:
    use = entries[0].uses[0]
    site = sites[use.site]
    sums = [use.blocks.scatter(part, site.cells) for part in joint.accumulate(site.statistics)]
    solved = joint.solve(*sums)
    return [_write(entry.uses[0], value, before) for entry, value, before in zip(entries, solved, old, strict=True)]


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
        and not entry.priors
        and first.blocks.injective
        and first.blocks.padded(cells) == cells
    ):
        accumulate, solve = argument.same_cells
    sums: list[Tensor] = []
    for use in entry.uses:
        site = sites[use.site]
        parts = [use.blocks.scatter(part, site.cells) for part in accumulate(site.statistics, site.now)]
        sums = [a + b for a, b in zip(sums, parts, strict=True)] if sums else parts
    return _write(first, solve(*sums), old)


def _write(use: Use, solved: Tensor, old: Tensor) -> Tensor:
    """Put solved blocks into a parameter; blocks without weight keep their value."""
    blocks = use.view.encode(solved)
    kept = old.reshape(-1)[use.blocks.elements].to(blocks.dtype)
    finite = torch.isfinite(blocks).reshape(len(blocks), -1).all(-1).reshape(-1, *([1] * (blocks.dim() - 1)))
    return use.blocks.write(old, torch.where(finite, blocks, kept))
