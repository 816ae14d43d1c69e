"""Why a guide and a model do not run together, found by running each alone, or do not learn."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from typing import Any

import torch
from torch import Tensor

from pyro_lvm import _pyro
from pyro_lvm.handlers.rows import rows
from pyro_lvm.infer.at_guide import is_point
from pyro_lvm.infer.nonfinite import NonFiniteLoss
from pyro_lvm.infer.structure import REFUSALS, structure
from pyro_lvm.ops.networks import serving

__all__ = ["check_names", "check_sizes", "warn_of_silent_parameters"]


def check_names(name: str, model: Callable, guide: Callable | None, args: tuple, kwargs: dict[str, Any]) -> None:
    """Raise a sentence if a guide does not draw the sites of a model, before anything is learned.

    An autoguide has the sites of the program it was made from. The model's discrete sites may be left to be summed out,
    and points (`Delta`), whose densities count nothing, may be left out. A program that does not run says so itself.

    Args:
        name: Of the inference.
        model: Any Pyro program.
        guide: Its guide, if it has one.
        args: The arguments of both.
        kwargs: Their keyword arguments.

    Raises:
        ValueError: The guide lacks a latent site, or draws another one.
    """
    makers = [] if guide is None else _pyro.site_makers(guide)
    if guide is None or (not makers and _pyro.made_from(guide) is not None):
        return
    try:
        with _pyro.validation(False):
            theirs, ours = [structure(maker, args, kwargs) for maker in makers], structure(model, args, kwargs)
    except REFUSALS:
        return
    drawn = [n for trace in theirs for n in trace.stochastic_nodes if not trace.nodes[n]["infer"].get("is_auxiliary")]
    latent = ours.stochastic_nodes
    needed = [n for n in latent if not _may_be_left(ours.nodes[n]["fn"])]
    lacking = [n for n in needed if n not in drawn]
    stray = [n for n in drawn if n not in latent]
    if not lacking and not stray:
        return
    has = f"the model's latent sites ({', '.join(latent)})" if latent else "latent sites of the model, which has none"
    got = f"it lacks '{lacking[0]}'" if lacking else f"it draws '{stray[0]}'"
    if lacking and stray:
        got = f"it draws '{stray[0]}', and not '{lacking[0]}'"
    advice = "Rename its sites" if stray else f"Add pyro.sample('{lacking[0]}', ...) to it"
    raise ValueError(f"{name}: expected a guide of {has}; {got}. {advice}, or make it from the model that is trained.")


def _may_be_left(fn: Any) -> bool:
    return getattr(fn, "has_enumerate_support", False) or is_point(fn)


def check_sizes(
    name: str, error: Exception, model: Callable | None, guide: Callable | None, args: tuple, kwargs: dict[str, Any]
) -> None:
    """Raise a sentence if a guide and a model do not run together because their sizes differ.

    Args:
        name: Of the inference.
        error: What they ran into; kept as the cause.
        model: Any Pyro program.
        guide: Its guide.
        args: The arguments of both.
        kwargs: Their keyword arguments.

    Raises:
        ValueError: The guide is made for rows, or draws values, of another shape.
    """
    if model is None or guide is None or isinstance(error, NonFiniteLoss):
        return
    advice = "Make it from the model that is trained."
    with torch.random.fork_rng(), torch.no_grad(), _pyro.validation(False), rows(search=False):
        try:
            theirs = _pyro.plain_trace(guide, args, kwargs)
        except RuntimeError as own:
            shapes = ", ".join(str(tuple(v.shape)) for v in (*args, *kwargs.values()) if isinstance(v, Tensor))
            said = str(own).splitlines()[0].rstrip(".")
            raise ValueError(
                f"{name}: expected a guide that runs on rows of shape {shapes}; torch says of this one: {said}. "
                f"{advice}"
            ) from error
        except (ValueError, TypeError):
            return  # a sentence of the guide's own
        try:
            ours = _pyro.plain_trace(model, args, kwargs)
        except (RuntimeError, ValueError, TypeError):
            return
    for site in theirs.stochastic_nodes:
        if site not in ours.stochastic_nodes:
            continue
        drawn, own_shape = (tuple(trace.nodes[site]["value"].shape) for trace in (theirs, ours))
        if drawn[-1:] != own_shape[-1:]:
            raise ValueError(
                f"{name}: expected a guide that draws site '{site}' in the model's shape {own_shape}; got {drawn}. "
                f"{advice}"
            ) from error


def warn_of_silent_parameters(
    name: str, programs: Iterable[Callable], found: Mapping[str, Tensor], args: tuple, kwargs: dict[str, Any]
) -> None:
    """Warn of parameters that took part in the loss, but of which no message told: no optimizer will move them.

    Args:
        name: Who trains.
        programs: The programs that were run.
        found: The parameters that messages told of, gradients of all there.
        args: The arguments of the programs.
        kwargs: Their keyword arguments.
    """
    called: list[torch.nn.Module] = []
    names: dict[int, str] = {}
    with serving(meet=called.append), suppress(*REFUSALS):
        for program in programs:
            structure(program, args, kwargs, fresh=False)
            module = _pyro.without_handlers(program)
            if isinstance(module, torch.nn.Module):
                names.update({id(tensor): own for own, tensor in module.named_parameters()})
    told = {id(tensor) for tensor in found.values()}
    silent = {
        id(tensor): names.get(id(tensor), f"{type(module).__name__}.{own}")
        for module in called
        for own, tensor in module.named_parameters()
        if tensor.grad is not None and id(tensor) not in told
    }
    if silent:
        some = list(silent.values())
        warnings.warn(
            f"{name}: {', '.join(some[:3])}{', ...' * (len(some) > 3)} will not be trained, as Pyro is not told of "
            "them. A PyroModule[torch.nn.Sequential] hides layers that are no PyroModules: use torch.nn.Sequential; "
            "modules go into attributes or a ModuleList, not into a list, and into pyro.module(...) in a function. If "
            "they are fixed on purpose, set requires_grad=False.",
            UserWarning,
            stacklevel=2,
        )
