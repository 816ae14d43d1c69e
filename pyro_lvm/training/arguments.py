"""A model's arguments: what `fit` and every verb hand to programs."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from pyro_lvm.training.sequences import LENGTHS, Layout, along_steps, real_steps

__all__ = ["WEIGHTS", "Arguments"]

WEIGHTS = "sample_weights"
"""The argument of a program that says how many rows each row counts for."""


@dataclass
class Arguments:
    """A model's arguments: tensors whose leading axis is the rows, and values passed on as they are.

    Attributes:
        names: Column names of the data argument, if it had any.
        layout: The form in which sequences were given; None for tables.
        index: Which rows of the data set a batch holds, shape (n,); None for all of them in their order.
    """

    args: tuple[Any, ...] = ()
    kwargs: dict[str, Any] = field(default_factory=dict)
    names: tuple[str, ...] | None = None
    layout: Layout | None = None
    index: Tensor | None = None

    @property
    def values(self) -> list[Any]:
        """All arguments, positional ones first."""
        return [*self.args, *self.kwargs.values()]

    @property
    def main(self) -> Tensor:
        """The data argument: the positional one, or "x", or the first tensor."""
        if "x" in self.kwargs:
            return self.kwargs["x"]
        for value in self.args:
            if isinstance(value, Tensor):
                return value
        return next(v for name, v in self.kwargs.items() if isinstance(v, Tensor) and name != WEIGHTS)

    @property
    def weights(self) -> Tensor:
        """How many rows each row counts for, shape (n,); ones unless `sample_weights` were given."""
        given = self.kwargs.get(WEIGHTS)
        return torch.ones(self.num_rows, device=self.main.device) if given is None else given

    def unweighted(self) -> Arguments:
        """The same arguments, every row counting once."""
        return replace(self, kwargs={k: v for k, v in self.kwargs.items() if k != WEIGHTS})

    @property
    def steps(self) -> Tensor | None:
        """Which steps are no padding, shape (n, T); None for tables."""
        if self.layout is None:
            return None
        n, total = self.main.shape[:2]
        lengths = self.kwargs.get(LENGTHS)
        every = torch.full((n,), total, device=self.main.device) if lengths is None else lengths
        return real_steps(every, total)

    @property
    def unpadded(self) -> Tensor:
        """The data argument with zeros in padding: the same for a sequence however long its neighbours are."""
        steps = self.steps
        if steps is None or bool(steps.all()):
            return self.main
        return torch.where(steps.reshape(*steps.shape, *[1] * (self.main.dim() - 2)), self.main, 0)

    def returned(self, values: Any, *, columns: bool = False) -> Any:
        """Values of every step in the form in which the sequences were given; see `Layout.returned`."""
        return (
            values if self.layout is None else self.layout.returned(values, self.kwargs.get(LENGTHS), columns=columns)
        )

    @property
    def num_rows(self) -> int:
        """Length of the leading axis."""
        return self.main.shape[0]

    def map(self, function: Callable[[Tensor], Tensor], **changes: Any) -> Arguments:
        """The same arguments with every tensor replaced, and other attributes changed."""
        return replace(
            self,
            args=tuple(function(a) if isinstance(a, Tensor) else a for a in self.args),
            kwargs={k: function(v) if isinstance(v, Tensor) else v for k, v in self.kwargs.items()},
            **changes,
        )

    def rows(self, which: slice | Tensor, **changes: Any) -> Arguments:
        """The arguments of some rows, and other attributes changed; a tensor holds the rows' numbers."""
        n = self.num_rows

        def some(value: Tensor) -> Tensor:
            if not value.dim() or value.shape[0] != n:
                return value
            if isinstance(which, Tensor) and which.dtype == torch.long:  # a third of the time of general indexing
                return value.index_select(0, which.to(value.device))
            return value[which]

        return self.map(some, **changes)

    def lasting(self, num_steps: int) -> Arguments:
        """Arguments of zeros that go along another number of steps; see `zeros`."""
        main = self.main
        if main.dim() < 2:
            raise ValueError(f"sample: expected num_steps only of sequences; got rows of shape {tuple(main.shape)}.")

        def one(value: Tensor) -> Tensor:
            return value.new_zeros((len(value), num_steps, *value.shape[2:])) if along_steps(value, main) else value

        made = self.map(one)
        if isinstance(made.kwargs.get(LENGTHS), Tensor):
            made.kwargs[LENGTHS] = torch.full_like(made.kwargs[LENGTHS], num_steps)
        return made

    def num_batches(self, batch_size: int | None) -> int:
        """Batches of an epoch: one row left over joins the last, as layers that normalise by the batch need two."""
        spare = 0 if batch_size == 1 else 1
        return 1 if batch_size is None else max(1, math.ceil((self.num_rows - spare) / batch_size))

    def batches(self, batch_size: int | None) -> Iterator[Arguments]:
        """Shuffled batches; all rows in their order if `batch_size` is None."""
        if batch_size is None or batch_size >= self.num_rows:
            yield self
            return
        parts = list(torch.randperm(self.num_rows).to(self.main.device).split(batch_size))
        if len(parts) > self.num_batches(batch_size):
            parts[-2:] = [torch.cat(parts[-2:])]
        for index in parts:
            yield self.rows(index, index=index)

    def shapes(self) -> dict[str, Any]:
        """Shapes and dtypes, enough to run the program once on zeros."""

        def one(value: Any) -> Any:
            if isinstance(value, Tensor):
                return {"shape": list(value.shape), "dtype": str(value.dtype).removeprefix("torch.")}
            return {"value": value}

        return {"args": [one(a) for a in self.args], "kwargs": {k: one(v) for k, v in self.kwargs.items()}}

    @staticmethod
    def rows_of(shapes: dict[str, Any]) -> int | None:
        """Number of rows of the arguments that had these `shapes`."""
        every = [*shapes["args"], *shapes["kwargs"].values()]
        return next((v["shape"][0] for v in every if v.get("shape")), None)

    @classmethod
    def zeros(cls, shapes: dict[str, Any], num_rows: int | None = None) -> Arguments:
        """Arguments of zeros from `shapes`, optionally with another number of rows."""

        def one(value: dict[str, Any]) -> Any:
            if "value" in value:
                return value["value"]
            shape = list(value["shape"])
            if num_rows is not None and shape and shape[0] == rows:
                shape[0] = num_rows
            return torch.zeros(shape, dtype=getattr(torch, value["dtype"]))

        rows = cls.rows_of(shapes)
        made = cls(tuple(one(a) for a in shapes["args"]), {k: one(v) for k, v in shapes["kwargs"].items()})
        if isinstance(made.kwargs.get(LENGTHS), Tensor) and made.main.dim() > 1:
            made.kwargs[LENGTHS] += made.main.shape[1]
        return made
