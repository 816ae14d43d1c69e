"""The only file that touches names Pyro does not document; `tests/test_pyro_assumptions.py` checks each of them."""

from __future__ import annotations

import copy
import weakref
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from functools import cache, partial
from typing import Any

import pyro
import torch
from pyro import poutine
from pyro.distributions.torch_distribution import ExpandedDistribution
from pyro.infer.autoguide.guides import AutoGuide
from pyro.nn import PyroModule
from pyro.nn.module import _Context
from pyro.ops import packed
from pyro.ops.contract import contract_tensor_tree
from pyro.ops.einsum import torch_log
from pyro.ops.rings import LogRing
from pyro.poutine.enum_messenger import EnumMessenger
from pyro.poutine.indep_messenger import CondIndepStackFrame, IndepMessenger
from pyro.poutine.mask_messenger import MaskMessenger
from pyro.poutine.messenger import Messenger
from pyro.poutine.runtime import _ENUM_ALLOCATOR, _PYRO_STACK, effectful
from pyro.poutine.scale_messenger import ScaleMessenger
from pyro.poutine.trace_struct import Trace
from pyro.poutine.util import prune_subsample_sites, site_is_subsample
from torch import Tensor
from torch.distributions import constraints

from pyro_lvm.ops import log_einsum
from pyro_lvm.ops.networks import serving

__all__ = [
    "DRAWN_ALONE",
    "EnumMessenger",
    "ExpandedDistribution",
    "PackedTree",
    "constrained_values",
    "constraint_of",
    "contract",
    "copy_programs",
    "dims_of",
    "enclosing",
    "enumerated_trace",
    "exact_log_sums",
    "frame",
    "leaves",
    "localise",
    "made_from",
    "module_local_store",
    "network",
    "own_enumeration",
    "pack",
    "pack_mask",
    "pack_scale",
    "plain_trace",
    "plate_symbols",
    "prune_subsample_sites",
    "reading",
    "sample_listeners",
    "site_is_subsample",
    "validation",
    "without_handlers",
]

DRAWN_ALONE = "_unconstrained"
"""What an autoguide that draws every site by itself adds to the site's name where it does."""

PackedTree = OrderedDict[frozenset[str], list[Tensor]]


def plain_trace(model: Callable, args: tuple, kwargs: dict[str, Any]) -> Trace:
    """A trace of `model` without enumeration, its networks serving; subsample sites are left out."""
    with serving(model):
        trace = poutine.trace(model).get_trace(*args, **kwargs)
    return prune_subsample_sites(trace)


def enumerated_trace(model: Callable, max_plate_nesting: int, args: tuple, kwargs: dict[str, Any]) -> Trace:
    """A trace in which sites marked `infer={"enumerate": "parallel"}` hold their whole support.

    Dimensions are named (one symbol per plate and per enumerated site), log-probabilities are not computed.
    """
    enumerate_sites = EnumMessenger(first_available_dim=-1 - max_plate_nesting)
    trace = poutine.trace(enumerate_sites(model)).get_trace(*args, **kwargs)
    trace = prune_subsample_sites(trace)
    trace.symbolize_dims()
    return trace


def plate_symbols(trace: Trace, site: dict) -> frozenset[str]:
    """The symbols of the vectorised plates that a site stands in."""
    return frozenset(trace.plate_to_symbol[f.name] for f in site["cond_indep_stack"] if f.vectorized)


def pack(value: Any, site: dict) -> Any:
    """Drop dimensions of size one and attach the names of the others as `_pyro_dims`."""
    if isinstance(value, Tensor):
        value = value[...]  # a fresh view: packing twice is an error in Pyro
    return packed.pack(value, site["infer"]["_dim_to_symbol"])


def dims_of(tensor: Tensor) -> str:
    """The names of a packed tensor's dimensions."""
    return tensor._pyro_dims  # type: ignore[attr-defined]


def pack_mask(tensor: Tensor, mask: Any) -> Tensor:
    """Mask a packed tensor."""
    return packed.scale_and_mask(tensor, scale=1.0, mask=mask)


def pack_scale(tensor: Tensor, scale: Any) -> Tensor:
    """Multiply a packed tensor by a number or a packed tensor."""
    if not isinstance(scale, Tensor):
        return packed.scale_and_mask(tensor, scale=scale)
    first, second = packed.broadcast_all(tensor, scale)
    product = first * second
    product._pyro_dims = first._pyro_dims
    return product


def contract(tree: PackedTree, sum_dims: set[str]) -> PackedTree:
    """Log-sum-exp over `sum_dims` by tensor variable elimination; plates are multiplied out only where needed."""
    with exact_log_sums():
        return contract_tensor_tree(tree, sum_dims, ring=LogRing())


@contextmanager
def exact_log_sums() -> Iterator[None]:
    """Let Pyro sum out discrete sites by `pyro_lvm.ops.log_einsum`, here and in its own objectives and samplers."""
    backend, kernel = LogRing._backend, torch_log.einsum
    LogRing._backend, torch_log.einsum = log_einsum.__name__, log_einsum.einsum
    try:
        yield
    finally:
        LogRing._backend, torch_log.einsum = backend, kernel


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


def frame(name: str, dim: int, size: int) -> CondIndepStackFrame:
    """The mark of a plate on a site."""
    return CondIndepStackFrame(name, dim, size, 0)


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


@contextmanager
def own_enumeration() -> Iterator[None]:
    """Let a program be enumerated inside of one that is being enumerated, whose dimensions are given back after."""
    outer = dict(vars(_ENUM_ALLOCATOR))
    try:
        yield
    finally:
        vars(_ENUM_ALLOCATOR).clear()
        vars(_ENUM_ALLOCATOR).update(outer)


def enclosing(handler: Messenger) -> list[Messenger]:
    """The plates, scales and masks that a program has entered inside of `handler`, outermost first; enter them anew."""
    inside = _PYRO_STACK[_PYRO_STACK.index(handler) + 1 :]
    return [frame for frame in inside if isinstance(frame, (IndepMessenger, MaskMessenger, ScaleMessenger))]


def sample_listeners() -> list[Messenger]:
    """The handlers in place, outermost first, that see sample sites."""
    return [frame for frame in _PYRO_STACK if _hears_samples(frame.__class__)]


@cache
def _hears_samples(kind: Any) -> bool:
    own = kind._process_message is Messenger._process_message
    own = own and kind._postprocess_message is Messenger._postprocess_message
    return not own or hasattr(kind, "_pyro_sample") or hasattr(kind, "_pyro_post_sample")


def reading(module: pyro.nn.PyroModule) -> Any:
    """A context in which reading the module's parameters tells the handlers, as a call of the module does."""
    return nullcontext() if _taken_whole("", module) else module._pyro_context


@contextmanager
def validation(enabled: bool) -> Iterator[None]:
    """Switch every argument check of Pyro and torch on or off inside the block."""
    with pyro.settings.context(
        validate_infer=enabled,
        validate_distributions_pyro=enabled,
        validate_distributions_torch=enabled,
    ):
        yield
