"""Why a guide and a model do not run together, found by running each alone."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from pyro_lvm import _pyro
from pyro_lvm.handlers.rows import rows

__all__ = ["mismatch"]


def mismatch(model: Callable, guide: Callable, args: tuple, kwargs: dict[str, Any]) -> str | None:
    """What is wrong with the sizes of a guide, as the rest of a sentence; None if it is something else.

    Args:
        model: Any Pyro program.
        guide: A guide that did not run with it.
        args: The arguments of both.
        kwargs: Their keyword arguments.
    """
    with torch.random.fork_rng(), torch.no_grad(), _pyro.validation(False), rows(search=False):
        try:
            theirs = _pyro.plain_trace(guide, args, kwargs)
        except RuntimeError as error:
            shapes = [str(tuple(v.shape)) for v in (*args, *kwargs.values()) if isinstance(v, Tensor)]
            return (
                f"expected a guide that runs on rows of shape {', '.join(shapes)}; torch says of this one: "
                f"{str(error).splitlines()[0].rstrip('.')}. Make it from the model that is trained."
            )
        except (ValueError, TypeError):
            return None  # a sentence of the guide's own
        try:
            ours = _pyro.plain_trace(model, args, kwargs)
        except (RuntimeError, ValueError, TypeError):
            return None
    for name in theirs.stochastic_nodes:
        if name not in ours.stochastic_nodes:
            continue
        drawn, own = (tuple(trace.nodes[name]["value"].shape) for trace in (theirs, ours))
        if drawn != own and drawn[-1:] != own[-1:]:
            return (
                f"expected a guide that draws site '{name}' in the model's shape {own}; got {drawn}. "
                "Make it from the model that is trained."
            )
    return None
