"""Adam for parameters whose rows belong to rows of the data, of which a step sees only some."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

__all__ = ["RowAdam"]


class RowAdam(torch.optim.Optimizer):
    r"""Adam with a state, and a count of steps, of each row's own.

    Plain Adam would keep moving the rows that a minibatch leaves out, by their momentum, and would correct the bias of
    a row's averages for steps that the row has not taken. Here a row without a gradient is left alone.

    Args:
        params: Parameters, each with its rows along the first axis.
        lr: Step size.
        betas: Decay of the averages of the gradient and of its square.
        eps: Keeps the quotient of both finite.

    References:
        D. Kingma, J. Ba (2015), Adam: a method for stochastic optimization, ICLR, algorithm 1.
    """

    def __init__(
        self,
        params: Iterable[Tensor],
        lr: float = 0.01,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
    ) -> None:
        super().__init__(params, {"lr": lr, "betas": betas, "eps": eps})

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> None:  # type: ignore[override]
        """Update the rows that have a gradient."""
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self._update(parameter, parameter.grad, group)

    def _update(self, parameter: Tensor, gradient: Tensor, group: dict[str, Any]) -> None:
        table, gradient = (t.reshape(len(t) if t.dim() else 1, -1) for t in (parameter.detach(), gradient))
        state = self.state[parameter]
        if not state:
            state["mean"], state["square"] = torch.zeros_like(table), torch.zeros_like(table)
            state["steps"] = torch.zeros(len(table), 1, dtype=table.dtype, device=table.device)
        rows = (gradient != 0).any(1).nonzero().squeeze(1)
        gradient = gradient[rows]
        first, second = group["betas"]
        steps = state["steps"][rows] + 1
        mean = state["mean"][rows].lerp(gradient, 1 - first)
        square = state["square"][rows].lerp(gradient.square(), 1 - second)
        for name, value in (("steps", steps), ("mean", mean), ("square", square)):
            state[name][rows] = value
        change = mean / (1 - first**steps) / ((square / (1 - second**steps)).sqrt() + group["eps"])
        table.index_add_(0, rows, change, alpha=-group["lr"])
