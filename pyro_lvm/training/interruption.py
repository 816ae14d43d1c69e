"""Ctrl-C between steps, never inside of one: what a step writes to is written wholly or not at all."""

from __future__ import annotations

import signal
import threading
from dataclasses import dataclass, field
from types import FrameType
from typing import Any

from torch import Tensor

__all__ = ["Interruption", "Unfinished"]


@dataclass
class Unfinished:
    """An epoch that was interrupted: how it began, and the steps that were taken.

    Attributes:
        rng_state: Torch's random state at its beginning, which tells the order of its batches.
        batch_size: Rows of a batch.
        num_rows: Rows of the data, if known.
        losses: Of the steps so far.
        counts: Rows of their batches.
    """

    rng_state: Tensor
    batch_size: int | None
    num_rows: int | None
    losses: list[float] = field(default_factory=list)
    counts: list[int] = field(default_factory=list)

    def fits(self, batch_size: int | None, num_rows: int | None) -> bool:
        """Whether an epoch of such data can go on where this one stopped."""
        return (self.batch_size, self.num_rows) == (batch_size, num_rows)


class Interruption:
    """Puts the first Ctrl-C off until somebody asks for it; a second one interrupts at once.

    Other handlers of the signal stay, and so does Python's own outside of the main thread.

    Attributes:
        asked: Whether the user wants to stop.
    """

    def __init__(self) -> None:
        self.asked = False
        self._before: Any = None

    def __enter__(self) -> Interruption:
        ours = threading.current_thread() is threading.main_thread()
        if ours and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
            self._before = signal.signal(signal.SIGINT, self._note)
        return self

    def __exit__(self, *_: object) -> None:
        if self._before is not None:
            signal.signal(signal.SIGINT, self._before)
            self._before = None

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.asked:
            raise KeyboardInterrupt
        self.asked = True

    def check(self) -> None:
        """Raise a KeyboardInterrupt if the user asked for it."""
        if self.asked:
            raise KeyboardInterrupt
