"""Draws from a trained guide, and their means."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from pyro import poutine
from torch import Tensor

from pyro_lvm import _pyro

if TYPE_CHECKING:
    from pyro_lvm.training.learned import Learned

__all__ = ["draw_guide", "posterior_means"]


def draw_guide(fit: Learned, count: int) -> tuple[dict[str, Tensor], Tensor]:
    """Independent draws of the guide's sites, shape (1, count, ...) each, and their log-densities, nats.

    A guide of point masses gives one draw.

    Raises:
        ValueError: A site is latent in every row.
    """
    _, local = _sites(fit)
    if local:
        raise ValueError(
            f"Fit: site '{local[0]}' is a continuous latent of every row, which needs importance "
            "weighting over rows; this version scores guides over shared sites only."
        )
    return _draw(fit, count)


def posterior_means(fit: Learned, count: int) -> dict[str, Tensor]:
    """The mean of every continuous latent site that all rows share: exact if the guide knows it, else of draws.

    Args:
        fit: A fit with a guide, or by a sampler.
        count: How many draws to take of a guide that also has sites of every row; `fit.draws` serve others.
    """
    if fit.sampled:
        return _means(fit.draws)
    means = getattr(fit.guide, "means", None)
    if means is not None:
        return means()
    shared, local = _sites(fit)
    if not local:
        return _means(fit.draws)
    return _means(_draw(fit, count)[0]) if shared else {}


def _means(draws: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: values.mean((0, 1)) for name, values in draws.items()}


def _draw(fit: Learned, count: int) -> tuple[dict[str, Tensor], Tensor]:
    """Draws of the sites that all rows share."""
    collected: list[dict[str, Tensor]] = []
    densities: list[Tensor] = []
    with fit.scope(), torch.random.fork_rng(), torch.no_grad(), _pyro.validation(False):
        torch.manual_seed(fit.seed)
        while len(collected) < count:
            trace = _trace(fit)
            names, _ = _split(fit, trace)
            collected.append({name: trace.nodes[name]["value"].detach() for name in names})
            densities.append(torch.as_tensor(trace.log_prob_sum()))
            # also of auxiliary sites: an autoguide draws from those, and its own sites are functions of them
            drawn = [trace.nodes[name] for name in trace.stochastic_nodes]
            if all(_is_delta(site["fn"]) for site in drawn if not _local(fit, site)):
                break
    return {name: torch.stack([c[name] for c in collected])[None] for name in collected[0]}, torch.stack(densities)


def _trace(fit: Learned) -> poutine.Trace:
    """One run of the guide."""
    arguments = fit.prototype()
    return poutine.trace(fit.guide).get_trace(*arguments.args, **arguments.kwargs)


def _sites(fit: Learned) -> tuple[list[str], list[str]]:
    """The guide's sites that all rows share, and those that every row has of its own."""
    with fit.scope(), torch.random.fork_rng(), torch.no_grad(), _pyro.validation(False):
        return _split(fit, _trace(fit))


def _split(fit: Learned, trace: poutine.Trace) -> tuple[list[str], list[str]]:
    shared: list[str] = []
    local: list[str] = []
    for name in trace.stochastic_nodes:
        site = trace.nodes[name]
        if not _auxiliary(site):
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
