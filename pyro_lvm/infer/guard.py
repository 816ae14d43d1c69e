"""The monotonicity guard of EM: what it remembers of a step, to notice a fall and to take the step back."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from pyro_lvm.infer.expectation import Expectation
from pyro_lvm.infer.nonfinite import NonFiniteLoss
from pyro_lvm.infer.plan import Plan

__all__ = ["LOWERED", "Step"]

LOWERED = "its closed form lowered the log-likelihood"

# A fall of less than this many times what rounding the parameters does is none.
ROUNDINGS = 2.0


class Step:
    """Data, log-likelihood and parameters before an update."""

    def __init__(self, args: tuple, kwargs: dict[str, Any], expectation: Expectation) -> None:
        self.args, self.kwargs = args, kwargs
        self.versions = [value._version for value in (*args, *kwargs.values()) if isinstance(value, Tensor)]
        self.log_likelihood = expectation.log_likelihood
        self.sites = expectation.factors.keys()
        self.values = {name: p.unconstrained.detach().clone() for name, p in expectation.parameters.items()}
        dtypes = {p.value.dtype for p in expectation.parameters.values()}
        self.tolerance = 1e-10 if dtypes <= {torch.float64} else 1e-5

    def same_data(self, args: tuple, kwargs: dict[str, Any]) -> bool:
        """Whether these are the very same arguments."""
        tensors = [value for value in (*args, *kwargs.values()) if isinstance(value, Tensor)]
        if not tensors or [value._version for value in tensors] != self.versions:
            return False
        return (
            len(args) == len(self.args)
            and all(a is b for a, b in zip(args, self.args, strict=True))
            and kwargs.keys() == self.kwargs.keys()
            and all(kwargs[k] is self.kwargs[k] for k in kwargs)
        )

    def fell(self, expectation: Expectation) -> bool:
        """Whether the log-likelihood is lower now, under a program of the same sites."""
        return expectation.factors.keys() == self.sites and self._lower(expectation.log_likelihood, self.log_likelihood)

    def _lower(self, now: float, before: float) -> bool:
        return not now >= before - self.tolerance * abs(before)

    def is_rounding(self, fallen: Expectation, score: Callable[[], float]) -> bool:
        """Whether a fall is no larger than what rounding the parameters does to the log-likelihood.

        Args:
            fallen: The E-step after the fall.
            score: The log-likelihood at the current parameters, nats.
        """
        tensors = [p.unconstrained for p in fallen.parameters.values()]
        new = [tensor.detach().clone() for tensor in tensors]
        change = 0.0
        for sign in (1.0, -1.0):
            for tensor, value in zip(tensors, new, strict=True):
                alternating = 1.0 - 2.0 * (torch.arange(value.numel()) % 2).to(value).reshape(value.shape)
                tensor.data.copy_(value * (1 + sign * torch.finfo(value.dtype).eps * alternating))
            try:
                change = max(change, abs(score() - fallen.log_likelihood))
            except NonFiniteLoss:
                change = torch.inf
        for tensor, value in zip(tensors, new, strict=True):
            tensor.data.copy_(value)
        return self.log_likelihood - fallen.log_likelihood <= ROUNDINGS * change

    def is_floor(
        self, fallen: Expectation, plan: Plan, unfloored: Callable[[], dict[str, Tensor]], score: Callable[[], float]
    ) -> bool:
        """Whether a fall comes from variances that began below their floor and had to be raised.

        It does if the log-likelihood does not fall from a start whose variances are raised, too.

        Args:
            fallen: The E-step after the fall.
            plan: The M-step of every parameter.
            unfloored: The step's new values of all parameters with closed forms, had the floor been lower.
            score: The log-likelihood at the current parameters, nats.
        """
        new = {name: p.value.detach().clone() for name, p in fallen.parameters.items()}
        exact = {name: p.unconstrained.detach().clone() for name, p in fallen.parameters.items()}
        self.restore(fallen)
        free = unfloored()
        raised = False
        for entry in plan.closed:
            if not entry.uses:
                continue
            blocks, value = entry.uses[0].blocks, new[entry.name]
            close = torch.isclose(free[entry.name].to(value), value, rtol=1e-4, atol=0.0)
            bound = ~close.reshape(-1)[blocks.elements].reshape(len(blocks.elements), -1).all(-1)
            raised = raised or bool(bound.any())
            parameter = fallen.parameters[entry.name]
            flat = torch.distributions.transform_to(parameter.constraint)(self.values[entry.name]).reshape(-1).clone()
            chosen = blocks.elements[bound].reshape(-1)
            flat[chosen] = value.reshape(-1)[chosen]
            if len(chosen):
                parameter.write(flat.reshape(value.shape))
        before = score() if raised else self.log_likelihood
        for name, value in exact.items():
            fallen.parameters[name].unconstrained.data.copy_(value)
        return raised and not self._lower(fallen.log_likelihood, before)

    def restore(self, expectation: Expectation) -> None:
        """Put the parameters back."""
        for name, value in self.values.items():
            expectation.parameters[name].unconstrained.data.copy_(value)

    def culprits(self, plan: Plan, fallen: Expectation, expect: Callable[[], Expectation], may_fall: bool) -> list[str]:
        """Put the parameters back, and find which closed forms lower the log-likelihood by themselves; says so.

        Args:
            plan: The M-step of every parameter.
            fallen: The E-step after the fall.
            expect: An E-step at the current parameters.
            may_fall: Whether gradient steps may have lowered it, as those of a user's optimizer: without a culprit the
                step then stands.
        """
        new = {name: p.unconstrained.detach().clone() for name, p in fallen.parameters.items()}
        self.restore(fallen)
        found = []
        for entry in plan.closed:
            fallen.parameters[entry.name].unconstrained.data.copy_(new[entry.name])
            if self.fell(expect()):
                found.append(entry.name)
            self.restore(fallen)
        if not found and may_fall and plan.gradient:
            for name, value in new.items():
                fallen.parameters[name].unconstrained.data.copy_(value)
            return []
        found = found or [entry.name for entry in plan.closed]
        if found:
            warnings.warn(
                f"EM: the log-likelihood fell from {self.log_likelihood:.6g} to {fallen.log_likelihood:.6g}; "
                f"the step was undone and {', '.join(found)} will be updated by gradient.",
                RuntimeWarning,
                stacklevel=5,
            )
        return found
