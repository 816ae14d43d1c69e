"""The law of a model's rows, made once where it only holds the model's tensors."""

from __future__ import annotations

from itertools import chain
from operator import is_
from typing import Any

from torch import Tensor

from pyro_lvm import _pyro

__all__ = ["KeptLaw"]


class KeptLaw:
    """`model.law()`; that of the call before, if its tensors are parameters and buffers that the model still has.

    Optimizers write to them in place, so the kept law is that of now. Handlers are told of the parameters either way.
    """

    def __init__(self) -> None:
        self._law: Any = None
        self._tensors: list[Tensor | None] = []

    def __call__(self, model: Any) -> Any:
        """The law of the rows of a model of this package with a `rows_site`."""
        with _pyro.reading(model) as told:
            if not told:
                return model.law()
            tensors = [*chain(model._parameters.values(), model._buffers.values())]
            if len(tensors) == len(self._tensors) and all(map(is_, tensors, self._tensors)):
                return self._law
            law = model.law()
        held = [value for value in vars(law).values() if isinstance(value, Tensor)]
        if all(any(value is tensor for tensor in tensors) for value in held):
            self._law, self._tensors = law, tensors
        return law
