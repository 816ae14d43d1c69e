"""Which variational parameters belong to rows: those that an inner loop of `SVI` optimises."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from pyro.distributions import Delta
from torch import Tensor

from pyro_lvm import _pyro
from pyro_lvm.infer.m_step import innermost

__all__ = ["find_local"]


def find_local(
    local: str, found: dict[str, Tensor], guide: Callable, args: tuple, kwargs: dict[str, Any]
) -> dict[str, bool]:
    """Which parameters belong to rows: those of the named sites of the guide, or those of the named beginnings."""
    chosen = [name.strip() for name in local.split(",") if name.strip()]
    with torch.random.fork_rng(), torch.enable_grad():
        trace = _pyro.plain_trace(guide, args, kwargs)
    sites = [name for name in trace.stochastic_nodes if not trace.nodes[name]["infer"].get("is_auxiliary")]
    used = {name: _used_by(trace.nodes[name], found) for name in sites}
    shared = set().union(*(used[name] for name in sites if name not in chosen))
    result = dict.fromkeys(found, False)
    for name in chosen:
        own = used[name] - shared if name in used else {p for p in found if p.startswith(name)}
        if not own:
            able = [n for n in sites if used[n] - set().union(*(used[other] for other in sites if other != n))]
            raise ValueError(
                f"SVI: expected local to name sites whose parameters no other depends on ({', '.join(able) or 'none'} "
                f"of this guide), or beginnings of parameter names ({', '.join(found)}); got '{name}'. Name all sites "
                "that share parameters together, or use guide='local', which needs no inner_steps."
            )
        result.update(dict.fromkeys(own, True))
    return result


def _used_by(site: dict, found: dict[str, Tensor]) -> set[str]:
    """The parameters that a site's distribution depends on."""
    law = innermost(site["fn"])
    # an autoguide's site is a point, computed from what it drew elsewhere
    density = law.v if isinstance(law, Delta) else site["fn"].log_prob(site["value"].detach())
    if not density.requires_grad:
        return set()
    gradients = torch.autograd.grad(density.sum(), list(found.values()), retain_graph=True, allow_unused=True)
    return {name for name, gradient in zip(found, gradients, strict=True) if gradient is not None}
