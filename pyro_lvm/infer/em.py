r"""Expectation-maximisation for any enumerable Pyro program.

References:
    A. Dempster, N. Laird, D. Rubin (1977), Maximum likelihood from incomplete data via the EM algorithm, JRSS B 39.
    R. Neal, G. Hinton (1998), A view of the EM algorithm that justifies incremental, sparse, and other variants.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from pyro_lvm.infer.enumeration import (
    Expectation,
    expect,
    trace_factors,
)
from pyro_lvm.infer.maximise import maximise
from pyro_lvm.infer.parameters import Parameters
from pyro_lvm.infer.plan import Plan, make_plan, refresh
from pyro_lvm.infer.row_pass import Memory
from pyro_lvm.infer.structure import REFUSALS, first_rows, plate_nesting

__all__ = ["EM"]


class EM:
    r"""Exact EM: posterior of all discrete sites by enumeration, closed-form M-steps wherever they exist.

    Each call of `step` finds the posterior :math:`p(z \mid x, \theta)` and moves :math:`\theta` to a maximum (or, for
    parameters without a closed form, uphill) of :math:`\mathrm{E}[\log p(x, z \mid \theta')]`, so the log-likelihood
    never falls. Should a closed form be wrong for a program, the fall is undone and that parameter gets gradient steps.

    Args:
        model: Any Pyro program whose latent sites are discrete and enumerable; parameters by `pyro.param` or
            `PyroParam`. May be left out when passed to `lvm.fit`.
        max_plate_nesting: Batch dimensions that plates use; found by running the model once if None.
        variance_floor: Smallest variance relative to that of the observed value; keeps likelihoods bounded.
        gradient_steps: L-BFGS iterations per M-step for parameters without a closed form.

    Example:
        >>> import torch, pyro, pyro.distributions as dist, pyro_lvm as lvm
        >>> def coins(x):
        ...     weights = pyro.param("weights", torch.tensor([0.4, 0.6]), constraint=dist.constraints.simplex)
        ...     probs = pyro.param("probs", torch.tensor([0.3, 0.6]), constraint=dist.constraints.unit_interval)
        ...     with pyro.plate("data", len(x)):
        ...         z = pyro.sample("z", dist.Categorical(weights), infer={"enumerate": "parallel"})
        ...         each = probs[z].unsqueeze(-1).expand(*z.shape, 10)
        ...         pyro.sample("x", dist.Bernoulli(each).to_event(1), obs=x)
        >>> x = torch.tensor([[1.0] * 9 + [0.0], [0.0] * 8 + [1.0] * 2, [1.0] * 8 + [0.0] * 2])
        >>> with pyro.get_param_store().scope():
        ...     em = lvm.infer.EM(coins)
        ...     losses = [em.step(x) for _ in range(5)]
        >>> losses[-1] < losses[0]
        True
    """

    full_batch = True

    def __init__(
        self,
        model: Callable | None = None,
        *,
        max_plate_nesting: int | None = None,
        variance_floor: float = 1e-6,
        gradient_steps: int = 10,
    ) -> None:
        if not variance_floor >= 0:
            raise ValueError(f"EM: expected variance_floor >= 0; got {variance_floor}.")
        self.model = model
        self.guide: Callable | None = None
        self.max_plate_nesting = max_plate_nesting
        self.variance_floor = variance_floor
        self.gradient_steps = gradient_steps
        self._plan: Plan | None = None
        self._demoted: dict[str, str] = {}
        self._last: _Step | None = None
        self._memory = Memory()

    def step(self, *args: Any, **kwargs: Any) -> float:
        """One E-step and one M-step.

        Args:
            args: The model's arguments.
            kwargs: The model's keyword arguments.

        Returns:
            Negative log-likelihood of the data at the parameters *before* the M-step, in nats.
        """
        expectation = self._expect(args, kwargs)
        last = self._last
        if last is not None and self._plan is not None and last.same_data(args, kwargs) and last.fell(expectation):
            self._undo(last, self._plan, args, kwargs, expectation)
            expectation = self._expect(args, kwargs)
        plan = self._current_plan(expectation, args, kwargs)
        last = _Step(args, kwargs, expectation)
        for name, value in maximise(plan, expectation, self.variance_floor, self._memory).items():
            expectation.parameters[name].write(value)
        if plan.gradient:
            self._gradient_updates(plan, expectation, args, kwargs)
        self._last = last
        return -expectation.log_likelihood

    def loss(self, *args: Any, **kwargs: Any) -> float:
        """Negative log-likelihood of the data at the current parameters, in nats; nothing is updated."""
        return -self._expect(args, kwargs).log_likelihood

    def posterior(self, *args: Any, **kwargs: Any) -> dict[str, Tensor]:
        """Posterior of every discrete site: its plates' shape, then its states along the last axis."""
        return self._expect(args, kwargs).marginals()

    def plan(self, *args: Any, **kwargs: Any) -> Plan:
        """How each parameter will be updated, and why; print it."""
        return self._current_plan(self._expect(args, kwargs), args, kwargs)

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run needs besides the parameters."""
        return {"demoted": dict(self._demoted)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore `state_dict`."""
        self._demoted = dict(state["demoted"])

    def _expect(self, args: tuple, kwargs: dict[str, Any]) -> Expectation:
        if self.model is None:
            raise ValueError("EM: expected a model. Pass one: EM(model), or lvm.fit(model, x, inference=EM()).")
        if self.max_plate_nesting is None:
            self.max_plate_nesting = plate_nesting(self.model, args, kwargs)
        return expect(
            self.model, self.max_plate_nesting, args, kwargs, memory=self._memory, variance_floor=self.variance_floor
        )

    def _current_plan(self, expectation: Expectation, args: tuple, kwargs: dict[str, Any]) -> Plan:
        """The plan, derived once and again whenever the sites or the shapes of their arguments change."""
        if self._plan is None or not refresh(self._plan, expectation):
            self._plan = self._plan_from_few_rows(expectation, args, kwargs) or make_plan(expectation)
            for name, reason in self._demoted.items():
                self._plan.demote(name, reason)
        return self._plan

    def _plan_from_few_rows(self, expectation: Expectation, args: tuple, kwargs: dict[str, Any]) -> Plan | None:
        """The plan is the same for any number of rows; differentiating through a broadcast argument costs its size."""
        few = first_rows(args, kwargs)
        if few is None:
            return None
        try:
            plan = make_plan(self._expect(*few))
        except REFUSALS:
            return None
        return plan if refresh(plan, expectation) else None

    def _gradient_updates(self, plan: Plan, expectation: Expectation, args: tuple, kwargs: dict[str, Any]) -> None:
        """Raise the expected complete log-likelihood over the remaining parameters by L-BFGS with line search."""
        names = [entry.name for entry in plan.gradient]
        sites = {site for entry in plan.gradient for site in entry.sites}
        targets = [expectation.parameters[name].unconstrained for name in names]
        scale = max(1.0, float(sum(expectation.factors[s].weights.sum() for s in sites)))
        optimizer = torch.optim.LBFGS(targets, max_iter=self.gradient_steps, line_search_fn="strong_wolfe")
        start = [t.detach().clone() for t in targets]

        def closure() -> Tensor:
            with torch.enable_grad(), Parameters():
                _, factors = trace_factors(
                    self.model,  # type: ignore[arg-type]
                    self.max_plate_nesting,  # type: ignore[arg-type]
                    args,
                    kwargs,
                    differentiable=True,
                )
                terms = []
                for name in sites:
                    weights = expectation.factors[name].weights
                    cell = torch.where(weights > 0, factors[name].log_density, 0.0)
                    terms.append((weights * cell).sum())
                loss = -torch.stack(terms).sum() / scale
            gradients = torch.autograd.grad(loss, targets, allow_unused=True)
            for target, gradient in zip(targets, gradients, strict=True):
                target.grad = torch.zeros_like(target) if gradient is None else gradient
            return loss.detach()

        optimizer.step(closure)
        for target, old in zip(targets, start, strict=True):
            target.grad = None
            if not bool(torch.isfinite(target).all()):
                target.data.copy_(old)

    def _undo(self, last: _Step, plan: Plan, args: tuple, kwargs: dict[str, Any], fallen: Expectation) -> None:
        """Go back one step and hand the parameters that caused the fall over to the gradient step."""
        new = {name: p.unconstrained.detach().clone() for name, p in fallen.parameters.items()}
        last.restore(fallen)
        culprits = []
        for entry in plan.closed:
            parameter = fallen.parameters[entry.name]
            parameter.unconstrained.data.copy_(new[entry.name])
            if last.fell(self._expect(args, kwargs)):
                culprits.append(entry.name)
            last.restore(fallen)
        culprits = culprits or [entry.name for entry in plan.closed]
        reason = "its closed form lowered the log-likelihood"
        if culprits:
            warnings.warn(
                f"EM: the log-likelihood fell from {last.log_likelihood:.6g} to {fallen.log_likelihood:.6g}; "
                f"the step was undone and {', '.join(culprits)} will be updated by gradient.",
                RuntimeWarning,
                stacklevel=3,
            )
        for name in culprits:
            self._demoted[name] = reason
            plan.demote(name, reason)


class _Step:
    """What the monotonicity guard remembers of the last step: data, log-likelihood, parameters before the update."""

    def __init__(self, args: tuple, kwargs: dict[str, Any], expectation: Expectation) -> None:
        self.args, self.kwargs = args, kwargs
        self.log_likelihood = expectation.log_likelihood
        self.values = {name: p.unconstrained.detach().clone() for name, p in expectation.parameters.items()}
        dtypes = {p.value.dtype for p in expectation.parameters.values()}
        self.tolerance = 1e-10 if dtypes <= {torch.float64} else 1e-5

    def same_data(self, args: tuple, kwargs: dict[str, Any]) -> bool:
        return (
            len(args) == len(self.args)
            and all(a is b for a, b in zip(args, self.args, strict=True))
            and kwargs.keys() == self.kwargs.keys()
            and all(kwargs[k] is self.kwargs[k] for k in kwargs)
        )

    def fell(self, expectation: Expectation) -> bool:
        return not expectation.log_likelihood >= self.log_likelihood - self.tolerance * abs(self.log_likelihood)

    def restore(self, expectation: Expectation) -> None:
        for name, value in self.values.items():
            expectation.parameters[name].unconstrained.data.copy_(value)
