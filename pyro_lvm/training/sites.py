"""The sites of a program against its data: is every row in a plate, and is the plate as long as the data?"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from pyro import poutine
from pyro.poutine.messenger import Messenger

from pyro_lvm import _pyro
from pyro_lvm.infer.structure import FEW_ROWS
from pyro_lvm.protocols import LatentVariableModel
from pyro_lvm.training.data import Arguments

if TYPE_CHECKING:
    from pyro_lvm.training.learned import Learned

__all__ = ["check_plate", "check_sites", "has_fixed_plate"]


def check_sites(model: Callable, arguments: Arguments, trace: poutine.Trace, *, exact: bool) -> None:
    """Raise a ValueError unless the program observes something and its plates explain its data.

    Args:
        model: Any Pyro program.
        arguments: All its arguments.
        trace: A trace on the first rows at least.
        exact: Whether sites are summed out, which takes a plate for every axis.
    """
    observed = [n for n in trace.observation_nodes if not trace.nodes[n]["infer"].get("_deterministic")]
    if not observed:
        raise ValueError("fit: the model observes nothing. Add pyro.sample(..., obs=x).")
    column = arguments.main.dim() == 2 and arguments.main.shape[1] == 1
    problem = _mismatch(trace, exact, column)
    if problem and arguments.num_rows > FEW_ROWS:  # a plate of fixed size does not fit the first rows
        with torch.random.fork_rng(), torch.no_grad():
            problem = _mismatch(_pyro.plain_trace(model, arguments.args, arguments.kwargs), exact, column)
    if problem:
        raise ValueError(f"fit: {problem}")


def _mismatch(trace: poutine.Trace, exact: bool, column: bool) -> str | None:
    """The first axis of a site that its plates do not explain."""
    for name, site in trace.nodes.items():
        if site["type"] != "sample":
            continue
        frames = {frame.dim: frame for frame in site["cond_indep_stack"] if frame.vectorized}
        event = site["fn"].event_dim
        value = site["value"].shape[: site["value"].dim() - event]
        for dim in range(-1, -1 - max(len(value), len(site["fn"].batch_shape)), -1):
            sizes = {shape[dim] for shape in (value, site["fn"].batch_shape) if -dim <= len(shape)} - {1}
            if not sizes:
                continue
            if dim in frames and sizes != {frames[dim].size}:
                plate, other = frames[dim], max(sizes - {frames[dim].size})
                return (
                    f"site '{name}' has {other} rows in plate '{plate.name}' of {plate.size}. "
                    f'Give the plate the length of the data: pyro.plate("{plate.name}", len(x)).'
                )
            if dim not in frames and column and any(sizes == {frame.size} for frame in frames.values()):
                return (
                    f"site '{name}' has rows along two axes, {max(sizes)} by {max(sizes)}, as x has one column, shape "
                    "(n, 1). Pass numbers, x[:, 0] or that column of the table, or let the program take vectors."
                )
            if dim not in frames and exact:
                return (
                    f"site '{name}' has an axis of {max(sizes)} that stands in no plate. "
                    'Put the site in `with pyro.plate("data", len(x)):`, or end its distribution with .to_event(1).'
                )
    return None


def check_plate(fit: Learned, arguments: Arguments) -> None:
    """Raise a ValueError if a fit's program has as many rows as its training data, whatever the arguments."""
    if isinstance(fit.model, LatentVariableModel):  # whose plates are the data's
        return
    trained = Arguments.rows_of(fit.shapes)
    with fit.scope():
        if trained is not None and has_fixed_plate(fit.model, arguments, fit.plate, trained):
            raise ValueError(
                f"Fit: the model's plate '{fit.plate}' has {trained} rows whatever the data; got "
                f'{arguments.num_rows}. Open it with pyro.plate("{fit.plate}", len(x)).'
            )


class _Reached(Exception):  # noqa: N818 - no error: the plate was found, and nothing more needs to be run
    pass


class _Plate(Messenger):
    """Stop the program as soon as a site stands in the plate, and keep the plate's size."""

    def __init__(self, plate: str) -> None:
        super().__init__()
        self.plate = plate
        self.size: int | None = None

    def _pyro_sample(self, msg: Any) -> None:
        for frame in msg["cond_indep_stack"]:
            if frame.name == self.plate:
                self.size = frame.size
                raise _Reached


def has_fixed_plate(model: Callable, arguments: Arguments, plate: str, size: int) -> bool:
    """Whether the plate has `size` rows though the arguments have another number.

    Args:
        model: Any Pyro program.
        arguments: Arguments of another number of rows than `size`.
        plate: Name of the plate of the rows.
        size: Number of rows of the training data.
    """
    if arguments.num_rows == size:
        return False
    found = _Plate(plate)
    with torch.random.fork_rng(), torch.no_grad(), _pyro.validation(False):
        try:
            with found:
                model(*arguments.args, **arguments.kwargs)
        except (_Reached, RuntimeError, ValueError, TypeError, IndexError):
            pass
    return found.size == size
