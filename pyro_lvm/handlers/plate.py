"""The plate of all rows at hand."""

from __future__ import annotations

from pyro.poutine.indep_messenger import IndepMessenger
from pyro.poutine.plate_messenger import PlateMessenger

__all__ = ["plate"]


class plate(PlateMessenger):  # noqa: N801 - as in Pyro
    """`pyro.plate` for rows that are all there: without the message by which it asks for a subsample.

    Independence, scales and broadcasting are Pyro's. A step of a small network takes a few milliseconds, of which the
    messages of two of Pyro's plates are about two per cent.

    Args:
        name: Unique within a program, as "data".
        size: Number of rows.
        dim: Which batch dimension the rows are, negative; by default the rightmost free one.

    Example:
        >>> import pyro, pyro.distributions as dist
        >>> with plate("data", 3):
        ...     pyro.sample("x", dist.Normal(0.0, 1.0)).shape
        torch.Size([3])
    """

    def __init__(self, name: str, size: int, dim: int | None = None) -> None:
        IndepMessenger.__init__(self, name, size, dim)
        self.subsample_size = size
