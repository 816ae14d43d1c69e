r"""Tell a guide which values of its sites are known: it draws those, and keeps to its own law for the others.

With known values :math:`v_n` of rows :math:`n \in K` the evidence lower bound is

.. math::

    \sum_{n \in K} \log p(x_n, v_n) + \sum_{n \notin K} \mathrm{E}_{z_n \sim q} \log \frac{p(x_n, z_n)}{q(z_n \mid x_n)}
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import pyro.distributions as dist
import torch
from pyro.poutine.runtime import effectful
from torch import Tensor

from pyro_lvm._pyro import DRAWN_ALONE
from pyro_lvm.distributions.partly_known import PartlyKnown
from pyro_lvm.handlers.clamp import check_known, clamp
from pyro_lvm.ops.plain_error import PlainError

__all__ = ["inform", "with_known_values"]


class inform(clamp):  # noqa: N801 - handlers are verbs, as in Pyro
    r"""Let a guide draw known values, for all rows or for those in a mask, without any law of its own for them.

    The model needs nothing: it is scored at what the guide draws. Every objective then counts log p at known values,
    and no entropy. What a guide draws after a known value is drawn given that. `handlers.clamp` of the model alone
    would leave the guide to match the prior in rows whose value it cannot choose.

    `lvm.fit(model, {"x": x, "z": values}, guide)` does this.

    Args:
        guide: The program to wrap; leave out to use the handler as a context around a run of the guide.
        values: Values by site name, each of the site's shape: its plates', then its event's. Entries that the mask
            leaves out are never read and may be anything, NaN too.
        mask: Which entries are known, as for `handlers.clamp`.

    Raises:
        ValueError: The guide does not draw such a site by itself, a shape is wrong, or a known value is NaN or outside
            of the site's support.

    References:
        D. Kingma, D. Rezende, S. Mohamed, M. Welling (2014), Semi-supervised learning with deep generative models,
            NeurIPS, equations 6 to 8.

    Example:
        >>> import pyro, torch, pyro.distributions as dist, pyro_lvm as lvm
        >>> def guide(x):
        ...     with pyro.plate("data", len(x)):
        ...         return pyro.sample("z", dist.Normal(torch.zeros(len(x)), 1.0))
        >>> values, known = torch.tensor([5.0, 7.0]), torch.tensor([True, False])
        >>> float(lvm.handlers.inform(guide, {"z": values}, mask=known)(torch.zeros(2))[0])
        5.0
    """

    caller: ClassVar[str] = "inform"

    def __new__(cls, guide: Callable | None = None, values: Mapping[str, Any] | None = None, mask: Any = None) -> Any:
        """Wrap a guide, or make a context."""
        return super().__new__(cls, guide, values, mask)

    def __init__(
        self, guide: Callable | None = None, values: Mapping[str, Any] | None = None, mask: Any = None
    ) -> None:
        super().__init__(None, values, mask)
        self._parts: set[str] = set()

    def __enter__(self) -> Any:
        """Install the handler."""
        self._parts = set()
        return super().__enter__()

    def of_model(self, model: Callable) -> Callable:
        """The model with the same values, for guides that search with the model itself."""
        masks = {name: self.masks.get(name, torch.ones((), dtype=torch.bool)) for name in self.values}
        return clamp(model, self.values, masks)

    def _pyro_known_values(self, msg: Any) -> None:
        if msg["value"] is None:
            msg["value"] = self.of_model

    def _pyro_sample(self, msg: Any) -> None:
        name, fn = msg["name"], msg["fn"]
        if msg["infer"].get("is_auxiliary"):
            self._parts.add(name)
            whole = name.removesuffix(DRAWN_ALONE)
            if whole != name and whole in self.values:  # drawn in vain where the value is known
                unknown = ~self._known(whole, fn)
                msg["mask"] = unknown if msg["mask"] is None else unknown & torch.as_tensor(msg["mask"])
            return
        if name not in self.values:
            return
        self._met.add(name)
        if isinstance(fn, dist.Delta) and self._parts and name + DRAWN_ALONE not in self._parts:
            raise PlainError(
                f"inform: expected a guide that draws site '{name}' by itself; this one draws it together with others "
                f"(in '{min(self._parts)}'). Use guide 'normal', 'local', an amortised one, or one of your own."
            )
        given, known = self.values[name], self._known(name, fn)
        check_known(self.caller, msg, given, known)
        msg["fn"] = PartlyKnown(fn, given, known)

    def _known(self, name: str, fn: Any) -> Tensor:
        known = self.known(name, fn)
        device = self.values[name].device
        return torch.ones((), dtype=torch.bool, device=device) if known is None else known.to(device)


def with_known_values(model: Callable) -> Callable:
    """The model with the values clamped that a guide at work was informed of; as it is outside of `inform`."""
    of_model = _ask()
    return model if of_model is None else of_model(model)


def _nothing() -> None:
    """What is known outside of any `inform`."""


_ask: Callable[[], Callable | None] = effectful(_nothing, type="known_values")
