r"""Observe a site for some rows and leave it latent for the others.

A row :math:`n` whose value :math:`v_n` of site :math:`z` is known contributes :math:`p(x_n, z_n = v_n)`, any other row
:math:`p(x_n) = \sum_z p(x_n, z)`:

.. math:: \log p = \sum_n \log \sum_z p(x_n, z)\, [z = v_n \text{ or } v_n \text{ unknown}].
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import pyro
import torch
from pyro import poutine
from pyro.poutine.messenger import Messenger
from torch import Tensor

from pyro_lvm import _pyro
from pyro_lvm.distributions.partly_known import LOG_ZERO, PartlyKnown
from pyro_lvm.handlers.hidden_states import clamped_states, states_of
from pyro_lvm.ops.plain_error import PlainError

__all__ = ["check_known", "check_values", "clamp"]


class clamp(Messenger):  # noqa: N801 - handlers are verbs, as in Pyro
    r"""Give known values to sites: for all rows, or for those in a mask, while the others stay latent.

    An enumerated site stays enumerated, and a factor rules out the states that contradict a known value, so posteriors
    of known rows are one-hot under every inference that enumerates (EM, SVI, NUTS, `infer_discrete`). Any other site
    keeps its latent value for unknown rows; where it is known the program sees the given value, whose density counts
    once, at the site `"<name>_clamped"`, and the latent entry that is not used stays a draw from the prior, so that
    evidence and gradients are those of the known rows. Without a mask the site is simply observed.

    The states of a hidden Markov site (`lvm.distributions.HMM`) are known by their own name, that of its
    `infer={"states": name}`, or "<site>_states": one whole number for every step, -1 where it is unknown; the mask may
    have an entry for every step or for every sequence.

    A known value that the rest of a row makes impossible shows as a log-likelihood near -1e30, or of minus infinity
    where it is a path of probability zero.

    As a context, enter it around a run of the model, not of a guide: a guide that draws the site too is told by
    `handlers.inform`, and then the model needs no clamp.

    Args:
        model: The program to wrap; leave out to use the handler as a context.
        values: Values by site name, each of the site's shape: its plates', then its event's. Entries that the mask
            leaves out are never read and may be anything, NaN too.
        mask: Which entries are known, True or False in the shape of the site's plates; a dict gives each site a mask
            of its own (a site without one is known everywhere); None if everything is known.

    Raises:
        ValueError: A site is unknown or observed already, a shape is wrong, a known value is NaN or outside of the
            site's support, or a guide draws a site that is known everywhere.

    References:
        K. Nigam, A. McCallum, S. Thrun, T. Mitchell (2000), Text classification from labeled and unlabeled documents
        using EM, Machine Learning 39, section 3.

    Example:
        >>> import torch, pyro_lvm as lvm
        >>> iris = lvm.datasets.load("iris")
        >>> known = torch.arange(150) % 10 == 0
        >>> model = lvm.handlers.clamp(lvm.models.GaussianMixture(3), {"z": iris.labels}, mask=known)
        >>> fit = lvm.fit(model, iris.x, seed=0, progress=False)
        >>> bool((fit.predict(iris.x) == iris.labels).double().mean() > 0.9)
        True
    """

    caller: ClassVar[str] = "clamp"  # in errors

    def __new__(
        cls,
        model: Callable | None = None,
        values: Mapping[str, Any] | None = None,
        mask: Any = None,
    ) -> Any:
        """Wrap a model, or make a context."""
        handler = super().__new__(cls)
        if model is None:
            return handler
        handler.__init__(None, values, mask)
        program = handler(model)
        program.model, program.clamp = model, handler
        return program

    def __init__(
        self, model: Callable | None = None, values: Mapping[str, Any] | None = None, mask: Any = None
    ) -> None:
        super().__init__()
        if not isinstance(values, Mapping) or not values:
            raise ValueError(f"{self.caller}: expected values by site name, as in {{'z': labels}}; got {values!r}.")
        self.values = {name: torch.as_tensor(value) for name, value in values.items()}
        masks = mask if isinstance(mask, Mapping) else dict.fromkeys(self.values, mask)
        stray = sorted(masks.keys() - self.values.keys())
        if stray:
            raise ValueError(f"{self.caller}: expected masks for {', '.join(self.values)}; got one for '{stray[0]}'.")
        self.masks = {name: torch.as_tensor(value) for name, value in masks.items() if value is not None}
        for name, value in self.masks.items():
            if value.dtype != torch.bool:
                raise ValueError(
                    f"{self.caller}: expected the mask of '{name}' to be True or False; got {value.dtype}."
                )
        self._met: set[str] = set()

    def __enter__(self) -> Any:
        """Install the handler."""
        self._met = set()
        return super().__enter__()

    def __exit__(self, kind: Any, error: Any, traceback: Any) -> None:
        """Remove the handler; a name that no site has is an error."""
        super().__exit__(kind, error, traceback)
        missing = sorted(self.values.keys() - self._met)
        if missing and kind is None:
            raise ValueError(
                f"{self.caller}: expected values of sites that the program has; it has no site '{missing[0]}'. "
                "Check the name given to pyro.sample."
            )

    def known(self, name: str, fn: Any) -> Tensor | None:
        """Which entries of a site are known, in the shape of its plates; None if all are, and it is to be observed."""
        return self.masks.get(name)

    def _pyro_sample(self, msg: Any) -> None:
        name, fn = msg["name"], msg["fn"]
        states = states_of(msg)
        if states in self.values:
            self._met.add(states)
            msg["fn"] = clamped_states(self.caller, msg, states, self.values[states], self.masks.get(states))
        if name not in self.values:
            return
        self._met.add(name)
        if msg["is_observed"]:
            raise PlainError(
                f"{self.caller}: expected latent sites; '{name}' is observed by the program. Leave it out."
            )
        given, known = self.values[name], self.known(name, fn)
        check_known(self.caller, msg, given, known)
        if known is None and not msg["done"]:
            drawn = _pyro.replayed(name)
            if drawn is not None and not isinstance(drawn["fn"], PartlyKnown):
                raise PlainError(
                    f"{self.caller}: expected a guide that does not draw '{name}', all of whose values are known; got "
                    f"one that does. Use handlers.inform(guide, values), and no {self.caller} of the model."
                )
            msg["value"] = _typed(given, fn).expand(_plates(msg) + fn.event_shape)
            msg["is_observed"] = True
            return
        known = torch.ones((), dtype=torch.bool, device=given.device) if known is None else known
        infer, then = msg["infer"], msg["continuation"]

        def complete(site: Any) -> None:
            """Every handler has seen the site by now, wherever in the stack this one stands."""
            if then is not None:
                then(site)
            # a guide's enumeration arrives by replay, with the guide's own annotations
            if site["infer"] is infer and infer.get("_enumerate_dim") is not None:
                _rule_out(site, given, known)
            else:
                _substitute(site, given, known)

        msg["continuation"] = complete


def _rule_out(site: Any, given: Tensor, known: Tensor) -> None:
    """Of an enumerated site's states, leave only the given one."""
    value, event_dim = site["value"], site["fn"].event_dim
    other = value != given.to(value)
    other = other.flatten(-event_dim).any(-1) if event_dim else other
    with torch.no_grad():  # for its type: the states themselves are whole numbers
        zero = site["fn"].log_prob(value).new_zeros(())
    pyro.factor(f"{site['name']}_clamped", torch.where(known.to(value.device) & other, zero + LOG_ZERO, zero))


def _substitute(site: Any, given: Tensor, known: Tensor) -> None:
    """Show the program the given value where there is one, and count its density there."""
    fn, value = site["fn"], site["value"]
    known = known.to(value.device)
    events = known.reshape(known.shape + (1,) * fn.event_dim)
    site["value"] = torch.where(events, given.to(value), value)
    with poutine.mask(mask=known):
        pyro.sample(f"{site['name']}_clamped", fn, obs=site["value"])


def _plates(msg: Any) -> torch.Size:
    """The shape of the plates that a site stands in."""
    sizes = {-frame.dim: frame.size for frame in msg["cond_indep_stack"] if frame.vectorized}
    return torch.Size(sizes.get(dim, 1) for dim in range(max(sizes, default=0), 0, -1))


def _typed(given: Tensor, fn: Any) -> Tensor:
    """Values in the type that the site's own would have."""
    if fn.has_enumerate_support:
        return given.to(fn.enumerate_support(expand=False).dtype)
    return given if given.is_floating_point() else given.to(torch.get_default_dtype())


def check_known(caller: str, msg: Any, given: Tensor, known: Tensor | None) -> None:
    """Raise a ValueError unless known values fit a site, also in their range if that is checked at all."""
    _check_shapes(caller, msg, given, known)
    if getattr(msg["fn"], "_validate_args", True):
        check_values(caller, msg, given, known)


def _check_shapes(caller: str, msg: Any, given: Tensor, known: Tensor | None) -> None:
    name, plates, event = msg["name"], _plates(msg), msg["fn"].event_shape
    batch = given.shape[: max(0, given.dim() - len(event))]
    if given.shape[len(batch) :] != event or not _fits(batch, plates):
        raise PlainError(
            f"{caller}: expected values of '{name}' of shape {tuple(plates + event)}, its plates and event; "
            f"got {tuple(given.shape)}. Give one value per row, anything where it is unknown."
        )
    if known is not None and not _fits(known.shape, plates):
        raise PlainError(
            f"{caller}: expected the mask of '{name}' of shape {tuple(plates)}, its plates; got {tuple(known.shape)}. "
            "Give one True or False per row."
        )


def _fits(shape: torch.Size, target: torch.Size) -> bool:
    return len(shape) <= len(target) and all(
        a in (1, b) for a, b in zip(reversed(shape), reversed(target), strict=False)
    )


def check_values(caller: str, msg: Any, given: Tensor, known: Tensor | None) -> None:
    """Raise a ValueError unless known values of a site, `msg["name"]`, are in the support of its law `msg["fn"]`."""
    name, fn = msg["name"], msg["fn"]
    missing, infinite = given.isnan(), given.isinf()
    if fn.event_dim:
        missing, infinite = (bad.flatten(-fn.event_dim).any(-1) for bad in (missing, infinite))
    outside = ~fn.support.check(given) | infinite
    for bad, what in ((missing, "NaN"), (outside & ~missing, "")):
        bad = bad if known is None else bad & known
        if bool(bad.any()):
            place = tuple(bad.nonzero()[0].tolist())
            entry = given.expand(*bad.shape, *fn.event_shape)[place]
            what = what or (f"{entry.item():g}" if not entry.dim() else str(entry.tolist()))
            raise PlainError(
                f"{caller}: expected known values of '{name}' in its support ({fn.support}); got {what} at {place}. "
                "Correct it, or mark it as unknown: by False in a mask; in labels by NaN, or by -1 in whole numbers."
            )
