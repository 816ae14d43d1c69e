"""Progress bars, for those who watch: on a terminal or in a notebook, on the error stream."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

from tqdm.auto import tqdm

__all__ = ["PATIENCE", "progress_bar", "without_progress"]

PATIENCE = 2.0
"""Seconds that people wait for an answer without wondering."""

_SHOWN: ContextVar[bool] = ContextVar("shown", default=True)


def progress_bar(total: int, description: str, unit: str, enabled: bool = True, delay: float = 0.0) -> Any:
    """A bar of tqdm, also a context that takes it off the screen at its end; silent where nobody watches.

    Args:
        total: How many units there are.
        description: What is going on.
        unit: What is counted.
        enabled: Whether to show it at all.
        delay: Seconds after which it appears, of work that may be done by then.
    """
    return tqdm(
        total=total,
        desc=description,
        unit=unit,
        disable=None if enabled and _SHOWN.get() else True,
        leave=False,
        file=sys.stderr,
        delay=delay,
        **_size(),
    )


@contextmanager
def without_progress(quiet: bool = True) -> Iterator[None]:
    """No bars inside of this context.

    Args:
        quiet: False to change nothing.
    """
    token = _SHOWN.set(_SHOWN.get() and not quiet)
    try:
        yield
    finally:
        _SHOWN.reset(token)


def _size() -> dict[str, int]:
    """A size for terminals that do not know theirs, as of `script` and of containers: tqdm draws nothing on those."""
    try:
        size = os.get_terminal_size(sys.stderr.fileno())
    except (OSError, ValueError, AttributeError):  # no terminal
        return {}
    return {} if size.columns and size.lines else {"ncols": 80, "nrows": 24}
