"""Numbers that people pass: finite, in range, and turned away with one sentence if not."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

__all__ = ["real_number"]

RANGES: dict[str, Callable[[float], bool]] = {
    "> 0": lambda number: number > 0,
    ">= 0": lambda number: number >= 0,
    "in (0, 1)": lambda number: 0 < number < 1,
    "in (0, 1]": lambda number: 0 < number <= 1,
    "in [0, 1)": lambda number: 0 <= number < 1,
}


def real_number(caller: str, name: str, value: Any, limits: str = "> 0") -> float:
    """A finite number as a `float`; scalars of numpy or torch will do, text and truth values will not.

    Args:
        caller: Who asks, for the message.
        name: Name of the argument, for the message.
        value: What was passed.
        limits: "> 0", ">= 0", "in (0, 1)", "in (0, 1]" or "in [0, 1)".

    Raises:
        ValueError: `value` is not a finite number in that range.

    Example:
        >>> real_number("VAE", "min_scale", 1)
        1.0
    """
    try:
        number = math.nan if isinstance(value, (bool, np.bool_, str, bytes)) else float(value)
    except (TypeError, ValueError, OverflowError, RuntimeError):
        number = math.nan
    if not math.isfinite(number) or not RANGES[limits](number):
        finite = " and finite" if math.isinf(number) and number > 0 and limits[0] == ">" else ""
        raise ValueError(f"{caller}: expected {name} {limits}{finite}; got {' '.join(repr(value).split())}.")
    return number
