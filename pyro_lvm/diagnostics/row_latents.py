"""Sites that a guide draws for every row: posterior means, probabilities of states, and draws."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from pyro_lvm import _pyro
from pyro_lvm.distributions.partly_known import PartlyKnown
from pyro_lvm.handlers.rows import settled
from pyro_lvm.infer.enumeration import expect
from pyro_lvm.infer.m_step import innermost
from pyro_lvm.infer.structure import plate_nesting
from pyro_lvm.ops.threads import fitting_threads
from pyro_lvm.training.data import Arguments

if TYPE_CHECKING:
    from pyro_lvm.training.result import Fit

__all__ = ["row_draws", "row_guide", "row_means", "row_tables"]

MEAN_DRAWS = 200  # where a mean is not known: an error of a fourteenth of the posterior's standard deviation


def row_means(fit: Fit, arguments: Arguments) -> dict[str, Tensor]:
    """The guide's mean of every site of rows, shape (n, ...); of zeros and ones the probabilities.

    Given what the guide drew before it, a site's mean is mostly known: that is averaged over runs, and exact if it does
    not move from run to run. Sites whose laws do not tell their means are averaged themselves.

    Args:
        fit: A fit whose guide draws sites of rows.
        arguments: Converted data.

    Raises:
        ValueError: The guide needs other arguments.
    """
    return _averaged(
        fit, arguments, lambda guide: {name: _mean(site) for name, site in _run(fit, guide, arguments).items()}
    )


def row_tables(fit: Fit, arguments: Arguments, draws: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    """Probabilities of the states of every discrete site of rows, (n, ..., states), averaged as in `row_means`.

    Of sites that the guide draws they are the guide's; of those that it leaves, exact given what it draws.

    Args:
        fit: A fit whose guide draws sites of rows.
        arguments: Converted data.
        draws: Draws of the sites that all rows share.

    Raises:
        ValueError: There are no discrete sites.
    """
    runs = 0

    def tables(guide: Callable | None) -> dict[str, Tensor]:
        nonlocal runs
        sites = _run(fit, guide, arguments)
        known = {**draws[runs % len(draws)], **{name: site["value"] for name, site in sites.items()}}
        runs += 1
        found = {name: table for name, site in sites.items() if (table := _states(site)) is not None}
        return {**found, **_left(fit, arguments, known)}

    found = _averaged(fit, arguments, tables)
    if not found:
        names = ", ".join(f"'{name}'" for name in fit.guide_sites[1])
        raise ValueError(
            f"predict: expected a model with discrete latent sites; {fit.name} has only {names}, which are not. "
            "Use fit.transform(x)."
        )
    return found


def _averaged(
    fit: Fit, arguments: Arguments, tables: Callable[[Callable | None], dict[str, Tensor]]
) -> dict[str, Tensor]:
    """The average of tables over runs of the guide; of those that do not vary, the first."""
    total: dict[str, Tensor] = {}
    with torch.random.fork_rng():
        torch.manual_seed(fit.seed)
        guide = row_guide(fit, arguments)
        for count in range(1, MEAN_DRAWS + 1):
            found = tables(guide)
            if count == 2 and all(torch.equal(table, total[name]) for name, table in found.items()):
                return found
            total = {name: total[name] + table if name in total else table for name, table in found.items()}
    return {name: values / MEAN_DRAWS for name, values in total.items()}


def row_guide(fit: Fit, arguments: Arguments) -> Callable | None:
    """The guide, having searched for the laws of these rows if it is one that does."""
    arguments = arguments.unweighted()  # what a row is does not depend on how often it counts
    with fit.scope(), torch.no_grad(), _pyro.validation(False), fitting_threads(arguments.main.numel()):
        return fit.labelled_guide and settled(fit.labelled_guide, arguments.args, arguments.kwargs)


def row_draws(fit: Fit, guide: Callable | None, arguments: Arguments) -> dict[str, Tensor]:
    """One draw of every site of rows, shape (n, ...), by the random state there is; `guide` is from `row_guide`."""
    return {name: site["value"] for name, site in _run(fit, guide, arguments).items()}


def _run(fit: Fit, guide: Callable | None, arguments: Arguments) -> dict[str, Any]:
    if guide is None:
        return {}
    arguments = arguments.unweighted()
    with fit.scope(), torch.no_grad(), _pyro.validation(False), fitting_threads(arguments.main.numel()):
        trace = _pyro.plain_trace(guide, arguments.args, arguments.kwargs)
    return {name: trace.nodes[name] for name in fit.guide_sites[1]}


def _mean(site: Any) -> Tensor:
    try:
        return site["fn"].mean.detach().expand(site["value"].shape)
    except NotImplementedError:
        return site["value"].to(torch.get_default_dtype()) if not site["value"].is_floating_point() else site["value"]


def _states(site: Any) -> Tensor | None:
    """Probabilities of the states of a site that the guide draws, along a new last axis; None if they have no list."""
    law = innermost(site["fn"])
    if not law.has_enumerate_support:
        return None
    states = law.enumerate_support(expand=False)
    table = law.log_prob(states).exp().movedim(0, -1)
    table = table.expand(*site["value"].shape[: site["value"].dim() - law.event_dim], table.shape[-1])
    if not isinstance(site["fn"], PartlyKnown):
        return table
    known = site["fn"].known
    same = states == site["value"]
    same = same.flatten(-law.event_dim).all(-1) if law.event_dim else same
    given = same.movedim(0, -1).to(table)
    return torch.where(known.reshape(known.shape + (1,) * (table.dim() - known.dim())), given, table)


def _left(fit: Fit, arguments: Arguments, known: dict[str, Tensor]) -> dict[str, Tensor]:
    """Posteriors of the discrete sites that the guide leaves to be summed out, given all others."""
    arguments = arguments.unweighted()
    model = fit.program_at(known)
    with fit.scope(), torch.no_grad(), _pyro.validation(False), fitting_threads(arguments.main.numel()):
        trace = _pyro.plain_trace(model, arguments.args, arguments.kwargs)
        if not any(trace.nodes[name]["fn"].has_enumerate_support for name in trace.stochastic_nodes):
            return {}
        depth = plate_nesting(model, arguments.args, arguments.kwargs)
        return expect(model, depth, arguments.args, arguments.kwargs).marginals()
