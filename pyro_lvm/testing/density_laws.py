"""Laws of densities: normalised, sampled as scored, bounded by the evidence."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from pyro_lvm.testing import oracles
from pyro_lvm.testing.checks import STANDARD_ERRORS, Proposal, everywhere, mean_and_error, require, seeded
from pyro_lvm.training import Fit

__all__ = ["bound_is_below_evidence", "density_integrates_to_one", "sampler_agrees_with_density"]


def density_integrates_to_one(
    fit: Fit,
    rows: Float[Tensor, " n *d"],
    *,
    proposal: Proposal = oracles.broad_reals,
    num_draws: int = 10_000,
    seed: int = 0,
    covariates: Mapping[str, Tensor] | None = None,
) -> None:
    r"""The density that a fit reports is normalised: :math:`\mathrm{E}_q[p(x) / q(x)] = 1` to 5 standard errors.

    Args:
        fit: Any fit over rows of shape (n, ...), a point or a posterior.
        rows: Where the density lies, shape (n, ...); the proposal is fitted to them, their entries in one axis.
        proposal: From rows to a distribution with heavier tails than the fit's: `oracles.broad_reals`,
            `oracles.broad_counts` or `oracles.broad_bits`.
        num_draws: Draws from the proposal; enough that the standard error is below 0.05.
        seed: Of the draws.
        covariates: Other arguments of the model, of one row that all draws share, shape (1, ...) each.

    Raises:
        AssertionError: The integral is off, or its standard error is above 0.05.
    """
    with seeded(seed):
        _, ratios = _weighted(fit, rows, proposal, num_draws, covariates)
    mean, error = mean_and_error(ratios)
    require(
        bool(error < 0.05),
        f"density_integrates_to_one: the standard error {error:.3g} of the integral is not below 0.05; "
        "raise num_draws or pass a proposal that covers the density.",
    )
    require(
        abs(mean - 1) < STANDARD_ERRORS * error,
        f"density_integrates_to_one: the density integrates to {mean:.5g} with standard error {error:.2g}.",
    )


def sampler_agrees_with_density(
    fit: Fit,
    rows: Float[Tensor, " n *d"],
    *,
    proposal: Proposal = oracles.broad_reals,
    num_draws: int = 10_000,
    seed: int = 0,
    covariates: Mapping[str, Tensor] | None = None,
) -> None:
    """`fit.sample` draws from the density of `fit.log_likelihood`: two moments of every column, to 5 standard errors.

    Args:
        fit: Any fit over rows of shape (n, ...) that can generate rows.
        rows: Where the density lies, shape (n, ...).
        proposal: As in `density_integrates_to_one`.
        num_draws: Draws from the sampler, and from the proposal.
        seed: Of the draws.
        covariates: As in `density_integrates_to_one`.

    Raises:
        AssertionError: A moment differs; the message names the column.
    """
    entries = rows.double().flatten(1)
    centre, scale = entries.mean(0), entries.std(0).clamp_min(1e-12)
    with seeded(seed):
        draws, ratios = _weighted(fit, rows, proposal, num_draws, covariates)
        sampled = fit.sample(num_draws, **everywhere(covariates, num_draws)).double()
    require(
        sampled.shape == (num_draws, *rows.shape[1:]),
        f"sampler_agrees_with_density: sample({num_draws}) has shape {tuple(sampled.shape)}.",
    )
    for power in (1, 2):
        ours = ((sampled.flatten(1) - centre) / scale) ** power
        theirs = ((draws - centre) / scale) ** power * ratios.unsqueeze(-1)
        for column in range(entries.shape[1]):
            a, a_error = mean_and_error(ours[:, column])
            b, b_error = mean_and_error(theirs[:, column])
            error = math.hypot(a_error, b_error)
            require(
                abs(a - b) <= STANDARD_ERRORS * error,
                f"sampler_agrees_with_density: moment {power} of standardised column {column} is {a:.5g} by sampling "
                f"and {b:.5g} by the density, {abs(a - b) / error:.1f} standard errors apart.",
            )


def _weighted(
    fit: Fit, rows: Tensor, proposal: Proposal, num_draws: int, covariates: Mapping[str, Tensor] | None
) -> tuple[Tensor, Tensor]:
    """Draws of a proposal fitted to rows, entries in one axis, and the fit's density over the proposal's at each."""
    broad = proposal(rows.flatten(1))
    draws = broad.sample((num_draws,))
    data: Any = draws.to(rows.dtype).reshape(num_draws, *rows.shape[1:])
    if covariates:
        data = {"x": data, **everywhere(covariates, num_draws)}
    log_ratios = fit.log_likelihood(data).double() - broad.log_prob(draws)
    return draws, log_ratios.exp()


def bound_is_below_evidence(fit: Fit, rows: Any, *, num_bounds: int = 100, num_draws: int = 200, seed: int = 0) -> None:
    """The evidence lower bound is one: it lies below an importance-weighted estimate of the log evidence.

    The bound comes from the fit's own objective, the estimate from independent draws of the guide, weighted by a joint
    density that sums discrete sites by conditioning. Five standard errors of their difference are allowed.

    Args:
        fit: An SVI fit whose guide has a density (a point guide has none, and gives no bound).
        rows: The training data.
        num_bounds: Evaluations of the objective.
        num_draws: Draws for the evidence.
        seed: Of the draws.

    Raises:
        AssertionError: The bound is above the evidence.
    """
    arguments = fit.arguments(rows)
    args, kwargs = arguments.args, arguments.kwargs
    guide = fit.guide
    if guide is None:
        raise AssertionError("bound_is_below_evidence: expected a fit with a guide.")
    with seeded(seed), fit.scope():
        bounds = torch.tensor([-fit.inference.loss(*args, **kwargs) for _ in range(num_bounds)], dtype=torch.float64)
        ratios = oracles.log_evidence_ratios(fit.model, guide, num_draws, *args, **kwargs).double()
    evidence, variance = 0.0, 0.0
    for column in ratios.T:
        top = column.max()
        weight, weight_error = mean_and_error((column - top).exp())
        evidence += float(top) + math.log(weight)
        variance += (weight_error / weight) ** 2
    bound, bound_error = mean_and_error(bounds)
    rounding = 1e-11 * abs(evidence)  # all that is left where the guide is the posterior
    error = math.hypot(bound_error, math.sqrt(variance), rounding)
    require(
        bound <= evidence + STANDARD_ERRORS * error,
        f"bound_is_below_evidence: the bound {bound:.6g} is above the log evidence {evidence:.6g} by "
        f"{(bound - evidence) / error:.1f} standard errors.",
    )


# Fits as things: kept, resumed, repeated, apart
