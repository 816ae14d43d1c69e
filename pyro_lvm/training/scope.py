"""The parameters of one fit, kept apart from every other fit and from Pyro's global store."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import wraps
from typing import Any, ParamSpec, TypeVar

import pyro
import torch
from pyro.poutine.messenger import Messenger
from torch import Tensor

from pyro_lvm import _pyro
from pyro_lvm.ops.networks import serving

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

    def swap_in(self) -> None:
        for name, value in self.inside.items():
            self.outside[name] = self.parameters[name].detach().clone()
            self.parameters[name].data.copy_(value)

    def swap_out(self) -> None:
        for name, value in self.outside.items():
            self.inside[name] = self.parameters[name].detach().clone()
            self.parameters[name].data.copy_(value)


class _Buffers:
    """What networks that are no part of a module keep besides parameters; the fit has copies of it."""

    def __init__(self) -> None:
        self.holders: dict[str, tuple[torch.nn.Module, str]] = {}
        self.elsewhere: dict[str, Tensor] = {}  # outside of the scope the fit's own, inside the user's

    def take(self, module: torch.nn.Module) -> None:
        """Copy the buffers of a module that was met inside of the scope, unless they are known."""
        if any(module is holder for holder, _ in self.holders.values()):
            return
        number = len({id(holder) for holder, _ in self.holders.values()})
        for name, buffer in module.named_buffers(recurse=False):
            full = f"{number}.{name}"
            self.holders[full], self.elsewhere[full] = (module, name), buffer
            module._buffers[name] = buffer.clone()

    def swap(self) -> None:
        """Put the fit's own in the place of the user's, or the other way round."""
        for full, (module, name) in self.holders.items():
            here = module._buffers[name]
            module._buffers[name], self.elsewhere[full] = self.elsewhere[full], here  # type: ignore[assignment]

    def own(self, inside: bool) -> dict[str, Tensor]:
        """The fit's own by name."""
        if not inside:
            return dict(self.elsewhere)
        return {full: getattr(module, name) for full, (module, name) in self.holders.items()}


class Scope:
    """A parameter store of its own for `pyro.param`, and module-local parameters for `PyroModule`s.

    Inside `with scope():` a program sees only this scope's parameters. A network that a plain function closes over
    (`pyro.module("net", net)`) is borrowed: its values are swapped in on entry and back out on exit. One thread at a
    time is inside of any scope; the others wait. Networks serve inside of a scope, and learn inside of `learning()`.
    """

    def __init__(self) -> None:
        self.state: dict[str, Any] = {"params": {}, "constraints": {}}
        self._borrowed = _Borrowed()
        self._buffers = _Buffers()
        self._inside = False
        self._modules: list[torch.nn.Module] = []
        self._serving = ExitStack()

    @property
    def params(self) -> dict[str, Tensor]:
        """What `pyro.param` holds, unconstrained, by name; of borrowed networks what they will be on entry.

        What a module makes as it runs is its own, and has the module's number before its name.
        """
        found: dict[str, Any] = self.state["params"]
        if self._inside:
            found = dict(pyro.get_param_store().named_parameters())
        held = {name: (name, tensor) for name, tensor in found.items()}
        for number, store in enumerate(self._stores()):
            held.update({f"{number}.{name}": (name, tensor) for name, tensor in store["params"].items()})
        inside = {} if self._inside else self._borrowed.inside
        return {full: inside.get(name, tensor) for full, (name, tensor) in held.items()}

    def _stores(self) -> list[dict[str, Any]]:
        return [store for module in self._modules for store in _pyro.own_stores(module)]

    @property
    def constrained(self) -> dict[str, Tensor]:
        """What `pyro.param` holds as programs read it; from inside."""
        return dict(pyro.get_param_store().items())

    @property
    def buffers(self) -> dict[str, Tensor]:
        """What borrowed networks keep besides parameters, such as running means; what they will be on entry."""
        return self._buffers.own(self._inside)

    def forget(self, name: str) -> None:
        """Drop a parameter of the store; from inside."""
        if name in pyro.get_param_store():
            del pyro.get_param_store()[name]
            return
        number, _, own = name.partition(".")
        for part in ("params", "constraints"):
            self._stores()[int(number)][part].pop(own)

    def adopt(self, *programs: Any) -> None:
        """Take in programs that may have been made outside of any scope."""
        for program in programs:
            _pyro.localise(program)
            module = _pyro.without_handlers(program)
            if isinstance(module, torch.nn.Module) and all(module is not known for known in self._modules):
                self._modules.append(module)

    @contextmanager
    def learning(self) -> Iterator[None]:
        """Networks that normalise by the batch or drop units out do so here, if they did so when they were passed."""
        self._serving.close()
        try:
            yield
        finally:
            self._serve()

    def _serve(self) -> None:
        depth = _pyro.handlers_at_work()

        def running() -> bool:  # what a callback calls by itself is no program
            return _pyro.handlers_at_work() > depth

        self._serving.enter_context(serving(*self._modules, running=running, meet=self._meet))

    def _meet(self, module: torch.nn.Module) -> None:
        """Borrow what a module keeps besides parameters, if it is no part of a program that is a module itself."""
        if module._buffers and not any(module is part for own in self._modules for part in own.modules()):
            self._buffers.take(module)

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
                    self._buffers.swap()
                    self._serve()
                    try:
                        yield
                    finally:
                        self._serving.close()
                        self.state.update(pyro.get_param_store().get_state())
                        self._borrowed.swap_out()
                        self._buffers.swap()
            finally:
                self._inside = False
