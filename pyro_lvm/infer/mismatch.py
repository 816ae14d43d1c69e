"""Why a guide and a model do not run together, found by running each alone, or do not learn."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from pyro_lvm import _pyro
from pyro_lvm.handlers.rows import rows
from pyro_lvm.infer.nonfinite import NonFiniteLoss
from pyro_lvm.ops.networks import networks

__all__ = ["check_sizes", "warn_of_silent_parameters"]


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


def warn_of_silent_parameters(name: str, programs: Iterable[Callable], found: Mapping[str, Tensor]) -> None:
    """Warn of parameters that took part in the loss, but of which no message told: no optimizer will move them.

    Args:
        name: Who trains.
        programs: The programs that were run.
        found: The parameters that messages told of, their gradients there.
    """
    told = {id(tensor) for tensor in found.values()}
    every = [item for program in programs for net in networks(program).values() for item in net.named_parameters()]
    silent = [own for own, tensor in every if tensor.grad is not None and id(tensor) not in told]
    if silent:
        warnings.warn(
            f"{name}: {', '.join(silent[:3])}{', ...' * (len(silent) > 3)} will not be trained, as Pyro is not told of "
            "them. A PyroModule[torch.nn.Sequential] hides layers that are no PyroModules: use torch.nn.Sequential. If "
            "they are fixed on purpose, set requires_grad=False.",
            UserWarning,
            stacklevel=2,
        )
