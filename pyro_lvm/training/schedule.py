"""How data are cut into steps, and how many make an epoch."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from pyro_lvm.training.data import Arguments
from pyro_lvm.training.sites import has_fixed_plate
from pyro_lvm.training.stream import Stream

if TYPE_CHECKING:
    from pyro_lvm.training.result import Fit

__all__ = ["PATIENCE_STEPS", "choose_batch_size", "expected_steps", "steps_of_epoch"]

PATIENCE_STEPS = 200
FULL_BATCH_ROWS = 4096
BATCH_SIZE = 1024


def choose_batch_size(result: Fit, data: Arguments | Stream, batch_size: int | None) -> int | None:
    """Rows per step, None for all of them or for a stream's own batches.

    Raises:
        ValueError: The inference, or a plate of fixed size, needs all rows in every step.
    """
    inference = type(result.inference).__name__
    if isinstance(data, Stream):
        if result.inference.full_batch:
            raise ValueError(
                f"fit: {inference} uses all rows in every step; got a stream of batches. "
                "Pass all rows as one array, or use EM(decay=0.7) or inference='svi'."
            )
        return None
    rows = data.num_rows
    if result.inference.full_batch and batch_size is not None and batch_size < rows:
        raise ValueError(
            f"fit: {inference} uses all rows in every step; got batch_size={batch_size}. "
            "Leave batch_size out, or use EM(decay=0.7) or inference='svi'."
        )
    asked = batch_size
    if batch_size is None and not result.inference.full_batch and rows > FULL_BATCH_ROWS:
        batch_size = BATCH_SIZE
    if batch_size is None or batch_size >= rows:
        return None
    if not has_fixed_plate(result.program, data.rows(slice(0, batch_size)), result.plate, rows):
        return batch_size
    if asked is None:
        return None
    raise ValueError(
        f"fit: the model's plate '{result.plate}' has {rows} rows whatever the batch; got batch_size={batch_size}. "
        f'Open it with pyro.plate("{result.plate}", len(x)), or leave batch_size out.'
    )


def expected_steps(result: Fit, data: Arguments | Stream, steps: int) -> float:
    """Steps of the next epoch, `steps` if its length is known: of a stream as in the last one; infinite if unknown."""
    if isinstance(data, Arguments):
        return steps
    return result.last_epoch[0] or (math.inf if data.num_batches(result.prototype()) is None else steps)


def steps_of_epoch(result: Fit, data: Arguments | Stream, batch_size: int | None) -> int:
    """Steps of an epoch; a guess for a stream of unknown length."""
    if isinstance(data, Arguments):
        return data.num_batches(batch_size)
    return data.num_batches(result.prototype()) or PATIENCE_STEPS // 5
