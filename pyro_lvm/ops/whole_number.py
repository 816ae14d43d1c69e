"""Counts that people pass: whole, in range, and turned away with one sentence if not."""

from __future__ import annotations

from typing import Any

import numpy as np

__all__ = ["whole_number"]


def whole_number(caller: str, name: str, value: Any, *, least: int = 1, below: int | None = None) -> int:
    """A count as an `int`; whole floats and scalars of numpy or torch will do, truth values will not.

    Args:
        caller: Who asks, for the message.
        name: Name of the argument, for the message.
        value: What was passed.
        least: Smallest value allowed.
        below: All values must be smaller, if given.

    Raises:
        ValueError: `value` is not a whole number in that range.

    Example:
        >>> whole_number("GaussianMixture", "num_components", 2.0)
        2
    """
    try:
        number = None if isinstance(value, (bool, np.bool_, str, bytes)) else int(value)
    except (TypeError, ValueError, OverflowError, RuntimeError):
        number = None
    if number is None or number != value or number < least or (below is not None and number >= below):
        limit = "" if below is None else f" and < {below}"
        shown = " ".join(repr(value).split())
        raise ValueError(f"{caller}: expected {name} to be a whole number >= {least}{limit}; got {shown}.")
    return number
