"""Errors that stay one sentence inside Pyro's traces."""

from __future__ import annotations

import re

__all__ = ["PlainError"]


class PlainError(ValueError):
    """A mistake of the user that a handler finds while a program runs.

    A trace that an error passes makes another one of the same class, with a table of all shapes below the sentence,
    which helps against errors of tensors and not here: it is left out.
    """

    def __init__(self, message: str) -> None:
        super().__init__(re.split(r"\n\s*Trace Shapes:", message, maxsplit=1)[0])
