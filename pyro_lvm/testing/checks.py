"""What laws are made of: a measured failure, fixed seeds, programs in a store of their own."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from pyro_lvm.testing import oracles
from pyro_lvm.training.scope import Scope

__all__ = [
    "STANDARD_ERRORS",
    "everywhere",
    "gradients",
    "is_double",
    "mean_and_error",
    "own",
    "require",
    "same",
    "seeded",
]

STANDARD_ERRORS = 5.0
Proposal = Callable[[Tensor], Any]


def require(condition: bool, message: str) -> None:
    """Raise an AssertionError with a message unless the condition holds (`assert` is gone under `python -O`)."""
    if not condition:
        raise AssertionError(message)


# Densities and samplers


def mean_and_error(values: Tensor) -> tuple[float, float]:
    """A mean and its standard error."""
    return float(values.mean()), float(values.std() / math.sqrt(len(values)))


def everywhere(covariates: Mapping[str, Tensor] | None, rows: int) -> dict[str, Any]:
    """Covariates of one row, shape (1, ...) each, repeated for many."""
    return {name: row.expand(rows, *row.shape[1:]) for name, row in (covariates or {}).items()}


# Enumeration and EM


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Torch's generator at a seed inside the block, as it was afterwards."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        yield


@contextmanager
def own(model: Callable, args: tuple, kwargs: dict[str, Any]) -> Iterator[Callable]:
    """A copy of a model, initialised on the data, in a parameter store of its own."""
    program = copy.deepcopy(model)
    scope = Scope()
    scope.adopt(program)
    with seeded(0), scope():
        initialize = getattr(program, "initialize", None)
        if initialize is not None:
            initialize(*args, **kwargs)
        yield program


def gradients(value: Tensor, targets: list[Tensor]) -> list[Tensor]:
    """Gradients of a scalar, zero where it does not depend on a target."""
    if not value.requires_grad:
        return [torch.zeros_like(target) for target in targets]
    found = torch.autograd.grad(value, targets, allow_unused=True)
    return [torch.zeros_like(t) if g is None else g for t, g in zip(targets, found, strict=True)]


def is_double(program: Callable, args: tuple, kwargs: dict[str, Any]) -> bool:
    """Whether all parameters of a program are float64."""
    return all(t.dtype == torch.float64 for t in oracles.parameters(program, *args, **kwargs).values())


def same(law: str, what: str, before: Mapping[str, Tensor], after: Mapping[str, Tensor]) -> None:
    """Require two sets of named tensors to be equal to the last bit."""
    require(before.keys() == after.keys(), f"{law}: {what} were {sorted(before)} and are {sorted(after)}.")
    for name, a in before.items():
        b = after[name]
        if a.shape == b.shape and a.dtype == b.dtype and torch.equal(a, b):
            continue
        gap = "another shape"
        if a.shape == b.shape:
            gap = f"{float((a.detach().double() - b.detach().double()).abs().max()):.3g}"
        require(False, f"{law}: {what} are not bit-identical; '{name}' differs by {gap}.")
