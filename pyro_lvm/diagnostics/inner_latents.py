"""Latent variables that the law of an observed site sums out itself: hidden units, alignments, normal states.

Such a law says so by `summed_out`, and has `posterior_sample(value, count)`. Where they are discrete, it has
`posterior(value)`, probabilities of states along a last axis, and `most_probable(value)`; where they are not,
`latent_mean(value)`, of sources that rows determine their values. It calls them by `latent`. The law of sequences may
have `steps_at(value, place, count)` besides: what steps are expected to be, given all that is known.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from pyro_lvm import _pyro
from pyro_lvm.diagnostics.paths import discrete_kinds
from pyro_lvm.evidence.exact import nesting
from pyro_lvm.infer.enumeration import expect
from pyro_lvm.infer.m_step import innermost
from pyro_lvm.infer.structure import structure
from pyro_lvm.ops.threads import fitting_threads
from pyro_lvm.training.data import Arguments

if TYPE_CHECKING:
    from pyro_lvm.training.result import Fit

__all__ = ["inner_draws", "inner_means", "inner_posterior", "inner_states", "inner_units", "laws_of"]

Draws = list[dict[str, Tensor]]


def inner_posterior(fit: Fit, arguments: Arguments, draws: Draws, method: str = "posterior") -> dict[str, Tensor]:
    """Probabilities of the states of every latent variable, averaged over draws; nothing if no law sums any out."""
    total: dict[str, Tensor] = {}
    for given in draws:
        for name, law, value in laws_of(fit, arguments, given):
            if not hasattr(law, method):
                continue
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
    if any(not hasattr(law, "hidden_probs") for _, law, _ in laws_of(fit, arguments, draws[0])):
        return {}
    return inner_posterior(fit, arguments, draws, "hidden_probs")


def inner_means(fit: Fit, arguments: Arguments, draws: Draws) -> dict[str, Tensor]:
    """Posterior means of latent variables that are not discrete, averaged over draws; nothing if no law has any.

    Where a law depends on discrete sites, they are those in its most probable state. Those of the steps of sequences
    come in the form in which the sequences were given.
    """
    if discrete_kinds(fit, arguments)[0]:
        return _means_in_states(fit, arguments, draws)
    found = inner_posterior(fit, arguments, draws, "latent_mean")
    return {name: arguments.returned(table) for name, table in found.items()}


def _means_in_states(fit: Fit, arguments: Arguments, draws: Draws) -> dict[str, Tensor]:
    """The same where discrete sites are summed out: every law at the states in which it weighs most, row by row."""
    total: dict[str, Tensor] = {}
    arguments = arguments.unweighted()
    with fit.scope(), torch.no_grad(), _pyro.validation(False), fitting_threads(arguments.main.numel()):
        depth = nesting(fit, arguments)
        for given in draws:
            factors = expect(fit.program_at(given), depth, arguments.args, arguments.kwargs).factors
            for name, site, law, value in _named({name: factor.site for name, factor in factors.items()}):
                if not hasattr(law, "latent_mean"):
                    continue
                table = _of_most_probable(law.latent_mean(value), factors[site].weights, depth)
                total[name] = total[name] + table if name in total else table
    return {name: table / len(draws) for name, table in total.items()}


def inner_draws(fit: Fit, arguments: Arguments, draws: Draws, count: int) -> dict[str, Tensor]:
    """Draws of every latent variable, (count, n, ...), the i-th under draw i modulo their number.

    Nothing if no law sums any out, which a few rows tell.
    """
    few = arguments.unweighted()
    with fit.scope():
        if not _named(structure(fit.program, few.args, few.kwargs, fresh=False).nodes):
            return {}
    times = -(-count // len(draws))
    found: dict[str, list[Tensor]] = {}
    for given in draws:
        for name, law, value in laws_of(fit, arguments, given):
            with fit.scope(), torch.no_grad():
                found.setdefault(name, []).append(law.posterior_sample(value, times))
    return {name: torch.stack(values, 1).flatten(0, 1)[:count] for name, values in found.items()}


def _of_most_probable(table: Tensor, weights: Tensor, depth: int) -> Tensor:
    """Entries (..., k) of a table at the states, left of `depth` plates, that weigh most."""
    plates = table.shape[table.dim() - 1 - depth :]
    weights = weights.expand(table.shape[:-1]).reshape(-1, *plates[:-1])
    best = weights.argmax(0, keepdim=True).unsqueeze(-1)
    return table.reshape(-1, *plates).gather(0, best.expand(1, *plates)).squeeze(0)


def laws_of(fit: Fit, arguments: Arguments, given: dict[str, Tensor]) -> list[tuple[str, Any, Tensor]]:
    """Of all laws that sum out latent variables: these variables' name, the law, and the value that it observes."""
    arguments = arguments.unweighted()
    with fit.scope(), torch.no_grad(), _pyro.validation(False):
        trace = _pyro.plain_trace(fit.program_at(given), arguments.args, arguments.kwargs)
    return [(name, law, value) for name, _, law, value in _named(trace.nodes)]


def _named(sites: Mapping[str, Any]) -> list[tuple[str, str, Any, Tensor]]:
    """Of laws that sum out latent variables among some sites: their name, the site's, the law, and its value."""
    laws = [(name, innermost(site["fn"]), site["value"]) for name, site in sites.items() if site.get("is_observed")]
    laws = [(name, law, value) for name, law, value in laws if getattr(law, "summed_out", "")]
    names = Counter([*sites, *(law.latent for _, law, _ in laws)])
    return [(law.latent if names[law.latent] == 1 else f"{name}.{law.latent}", name, law, v) for name, law, v in laws]
