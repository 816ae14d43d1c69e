"""Make a batch count for the whole data set."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from pyro.poutine.messenger import Messenger
from pyro.poutine.runtime import effectful

from pyro_lvm.ops.plain_error import PlainError
from pyro_lvm.ops.real_number import real_number

__all__ = ["STANDS_FOR_ROWS", "minibatch", "rows_stand_for"]

STANDS_FOR_ROWS = "_stands_for_rows"
"""Mark, in `infer` of a site in the plate of the rows, that what is there stands for all rows as it is."""


class minibatch(Messenger):  # noqa: N801 - handlers are verbs, as in Pyro
    r"""Scale every site of the data plate by `total / batch_size`, so that a batch's loss estimates the whole data's.

    The model need not know the total: it opens its plate with the size of the batch.

    Args:
        model: The program to wrap; leave out to use the handler as a context.
        total: Number of rows of the whole data set.
        plate: Name of the plate of the rows; any other plate is left alone.
        batch_size: Rows of a batch on average over an epoch. Every row then counts alike, those of a small last batch
            too, and the mean loss of the batches is that of all rows. By default the rows of the batch at hand, which
            then counts for all rows however small it is.

    Raises:
        ValueError: `total` is smaller than the batch, or `batch_size` is not positive.

    Example:
        >>> import torch, pyro_lvm as lvm
        >>> model = lvm.models.GaussianMixture(2, data_dim=1)
        >>> scaled = lvm.handlers.minibatch(model, total=1000)
    """

    def __new__(cls, model: Callable | None = None, **kwargs: Any) -> Any:
        """Wrap a model, or make a context."""
        handler = super().__new__(cls)
        if model is None:
            return handler
        handler.__init__(None, **kwargs)
        return handler(model)

    def __init__(
        self, model: Callable | None = None, *, total: int, plate: str = "data", batch_size: float | None = None
    ) -> None:
        super().__init__()
        if batch_size is not None:
            real_number("minibatch", "batch_size", batch_size)
        self.total = total
        self.plate = plate
        self.batch_size = batch_size

    def scale(self, rows: int) -> float:
        """What each row of a batch of so many counts for."""
        return self.total / (self.batch_size or rows)

    def _pyro_rows_stand_for(self, msg: Any) -> None:
        plate, rows = msg["args"]
        if plate == self.plate:
            msg["value"] = (1.0 if msg["value"] is None else msg["value"]) * self.scale(rows)

    def _pyro_sample(self, msg: Any) -> None:
        if msg["infer"].get(STANDS_FOR_ROWS):
            return
        for frame in msg["cond_indep_stack"]:
            if frame.name == self.plate:
                if frame.size > self.total:
                    raise PlainError(
                        f"minibatch: expected plate '{self.plate}' of at most total={self.total} rows; "
                        f"got {frame.size}. Pass the size of the whole data set as total."
                    )
                msg["scale"] = msg["scale"] * self.scale(frame.size)


def _themselves(plate: str, rows: int) -> float:
    """What rows stand for outside of any `minibatch`."""
    return 1.0


rows_stand_for: Callable[[str, int], float] = effectful(_themselves, type="rows_stand_for")
"""What each row of a batch of so many, in that plate, counts for."""
