"""Latent variables that the law of an observed site sums out itself: hidden units, alignments.

Such a law says so by `summed_out`, and has `posterior(value)`, probabilities of states along a last axis,
`most_probable(value)` and `posterior_sample(value, count)`. A law whose latent variables are a function of its value,
as independent sources without noise, has `latent_value(value)`. Either calls them by `latent`.
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from pyro_lvm import _pyro
from pyro_lvm.infer.m_step import innermost
from pyro_lvm.ops.threads import fitting_threads
from pyro_lvm.training.data import Arguments

if TYPE_CHECKING:
    from pyro_lvm.training.result import Fit

__all__ = ["inner_draws", "inner_posterior", "inner_states", "inner_units", "inner_values"]

Draws = list[dict[str, Tensor]]


def inner_posterior(fit: Fit, arguments: Arguments, draws: Draws, method: str = "posterior") -> dict[str, Tensor]:
    """Probabilities of the states of every latent variable, averaged over draws; nothing if no law sums any out."""
    total: dict[str, Tensor] = {}
    for given in draws:
        for name, law, value in _laws(fit, arguments, given):
            with fit.scope(), torch.no_grad(), fitting_threads(arguments.main.numel()):
                table = getattr(law, method)(value)
            total[name] = total[name] + table if name in total else table
    return {name: table / len(draws) for name, table in total.items()} if len(draws) > 1 else total


def inner_states(fit: Fit, arguments: Arguments, draws: Draws) -> dict[str, Tensor]:
    """The jointly most probable states at a point; of each variable by itself under a posterior."""
    if len(draws) == 1:
        return inner_posterior(fit, arguments, draws, "most_probable")
    return {name: table.argmax(-1) for name, table in inner_posterior(fit, arguments, draws).items()}


def inner_units(fit: Fit, arguments: Arguments, draws: Draws) -> dict[str, Tensor]:
    """Probabilities that hidden units are 1, averaged over draws; nothing if no law has hidden units."""
    if any(not hasattr(law, "hidden_probs") for _, law, _ in _laws(fit, arguments, draws[0])):
        return {}
    return inner_posterior(fit, arguments, draws, "hidden_probs")


def inner_values(fit: Fit, arguments: Arguments, draws: Draws) -> dict[str, Tensor]:
    """Latent variables that rows determine, averaged over draws; nothing if there are none."""
    total: dict[str, Tensor] = {}
    for given in draws:
        for name, law, value in _laws(fit, arguments, given, "latent_value"):
            with fit.scope(), torch.no_grad(), fitting_threads(arguments.main.numel()):
                found = law.latent_value(value)
            total[name] = total[name] + found if name in total else found
    return {name: values / len(draws) for name, values in total.items()}


def inner_draws(fit: Fit, arguments: Arguments, draws: Draws, count: int) -> dict[str, Tensor]:
    """Draws of every latent variable, (count, n, ...), the i-th under draw i modulo their number."""
    times = -(-count // len(draws))
    found: dict[str, list[Tensor]] = {}
    for given in draws:
        for name, law, value in _laws(fit, arguments, given):
            with fit.scope(), torch.no_grad():
                found.setdefault(name, []).append(law.posterior_sample(value, times))
        for name, law, value in _laws(fit, arguments, given, "latent_value"):
            with fit.scope(), torch.no_grad():
                known = law.latent_value(value)
                found.setdefault(name, []).append(known.expand(times, *known.shape))
    return {name: torch.stack(values, 1).flatten(0, 1)[:count] for name, values in found.items()}


def _laws(
    fit: Fit, arguments: Arguments, given: dict[str, Tensor], kind: str = "summed_out"
) -> list[tuple[str, Any, Tensor]]:
    """The name of the latent variable, the law, and the value that it observes, of laws with an attribute."""
    arguments = arguments.unweighted()
    with fit.scope(), torch.no_grad(), _pyro.validation(False):
        trace = _pyro.plain_trace(fit.program_at(given), arguments.args, arguments.kwargs)
    laws = [(name, innermost(site["fn"]), site["value"]) for name, site in trace.nodes.items() if "fn" in site]
    laws = [(name, law, value) for name, law, value in laws if trace.nodes[name]["is_observed"]]
    laws = [(name, law, value) for name, law, value in laws if getattr(law, kind, "")]
    names = Counter([*trace.nodes, *(law.latent for _, law, _ in laws)])
    return [(law.latent if names[law.latent] == 1 else f"{name}.{law.latent}", law, v) for name, law, v in laws]
