"""Networks that programs hold: what they are, and whether they learn or serve."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch

__all__ = ["modes", "networks", "serving"]


def networks(program: Any) -> dict[str, torch.nn.Module]:
    """The networks of a program: itself, or by its names what a function reads from around it.

    Args:
        program: A module, a function, a bound method, or any of them under handlers.
    """
    return dict(_networks("", program, set()))


def _networks(name: str, value: Any, met: set[int]) -> Iterator[tuple[str, torch.nn.Module]]:
    if id(value) in met:
        return
    met.add(id(value))
    if isinstance(value, torch.nn.Module):
        yield name, value
    elif isinstance(value, partial):
        for part in (value.func, *value.args, value.keywords):
            yield from _networks(name, part, met)
    elif inspect.ismethod(value):
        owner = value.__self__
        yield from _networks(name, owner if isinstance(owner, torch.nn.Module) else vars(owner), met)
        yield from _networks(name, value.__func__, met)
    elif inspect.isfunction(value):
        around = inspect.getclosurevars(value)
        for inner, part in {**around.globals, **around.nonlocals}.items():
            if not inspect.isfunction(part) or part.__module__ == value.__module__:  # else a library's
                yield from _networks(inner, part, met)
    elif isinstance(value, Mapping):
        for key, part in value.items():
            yield from _networks(f"{name}.{key}".strip("."), part, met)
    elif isinstance(value, Sequence) and not isinstance(value, str):
        for index, part in enumerate(value):
            yield from _networks(f"{name}.{index}", part, met)
    elif callable(value) and not isinstance(value, type):
        yield from _networks(name, getattr(value, "__dict__", {}), met)


def serving(program: Any) -> Any:
    """A context in which a program's networks serve: they normalise by what they have learned, and drop nothing out."""
    return modes([part for network in networks(program).values() for part in network.modules()], training=False)


@contextmanager
def modes(parts: Sequence[torch.nn.Module], training: bool) -> Iterator[None]:
    """A context in which parts of networks learn, or serve."""
    changed = [part for part in parts if part.training is not training]
    for part in changed:
        part.training = training
    try:
        yield
    finally:
        for part in changed:
            part.training = not training
