"""Traces, enumeration, and the handlers in place."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import pyro
from pyro import poutine
from pyro.distributions.torch_distribution import ExpandedDistribution
from pyro.ops import packed
from pyro.ops.contract import contract_tensor_tree
from pyro.ops.einsum import torch_log
from pyro.ops.rings import LogRing
from pyro.poutine.enum_messenger import EnumMessenger
from pyro.poutine.indep_messenger import CondIndepStackFrame, IndepMessenger
from pyro.poutine.mask_messenger import MaskMessenger
from pyro.poutine.messenger import Messenger
from pyro.poutine.replay_messenger import ReplayMessenger
from pyro.poutine.runtime import _ENUM_ALLOCATOR, _PYRO_STACK
from pyro.poutine.scale_messenger import ScaleMessenger
from pyro.poutine.trace_struct import Trace
from pyro.poutine.util import prune_subsample_sites, site_is_subsample
from torch import Tensor

from pyro_lvm._pyro.modules import without_handlers
from pyro_lvm.ops import log_einsum
from pyro_lvm.ops.networks import serving

__all__ = [
    "DRAWN_ALONE",
    "EnumMessenger",
    "ExpandedDistribution",
    "PackedTree",
    "contract",
    "dims_of",
    "enclosing",
    "enumerated_trace",
    "exact_log_sums",
    "frame",
    "handlers_at_work",
    "own_enumeration",
    "pack",
    "pack_mask",
    "pack_scale",
    "plain_trace",
    "plate_symbols",
    "prune_subsample_sites",
    "replayed",
    "sample_listeners",
    "site_is_subsample",
    "validation",
]

DRAWN_ALONE = "_unconstrained"
"""What an autoguide that draws every site by itself adds to the site's name where it does."""


PackedTree = OrderedDict[frozenset[str], list[Tensor]]


def plain_trace(model: Callable, args: tuple, kwargs: dict[str, Any]) -> Trace:
    """A trace of `model` without enumeration, its networks serving; subsample sites are left out."""
    with serving(without_handlers(model)):
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


def frame(name: str, dim: int, size: int) -> CondIndepStackFrame:
    """The mark of a plate on a site."""
    return CondIndepStackFrame(name, dim, size, 0)


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


def handlers_at_work() -> int:
    """How many handlers are in place."""
    return len(_PYRO_STACK)


def replayed(name: str) -> dict[str, Any] | None:
    """What a site was drawn from in a trace that is being replayed, as a guide's is to the model; None if in none."""
    traces = [frame.trace for frame in _PYRO_STACK if isinstance(frame, ReplayMessenger) and frame.trace is not None]
    return next((trace.nodes[name] for trace in traces if name in trace.stochastic_nodes), None)


def sample_listeners() -> list[Messenger]:
    """The handlers in place, outermost first, that see sample sites."""
    return [frame for frame in _PYRO_STACK if _hears_samples(frame.__class__)]


@cache
def _hears_samples(kind: Any) -> bool:
    own = kind._process_message is Messenger._process_message
    own = own and kind._postprocess_message is Messenger._postprocess_message
    return not own or hasattr(kind, "_pyro_sample") or hasattr(kind, "_pyro_post_sample")


@contextmanager
def validation(enabled: bool) -> Iterator[None]:
    """Switch every argument check of Pyro and torch on or off inside the block."""
    with pyro.settings.context(
        validate_infer=enabled,
        validate_distributions_pyro=enabled,
        validate_distributions_torch=enabled,
    ):
        yield
