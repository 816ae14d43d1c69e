"""Let what a guide draws count as data: it carries no gradient back to the guide."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from pyro.poutine.messenger import Messenger
from torch import Tensor

__all__ = ["wake"]


class wake(Messenger):  # noqa: N801 - handlers are verbs, as in Pyro
    r"""Cut the gradient of every draw: a model replayed on them learns, and nothing reaches the guide through them.

    Densities of the draws keep their gradient, as updates of the guide at its own draws need. A handler around this one
    is told of a draw before it is cut: trace a guide inside, `with wake(): poutine.trace(guide).get_trace(x)`.

    Args:
        guide: The program to wrap; leave out to use the handler as a context.

    References:
        G. Hinton, P. Dayan, B. Frey, R. Neal (1995), The wake-sleep algorithm for unsupervised neural networks,
            Science 268.

    Example:
        >>> import pyro, torch, pyro.distributions as dist, pyro_lvm as lvm
        >>> def guide():
        ...     return pyro.sample("z", dist.Normal(pyro.param("loc", torch.tensor(0.0)), 1.0))
        >>> with pyro.get_param_store().scope():
        ...     lvm.handlers.wake(guide)().requires_grad
        False
    """

    def __new__(cls, guide: Callable | None = None) -> Any:
        """Wrap a guide, or make a context."""
        handler = super().__new__(cls)
        if guide is None:
            return handler
        handler.__init__()
        return handler(guide)

    def __init__(self, guide: Callable | None = None) -> None:
        super().__init__()

    def _pyro_post_sample(self, msg: Any) -> None:
        if not msg["is_observed"] and isinstance(msg["value"], Tensor):
            msg["value"] = msg["value"].detach()
