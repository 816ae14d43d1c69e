r"""Given rows as their latent sites see them, and their missing entries: posterior means.

.. math:: \mathrm{E}[x_m \mid x_o] = \sum_k p(z = k \mid x_o)\, \mathrm{E}[x_m \mid x_o, z = k]

The posterior weights come from the E-step, or the latent sites from a guide, the means from the observed site's
distribution, whatever the model. Means of entries that are known, from the same posterior, reconstruct the rows.

References:
    Z. Ghahramani, M. Jordan (1994), Supervised learning from incomplete data via an EM approach, NIPS 6.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import singledispatch
from typing import TYPE_CHECKING, Any

import pyro.distributions as dist
import torch
from pyro import poutine
from torch import Tensor

from pyro_lvm import _pyro
from pyro_lvm.diagnostics.latents import AVERAGED_DRAWS, thinned
from pyro_lvm.diagnostics.paths import discrete_kinds
from pyro_lvm.diagnostics.row_latents import row_draws, row_guide, row_means
from pyro_lvm.distributions import (
    HMM,
    RBM,
    IndependentComponents,
    LinearGaussianChain,
    LinearGaussianRows,
    PartialMultivariateNormal,
)
from pyro_lvm.evidence.exact import nesting
from pyro_lvm.infer.enumeration import expect, weigh
from pyro_lvm.infer.factors import Factor, trace_factors
from pyro_lvm.ops.threads import fitting_threads
from pyro_lvm.protocols import LatentVariableModel
from pyro_lvm.training.argument_checks import takers
from pyro_lvm.training.data import Arguments
from pyro_lvm.training.guide_draws import draws_rows

if TYPE_CHECKING:
    from pyro_lvm.training.result import Fit

__all__ = ["answer", "check_imputes", "impute", "reconstruct"]

RECONSTRUCTIONS = 20  # draws of a guide: their error is less than a fourth of what one draw shows


def check_imputes(fit: Fit) -> None:
    """Raise a ValueError if a model of this package does not take missing values; other programs say so themselves."""
    if isinstance(fit.model, LatentVariableModel) and not fit.model.handles_missing:
        raise ValueError(
            f"impute: expected a model that takes missing values (NaN); got {fit.name}. Use fit.reconstruct(x) for "
            f"complete rows as they are expected{takers(fit.model.sequences)}."
        )


def impute(fit: Fit, arguments: Arguments) -> Any:
    """Rows with their missing entries filled in.

    Args:
        fit: A fit of a model whose observed site has a mean, or is categorical.
        arguments: Rows with NaN where missing, shape (n, ...).

    Returns:
        The same rows, known entries untouched, each missing one at its posterior mean (averaged over the draws of a
        posterior); an answer to a categorical column at its most probable value. Sequences in the form they were given.

    Raises:
        ValueError: The model observes no site of the rows' shape and makes no table of several, or a distribution has
            no mean.
    """
    x = arguments.main
    missing = x.isnan()
    if not bool(missing.any()):
        return arguments.returned(x.clone(), columns=True)
    with torch.random.fork_rng():
        torch.manual_seed(fit.seed)
        table = _means(fit, arguments, _given(fit, arguments, AVERAGED_DRAWS), "impute")
    return arguments.returned(torch.where(missing, table.to(x.dtype), x), columns=True)


def reconstruct(fit: Fit, arguments: Arguments) -> Any:
    """Rows as expected given their own latent sites; see `Fit.reconstruct`."""
    with torch.random.fork_rng():
        torch.manual_seed(fit.seed)
        table = _means(fit, arguments, _given(fit, arguments, RECONSTRUCTIONS), "reconstruct")
    return arguments.returned(table, columns=True)


def _given(fit: Fit, arguments: Arguments, count: int) -> list[dict[str, Tensor]]:
    """What is taken as known of the rows: the means of an exact posterior, or so many draws of a guide of rows."""
    draws = thinned(fit, AVERAGED_DRAWS)
    if hasattr(fit.guide, "row_log_likelihood"):
        return [row_means(fit, arguments)]
    if not draws_rows(fit):
        return draws
    guide = row_guide(fit, arguments)
    return [{**draws[i % len(draws)], **row_draws(fit, guide, arguments)} for i in range(count)]


def _means(fit: Fit, arguments: Arguments, draws: list[dict[str, Tensor]], caller: str) -> Tensor:
    """The rows' posterior means given all but their discrete sites, averaged over draws of those, shape (n, ...)."""
    x = arguments.main
    arguments = arguments.unweighted()
    total: dict[str, Tensor] = {}
    hidden = bool(discrete_kinds(fit, arguments)[1])
    with fit.scope(), torch.no_grad(), _pyro.validation(False), fitting_threads(x.numel()):
        depth = nesting(fit, arguments)
        for given in draws:
            model = fit.program_at(given)
            factors = {name: f for name, f in _weighed(model, depth, arguments, hidden).items() if name not in given}
            for factor in _observed(fit, factors, x, caller):
                found = _average(factor, depth)
                total[factor.name] = total[factor.name] + found if factor.name in total else found
        if not total:
            raise ValueError(f"{caller}: expected a fit with draws; got none.")
        averages = {
            name: t.argmax(-1).to(x.dtype) if t.dim() > factors[name].value.dim() else t.detach() / len(draws)
            for name, t in total.items()
        }
        table = averages.popitem()[1] if len(averages) == 1 else _assembled(fit.model, {**draws[0], **averages}, x)
    if table.numel() != x.numel():
        raise ValueError(f"{caller}: expected rows in a plate; {fit.name} makes one observation of all of its data.")
    return table.reshape(x.shape)


def _weighed(model: Callable, depth: int, arguments: Arguments, hidden: bool) -> dict[str, Factor]:
    """The factors of a program with the posterior weights of their cells; hidden Markov sites are taken as a whole."""
    trace, factors = trace_factors(model, depth, arguments.args, arguments.kwargs)
    enumerated = any(factor.enumerated for factor in factors.values())
    if enumerated and not hidden:
        return expect(model, depth, arguments.args, arguments.kwargs).factors
    if enumerated:
        weigh(trace, factors)
    else:
        for factor in factors.values():
            factor.weights = torch.ones(factor.fn.batch_shape)
    return factors


def _observed(fit: Fit, factors: dict[str, Factor], x: Tensor, caller: str) -> list[Factor]:
    """The site that observes the rows, or the sites that do so between them."""
    observed = [factor for factor in factors.values() if factor.site["is_observed"]]
    whole = [factor for factor in observed if x.shape in (factor.value.shape, (*factor.value.shape, 1))][:1]
    if whole or (isinstance(fit.model, LatentVariableModel) and len(observed) > 1):
        return whole or observed
    raise ValueError(
        f"{caller}: expected a site that observes rows of shape {tuple(x.shape)}; the model has "
        f"{', '.join(f'{f.name} {tuple(f.value.shape)}' for f in observed) or 'none'}. "
        + getattr(fit.model, "observing_rows", LatentVariableModel.observing_rows)
    )


def _assembled(model: Callable, values: dict[str, Tensor], x: Tensor) -> Tensor:
    """The table that a model makes of the values of its sites."""
    with torch.random.fork_rng():
        return poutine.condition(model, values)(size=len(x))


def _average(factor: Factor, depth: int) -> Tensor:
    """Average a site's answers over its enumerated states: those left of the plates."""
    table = answer(factor.fn, factor.value)
    trailing = table.dim() - len(factor.fn.batch_shape)
    weights = factor.weights.reshape(*factor.weights.shape, *([1] * trailing))
    states = list(range(-weights.dim(), -depth - trailing))
    if not states:
        return table
    return (weights * table).sum(states) / weights.sum(states)


@singledispatch
def answer(fn: Any, value: Tensor) -> Tensor:
    """What a distribution expects at every entry: the mean, or probabilities along a new last axis.

    Register your own distribution with `answer.register(MyDistribution)` if it is conditional on known entries.

    Args:
        fn: A distribution.
        value: The value it observes, for distributions that know some of its entries.
    """
    try:
        return fn.mean.expand(fn.batch_shape + fn.event_shape)
    except NotImplementedError as error:
        raise ValueError(
            f"Fit: expected a distribution with a mean; got {type(fn).__name__}. "
            "Register what it expects with pyro_lvm.diagnostics.impute.answer.register."
        ) from error


@answer.register(LinearGaussianChain)
@answer.register(LinearGaussianRows)
def _(fn: Any, value: Tensor) -> Tensor:
    return fn.conditional_mean(value)


@answer.register
def _(fn: PartialMultivariateNormal, value: Tensor) -> Tensor:
    return fn.conditional_mean(value)


@answer.register
def _(fn: dist.MaskedDistribution, value: Tensor) -> Tensor:
    return answer(fn.base_dist, value)


@answer.register
def _(fn: torch.distributions.Independent, value: Tensor) -> Tensor:
    return answer(fn.base_dist, value)


@answer.register
def _(fn: RBM, value: Tensor) -> Tensor:
    return fn.visible_mean(fn.hidden_probs(value))  # the mean field of one step down: hidden units at their means


@answer.register
def _(fn: IndependentComponents, value: Tensor) -> Tensor:
    return value  # its sources, which it determines, tell all of it


@answer.register
def _(fn: torch.distributions.Categorical, value: Tensor) -> Tensor:
    return fn.probs.expand(*fn.batch_shape, fn.probs.shape[-1])


@answer.register
def _(fn: HMM, value: Tensor) -> Tensor:
    table = answer(fn.emission, value.unsqueeze(value.dim() - fn.emission.event_dim))
    trailing = table.dim() - len(fn.emission.batch_shape)
    states = fn.smooth(value).marginals
    return (states.reshape(*states.shape, *[1] * trailing) * table).sum(-1 - trailing)


@answer.register
def _(fn: torch.distributions.MixtureSameFamily, value: Tensor) -> Tensor:
    component = fn.component_distribution
    value = value.unsqueeze(value.dim() - len(fn.event_shape))
    density = component.log_prob(value)
    known = ~density.isnan()  # of a row of which nothing is known
    weights = (fn.mixture_distribution.logits + torch.where(known, density, 0.0)).softmax(-1)
    table = answer(component, value)
    trailing = table.dim() - len(component.batch_shape)
    return (weights.reshape(*weights.shape, *[1] * trailing) * table).sum(-1 - trailing)
