"""Data that are too many to hold: batches read anew in every epoch."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, MappingView, Set
from dataclasses import dataclass, replace
from operator import length_hint
from typing import Any

from torch.utils.data import DataLoader, IterableDataset

from pyro_lvm.ops.whole_number import whole_number
from pyro_lvm.training.data import Arguments, unpacked

__all__ = ["Stream", "as_stream"]


@dataclass(frozen=True)
class Stream:
    """Batches, of which one is in memory at a time.

    Attributes:
        source: Gives the batches of one epoch each time it is iterated over.
        num_rows: Rows of all batches together, if known.
        rows_per_batch: Rows of every batch, where there is no small last one.
        convert: Checks and converts a batch; by default batches stay as they come.
    """

    source: Any
    num_rows: int | None
    convert: Callable[[Any], Any] = lambda batch: batch
    rows_per_batch: int | None = None

    def through(self, convert: Callable[[Any], Arguments]) -> Stream:
        """The same batches, each converted."""
        return replace(self, convert=convert)

    def batches(self, batch_size: int | None = None) -> Iterator[Any]:
        """One epoch; the batches are the stream's own.

        Raises:
            ValueError: There is no batch, as when the source can be read only once.
        """
        empty = True
        for batch in self.source:
            empty = False
            yield self.convert(unpacked(batch))
        if empty:
            raise ValueError(
                f"data: expected {type(self.source).__name__} to give batches in every epoch; got none. "
                "Let its __iter__ start from the beginning."
            )

    def first(self) -> Any:
        """The first batch, converted if the others are."""
        return next(self.batches())

    def num_batches(self, first: Arguments) -> int | None:
        """Batches of an epoch, if known, given the first one."""
        if self.num_rows is not None:
            return math.ceil(self.num_rows / first.num_rows)
        return length_hint(self.source) or None


def as_stream(data: Any, batch_size: int | None = None, num_rows: Any = None) -> Stream | None:
    """The batches of a stream, or None if `data` are in memory.

    Args:
        data: A `torch.utils.data.DataLoader`; an `IterableDataset`, of rows if there is a `batch_size` and of batches
            if not; any other object that can be iterated over again and again, but not indexed, giving batches.
        batch_size: Rows of a batch.
        num_rows: Rows of all batches together; if None, as many as a loader says that it gives in an epoch.

    Raises:
        ValueError: `batch_size` or `num_rows` make no sense for such data.
    """
    if isinstance(data, IterableDataset) and batch_size is not None:
        data = DataLoader(data, batch_size=batch_size)
    if not isinstance(data, (IterableDataset, DataLoader)) and not _gives_batches(data):
        if num_rows is not None:
            raise ValueError(f"fit: expected num_rows only with a stream of batches; got {type(data).__name__}.")
        return None
    if batch_size is not None and batch_size != getattr(data, "batch_size", None):
        raise ValueError(
            f"fit: {type(data).__name__} brings its own batches; got batch_size={batch_size}. Leave it out."
        )
    if num_rows is not None:
        num_rows = whole_number("fit", "num_rows", num_rows)
    each = data.batch_size if isinstance(data, DataLoader) and data.drop_last else None
    return Stream(data, num_rows or _rows_given(data), rows_per_batch=each)


def _rows_given(data: Any) -> int | None:
    """Rows of an epoch of a loader, if known: a sampler may leave rows of the data set out, or repeat them."""
    if not isinstance(data, DataLoader):
        return None
    batches: Any = data.batch_sampler if data.batch_size is None else data  # None if the data set gives batches
    source = data.dataset if isinstance(data.dataset, IterableDataset) else getattr(batches, "sampler", ())
    rows = 0 if batches is None else length_hint(source)
    size = batches.batch_size if getattr(batches, "drop_last", False) else 1
    return rows // size * size or None


def _gives_batches(data: Any) -> bool:
    kind = type(data)
    return (
        hasattr(kind, "__iter__")
        and not hasattr(kind, "__next__")
        and not hasattr(kind, "__getitem__")
        and not hasattr(kind, "toarray")
        and not isinstance(data, (str, Mapping, MappingView, Set))
    )
