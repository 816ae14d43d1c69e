"""The plate of all rows at hand."""

from __future__ import annotations

from typing import Any

from pyro.poutine.broadcast_messenger import BroadcastMessenger
from pyro.poutine.indep_messenger import IndepMessenger
from pyro.poutine.plate_messenger import PlateMessenger
from pyro.poutine.subsample_messenger import SubsampleMessenger

from pyro_lvm import _pyro

__all__ = ["plate"]


class plate(PlateMessenger):  # noqa: N801 - as in Pyro
    """`pyro.plate` for rows that are all there, which takes several per cent less of a small network's step.

    Where only our own handlers listen it sends no message that asks for a subsample, and it leaves distributions alone
    that have its shape. Independence, scales and broadcasting are Pyro's.

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
        if _pyro.only_ours_listen():
            IndepMessenger.__init__(self, name, size, dim)
            self.subsample_size = size
        else:
            super().__init__(name, size, dim=dim)

    def _process_message(self, msg: Any) -> None:
        SubsampleMessenger._process_message(self, msg)
        if msg["type"] == "sample" and not _fits(msg):
            BroadcastMessenger._pyro_sample(msg)


def _fits(msg: Any) -> bool:
    """Whether a site's distribution has the sizes of its plates."""
    shape = getattr(msg["fn"], "batch_shape", ())
    frames = msg["cond_indep_stack"]
    return all(f.dim is None or (len(shape) >= -f.dim and shape[f.dim] == f.size) for f in frames)
