r"""Laws that every model, guide and inference obeys, ours or yours. A law that is broken raises an AssertionError.

=============================================  =====================================================================
law                                            holds for
=============================================  =====================================================================
`density_integrates_to_one`                    every fit
`sampler_agrees_with_density`                  every fit that can generate rows
`enumeration_agrees_with_conditioning`         programs with one discrete latent site per row, rows independent
`em_never_falls`                               every program that EM trains
`em_gradient_is_exact`                         as `enumeration_agrees_with_conditioning`, float64
`closed_form_is_stationary`                    every program that EM trains in closed form, float64
`parameters_are_recovered`                     point fits of identifiable models
`bound_is_below_evidence`                      SVI fits whose guide has a density (not a point)
`save_load_is_exact`, `seeds_reproduce`,       every fit
`fits_do_not_touch`
`resume_is_exact`                              every inference that works in steps (not MCMC)
`minibatches_are_unbiased`                     programs without continuous latent sites, plate of the rows "data"
`dtype_is_kept`                                programs whose parameters start in the data's type
`rejects_bad_rows`                             models with `check` and `initialize`
=============================================  =====================================================================

Statistical laws allow k = 5 standard errors: a true law fails less than once in a million runs, and seeds are fixed.
The others are exact to the stated relative error. Models passed in are copied, initialised on the data as `lvm.fit`
does, and run in a parameter store of their own; plain functions start from their initial values.
"""

from __future__ import annotations

import copy
import functools
import itertools
import math
import re
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyro
import torch
from jaxtyping import Float
from torch import Tensor

from pyro_lvm import training
from pyro_lvm.handlers import minibatch
from pyro_lvm.infer import EM, SVI
from pyro_lvm.infer.enumeration import expect, row_log_likelihood, trace_factors
from pyro_lvm.infer.parameters import Parameters
from pyro_lvm.infer.structure import plate_nesting
from pyro_lvm.testing import oracles
from pyro_lvm.training import Fit
from pyro_lvm.training.scope import Scope

__all__ = [
    "BAD_ROWS",
    "bound_is_below_evidence",
    "closed_form_is_stationary",
    "density_integrates_to_one",
    "dtype_is_kept",
    "em_gradient_is_exact",
    "em_never_falls",
    "enumeration_agrees_with_conditioning",
    "fits_do_not_touch",
    "minibatches_are_unbiased",
    "parameters_are_recovered",
    "rejects_bad_rows",
    "require",
    "resume_is_exact",
    "sampler_agrees_with_density",
    "save_load_is_exact",
    "seeds_reproduce",
]

STANDARD_ERRORS = 5.0
Proposal = Callable[[Tensor], Any]


def require(condition: bool, message: str) -> None:
    """Raise an AssertionError with a message unless the condition holds (`assert` is gone under `python -O`)."""
    if not condition:
        raise AssertionError(message)


# Densities and samplers


def density_integrates_to_one(
    fit: Fit,
    rows: Float[Tensor, "n d"],
    *,
    proposal: Proposal = oracles.broad_reals,
    num_draws: int = 10_000,
    seed: int = 0,
) -> None:
    r"""The density that a fit reports is normalised: :math:`\mathrm{E}_q[p(x) / q(x)] = 1` to 5 standard errors.

    Args:
        fit: Any fit over rows of shape (n, d), a point or a posterior.
        rows: Where the density lies, shape (n, d); the proposal is fitted to them.
        proposal: From rows to a distribution with heavier tails than the fit's: `oracles.broad_reals`,
            `oracles.broad_counts` or `oracles.broad_bits`.
        num_draws: Draws from the proposal; enough that the standard error is below 0.05.
        seed: Of the draws.

    Raises:
        AssertionError: The integral is off, or its standard error is above 0.05.
    """
    with _seeded(seed):
        _, ratios = _weighted(fit, rows, proposal, num_draws)
    mean, error = _mean_and_error(ratios)
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
    rows: Float[Tensor, "n d"],
    *,
    proposal: Proposal = oracles.broad_reals,
    num_draws: int = 10_000,
    seed: int = 0,
) -> None:
    """`fit.sample` draws from the density of `fit.log_likelihood`: two moments of every column, to 5 standard errors.

    Args:
        fit: Any fit over rows of shape (n, d) that can generate rows.
        rows: Where the density lies, shape (n, d).
        proposal: As in `density_integrates_to_one`.
        num_draws: Draws from the sampler, and from the proposal.
        seed: Of the draws.

    Raises:
        AssertionError: A moment differs; the message names the column.
    """
    centre, scale = rows.double().mean(0), rows.double().std(0).clamp_min(1e-12)
    with _seeded(seed):
        draws, ratios = _weighted(fit, rows, proposal, num_draws)
        sampled = fit.sample(num_draws).double()
    require(
        sampled.shape == (num_draws, rows.shape[1]),
        f"sampler_agrees_with_density: sample({num_draws}) has shape {tuple(sampled.shape)}.",
    )
    for power in (1, 2):
        ours = ((sampled - centre) / scale) ** power
        theirs = ((draws - centre) / scale) ** power * ratios.unsqueeze(-1)
        for column in range(rows.shape[1]):
            a, a_error = _mean_and_error(ours[:, column])
            b, b_error = _mean_and_error(theirs[:, column])
            error = math.hypot(a_error, b_error)
            require(
                abs(a - b) <= STANDARD_ERRORS * error,
                f"sampler_agrees_with_density: moment {power} of standardised column {column} is {a:.5g} by sampling "
                f"and {b:.5g} by the density, {abs(a - b) / error:.1f} standard errors apart.",
            )


def _weighted(fit: Fit, rows: Tensor, proposal: Proposal, num_draws: int) -> tuple[Tensor, Tensor]:
    """Draws of a proposal fitted to rows, and the fit's density over the proposal's at each."""
    broad = proposal(rows)
    draws = broad.sample((num_draws,))
    log_ratios = fit.log_likelihood(draws.to(rows.dtype)).double() - broad.log_prob(draws)
    return draws, log_ratios.exp()


def _mean_and_error(values: Tensor) -> tuple[float, float]:
    return float(values.mean()), float(values.std() / math.sqrt(len(values)))


# Enumeration and EM


def enumeration_agrees_with_conditioning(model: Callable, *args: Any, **kwargs: Any) -> None:
    """Enumeration sums what conditioning on each state in turn gives, to 1e-10 relative.

    Checks the log-likelihood of every row and the E-step's responsibilities against a program run once per state.

    Args:
        model: A program with one discrete latent site per row and independent rows, in float64.
        args: The model's arguments.
        kwargs: The model's keyword arguments.

    Raises:
        AssertionError: The program means something else when its site is enumerated (it mixes states or rows).
    """
    with _own(model, args, kwargs) as program, torch.no_grad():
        nesting = plate_nesting(program, args, kwargs)
        oracle = oracles.condition_on_states(program, *args, **kwargs)
        rows = row_log_likelihood(program, nesting, args, kwargs)
        marginals = expect(program, nesting, args, kwargs).marginals()
    scale = oracle.rows.abs().clamp_min(1.0)
    gap = float(((rows - oracle.rows).abs() / scale).max())
    require(
        rows.shape == oracle.rows.shape and gap <= 1e-10,
        f"enumeration_agrees_with_conditioning: log-likelihoods of rows differ by up to {gap:.3g} (relative).",
    )
    if oracle.site is None:
        return
    weights = marginals[oracle.site]
    require(
        weights.shape == oracle.responsibilities.shape,
        f"enumeration_agrees_with_conditioning: the posterior of '{oracle.site}' has shape {tuple(weights.shape)}, "
        f"not {tuple(oracle.responsibilities.shape)}.",
    )
    gap = float((weights - oracle.responsibilities).abs().max())
    require(
        gap <= 1e-10,
        f"enumeration_agrees_with_conditioning: the posterior of '{oracle.site}' is off by up to {gap:.3g}.",
    )


def em_never_falls(model: Callable, *args: Any, steps: int = 20, **kwargs: Any) -> None:
    """The log-likelihood never falls by more than 1e-9 relative (1e-5 in float32), and EM's guard has nothing to undo.

    Args:
        model: Any program that EM trains.
        args: The model's arguments.
        steps: EM steps to watch.
        kwargs: The model's keyword arguments.

    Raises:
        AssertionError: A step lowered the log-likelihood, or was undone for it: some closed form is wrong.
    """
    with _own(model, args, kwargs) as program, warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        em = EM(program)
        losses = [em.step(*args, **kwargs) for _ in range(steps)]
        tolerance = 1e-9 if _is_double(program, args, kwargs) else 1e-5
    for i, (before, after) in enumerate(itertools.pairwise(losses)):
        require(
            after <= before + tolerance * abs(before),
            f"em_never_falls: the loss rose from {before:.12g} to {after:.12g} in step {i + 1}.",
        )
    falls = [str(w.message) for w in caught if "log-likelihood fell" in str(w.message)]
    require(not falls, f"em_never_falls: a step had to be undone. {falls[0] if falls else ''}")


def em_gradient_is_exact(model: Callable, *args: Any, **kwargs: Any) -> None:
    r"""Fisher's identity: the E-step's weights give the gradient of the log-likelihood, to 1e-8 relative.

    .. math:: \nabla_\theta \log p(x \mid \theta)
        = \nabla_\theta \mathrm{E}_{p(z \mid x, \theta_0)}[\log p(x, z \mid \theta)] \quad\text{at } \theta = \theta_0

    The left side is automatic differentiation of a program run once per state; entries smaller than one nat per unit
    are compared to 1e-8 absolute.

    Args:
        model: A program with one discrete latent site per row and independent rows, in float64.
        args: The model's arguments.
        kwargs: The model's keyword arguments.

    Raises:
        AssertionError: A parameter's gradient differs; the message names it.
    """
    with _own(model, args, kwargs) as program:
        nesting = plate_nesting(program, args, kwargs)
        weights = {n: f.weights for n, f in expect(program, nesting, args, kwargs).factors.items()}
        targets = oracles.parameters(program, *args, **kwargs)
        tensors = list(targets.values())
        expected = _expected_log_joint(program, nesting, args, kwargs, weights)
        ours = _gradients(expected, tensors)
        oracle = oracles.condition_on_states(program, *args, **kwargs)
        theirs = _gradients(oracle.rows.sum() + oracle.shared, tensors)
    for name, a, b in zip(targets, ours, theirs, strict=True):
        gap = float((a - b).abs().max()) / max(1.0, float(b.abs().max()))
        require(gap <= 1e-8, f"em_gradient_is_exact: the gradient for '{name}' is off by {gap:.3g} (relative).")


def closed_form_is_stationary(model: Callable, *args: Any, **kwargs: Any) -> None:
    """After an M-step the expected complete log-likelihood is flat in every closed-form parameter.

    The slope is at most 1e-6 per unit of posterior weight. Weights stay those of the E-step. Parameters are looked at
    in the order in which the M-step updates them, each after its own update and those before it, since a location and
    a scale may be maximised in turn.

    Args:
        model: Any program in float64 with a closed-form M-step whose maximum lies inside the parameters' constraints.
        args: The model's arguments.
        kwargs: The model's keyword arguments.

    Raises:
        AssertionError: A closed form does not maximise, or the program has none.
    """
    with _own(model, args, kwargs) as program:
        em = EM(program)
        nesting = plate_nesting(program, args, kwargs)
        factors = expect(program, nesting, args, kwargs).factors
        weights = {n: f.weights for n, f in factors.items()}
        entries = em.plan(*args, **kwargs).closed
        require(bool(entries), "closed_form_is_stationary: no parameter of this program has a closed form.")
        targets = oracles.parameters(program, *args, **kwargs)
        old = {name: tensor.detach().clone() for name, tensor in targets.items()}
        em.step(*args, **kwargs)
        new = {name: tensor.detach().clone() for name, tensor in targets.items()}
        for name, value in old.items():
            targets[name].data.copy_(value)
        for entry in entries:
            target = targets[entry.name]
            target.data.copy_(new[entry.name])
            expected = _expected_log_joint(program, nesting, args, kwargs, weights)
            (gradient,) = _gradients(expected, [target])
            total = float(sum(weights[site].sum() for site in entry.sites))
            slope = float(gradient.abs().max()) / total
            require(
                slope <= 1e-6,
                f"closed_form_is_stationary: after its update '{entry.name}' has slope {slope:.3g} per unit of weight.",
            )


def _expected_log_joint(
    program: Callable, nesting: int, args: tuple, kwargs: dict[str, Any], weights: dict[str, Tensor]
) -> Tensor:
    """Expected complete log-likelihood under frozen weights, differentiable in the parameters, nats."""
    with torch.enable_grad(), Parameters():
        _, factors = trace_factors(program, nesting, args, kwargs, differentiable=True)
        terms = [(w * torch.where(w > 0, factors[name].log_density, 0.0)).sum() for name, w in weights.items()]
        return torch.stack(terms).sum()


def parameters_are_recovered(
    make_model: Callable[[], Callable], fit: Fit, n: int = 1000, *, restarts: int = 4, seed: int = 0
) -> None:
    r"""A refit to simulated rows finds the law they came from, as closely as n rows allow.

    The mean log-likelihood on fresh rows must lie within 3 p / n nats of the truth's, p the number of free parameters:
    asymptotically the gap has mean p / (2 n) and standard deviation of the order of :math:`\sqrt p / n`.

    Args:
        make_model: Makes a new model, of a family that contains `fit`.
        fit: A point fit that can generate rows: the truth.
        n: Simulated rows, and as many fresh ones.
        restarts: Starts of the refit.
        seed: Of the rows and of the refit.

    Raises:
        AssertionError: The gap is too large, on either side.
    """
    with _seeded(seed):
        rows, fresh = fit.sample(n), fit.sample(n)
    refit = training.fit(
        make_model(), rows, inference="em", restarts=restarts, seed=seed, max_epochs=300, tol=1e-9, progress=False
    )
    free = (fit.aic(fresh) + 2 * float(fit.log_likelihood(fresh).double().sum())) / 2
    gap = fit.score(fresh) - refit.score(fresh)
    require(
        abs(gap) < 3 * free / n,
        f"parameters_are_recovered: the refit is {gap:.4g} nats per fresh row worse than the truth; "
        f"{free:.0f} parameters and {n} rows allow {3 * free / n:.4g}.",
    )


# Variational bounds


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
    with _seeded(seed), fit.scope():
        bounds = torch.tensor([-fit.inference.loss(*args, **kwargs) for _ in range(num_bounds)]).double()
        ratios = oracles.log_evidence_ratios(fit.model, guide, num_draws, *args, **kwargs).double()
    top = ratios.max()
    weight, weight_error = _mean_and_error((ratios - top).exp())
    evidence = float(top) + math.log(weight)
    bound, bound_error = _mean_and_error(bounds)
    error = math.hypot(bound_error, weight_error / weight)
    require(
        bound <= evidence + STANDARD_ERRORS * error,
        f"bound_is_below_evidence: the bound {bound:.6g} is above the log evidence {evidence:.6g} by "
        f"{(bound - evidence) / error:.1f} standard errors.",
    )


# Fits as things: kept, resumed, repeated, apart


def save_load_is_exact(
    fit: Fit, rows: Any, folder: str | Path, *, model: Callable | None = None, guide: Any = None
) -> None:
    """A fit read back equals the one saved, bit for bit: parameters, history, draws, scores and samples.

    Args:
        fit: Any fit.
        rows: Data to score.
        folder: An empty or missing folder to save to.
        model: A fresh copy of the model if it is not one of this package.
        guide: Likewise.

    Raises:
        AssertionError: Something differs; the message names it.
    """
    for name, value in {**fit.params, **fit.draws}.items():
        require(not value.requires_grad, f"save_load_is_exact: '{name}' is still part of an autograd graph.")
    fit.save(folder)
    loaded = training.load(folder, model=model, guide=guide)
    _same("save_load_is_exact", "parameters", fit.params, loaded.params)
    _same("save_load_is_exact", "draws", fit.draws, loaded.draws)
    for name in ("history", "converged", "stopped", "restarts", "seed", "columns"):
        before, after = getattr(fit, name), getattr(loaded, name)
        require(before == after, f"save_load_is_exact: {name} was {before} and is {after}.")
    _same("save_load_is_exact", "scores", {"row": fit.log_likelihood(rows)}, {"row": loaded.log_likelihood(rows)})
    samples = []
    for each in (fit, loaded):
        with _seeded(0):
            samples.append({"row": each.sample(20)})
    _same("save_load_is_exact", "samples", *samples)


def resume_is_exact(
    make_model: Callable[[], Callable], data: Any, folder: str | Path, *, epochs: int = 3, **options: Any
) -> None:
    """Twice `epochs` in one go equal `epochs`, save, load, resume and `epochs`, bit for bit.

    Args:
        make_model: Makes a new model.
        data: As for `lvm.fit`.
        folder: An empty or missing folder to save to.
        epochs: Half the length of the run.
        options: Passed on to `lvm.fit`, e.g. `inference="em"`, `seed=0`, `batch_size=10`.

    Raises:
        AssertionError: Parameters or losses differ.
    """
    options = {"seed": 0, "progress": False, **options}
    endless: dict[str, Any] = {"tol": 0.0, "patience": 100 * epochs}
    whole = training.fit(make_model(), data, max_epochs=2 * epochs, **endless, **options)
    half = training.fit(make_model(), data, max_epochs=epochs, **endless, **options)
    half.save(folder)
    ours = type(half.model).__module__.startswith("pyro_lvm.models")
    resumed = training.load(folder, model=None if ours else make_model())
    resumed.resume(data, max_epochs=epochs, progress=False, batch_size=options.get("batch_size"), **endless)
    _same("resume_is_exact", "parameters", whole.params, resumed.params)
    require(
        len(whole.history["loss"]) == 2 * epochs and whole.history == resumed.history,
        f"resume_is_exact: losses were {whole.history['loss']} in one go and {resumed.history['loss']} resumed.",
    )


def seeds_reproduce(make_model: Callable[[], Callable], data: Any, **options: Any) -> None:
    """One seed gives one fit, whatever the caller's random state, and leaves that state alone.

    Args:
        make_model: Makes a new model.
        data: As for `lvm.fit`.
        options: Passed on to `lvm.fit`.

    Raises:
        AssertionError: Two fits with one seed differ, or a fit drew from the caller's generator.
    """
    options = {"seed": 0, "max_epochs": 3, "progress": False, **options}
    fits = []
    for state in (1, 2):
        with _seeded(state):
            before = torch.get_rng_state()
            fits.append(training.fit(make_model(), data, **options))
            untouched = torch.equal(before, torch.get_rng_state())
        require(untouched, "seeds_reproduce: a fit with a seed changed the caller's random state.")
    _same("seeds_reproduce", "parameters", fits[0].params, fits[1].params)
    _same("seeds_reproduce", "draws", fits[0].draws, fits[1].draws)
    require(fits[0].history == fits[1].history, "seeds_reproduce: two fits with one seed have different losses.")


def fits_do_not_touch(make_model: Callable[[], Callable], data: Any, **options: Any) -> None:
    """A second fit with the same names, on other rows, leaves the first and Pyro's global parameter store as they were.

    Args:
        make_model: Makes a new model.
        data: An array or tensor of rows.
        options: Passed on to `lvm.fit`.

    Raises:
        AssertionError: Parameters or scores of the first fit changed, or the global store did.
    """
    options = {"seed": 0, "max_epochs": 3, "progress": False, **options}
    with pyro.get_param_store().scope():
        store = pyro.get_param_store()
        first = training.fit(make_model(), data, **options)
        params, scores = first.params, first.log_likelihood(data)
        for name in params:
            pyro.param(name, torch.full((2,), 7.0))
        sentinels = {name: value.detach().clone() for name, value in store.items()}
        rows = first.arguments(data).main
        half = rows[: max(2, len(rows) // 2)]
        second = training.fit(make_model(), half, **{**options, "seed": 1})
        second.score(half)
        _same("fits_do_not_touch", "parameters of the first fit", params, first.params)
        _same("fits_do_not_touch", "scores of the first fit", {"row": scores}, {"row": first.log_likelihood(data)})
        _same("fits_do_not_touch", "entries of the global store", sentinels, dict(store.items()))


# Batches and types


def minibatches_are_unbiased(model: Callable, x: Tensor, *, num_batches: int = 4, plate: str = "data") -> None:
    """Losses of equal batches under `lvm.handlers.minibatch` average to the loss of all rows, to 1e-8 relative.

    Args:
        model: A program without continuous latent sites, in float64; its rows independent.
        x: Rows, shape (n, ...); the last n mod `num_batches` are left out.
        num_batches: Batches.
        plate: The plate of the rows.

    Raises:
        AssertionError: The average differs.
    """
    size = len(x) // num_batches
    x = x[: size * num_batches]
    with _own(model, (x,), {}) as program:
        full = SVI(program).loss(x)
        svi = SVI(program)
        losses = []
        for batch in x.split(size):
            with minibatch(total=len(x), plate=plate):
                losses.append(svi.loss(batch))
    mean = sum(losses) / len(losses)
    require(
        abs(mean - full) <= 1e-8 * abs(full),
        f"minibatches_are_unbiased: batches give a mean loss of {mean:.12g}, all rows {full:.12g}.",
    )


def dtype_is_kept(make_model: Callable[[], Callable], rows: Tensor, **options: Any) -> None:
    """float32 rows give float32 parameters, float64 rows float64 ones, and mean scores that agree to 1e-3 nats.

    Args:
        make_model: Makes a new model.
        rows: Floating-point rows, shape (n, ...).
        options: Passed on to `lvm.fit`; the inference must not draw random numbers, which differ between types.

    Raises:
        AssertionError: A parameter has another type, or the scores differ.
    """
    options = {"seed": 0, "max_epochs": 20, "progress": False, **options}
    scores = {}
    for dtype in (torch.float32, torch.float64):
        fit = training.fit(make_model(), rows.to(dtype), **options)
        for name, value in fit.params.items():
            require(
                value.dtype == dtype,
                f"dtype_is_kept: '{name}' is {value.dtype} after a fit to {dtype} rows.",
            )
        likelihood = fit.log_likelihood(rows.to(dtype))
        require(likelihood.is_floating_point(), f"dtype_is_kept: scores are {likelihood.dtype}.")
        scores[dtype] = fit.score(rows.to(dtype))
    gap = abs(scores[torch.float32] - scores[torch.float64])
    require(gap <= 1e-3, f"dtype_is_kept: mean scores of float32 and float64 rows differ by {gap:.3g} nats.")


# Bad input


def _spoil(rows: Tensor, value: float) -> Tensor:
    bad = rows.clone()
    bad[len(bad) // 2, 0] = value
    return bad


def _constant(rows: Tensor) -> Tensor:
    bad = rows.clone()
    bad[:, 0] = 3.0
    return bad


BAD_ROWS: Mapping[str, tuple[Callable[[Tensor], Any], str, str]] = {
    "NaN": (lambda rows: _spoil(rows, math.nan), "both", r"NaN|missing"),
    "infinite": (lambda rows: _spoil(rows, math.inf), "both", r"infinite"),
    "minus infinite": (lambda rows: _spoil(rows, -math.inf), "both", r"infinite"),
    "no rows": (lambda rows: rows[:0], "both", r"at least (one|1) row|empty"),
    "empty list": (lambda rows: [], "both", r"at least (one|1) row|empty"),
    "text": (lambda rows: [["a", "b"], ["c", "d"]], "both", r"number|text"),
    "None inside": (lambda rows: [[None, 1.0], [2.0, 3.0]], "both", r"number|NoneType"),
    "a scalar": (lambda rows: 3.0, "both", r"at least (one|1) row|shape"),
    "1-d": (lambda rows: rows[:, 0], "both", r"shape"),
    "3-d": (lambda rows: rows.unsqueeze(1), "both", r"shape"),
    "complex": (lambda rows: rows.to(torch.complex128), "both", r"real|number|complex"),
    "too many columns": (lambda rows: torch.cat([rows, rows[:, :1]], 1), "score", r"shape|column"),
    "one row": (lambda rows: rows[:1], "fit", r"row"),
    "constant column": (_constant, "fit", r"constant"),
    "too few rows": (lambda rows: rows[:2], "components", r"rows? as components|num_components"),
}
"""Rubbish by name: how to make it from good rows (n, d); at which door it must be turned away ("fit", "score", "both",
or "components": at "fit", by a model of three components); and what the message must mention."""


def rejects_bad_rows(
    make_model: Callable[..., Callable], rows: Float[Tensor, "n d"], *, skip: tuple[str, ...] = (), **options: Any
) -> None:
    """Rubbish is turned away with a ValueError (TypeError for a wrong kind) of one line that names the problem.

    Every kind in `BAD_ROWS` is tried on `lvm.fit`, and on `fit.score` of a model fitted to the good rows.

    Args:
        make_model: Makes a new model; with `num_components=` if it has components.
        rows: Good rows, shape (n, d).
        skip: Kinds that are no rubbish to this model.
        options: Passed on to `lvm.fit`.

    Raises:
        AssertionError: Rubbish was accepted, raised something else, or the message is not a sentence about it.
    """
    options = {"seed": 0, "max_epochs": 2, "progress": False, **options}
    good = training.fit(make_model(), rows, **options)
    has_components = hasattr(good.model, "num_components")
    for kind, (spoil, doors, pattern) in BAD_ROWS.items():
        if kind in skip or (doors == "components" and not has_components):
            continue
        bad = spoil(rows)
        if doors in ("fit", "both"):
            _rejects(f"fit of {kind}", pattern, functools.partial(training.fit, make_model(), bad, **options))
        if doors == "components":
            model = make_model(num_components=3)
            _rejects(f"fit of {kind}", pattern, functools.partial(training.fit, model, bad, **options))
        if doors in ("score", "both"):
            _rejects(f"score of {kind}", pattern, functools.partial(good.score, bad))


def _rejects(what: str, pattern: str, attempt: Callable[[], Any]) -> None:
    try:
        attempt()
    except (ValueError, TypeError) as error:
        text = str(error)
    except Exception as error:
        raise AssertionError(f"rejects_bad_rows: {what} raised {type(error).__name__}: {error}") from error
    else:
        raise AssertionError(f"rejects_bad_rows: {what} was accepted.")
    require(
        "\n" not in text and text.endswith(".") and len(text) <= 400,
        f"rejects_bad_rows: {what} gave a message that is not a sentence: {text!r}",
    )
    require(
        re.search(pattern, text) is not None,
        f"rejects_bad_rows: {what} gave a message that does not mention {pattern!r}: {text!r}",
    )


# Parts


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        yield


@contextmanager
def _own(model: Callable, args: tuple, kwargs: dict[str, Any]) -> Iterator[Callable]:
    """A copy of a model, initialised on the data, in a parameter store of its own."""
    program = copy.deepcopy(model)
    scope = Scope()
    scope.adopt(program)
    with _seeded(0), scope():
        initialize = getattr(program, "initialize", None)
        if initialize is not None:
            initialize(*args, **kwargs)
        yield program


def _gradients(value: Tensor, targets: list[Tensor]) -> list[Tensor]:
    """Gradients of a scalar, zero where it does not depend on a target."""
    if not value.requires_grad:
        return [torch.zeros_like(target) for target in targets]
    found = torch.autograd.grad(value, targets, allow_unused=True)
    return [torch.zeros_like(t) if g is None else g for t, g in zip(targets, found, strict=True)]


def _is_double(program: Callable, args: tuple, kwargs: dict[str, Any]) -> bool:
    return all(t.dtype == torch.float64 for t in oracles.parameters(program, *args, **kwargs).values())


def _same(law: str, what: str, before: Mapping[str, Tensor], after: Mapping[str, Tensor]) -> None:
    require(before.keys() == after.keys(), f"{law}: {what} were {sorted(before)} and are {sorted(after)}.")
    for name, a in before.items():
        b = after[name]
        if a.shape == b.shape and a.dtype == b.dtype and torch.equal(a, b):
            continue
        gap = "another shape"
        if a.shape == b.shape:
            gap = f"{float((a.detach().double() - b.detach().double()).abs().max()):.3g}"
        require(False, f"{law}: {what} are not bit-identical; '{name}' differs by {gap}.")
