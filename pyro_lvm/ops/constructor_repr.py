"""Objects that show how they were made."""

from __future__ import annotations

import inspect
from typing import Any, Self

import torch

__all__ = ["ConstructorRepr"]

WIDTH = 60  # characters of an argument: longer ones are shown by their class


class ConstructorRepr:
    """Shows as the call that made it, with the arguments that were given.

    Example:
        >>> class Steps(ConstructorRepr):
        ...     def __init__(self, count=1, rate=0.1):
        ...         self.count = count
        >>> Steps(3), Steps(rate=0.5)
        (Steps(count=3), Steps(rate=0.5))
    """

    _given: dict[str, Any]

    def __new__(cls, *args: Any, **kwargs: Any) -> Self:
        """Note the arguments; wrong ones are for the constructor to refuse."""
        self = super().__new__(cls)
        try:
            self._given = dict(inspect.signature(cls).bind(*args, **kwargs).arguments)
        except TypeError:
            self._given = {}
        return self

    def __repr__(self) -> str:
        given = ", ".join(f"{name}={_shown(value)}" for name, value in self._given.items())
        return f"{type(self).__name__}({given})"


def _shown(value: Any) -> str:
    if inspect.isroutine(value) or isinstance(value, type):
        return value.__name__
    text = " ".join(repr(value).split())
    if len(text) <= WIDTH and not (isinstance(value, torch.nn.Module) and "\n" in repr(value)):
        return text
    return f"{type(value).__name__}(...)"
