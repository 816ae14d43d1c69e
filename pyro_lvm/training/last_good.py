"""The state to go back to when arithmetic breaks down.

A gradient step may overflow a parameter although the loss and the gradient before it were finite: the next loss then
tells, too late to undo the step. So a copy is kept, made now and then, when all parameters are finite. A loss may break
down at finite parameters, too. A copy has shown that it is good when an epoch went well after it: until then the one
before it is kept as well.
"""

from __future__ import annotations

import copy
from collections import deque
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from pyro_lvm import _pyro
from pyro_lvm.training.learned import Learned

__all__ = ["LastGood"]

# Steps between copies at most, and their share of all steps before that: a copy takes about as long as a step.
STEPS, SHARE = 100, 0.5


class LastGood:
    """A copy of finite parameters, and of the state of the inference with them.

    Args:
        fit: What is in training.
    """

    def __init__(self, fit: Learned) -> None:
        self.fit = fit
        self.infinite = _not_finite(fit.tensors())  # on purpose
        self.steps = self.all_steps = 0
        self.copies: deque[tuple[dict[str, Tensor], dict[str, Any]]] = deque(maxlen=2)
        self._keep()

    def after(self, steps: int) -> None:
        """Copy the state, if so many further steps make it due and left it finite."""
        self.steps, self.all_steps = self.steps + steps, self.all_steps + steps
        if self.steps >= min(STEPS, SHARE * self.all_steps) and not self._is_lost():
            self._keep()

    def restore(self, broken: bool = False) -> bool:
        """Go back to the copy if the loss broke down, or a parameter is lost; whether that was so."""
        if not broken and not self._is_lost():
            return False
        values, state = self.copies[0 if broken and not self.steps else -1]
        for name, tensor in self.fit.tensors().items():
            if name in values:
                tensor.data.copy_(values[name])
            elif name.startswith("store:"):  # the program will start it anew
                self.fit.scope.forget(name.removeprefix("store:"))
        self.fit.inference.load_state_dict(state)
        return True

    def _keep(self) -> None:
        self.steps = 0
        values = {name: tensor.detach().clone() for name, tensor in self.fit.tensors().items()}
        self.copies.append((values, copy.deepcopy(self.fit.inference.state_dict())))

    def _is_lost(self) -> bool:
        """Whether something is not finite: a tensor as it is written to, or a parameter as programs read it.

        No program is run, as that might change its state, such as the running means of a network.
        """
        fit = self.fit
        read = (fit.scope.constrained, *(_pyro.constrained_values(program) for program in (fit.model, fit.guide)))
        return bool(_not_finite(fit.tensors()) - self.infinite) or any(map(_not_finite, read))


def _not_finite(tensors: Mapping[str, Tensor]) -> set[str]:
    return {name for name, tensor in tensors.items() if not bool(torch.isfinite(tensor).all())}
