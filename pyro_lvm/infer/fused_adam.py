"""Adam as one kernel, without what torch looks up anew at every step."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor

__all__ = ["FusedAdam"]


class _Alike(NamedTuple):
    """Parameters of one group, device and dtype, and their states."""

    group: dict[str, Any]
    parameters: list[Tensor]
    means: list[Tensor]
    squares: list[Tensor]
    steps: list[Tensor]
    taken: Tensor
    """What all of `steps` are views of."""


class FusedAdam(torch.optim.Adam):
    """`torch.optim.Adam` with `fused=True`: the same numbers, and less of a step's time where networks are small.

    At each step torch sorts the parameters by device, finds their state and looks for hooks, which takes as long as
    hundreds of thousands of parameters do. `repeat` does so once, keeps the lists, and calls the kernel on them.

    Args:
        params: Parameters.
        lr: Step size.

    References:
        D. Kingma, J. Ba (2015), Adam: a method for stochastic optimization, ICLR, algorithm 1.
    """

    _kept: list[_Alike] | None = None

    def __init__(self, params: Iterable[Tensor], lr: float = 1e-3) -> None:
        super().__init__(params, lr=lr, fused=True)

    def repeat(self) -> None:
        """`step()`, by its kernel alone where the same parameters have gradients as in the step before."""
        gradients = [[p.grad for p in alike.parameters] for alike in self._kept or ()]
        hooked = self._optimizer_step_pre_hooks or self._optimizer_step_post_hooks
        if hooked or self._kept is None or any(gradient is None for some in gradients for gradient in some):
            self.step()
            self._kept = self._sorted()
            return
        with torch.no_grad():
            for alike, some in zip(self._kept, gradients, strict=True):
                alike.taken.add_(1)
                first, second = alike.group["betas"]
                torch._fused_adam_(
                    alike.parameters,
                    cast(list[Tensor], some),
                    alike.means,
                    alike.squares,
                    [],
                    alike.steps,
                    lr=alike.group["lr"],
                    beta1=first,
                    beta2=second,
                    weight_decay=alike.group["weight_decay"],
                    eps=alike.group["eps"],
                    amsgrad=False,
                    maximize=alike.group["maximize"],
                )

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """As torch's."""
        self._kept = None
        super().add_param_group(param_group)

    def __setstate__(self, state: dict[str, Any]) -> None:
        """As torch's, which is told of loaded state here."""
        super().__setstate__(state)
        self._kept = None

    def _sorted(self) -> list[_Alike] | None:
        """Lists of what can share a kernel; None where a parameter had no gradient, or one that is sparse."""
        kinds: dict[Any, list[Tensor]] = {}
        for at, group in enumerate(self.param_groups):
            if group["amsgrad"] or group["decoupled_weight_decay"]:
                return None
            for p in group["params"]:
                if p.grad is None or p.grad.layout != torch.strided:
                    return None
                kinds.setdefault((at, p.device, p.dtype), []).append(p)
        return [self._alike(self.param_groups[kind[0]], some) for kind, some in kinds.items()]

    def _alike(self, group: dict[str, Any], parameters: list[Tensor]) -> _Alike:
        states = [self.state[p] for p in parameters]
        count = torch.stack([state["step"] for state in states])
        for state, step in zip(states, count.unbind(), strict=True):
            state["step"] = step
        means, squares = ([state[name] for state in states] for name in ("exp_avg", "exp_avg_sq"))
        return _Alike(group, parameters, means, squares, list(count.unbind()), count)
