"""Let a generative program dream: draw everything, also what it would observe."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from pyro.poutine.messenger import Messenger

__all__ = ["dream"]


class dream(Messenger):  # noqa: N801 - handlers are verbs, as in Pyro
    r"""Draw every site from the program, observed ones too, without gradient to the program.

    An observed site keeps the value that it would have had as `infer["obs"]`, and is marked `infer["was_observed"]`.

    Args:
        model: The program to wrap; leave out to use the handler as a context.

    Raises:
        ValueError: The program has a `pyro.factor`, which says how likely draws are but not how to make them.

    References:
        G. Hinton, P. Dayan, B. Frey, R. Neal (1995), The wake-sleep algorithm for unsupervised neural networks,
            Science 268.

    Example:
        >>> import pyro, torch, pyro.distributions as dist, pyro_lvm as lvm
        >>> def model(x):
        ...     with pyro.plate("data", len(x)):
        ...         return pyro.sample("x", dist.Bernoulli(0.5), obs=x)
        >>> bool((lvm.handlers.dream(model)(torch.full((3,), 7.0)) == 7).any())
        False
    """

    def __new__(cls, model: Callable | None = None) -> Any:
        """Wrap a model, or make a context."""
        handler = super().__new__(cls)
        if model is None:
            return handler
        handler.__init__()
        return handler(model)

    def __init__(self, model: Callable | None = None) -> None:
        super().__init__()
        self._gradients: list[Any] = []

    def __enter__(self) -> Any:
        """Switch gradients off."""
        self._gradients.append(torch.no_grad())
        self._gradients[-1].__enter__()
        return super().__enter__()

    def __exit__(self, *error: Any) -> Any:
        """Switch gradients back on if they were."""
        self._gradients.pop().__exit__(None, None, None)
        return super().__exit__(*error)

    def _pyro_sample(self, msg: Any) -> None:
        if not msg["is_observed"] or msg["infer"].get("_deterministic"):
            return
        if type(msg["fn"]).__name__ == "Unit":
            raise ValueError(
                f"dream: site '{msg['name']}' is a pyro.factor, which cannot be drawn. Write it as a pyro.sample."
            )
        msg["infer"] = {**msg["infer"], "was_observed": True, "obs": msg["value"]}
        msg["is_observed"], msg["value"], msg["done"] = False, None, False
