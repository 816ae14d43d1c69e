"""What is left of a pretraining that was interrupted: it travels with the fit, also through files."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pyro_lvm.training.result import Fit

__all__ = ["Pretraining"]


@dataclass
class Pretraining:
    """Where a greedy pretraining stands.

    Attributes:
        max_epochs: Passes over the rows for each machine.
        batch_size: Rows of a step.
        inference: What each machine is trained by, as it was passed; a dict of what a file knows of one with parts of
            the user's.
        level: The layer whose machine is next, 0 for the rows.
        machine: The fit of that machine if its training has begun, else of the one below, or of a net that ends there.
        begun: Whether its training has begun.
    """

    max_epochs: int
    batch_size: int
    inference: Any = None
    level: int = 0
    machine: Fit | None = None
    begun: bool = False
