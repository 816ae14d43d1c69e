"""The closed-form part of an M-step: statistics per site, scatter-added over a parameter's uses, solved by block."""

from __future__ import annotations

import warnings
from collections.abc import Collection
from typing import Any

import torch
from torch import Tensor

from pyro_lvm.infer.averaging import Averages
from pyro_lvm.infer.design import Moved
from pyro_lvm.infer.expectation import Expectation
from pyro_lvm.infer.factors import Factor
from pyro_lvm.infer.m_step import ClosedForm, Joint, Statistics, innermost
from pyro_lvm.infer.plan import ParameterPlan, Plan, PriorUse, Use
from pyro_lvm.infer.row_pass import Memory

__all__ = ["Sites", "counts_of", "groups", "maximise", "own_log_prior", "own_m_step", "sums_of"]


def maximise(
    plan: Plan,
    expectation: Expectation,
    variance_floor: float,
    memory: Memory,
    averages: Averages | None = None,
) -> dict[str, Tensor]:
    """New values of all parameters with a closed form.

    Args:
        plan: The M-step of every parameter.
        expectation: The E-step's posterior weights.
        variance_floor: Smallest variance relative to that of the observed value.
        memory: Where the values of each site lie.
        averages: Blends statistics with those of earlier batches.

    Returns:
        Constrained values by name. Later arguments (scales) see the new values of earlier ones (locations).
    """
    with torch.no_grad():
        sites = Sites(plan, expectation, variance_floor, memory, averages)
        values = {entry.name: expectation.parameters[entry.name].value.detach() for entry in plan.closed}
        for regression in plan.regressions:
            coefficients, moved = regression.solve(expectation)
            values.update(coefficients)
            for site, change in moved.items():
                sites.move(site, change)
        for entries in groups(plan):
            joint = _joint(entries)
            sweeps = (
                1
                if joint
                else max(use.form.passes(sites[use.site].statistics) for entry in entries for use in entry.uses)
            )
            for sweep in range(1, sweeps + 1):
                old = [values[entry.name] for entry in entries]
                if joint:
                    new = _solve_jointly(joint, entries, old, sites)
                    for entry, value in zip(entries, new, strict=True):
                        values[entry.name] = sites.update(entry, value)
                else:
                    for entry in entries:
                        values[entry.name] = sites.update(entry, _solve(entry, values[entry.name], sites))
                now = [values[entry.name] for entry in entries]
                if sweep == sweeps or all(
                    torch.allclose(a, b, rtol=1e-12, atol=0.0) for a, b in zip(old, now, strict=True)
                ):
                    break
        return values


def counts_of(factor: Factor) -> float:
    """How often a site outside of the rows counts: its scale, or not at all if masked."""
    scale, mask = factor.site["scale"], factor.site["mask"]
    entries = torch.as_tensor(scale).double() * (1.0 if mask is None else torch.as_tensor(mask).double())
    if bool((entries != entries.reshape(-1)[0]).any()):
        raise ValueError(
            f"EM: expected one scale and mask for all of site '{factor.name}', a prior; got several. "
            "Split it into sites, or use inference='svi'."
        )
    return float(entries.reshape(-1)[0])


def own_m_step(expectation: Expectation, site: str, averages: Averages | None = None) -> dict[str, Tensor]:
    """What a site's `infer={"m_step": f}` returns.

    Args:
        expectation: The E-step's posterior weights.
        site: Name.
        averages: Blends the statistics that the site brings with those of earlier batches.

    Raises:
        ValueError: It does not return a dict of finite values for parameters of the program.
    """
    factor = expectation.factors[site]
    with torch.no_grad():
        own: dict[str, Any] = factor.site["infer"]
        found: Any = factor.weights
        if "statistics" in own:
            found = own["statistics"](factor.fn, factor.value, factor.weights)
            if averages is not None:
                found = dict(averages.update(f"own of {site}", Statistics(torch.Size(), **found)))
        updates = own["m_step"](factor.fn, factor.value, found)
    known = expectation.parameters
    if not isinstance(updates, dict) or not updates.keys() <= known.keys():
        got = sorted(updates) if isinstance(updates, dict) else type(updates).__name__
        raise ValueError(f"EM: expected the m_step of '{site}' to return a dict over {sorted(known)}; got {got}.")
    for name, value in updates.items():
        shape = tuple(known[name].value.shape)
        if not isinstance(value, Tensor) or tuple(value.shape) != shape or not bool(torch.isfinite(value).all()):
            raise ValueError(f"EM: expected the m_step of '{site}' to return finite '{name}' of shape {shape}.")
    return updates


def own_log_prior(expectation: Expectation) -> float:
    """Log-density of the priors that sites maximise with in M-steps of their own (`infer={"log_prior": g}`), nats."""
    priors = {factor.site["infer"].get("log_prior") for factor in expectation.factors.values()} - {None}
    with torch.no_grad():
        return sum(float(prior()) for prior in priors)


class Sites:
    """Sites as far as the M-step needs them, with all updates so far."""

    def __init__(
        self,
        plan: Plan,
        expectation: Expectation,
        variance_floor: float,
        memory: Memory,
        averages: Averages | None = None,
        uncounted: Collection[str] = (),
    ) -> None:
        self.forms = {use.site: use.form for entry in plan.closed for use in entry.uses}
        self.expectation = expectation
        self.variance_floor = variance_floor
        self.memory = memory
        self.averages = averages
        self.uncounted = uncounted  # sites whose rows a scale must not count: see `CoordinateAscent`
        self.priors = {prior.site for entry in plan.closed for prior in entry.priors}
        self.found: dict[str, _Site] = {}

    def __getitem__(self, name: str) -> _Site:
        if name not in self.found:
            form = self.forms[name]
            statistics = self.expectation.statistics(name, form, self.variance_floor, self.memory)
            if self.averages is not None and name not in self.priors:
                statistics = self.averages.update(name, statistics)
            self.found[name] = _Site(self.expectation.factors[name], form, statistics)
        return self.found[name]

    def prior(self, use: PriorUse) -> Any:
        """The distribution of a prior."""
        return innermost(self.expectation.factors[use.site].fn)

    def weight(self, use: PriorUse) -> float:
        """How often a prior counts.

        Raises:
            ValueError: Not all of its entries count alike.
        """
        return counts_of(self.expectation.factors[use.site])

    def update(self, entry: ParameterPlan, new: Tensor) -> Tensor:
        """Let everything that follows see the new value of a parameter."""
        for use in entry.uses:
            self[use.site].now[use.argument.name] = use.view.decode(use.blocks.read(new))
        for prior in entry.priors:
            self.expectation.factors[prior.site].site["value"] = prior.blocks.read(new)
            self.found.pop(prior.site, None)
        return new

    def move(self, name: str, moved: Moved) -> None:
        """Let everything that follows see a site whose location or value a regression changed."""
        if moved.value is not None:
            self.expectation.factors[name].site["value"] = moved.value
            self.found.pop(name, None)
        elif moved.loc is not None and name in self.forms:
            statistics = self[name].statistics
            self[name].now["loc"] = moved.loc
            # residuals know no spread of the values, which the floor is relative to
            floor = (self.variance_floor * moved.spread).clamp_min(torch.finfo(moved.loc.dtype).tiny)
            statistics["floor"] = floor.expand_as(statistics["floor"])


def groups(plan: Plan) -> list[list[ParameterPlan]]:
    """Parameters of one site after one another, locations before scales; sites that share a parameter go together."""
    groups: list[list[ParameterPlan]] = []
    for entry in (entry for entry in plan.closed if entry.uses):
        sites = {use.site for use in entry.uses}
        near = [g for g in groups if any(use.site in sites for e in g for use in e.uses)]
        groups = [g for g in groups if g not in near] + [[*(e for g in near for e in g), entry]]
    order = {entry.name: i for i, entry in enumerate(plan.closed)}
    return [sorted(group, key=lambda entry: order[entry.name]) for group in groups]


def _joint(entries: list[ParameterPlan]) -> Joint | None:
    """The joint maximum, if at every site its arguments have parameters of their own, cut into the same blocks."""
    if not all(entry.uses for entry in entries):
        return None
    first = entries[0].uses[0].form
    joint = first.joint
    if joint is None or [entry.uses[0].argument.name for entry in entries] != list(joint.names):
        return None
    if any(entry.priors or len(entry.uses) != len(entries[0].uses) for entry in entries):
        return None
    for uses in zip(*(entry.uses for entry in entries), strict=True):
        if any(use.form is not first or use.blocks.factor is not None or not _alike(use, uses[0]) for use in uses):
            return None
    return joint


def _alike(one: Use, other: Use) -> bool:
    """Whether two arguments of a site are cut into the same blocks."""
    a, b = one.blocks, other.blocks
    return one.site == other.site and a.batch == b.batch and torch.equal(a.block, b.block)


def _solve_jointly(joint: Joint, entries: list[ParameterPlan], old: list[Tensor], sites: Sites) -> list[Tensor]:
    parts = []
    for use in entries[0].uses:
        site = sites[use.site]
        parts.append([use.blocks.scatter(part, site.cells) for part in joint.accumulate(site.statistics)])
    sums = (sum(more, first) for first, *more in zip(*parts, strict=True))
    blocks = zip(entries, old, strict=True) if joint.warm else ()
    present = [e.uses[0].view.decode(value.reshape(-1)[e.uses[0].blocks.elements]) for e, value in blocks]
    solved = joint.solve(*sums, *present)
    return [_write(entry.uses[0], value, before) for entry, value, before in zip(entries, solved, old, strict=True)]


class _Site:
    """Expected sufficient statistics of a site and the current values of its distribution's arguments."""

    def __init__(self, factor: Factor, form: ClosedForm, statistics: Statistics) -> None:
        fn = innermost(factor.fn)
        self.statistics = statistics
        self.now = {argument.name: argument.read(fn).detach() for argument in form.arguments}
        self.cells = self.statistics.cells


def _solve(entry: ParameterPlan, old: Tensor, sites: Sites) -> Tensor:
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
    if argument.late is not None and all(sites[use.site].statistics.rows is not None for use in entry.uses):
        accumulate, solve = argument.late
    return _write(first, solve(*_feasible(entry, sums_of(entry, sites, accumulate))), old)


def sums_of(
    entry: ParameterPlan, sites: Sites, accumulate: Any = None, *, priors_only: bool = False
) -> tuple[Tensor, ...]:
    """The accumulated statistics of every block of a parameter, over all its uses and priors."""
    argument = entry.uses[0].argument
    accumulate = accumulate or argument.accumulate
    sums: list[tuple[Tensor, ...]] = []
    for use in [] if priors_only else entry.uses:
        site = sites[use.site]
        accumulated = accumulate(site.statistics, site.now)
        if use.blocks.factor is not None and argument.rescale is not None:
            accumulated = argument.rescale(accumulated, use.blocks.factor)
        if use.site in sites.uncounted:  # given this parameter, the posterior of that site is normalised
            accumulated = (accumulated[0], torch.zeros_like(accumulated[1]), *accumulated[2:])
        sums.append(tuple(use.blocks.scatter(part, site.cells) for part in accumulated))
    for prior in entry.priors:
        weight = sites.weight(prior)
        sums.append(tuple(weight * part for part in prior_sums(prior, sites.prior(prior))))
    return tuple(sum(parts[1:], parts[0]) for parts in zip(*sums, strict=True))


def prior_sums(use: PriorUse, prior: Any) -> tuple[Tensor, ...]:
    """What a prior adds to the sums of every block."""
    additions = []
    for part in use.conjugate.addition(prior):  # type: ignore[union-attr]
        shape = torch.Size((*prior.batch_shape, *part.shape[len(prior.batch_shape) :]))
        additions.append(use.blocks.scatter(part.double().expand(shape), use.blocks.batch))
    return tuple(additions)


def _feasible(entry: ParameterPlan, sums: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """Sums whose mode lies inside the support or on its boundary; says so where it is moved there."""
    feasible = entry.uses[0].argument.feasible
    if feasible is None or not entry.priors:
        return sums
    moved = feasible(sums)
    if not entry.on_boundary and any(
        bool((b - a > 1e-5 * b.abs().amax()).any()) for a, b in zip(sums, moved, strict=True)
    ):
        entry.on_boundary = True
        warnings.warn(
            f"EM: the prior of '{entry.name}' ({entry.priors[0].kind}, concentration below one) puts its mode on the "
            "boundary of the support; it is kept just inside. Use concentrations of at least one.",
            RuntimeWarning,
            stacklevel=2,
        )
    return moved


def _write(use: Use, solved: Tensor, old: Tensor) -> Tensor:
    """Put solved blocks into a parameter; blocks without weight keep their value."""
    finite = _finite(solved)
    if bool(finite.all()):
        blocks = use.view.encode(solved)
        if bool(torch.isfinite(blocks).all()):
            return use.blocks.write(old, blocks)
    elements = use.blocks.elements
    kept = use.view.decode(old.reshape(-1)[elements]).to(solved.dtype)
    solved = torch.where(finite, solved, kept)
    blocks = use.view.encode(solved)
    return use.blocks.write(old, torch.where(_finite(blocks), blocks, old.reshape(-1)[elements].to(blocks.dtype)))


def _finite(blocks: Tensor) -> Tensor:
    """Whether all of a block is finite, for every block."""
    return torch.isfinite(blocks).reshape(len(blocks), -1).all(-1).reshape(-1, *([1] * (blocks.dim() - 1)))
