"""The options of `lvm.fit`, checked before anything is computed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from pyro_lvm.ops.whole_number import whole_number
from pyro_lvm.training.callbacks import Callback

__all__ = ["SEEDS", "check_options", "choose_device", "choose_seed", "list_of_callbacks"]

SEEDS = 2**63
"""Seeds are below this."""


def check_options(
    model: Any, restarts: Any, max_epochs: Any, batch_size: Any, tol: Any, patience: Any, checkpoint: Any
) -> None:
    """Raise unless the model can be run and the numbers are in range.

    Raises:
        TypeError: The model is not a program, or the checkpoint not a path.
        ValueError: A number is out of range.
    """
    if not callable(model):
        raise TypeError(f"fit: expected model to be a Pyro program (a callable); got {type(model).__name__}.")
    if isinstance(model, type):
        raise TypeError(f"fit: expected a model, got the class {model.__name__}. Make one: {model.__name__}(...).")
    for name, value in (
        ("restarts", restarts),
        ("max_epochs", max_epochs),
        ("batch_size", batch_size),
        ("patience", patience),
    ):
        if value is not None or name == "restarts":
            whole_number("fit", name, value)
    if tol is not None and (isinstance(tol, (bool, str)) or not tol >= 0):
        raise ValueError(f"fit: expected tol >= 0; got {tol!r}.")
    if checkpoint is not None and not isinstance(checkpoint, (str, Path)):
        raise TypeError(f"fit: expected checkpoint to be a folder's path; got {type(checkpoint).__name__}.")


def choose_seed(seed: Any) -> int:
    """The seed of a fit; drawn from torch's generator if None."""
    if seed is None:
        return int(torch.randint(2**31, (1,)).item())
    return whole_number("fit", "seed", seed, least=0, below=SEEDS)


def choose_device(device: Any, data: Any, model: Any) -> torch.device | None:
    """Where to compute; None leaves data and model where they are.

    Raises:
        ValueError: There is no such device here.
    """
    if device != "auto":
        try:
            torch.zeros(1, device=device).item()
            return torch.device(device)
        except (RuntimeError, AssertionError, TypeError) as error:
            raise ValueError(
                f"fit: expected device 'auto', 'cpu', or one that this machine has; got {device!r}, "
                "which cannot be used here. Leave it out to use what there is."
            ) from error
    if isinstance(data, torch.Tensor) and data.device.type != "cpu":
        return data.device
    if isinstance(model, torch.nn.Module) and torch.cuda.is_available():
        return torch.device("cuda")
    return None


def list_of_callbacks(callbacks: Callback | Sequence[Callback] | None) -> list[Callable]:
    """Callbacks as a list; one alone will do.

    Raises:
        TypeError: One of them cannot be called.
    """
    if callbacks is None:
        return []
    several: list[Any] = [callbacks] if callable(callbacks) else list(callbacks)
    wrong = [type(callback).__name__ for callback in several if not callable(callback)]
    if wrong:
        raise TypeError(f"fit: expected callbacks to be functions of the run; got {wrong[0]}.")
    return several
