"""Parameters as inference sees them: by `param` message, whatever program or module they live in."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from pyro.poutine.messenger import Messenger
from torch import Tensor

from pyro_lvm import _pyro

__all__ = ["Parameter", "Parameters"]


@dataclass
class Parameter:
    """One `param` site: its value in the model's space, and the tensor an optimizer may write to."""

    name: str
    value: Tensor
    unconstrained: Tensor
    constraint: Any

    def write(self, value: Tensor) -> None:
        """Set a new constrained value in place, so that optimizers keep their state."""
        with torch.no_grad():
            inverse = torch.distributions.transform_to(self.constraint).inv(value.to(self.unconstrained.dtype))
            self.unconstrained.data.copy_(inverse)


class Parameters(Messenger):
    """Collect every `param` message; with `leaves=True` the model reads a detached leaf per parameter.

    All reads of one name give one tensor, so that the graph from a parameter to a distribution argument can be probed.
    """

    def __init__(self, leaves: bool = False) -> None:
        super().__init__()
        self.leaves = leaves
        self.found: dict[str, Parameter] = {}

    def _pyro_param(self, msg: Any) -> None:
        if msg["name"] in self.found:
            msg["value"] = self.found[msg["name"]].value
            msg["done"] = True

    def _pyro_post_param(self, msg: Any) -> None:
        name, value = msg["name"], msg["value"]
        if name in self.found or not (hasattr(value, "unconstrained") or isinstance(value, torch.nn.Parameter)):
            return  # a raw constant: the message of a `PyroParam` that is being assigned, not read
        unconstrained = value.unconstrained() if hasattr(value, "unconstrained") else value
        if self.leaves and not value.is_leaf:
            value = value.detach().requires_grad_()
            value.unconstrained = lambda tensor=unconstrained: tensor
            msg["value"] = value
        self.found[name] = Parameter(name, value, unconstrained, _pyro.constraint_of(name, msg))
