"""Small tensors are computed faster by one thread: waking and waiting for others costs more than they save."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

__all__ = ["fitting_threads"]

# Numbers in the data below which one operation takes less time than synchronising threads (about 10 microseconds).
SMALL = 50_000


@contextmanager
def fitting_threads(numel: int) -> Iterator[None]:
    """One torch thread inside the block if there are few numbers to work on; the old setting afterwards.

    Args:
        numel: Numbers in the data.
    """
    old = torch.get_num_threads()
    if numel < SMALL and old > 1:
        torch.set_num_threads(1)
    try:
        yield
    finally:
        if torch.get_num_threads() != old:
            torch.set_num_threads(old)
