"""The continuous latent sites of rows, of any program, as one vector for every row."""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from pyro.infer import TraceEnum_ELBO, config_enumerate
from torch import Tensor
from torch.distributions import biject_to

from pyro_lvm import _pyro
from pyro_lvm.handlers.inform import with_known_values
from pyro_lvm.handlers.rows import row_plate, rows_at_hand
from pyro_lvm.ops.plain_error import PlainError

__all__ = ["RowSites", "Settled"]


@dataclass
class _Site:
    """One site of rows: where its entries are in a row's vector, and how they become its value."""

    name: str
    columns: slice
    shape: torch.Size
    axis: int
    event_dim: int
    transform: Any
    plates: list[str]
    scale: Any
    mask: Any

    def unflat(self, flat: Tensor) -> Tensor:
        """Entries of rows, (n, k), as an array in the site's own shape, unconstrained."""
        shape = list(self.shape)
        shape.pop(self.axis)
        return flat[:, self.columns].reshape(len(flat), *shape).movedim(0, self.axis)

    def flat(self, values: Any) -> Tensor:
        """The inverse, of what broadcasts to the site's shape."""
        return torch.as_tensor(values).expand(self.shape).movedim(self.axis, 0).reshape(self.shape[self.axis], -1)


class RowSites:
    """What a program's rows hold in one run: its arguments stay with it.

    Discrete sites of rows are summed out. Of continuous ones, those in the plate of the rows are the rows'; the others
    are shared.

    Args:
        name: Who asks, for errors.
        model: Any Pyro program.
        args: Its arguments.
        kwargs: Its keyword arguments.
        given: Values of shared sites.

    Raises:
        ValueError: No continuous site stands in the plate of the rows, or a discrete one cannot be summed out.
    """

    def __init__(
        self, name: str, model: Callable, args: tuple, kwargs: dict[str, Any], given: dict[str, Tensor] | None = None
    ) -> None:
        self.owner, self.args, self.kwargs = name, args, kwargs
        self.program = poutine.condition(model, given) if given else model
        self.model = with_known_values(self.program)
        with torch.no_grad():
            trace = self._run(poutine.trace(self.model).get_trace)
        self.plate = row_plate(trace)
        self.shared: list[str] = []
        self.sites: list[_Site] = []
        self.summed = False
        self.plates: dict[str, dict[str, Any]] = {}
        self.index: Tensor | None = None
        self.total = self.depth = self.width = 0
        for key in trace.stochastic_nodes:
            if not _pyro.site_is_subsample(trace.nodes[key]):
                self._take(trace.nodes[key], trace)
        if not self.sites:
            raise PlainError(
                f"{name}: expected continuous latent sites in the plate '{self.plate}' of the rows; the model has "
                "none. Use another guide."
            )
        self.drawn = torch.cat([s.flat(s.transform.inv(trace.nodes[s.name]["value"])) for s in self.sites], -1)

    def _run(self, function: Callable) -> Any:
        """Run a program unseen by handlers around the guide, but for its parameters."""
        with poutine.block(hide_fn=lambda msg: msg["type"] != "param"):
            return function(*self.args, **self.kwargs)

    def _take(self, site: Any, trace: poutine.Trace) -> None:
        fn, frames = site["fn"], [frame for frame in site["cond_indep_stack"] if frame.vectorized]
        row = next((frame for frame in frames if frame.name == self.plate), None)
        self.depth = max([self.depth, *(-frame.dim for frame in frames)])
        if fn.support.is_discrete:
            if not fn.has_enumerate_support:
                raise PlainError(
                    f"{self.owner}: expected continuous latent sites, or discrete ones that can be summed out; site "
                    f"'{site['name']}' is neither. Use a guide that draws it."
                )
            self.summed = True
            return
        if row is None:
            self.shared.append(site["name"])
            return
        for frame in frames:
            index = None if frame.full_size in (None, frame.size) else trace.nodes[frame.name]["value"]
            self.plates[frame.name] = {"size": frame.full_size or frame.size, "dim": frame.dim, "subsample": index}
        self.index, self.total = self.plates[self.plate]["subsample"], self.plates[self.plate]["size"]
        transform = biject_to(fn.support)
        event_dim = fn.event_dim - transform.codomain.event_dim + transform.domain.event_dim
        shape = transform.inverse_shape(fn.shape())
        width = math.prod(shape) // row.size
        columns = slice(self.width, self.width + width)
        self.width += width
        self.sites.append(
            _Site(
                site["name"],
                columns,
                shape,
                row.dim - event_dim + len(shape),
                event_dim,
                transform,
                [frame.name for frame in frames],
                site["scale"],
                site["mask"],
            )
        )

    def again(self, args: tuple | None = None, kwargs: dict[str, Any] | None = None) -> RowSites:
        """The same sites in another run, with other rows if there are arguments."""
        if args is None or kwargs is None:
            args, kwargs = self.args, self.kwargs
        return RowSites(self.owner, self.program, args, kwargs)

    @property
    def num_rows(self) -> int:
        """Rows of this run."""
        return len(self.drawn)

    @property
    def weight(self) -> Tensor:
        """What the density of each entry counts, (n, k): the product of its scale and mask."""

        def one(site: _Site) -> Tensor:
            weight = torch.ones(site.shape[: len(site.shape) - site.event_dim]).to(self.drawn) * site.scale
            weight = weight if site.mask is None else weight * site.mask
            return site.flat(weight.reshape(*weight.shape, *[1] * site.event_dim))

        return torch.cat([one(site) for site in self.sites], -1)

    def log_joint(self, flat: Tensor) -> Tensor:
        """The log-density of the rows and of their vectors in unconstrained space, nats, summed over rows.

        Args:
            flat: One vector for every row, (n, k).
        """
        values, bent = {}, torch.zeros((), dtype=flat.dtype, device=flat.device)
        for site in self.sites:
            plain = site.unflat(flat)
            values[site.name] = site.transform(plain)
            if not _is_real(site.transform):
                volume = site.transform.log_abs_det_jacobian(plain, values[site.name])
                inner = site.event_dim - site.transform.domain.event_dim
                volume = (volume.flatten(volume.dim() - inner).sum(-1) if inner else volume) * site.scale
                bent = bent + (volume if site.mask is None else volume * site.mask).sum()
        model = poutine.condition(self.model, values)
        if not self.summed:
            return bent + self._run(poutine.trace(model).get_trace).log_prob_sum()
        objective = TraceEnum_ELBO(max_plate_nesting=self.depth)
        with _pyro.own_enumeration(), _pyro.exact_log_sums():
            return bent - self._run(
                lambda *args, **kwargs: objective.differentiable_loss(
                    config_enumerate(model), lambda *a, **k: None, *args, **kwargs
                )
            )

    def draw(self, place: Tensor) -> dict[str, Tensor]:
        """Draw every site from its normal law.

        Args:
            place: Means and log standard deviations of every row, (n, 2k); n may differ from this run's.
        """
        loc, scale = place.chunk(2, -1)
        scale = scale.exp()
        settings = dict(self.plates)
        if len(place) != self.num_rows:
            settings[self.plate] = {**settings[self.plate], "size": len(place), "subsample": None}
        plates = {name: pyro.plate(name, **setting) for name, setting in settings.items()}
        found = {}
        for site in self.sites:
            law = dist.Normal(site.unflat(loc), site.unflat(scale)).to_event(site.event_dim)
            if not _is_real(site.transform):
                law = dist.TransformedDistribution(law, [site.transform])
            found[site.name] = _sample(site, law, plates)
        return found


def _sample(site: _Site, law: Any, plates: dict[str, Any]) -> Tensor:
    """Draw inside of the site's plates, outermost first, under its mask, and counted as the model counts it."""

    def inside(names: list[str]) -> Tensor:
        if names:
            with plates[names[0]]:
                return inside(names[1:])
        masked = nullcontext() if site.mask is None else poutine.mask(mask=site.mask)
        alike = not isinstance(site.scale, Tensor) and site.scale == 1.0
        counted = nullcontext() if alike else poutine.scale(scale=site.scale)
        with masked, counted:
            return pyro.sample(site.name, law)

    return inside(site.plates)


def _is_real(transform: Any) -> bool:
    """Whether a transform from unconstrained space changes nothing."""
    while hasattr(transform, "base_transform"):
        transform = transform.base_transform
    return getattr(transform, "parts", None) == []


class Settled:
    """A guide that has found the laws of given rows: called with these, or with some that `handlers.rows` names.

    Args:
        guide: What else the guide draws, called first; None if nothing.
        sites: The sites of the rows.
        place: Their means and log standard deviations, (n, 2k).
    """

    def __init__(self, guide: Callable | None, sites: RowSites, place: Tensor) -> None:
        self.guide = guide
        self.sites = sites
        self.place = place

    def __call__(self, *args: Any, **kwargs: Any) -> dict[str, Tensor]:
        """Draw every site."""
        hand = rows_at_hand()
        place = self.place if hand is None or hand.index is None else self.place[hand.index]
        sites = self.sites
        if len(place) != sites.num_rows and any(
            isinstance(part, Tensor) for site in sites.sites for part in (site.mask, site.scale)
        ):
            sites = sites.again(args, kwargs)  # masks and scales of these rows
        others = {} if self.guide is None else self.guide(*args, **kwargs)
        return {**others, **sites.draw(place)}
