"""Draws from a trained guide, and their means."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from pyro import poutine
from torch import Tensor

from pyro_lvm import _pyro
from pyro_lvm.handlers.rows import rows
from pyro_lvm.infer.mismatch import check_sizes
from pyro_lvm.infer.structure import structure

if TYPE_CHECKING:
    from collections.abc import Callable

    from pyro_lvm.training.arguments import Arguments
    from pyro_lvm.training.learned import Learned
    from pyro_lvm.training.scope import Scope

__all__ = ["draw_guide", "drawn_by", "draws_points", "draws_rows", "guide_sites", "posterior_means"]


def draws_rows(fit: Learned) -> bool:
    """Whether the guide draws sites that every row has of its own."""
    return fit.guide is not None and not fit.sampled and bool(fit.guide_sites[1])


def draws_points(fit: Learned) -> bool:
    """Whether the guide has but one point for the sites that every row has of its own: no density to weight it by."""
    if not draws_rows(fit):
        return False
    with fit.scope(), torch.random.fork_rng(), torch.no_grad(), _pyro.validation(False):
        trace = _trace(fit)
    drawn = [site for site in map(trace.nodes.get, trace.stochastic_nodes) if _local(fit, site)]
    return all(_is_delta(site["fn"]) for site in drawn)


def drawn_by(guide: Callable | None, arguments: Arguments, scope: Scope) -> list[str]:
    """Names of the sites that a guide draws given these arguments; it is not to search for their laws.

    Raises:
        ValueError: The guide is made for rows of another shape.
    """
    if guide is None:
        return []
    with scope(), torch.random.fork_rng(), torch.no_grad(), _pyro.validation(True), rows(search=False):
        try:
            trace = _pyro.plain_trace(guide, arguments.args, arguments.kwargs)
        except RuntimeError as error:
            check_sizes("fit", error, guide, guide, arguments.args, arguments.kwargs)
            raise
    return [name for name in trace.stochastic_nodes if not _auxiliary(trace.nodes[name])]


def draw_guide(fit: Learned, count: int) -> tuple[dict[str, Tensor], Tensor]:
    """Independent draws of the guide's sites, shape (1, count, ...) each, and their log-densities, nats.

    Only sites that all rows share count. A guide of point masses gives one draw.
    """
    collected: list[dict[str, Tensor]] = []
    densities: list[Tensor] = []
    names, _ = fit.guide_sites
    with fit.scope(), torch.random.fork_rng(), torch.no_grad(), _pyro.validation(False):
        torch.manual_seed(fit.seed)
        while len(collected) < count:
            trace = _trace(fit)
            trace.compute_log_prob()
            # also of auxiliary sites: an autoguide draws from those, and its own sites are functions of them
            drawn = [site for site in map(trace.nodes.get, trace.stochastic_nodes) if not _local(fit, site)]
            collected.append({name: trace.nodes[name]["value"].detach() for name in names})
            densities.append(torch.as_tensor(sum(site["log_prob_sum"] for site in drawn)))
            if all(_is_delta(site["fn"]) for site in drawn):
                break
    return {name: torch.stack([c[name] for c in collected])[None] for name in names}, torch.stack(densities)


def posterior_means(fit: Learned) -> dict[str, Tensor]:
    """The mean of every continuous latent site that all rows share: exact if the guide knows it, else of draws."""
    if fit.sampled:
        return _means(fit.draws)
    means = getattr(fit.guide, "means", None)
    if means is not None:
        return means()
    return _means(fit.draws)


def _means(draws: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: values.mean((0, 1)) for name, values in draws.items()}


def _trace(fit: Learned) -> poutine.Trace:
    """One run of the guide."""
    arguments = fit.prototype()
    with rows(search=False):
        return poutine.trace(fit.guide).get_trace(*arguments.args, **arguments.kwargs)


def guide_sites(fit: Learned) -> tuple[list[str], list[str]]:
    """The guide's sites that all rows share, and those that every row has of its own.

    Raises:
        ValueError: The model lacks one of them.
    """
    with fit.scope(), torch.random.fork_rng(), torch.no_grad(), _pyro.validation(False):
        trace = _trace(fit)
        arguments = fit.prototype()
        ours = structure(fit.model, arguments.args, arguments.kwargs, fresh=False).nodes
    shared: list[str] = []
    local: list[str] = []
    for name in trace.stochastic_nodes:
        site = trace.nodes[name]
        if not _auxiliary(site):
            if name not in ours:
                raise ValueError(
                    f"evidence: the guide draws site '{name}', which {fit.name} does not have, so that no likelihood "
                    "would be right. Give model and guide the same latent sites."
                )
            (local if _local(fit, site) else shared).append(name)
    return shared, local


def _local(fit: Learned, site: Any) -> bool:
    return any(frame.name == fit.plate for frame in site["cond_indep_stack"])


def _auxiliary(site: Any) -> bool:
    return bool(site["infer"].get("is_auxiliary")) or _pyro.site_is_subsample(site)


def _is_delta(fn: Any) -> bool:
    while hasattr(fn, "base_dist"):
        fn = fn.base_dist
    return type(fn).__name__ == "Delta"
