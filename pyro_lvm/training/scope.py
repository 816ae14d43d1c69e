"""The parameters of one fit, kept apart from every other fit and from Pyro's global store."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from typing import Any, ParamSpec, TypeVar

import pyro
import torch
from pyro.poutine.messenger import Messenger
from torch import Tensor

from pyro_lvm import _pyro
from pyro_lvm.ops.networks import modes, networks

__all__ = ["Scope", "in_turn"]

# Held while a fit is at work: Pyro's handlers and parameter store and torch's generator are one for all threads.
TURN = threading.RLock()

Given = ParamSpec("Given")
Result = TypeVar("Result")


def in_turn(function: Callable[Given, Result]) -> Callable[Given, Result]:
    """Decorator: calls from several threads wait for each other, and for whoever is inside of a `Scope`."""

    @wraps(function)
    def waiting(*args: Given.args, **kwargs: Given.kwargs) -> Result:
        with TURN:
            return function(*args, **kwargs)

    return waiting


class _Borrowed(Messenger):
    """What a plain function closes over: networks, with their values outside this scope and inside it, and starts.

    A tensor passed as the start of `pyro.param` is copied, lest training write to the user's own.
    """

    def __init__(self) -> None:
        super().__init__()
        self.parameters: dict[str, Tensor] = {}
        self.outside: dict[str, Tensor] = {}
        self.inside: dict[str, Tensor] = {}
        self.buffers: list[str] = []

    def _pyro_param(self, msg: Any) -> None:
        if len(msg["args"]) > 1 and msg["name"] not in pyro.get_param_store():
            name, start = msg["args"]
            if isinstance(start, Tensor) and not isinstance(start, torch.nn.Parameter):
                msg["args"] = (name, start.detach().clone())
            elif callable(start):
                msg["args"] = (name, lambda: start().detach().clone())

    def _pyro_post_param(self, msg: Any) -> None:
        name, value = msg["name"], msg["value"]
        known = name in self.parameters
        if not known and isinstance(value, torch.nn.Parameter) and name in pyro.get_param_store():
            self.parameters[name] = value
            self.outside[name] = value.detach().clone()

    def take_network(self, prefix: str, network: torch.nn.Module) -> None:
        """Networks of modules, which keep their parameters to themselves, are not borrowed."""

    def take_buffers(self, prefix: str, network: torch.nn.Module) -> None:
        """Borrow what a network keeps besides its parameters, which sends no messages."""
        for inner, tensor in network.named_buffers():
            name = f"{prefix}.{inner}"
            self.buffers.append(name)
            self.parameters[name] = tensor
            self.outside[name], self.inside[name] = tensor.detach().clone(), tensor.detach().clone()

    def swap_in(self) -> None:
        for name, value in self.inside.items():
            self.outside[name] = self.parameters[name].detach().clone()
            self.parameters[name].data.copy_(value)

    def swap_out(self) -> None:
        for name, value in self.outside.items():
            self.inside[name] = self.parameters[name].detach().clone()
            self.parameters[name].data.copy_(value)


class Scope:
    """A parameter store of its own for `pyro.param`, and module-local parameters for `PyroModule`s.

    Inside `with scope():` a program sees only this scope's parameters. A network that a plain function closes over
    (`pyro.module("net", net)`) is borrowed: its values are swapped in on entry and back out on exit. One thread at a
    time is inside of any scope; the others wait. Networks serve inside of a scope, and learn inside of `learning()`.
    """

    def __init__(self) -> None:
        self.state: dict[str, Any] = {"params": {}, "constraints": {}}
        self._borrowed = _Borrowed()
        self._inside = False
        self._networks: dict[str, torch.nn.Module] = {}
        self._learners: list[torch.nn.Module] = []

    @property
    def params(self) -> dict[str, Tensor]:
        """What `pyro.param` holds, unconstrained, by name; of borrowed networks what they will be on entry."""
        if self._inside:
            return dict(pyro.get_param_store().named_parameters())
        return {name: self._borrowed.inside.get(name, tensor) for name, tensor in self.state["params"].items()}

    @property
    def constrained(self) -> dict[str, Tensor]:
        """What `pyro.param` holds as programs read it; from inside."""
        return dict(pyro.get_param_store().items())

    @property
    def buffers(self) -> dict[str, Tensor]:
        """What borrowed networks keep besides parameters, such as running means; what they will be on entry."""
        live = self._borrowed.parameters if self._inside else self._borrowed.inside
        return {name: live[name] for name in self._borrowed.buffers}

    def forget(self, name: str) -> None:
        """Drop a parameter of the store; from inside."""
        del pyro.get_param_store()[name]

    def adopt(self, *programs: Any) -> None:
        """Take in programs that may have been made outside of any scope."""
        for program in programs:
            _pyro.localise(program)
            for name, network in networks(program).items():
                if all(network is not known for known in self._networks.values()):
                    while name in self._networks:
                        name += "'"
                    self._networks[name] = network
                    if network is not _pyro.without_handlers(program):
                        self._borrowed.take_buffers(name, network)

    @contextmanager
    def learning(self) -> Iterator[None]:
        """Networks that normalise by the batch or drop units out do so here, if they did so when they were passed."""
        with modes(self._learners, training=True):
            yield

    @contextmanager
    def __call__(self) -> Iterator[None]:
        """Enter the scope; entering it again from inside changes nothing."""
        with TURN:
            if self._inside:
                yield
                return
            self._inside = True
            try:
                with _pyro.module_local_store(self.state), self._borrowed:
                    self._borrowed.swap_in()
                    parts = [part for network in self._networks.values() for part in network.modules()]
                    self._learners = [part for part in parts if part.training]
                    try:
                        with modes(self._learners, training=False):
                            yield
                    finally:
                        self.state.update(pyro.get_param_store().get_state())
                        self._borrowed.swap_out()
            finally:
                self._inside = False
