"""An optimizer over parameters that turn up as programs run, with a rate that may fall during training."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

__all__ = ["SCHEDULES", "Updates"]


def _linear(done: float) -> float:
    return min(1.0, 2.0 * (1.0 - done))


def _cosine(done: float) -> float:
    return 0.5 * (1.0 + math.cos(math.pi * done))


SCHEDULES: dict[str, Callable[[float], float]] = {"linear": _linear, "cosine": _cosine}
"""Multipliers of the learning rate by the fraction of the training that is done."""


class Updates:
    """An optimizer that is made when the first gradients come, and told of new parameters as they turn up.

    Args:
        make: Makes a torch optimizer from parameters.
    """

    def __init__(self, make: Callable[[Iterable[Tensor]], torch.optim.Optimizer]) -> None:
        self.make = make
        self.optimizer: torch.optim.Optimizer | None = None
        self.names: dict[str, Tensor] = {}
        self.met: set[str] = set()
        self.pending: dict[str, Any] | None = None

    def step(self, found: dict[str, Tensor], multiplier: float | None = None) -> None:
        """Update the parameters along their gradients, at a multiple of the optimizer's own learning rate.

        Raises:
            ValueError: The state that was restored is not whole.
        """
        restored = self.pending is not None
        try:
            self._step(found, multiplier)
        except KeyError as error:
            if not restored:
                raise
            raise ValueError(
                f"resume: expected the whole state of the optimizer; got one without an entry {error}. Fit again, or "
                "restore a copy of the file."
            ) from error

    def _step(self, found: dict[str, Tensor], multiplier: float | None) -> None:
        self._register(found)
        if self.optimizer is None:
            return
        if multiplier is not None:
            for group in self.optimizer.param_groups:
                group["lr"] = group.setdefault("initial_lr", group["lr"]) * multiplier
        getattr(self.optimizer, "repeat", self.optimizer.step)()

    def state_dict(self) -> dict[str, Any]:
        """The optimizer's state and the order of its parameters."""
        if self.optimizer is None:
            pending = self.pending or {}
            return {"optimizer": pending.get("optimizer"), "names": list(pending.get("names", ()))}
        return {"optimizer": self.optimizer.state_dict(), "names": list(self.names)}

    def restore(self, state: dict[str, Any] | None) -> None:
        """Start anew from `state_dict`; the optimizer follows at the next step, when its parameters are known."""
        pending = None if state is None else {name: state[name] for name in ("optimizer", "names")}
        self.optimizer, self.names, self.met, self.pending = None, {}, set(), pending

    def _register(self, found: dict[str, Tensor]) -> None:
        if found.keys() <= self.met:
            return
        self.met |= found.keys()
        known, new = {id(tensor) for tensor in self.names.values()}, {}
        for name, tensor in found.items():
            if id(tensor) not in known:  # one with two names is one
                known.add(id(tensor))
                new[name] = tensor
        if not new:
            return
        pending, self.pending = self.pending, None
        if pending and pending["optimizer"] is not None:
            new = {name: new[name] for name in [*pending["names"], *new] if name in new}
        self.names.update(new)
        if self.optimizer is None:
            self.optimizer = self.make(list(new.values()))
        else:
            self.optimizer.add_param_group({"params": list(new.values())})
        if pending and pending["optimizer"] is not None:
            self.optimizer.load_state_dict(pending["optimizer"])
