"""Draws from a trained guide."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from pyro import poutine
from torch import Tensor

from pyro_lvm import _pyro

if TYPE_CHECKING:
    from pyro_lvm.training.result import Fit

__all__ = ["draw_guide"]


def draw_guide(fit: Fit, count: int) -> tuple[dict[str, Tensor], Tensor]:
    """Independent draws of the guide's sites, shape (1, count, ...) each, and their log-densities, nats.

    A guide of point masses gives one draw.

    Raises:
        ValueError: A site is latent in every row.
    """
    arguments = fit.prototype()
    collected: list[dict[str, Tensor]] = []
    densities: list[Tensor] = []
    with fit.scope(), torch.random.fork_rng(), torch.no_grad(), _pyro.validation(False):
        torch.manual_seed(fit.seed)
        while len(collected) < count:
            trace = poutine.trace(fit.guide).get_trace(*arguments.args, **arguments.kwargs)
            sites = {n: trace.nodes[n] for n in trace.stochastic_nodes if not _auxiliary(trace.nodes[n])}
            for name, site in sites.items():
                if any(f.name == fit.plate for f in site["cond_indep_stack"]):
                    raise ValueError(
                        f"Fit: site '{name}' is a continuous latent of every row, which needs importance "
                        "weighting over rows; this version scores guides over shared sites only."
                    )
            collected.append({name: site["value"].detach() for name, site in sites.items()})
            densities.append(torch.as_tensor(trace.log_prob_sum()))
            if all(_is_delta(trace.nodes[name]["fn"]) for name in trace.stochastic_nodes):
                break
    return {name: torch.stack([c[name] for c in collected])[None] for name in collected[0]}, torch.stack(densities)


def _auxiliary(site: Any) -> bool:
    return bool(site["infer"].get("is_auxiliary")) or _pyro.site_is_subsample(site)


def _is_delta(fn: Any) -> bool:
    while hasattr(fn, "base_dist"):
        fn = fn.base_dist
    return type(fn).__name__ == "Delta"
