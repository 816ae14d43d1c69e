"""Laws of enumeration and EM."""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from pyro_lvm import training
from pyro_lvm.infer import EM
from pyro_lvm.infer.by_row import row_log_likelihood
from pyro_lvm.infer.enumeration import expect
from pyro_lvm.infer.markov import opened_factors
from pyro_lvm.infer.parameters import Parameters
from pyro_lvm.infer.structure import plate_nesting
from pyro_lvm.infer.student_t import AugmentedForm
from pyro_lvm.testing import oracles
from pyro_lvm.testing.checks import gradients, is_double, own, require, seeded
from pyro_lvm.training import Fit

__all__ = [
    "closed_form_is_stationary",
    "em_gradient_is_exact",
    "em_never_falls",
    "enumeration_agrees_with_conditioning",
    "parameters_are_recovered",
]


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
    with own(model, args, kwargs) as program, torch.no_grad():
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
    with own(model, args, kwargs) as program, warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        em = EM(program)
        losses = [em.step(*args, **kwargs) for _ in range(steps)]
        tolerance = 1e-9 if is_double(program, args, kwargs) else 1e-5
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
    with own(model, args, kwargs) as program:
        nesting = plate_nesting(program, args, kwargs)
        weights = {n: f.weights for n, f in expect(program, nesting, args, kwargs).factors.items()}
        targets = oracles.parameters(program, *args, **kwargs)
        tensors = list(targets.values())
        expected = _expected_log_joint(program, nesting, args, kwargs, weights)
        ours = gradients(expected, tensors)
        oracle = oracles.condition_on_states(program, *args, **kwargs)
        theirs = gradients(oracle.rows.sum() + oracle.shared, tensors)
    for name, a, b in zip(targets, ours, theirs, strict=True):
        gap = float((a - b).abs().max()) / max(1.0, float(b.abs().max()))
        require(gap <= 1e-8, f"em_gradient_is_exact: the gradient for '{name}' is off by {gap:.3g} (relative).")


def closed_form_is_stationary(model: Callable, *args: Any, **kwargs: Any) -> None:
    """After an M-step the expected complete log-likelihood is flat in every closed-form parameter.

    The slope is at most 1e-6 per unit of posterior weight. Weights stay those of the E-step. Parameters are looked at
    in the order in which the M-step updates them, each after its own update and those before it, since a location and
    a scale may be maximised in turn. A form with a latent variable of its own (`AugmentedForm`) only has to leave
    the expected log-likelihood no lower than it was before the M-step.

    Args:
        model: Any program in float64 with a closed-form M-step whose maximum lies inside the parameters' constraints.
        args: The model's arguments.
        kwargs: The model's keyword arguments.

    Raises:
        AssertionError: A closed form does not maximise, or the program has none.
    """
    with own(model, args, kwargs) as program:
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
        slopes: dict[str, float] = {}
        start = _expected_log_joint(program, nesting, args, kwargs, weights).detach()
        for entry in entries:
            target = targets[entry.name]
            for name in entry.regression.names if entry.regression else (entry.name,):
                targets[name].data.copy_(new[name])
            expected = _expected_log_joint(program, nesting, args, kwargs, weights)
            total = float(sum(weights[site].sum() for site in entry.sites))
            if any(isinstance(use.form, AugmentedForm) for use in entry.uses):
                fall = float(start - expected.detach()) / total
                require(
                    fall <= 1e-9,
                    f"closed_form_is_stationary: with '{entry.name}' the step lost {fall:.3g} nats per unit of weight.",
                )
                continue
            slopes[entry.name] = float(gradients(expected, [target])[0].abs().max()) / total
        for entry in entries:  # parameters that are maximised jointly are flat only together
            slope = slopes.get(entry.name, 0.0)
            if slope > 1e-6 and any(use.form.joint is not None for use in entry.uses):
                expected = _expected_log_joint(program, nesting, args, kwargs, weights)
                total = float(sum(weights[site].sum() for site in entry.sites))
                slope = float(gradients(expected, [targets[entry.name]])[0].abs().max()) / total
            require(
                slope <= 1e-6,
                f"closed_form_is_stationary: after its update '{entry.name}' has slope {slope:.3g} per unit of weight.",
            )


def _expected_log_joint(
    program: Callable, nesting: int, args: tuple, kwargs: dict[str, Any], weights: dict[str, Tensor]
) -> Tensor:
    """Expected complete log-likelihood under frozen weights, differentiable in the parameters, nats."""
    with torch.enable_grad(), Parameters():
        factors = opened_factors(program, nesting, args, kwargs, None, differentiable=True)[1]
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
    with seeded(seed):
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
