"""The M-step of parameters without a closed form: uphill on the expected complete log-likelihood (generalised EM)."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

from pyro_lvm.infer.expectation import Expectation
from pyro_lvm.infer.markov import opened_factors
from pyro_lvm.infer.parameters import Parameters
from pyro_lvm.infer.plan import Plan

__all__ = ["GradientStep"]

Optimizer = Callable[[Iterable[Tensor]], torch.optim.Optimizer]


class GradientStep:
    """Gradient steps under frozen posterior weights.

    Args:
        steps: Steps per M-step; iterations if the optimizer is L-BFGS.
        optimizer: Makes a torch optimizer, which then lives as long as this; by default L-BFGS with line search, anew
            for every M-step.
    """

    def __init__(self, steps: int, optimizer: Optimizer | None) -> None:
        self.steps = steps
        self.make = optimizer
        self.optimizer: torch.optim.Optimizer | None = None
        self.names: list[str] = []
        self.pending: dict[str, Any] | None = None

    def run(
        self,
        program: Callable,
        max_plate_nesting: int,
        plan: Plan,
        expectation: Expectation,
        args: tuple,
        kwargs: dict[str, Any],
    ) -> None:
        """Move the parameters that the plan leaves to gradients; non-finite results are taken back."""
        names = [entry.name for entry in plan.gradient]
        sites = list(dict.fromkeys(site for entry in plan.gradient for site in entry.sites))
        targets = [expectation.parameters[name].unconstrained for name in names]
        total = sum(float(expectation.factors[site].weights.sum()) for site in sites)
        scale = max(1.0, total)
        start = [target.detach().clone() for target in targets]

        def closure() -> Tensor:
            with torch.enable_grad(), Parameters():
                known = expectation.markov
                factors = opened_factors(program, max_plate_nesting, args, kwargs, known, differentiable=True)[1]
                terms = []
                for name in sites:
                    weights = expectation.factors[name].weights
                    cell = torch.where(weights > 0, factors[name].log_density, 0.0)
                    terms.append((weights * cell).sum())
                loss = -torch.stack(terms).sum() / scale
            gradients = torch.autograd.grad(loss, targets, allow_unused=True)
            for target, gradient in zip(targets, gradients, strict=True):
                target.grad = torch.zeros_like(target) if gradient is None else gradient.contiguous()
            return loss.detach()

        if self.make is None:
            lbfgs = torch.optim.LBFGS(targets, max_iter=self.steps, line_search_fn="strong_wolfe")
            lbfgs.step(closure)
        else:
            optimizer = self._optimizer(names, targets)
            for _ in range(self.steps):
                optimizer.step(closure)  # type: ignore[arg-type]
        for target, old in zip(targets, start, strict=True):
            target.grad = None
            if not bool(torch.isfinite(target).all()):
                target.data.copy_(old)

    def _optimizer(self, names: list[str], targets: list[Tensor]) -> torch.optim.Optimizer:
        if self.optimizer is None or names != self.names:
            self.optimizer = self.make(targets)  # type: ignore[misc]
            if self.pending is not None and self.pending["names"] == names:
                self.optimizer.load_state_dict(self.pending["state"])
            self.names, self.pending = names, None
        return self.optimizer

    def state_dict(self) -> dict[str, Any] | None:
        """The optimizer's state, if it lives on."""
        if self.optimizer is None:
            return self.pending
        return {"names": self.names, "state": self.optimizer.state_dict()}
