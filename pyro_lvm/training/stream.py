"""Data that are too many to hold: batches read anew in every epoch."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, MappingView, Set
from dataclasses import dataclass, replace
from operator import length_hint
from typing import Any

from torch.utils.data import BatchSampler, DataLoader, IterableDataset

from pyro_lvm.ops.whole_number import whole_number
from pyro_lvm.training.data import Arguments, unpacked

__all__ = ["Stream", "as_stream"]


@dataclass(frozen=True)
class Stream:
    """Batches, of which one is in memory at a time.

    Attributes:
        source: Gives the batches of one epoch each time it is iterated over.
        num_rows: Rows of all batches together, if known.
        rows_per_batch: Rows of a batch on average over an epoch, if known.
        convert: Checks and converts a batch; by default batches stay as they come.
    """

    source: Any
    num_rows: int | None
    convert: Callable[[Any], Any] = lambda batch: batch
    rows_per_batch: float | None = None

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
    given, batches = _given(data)
    return Stream(data, num_rows or given, rows_per_batch=given / batches if given else None)


def _given(data: Any) -> tuple[int | None, int]:
    """Rows and batches of an epoch of a loader, if known: a sampler may leave rows of the data set out, or repeat them.

    A batch sampler of the user's may do so too, and tells nothing unless it is a list.
    """
    if not isinstance(data, DataLoader):
        return None, 0
    batches: Any = data.batch_sampler if data.batch_size is None else data  # None if the data set gives batches
    if isinstance(batches, (list, tuple)):
        return sum(map(len, batches)), len(batches)
    if batches is not data and getattr(type(batches), "__iter__", None) is not BatchSampler.__iter__:
        return None, 0
    rows = length_hint(data.dataset if isinstance(data.dataset, IterableDataset) else batches.sampler)
    size = batches.batch_size
    rows = rows // size * size if batches.drop_last else rows
    return rows or None, math.ceil(rows / size)


def _gives_batches(data: Any) -> bool:
    kind = type(data)
    return (
        hasattr(kind, "__iter__")
        and not hasattr(kind, "__next__")
        and not hasattr(kind, "__getitem__")
        and not hasattr(kind, "toarray")
        and not isinstance(data, (str, Mapping, MappingView, Set))
    )
