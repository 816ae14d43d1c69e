"""Modules and guides: whose parameters are whose, who is told of them, and what was made from what."""

from __future__ import annotations

import copy
import weakref
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import cache, partial
from typing import Any

import pyro
import torch
from pyro.infer.autoguide.guides import AutoCallable, AutoGuide, AutoGuideList
from pyro.nn import PyroModule
from pyro.nn.module import _Context
from pyro.poutine.indep_messenger import IndepMessenger
from pyro.poutine.mask_messenger import MaskMessenger
from pyro.poutine.messenger import Messenger
from pyro.poutine.runtime import _PYRO_STACK, effectful
from pyro.poutine.scale_messenger import ScaleMessenger
from torch import Tensor
from torch.distributions import constraints

__all__ = [
    "constrained_values",
    "constraint_of",
    "copy_programs",
    "leaves",
    "localise",
    "made_from",
    "module_local_store",
    "network",
    "only_ours_listen",
    "own_stores",
    "reading",
    "site_makers",
    "without_handlers",
]


def copy_programs(*programs: Any) -> tuple[Any, ...]:
    """Deep copies that refer to each other as the originals do.

    Copying an autoguide makes Pyro cut it, original and copy, off its model: both are tied to theirs again.
    """
    guides = [
        (guide, guide._model, guide.master)
        for program in map(without_handlers, programs)
        if isinstance(program, AutoGuide)
        for guide in program.modules()
        if isinstance(guide, AutoGuide)
    ]
    memo: dict[int, Any] = {}
    copies = copy.deepcopy(programs, memo)
    for guide, model, master in guides:
        guide._model, guide.master = model, master
        twin = memo[id(guide)]
        twin._model = copy.deepcopy(model, memo)
        twin.master = None if master is None else weakref.ref(memo[id(master())])
    return copies


def made_from(guide: Any) -> Any:
    """The program that a guide was made from and runs itself, without handlers; None if it keeps none."""
    kept: Any = getattr(guide, "__dict__", {}).get("_model")
    kept = kept[0] if isinstance(kept, tuple) and kept else kept  # in a tuple it is no part of a module
    return without_handlers(kept)


def without_handlers(program: Any) -> Any:
    """What handlers were wrapped around; of copies, too, which `poutine.unwrap` does not know any more."""
    while isinstance(program, partial) and len(program.args) > 1:
        program = program.args[1]
    return program


def localise(program: Any) -> None:
    """Let a `PyroModule` that was made while parameters were global keep them to itself from now on."""
    program = without_handlers(program)
    if isinstance(program, torch.nn.Module):
        for module in program.modules():
            context = getattr(module, "_pyro_context", None)
            if type(context) is _Context and not getattr(context, "param_state", {}).get("params"):
                context.__class__ = _LocalContext


class _LocalContext(_Context):
    """The context of a module that keeps its parameters to itself: Pyro's, but that stores change places.

    Pyro copies them four times whenever a module is called, which takes longer than the rest of a small call.
    """

    @property
    def param_state(self) -> dict[str, Any]:
        own = vars(self).get("_own", {})
        return {"params": own.get("_params", {}), "constraints": own.get("_constraints", {})}

    def __enter__(self) -> None:
        if not self.active and pyro.nn.module._MODULE_LOCAL_PARAMS:
            store = vars(pyro.get_param_store())
            self._outer = store.copy()
            store.update(vars(self).get("_own") or {name: {} for name in store})
        self.active += 1
        self.used = True

    def __exit__(self, *exception: Any) -> None:
        self.active -= 1
        if not self.active:
            self.cache.clear()
            if pyro.nn.module._MODULE_LOCAL_PARAMS:
                self._own = vars(pyro.get_param_store()).copy()
                vars(pyro.get_param_store()).update(self.__dict__.pop("_outer"))


def own_stores(module: torch.nn.Module) -> list[dict[str, Any]]:
    """Where a module and its parts keep what `pyro.param` makes as they run, each with "params" and "constraints"."""
    contexts = {id(context): context for part in module.modules() if (context := getattr(part, "_pyro_context", None))}
    nothing: dict[str, Any] = {"params": {}, "constraints": {}}
    return [getattr(context, "param_state", nothing) for context in contexts.values()]


def site_makers(guide: Any) -> list[Callable]:
    """The programs whose latent sites a guide draws: itself, or what an autoguide was made from; none if it is ours."""
    program = without_handlers(guide)
    if isinstance(program, AutoGuideList):
        return [maker for part in program for maker in site_makers(part)]
    if isinstance(program, AutoCallable):
        return [program._guide]
    if isinstance(program, AutoGuide):
        return [program.model]
    return [] if made_from(program) is not None else [guide]


def constrained_values(program: Any) -> dict[str, Tensor]:
    """The `PyroParam`s of a module and its parts as a run would read them, without a run; none of a plain function."""
    parts = program.named_modules() if isinstance(program, torch.nn.Module) else ()
    return {
        f"{prefix}.{name}": getattr(part, name).detach()
        for prefix, part in parts
        if isinstance(part, pyro.nn.PyroModule)
        for name in part._pyro_params
    }


def constraint_of(name: str, message: Any) -> Any:
    """The constraint of a `param` message: a later read of a parameter that the store holds says `real`."""
    given = message["kwargs"].get("constraint", torch.distributions.constraints.real)
    return pyro.get_param_store()._constraints.get(name, given)


def network(program: PyroModule, name: str) -> torch.nn.Module:
    """The torch module that a program holds as `name`; inside of the program its parameters send their messages.

    They are named as in `named_parameters`. Reading the attribute would send them under other names; a network made of
    `PyroModule`s would send one from every layer, at many times the cost. Handlers with a method
    `take_network(prefix, module)` get one call of it instead, where no other handler listens to parameters.
    """
    module = program._modules[name]
    if not program._pyro_context.active or module is None or isinstance(module, PyroModule):
        return getattr(program, name)
    prefix = program._pyro_get_fullname(name)
    if _taken_whole(prefix, module):
        return module
    local = pyro.nn.module._MODULE_LOCAL_PARAMS
    for inner, parameter in module.named_parameters():
        full = f"{prefix}.{inner}"
        if local:
            _read(full, parameter, constraint=constraints.real, name=full)
        else:
            pyro.param(full, parameter)
    return module


def _taken_whole(prefix: str, module: torch.nn.Module) -> bool:
    """Tell the handlers of all of a module's parameters at once, if all that listen can take it so; whether they do."""
    if not (pyro.nn.module._MODULE_LOCAL_PARAMS and only_ours_listen()):
        return False
    for handler in _PYRO_STACK:
        if hasattr(handler, "take_network"):
            handler.take_network(prefix, module)
    return True


def leaves(prefix: str, module: torch.nn.Module) -> dict[str, Tensor]:
    """What an optimizer may write to, by the names of the messages that the module's parameters would send."""
    named = {f"{prefix}.{name}" if prefix else name: tensor for name, tensor in module.named_parameters()}
    if isinstance(module, PyroModule):
        named = {name.removesuffix("_unconstrained"): tensor for name, tensor in named.items()}
    return {name: tensor for name, tensor in named.items() if tensor.requires_grad}


def only_ours_listen() -> bool:
    """Whether every active handler takes networks whole or is deaf to parameters: none is a trace of Pyro's."""
    return all(_takes_networks(handler.__class__) for handler in _PYRO_STACK)


@cache
def _takes_networks(kind: Any) -> bool:
    """Whether a handler takes networks whole, or is deaf to parameters."""
    if hasattr(kind, "take_network"):
        return True
    plain = kind._process_message is Messenger._process_message
    plain = plain and kind._postprocess_message is Messenger._postprocess_message
    deaf = not hasattr(kind, "_pyro_param") and not hasattr(kind, "_pyro_post_param")
    return deaf and (plain or issubclass(kind, (IndepMessenger, MaskMessenger, ScaleMessenger)))


def _own_value(name: str, parameter: Tensor, **options: Any) -> Tensor:
    return parameter


# The message of a parameter that its module keeps to itself.
_read: Callable[..., Tensor] = effectful(_own_value, type="param")


@contextmanager
def module_local_store(state: dict[str, Any]) -> Iterator[None]:
    """A parameter store holding `state` for `pyro.param`, and parameters of `PyroModule`s kept in the module.

    Pyro's check that no module calls `pyro.param` is off: an autoguide runs its model, which may.
    """
    settings = pyro.settings.context(module_local_params=True, validate_poutine=False)
    with settings, pyro.get_param_store().scope(state):
        yield


def reading(module: pyro.nn.PyroModule) -> AbstractContextManager[bool]:
    """A context in which reading the module's parameters tells the handlers, as a call of the module does.

    It says whether they have been told already, of all of them at once.
    """
    return nullcontext(True) if _taken_whole("", module) else _in_context(module)


@contextmanager
def _in_context(module: pyro.nn.PyroModule) -> Iterator[bool]:
    with module._pyro_context:
        yield False
