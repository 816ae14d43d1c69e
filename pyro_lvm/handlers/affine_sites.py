r"""Programs whose rows are an affine map of latent sites of one law, as normal ones, found by running them.

One run with :math:`k + 1` rows that differ only in :math:`h`, zero and multiples of the unit vectors, shows :math:`b`
and :math:`b + c W e_j`; a few other rows show, every time, whether the program is such a map at all.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pyro.distributions as dist
import torch
from pyro import poutine
from torch import Tensor

from pyro_lvm import _pyro
from pyro_lvm.handlers.counted import same_scale
from pyro_lvm.handlers.rows import row_plate
from pyro_lvm.ops.linear_gaussian import LinearGaussian
from pyro_lvm.ops.plain_error import PlainError

__all__ = ["AffineSites", "unmasked"]

FAR = 2.0**20  # of the points that show the map: where rows are far from zero, near ones lose its digits
TOLERANCE = 1e-4  # relative: what rounding in single precision leaves of an affine map


@dataclass
class _Site:
    """A site of rows: its entries' place in the vector of all sites of its kind, and the shape of one row's value."""

    name: str
    columns: slice
    shape: torch.Size


class AffineSites:
    """The latent and observed sites of a program whose rows are normal, with means affine in the latent ones.

    Args:
        name: Who asks, for errors.
        model: Any Pyro program.
        args: Its arguments.
        kwargs: Its keyword arguments.
        latent: Laws with a location and a scale, one of which is that of all latent sites; and what else they have, by
            the names of arguments. Normal by default.

    Raises:
        ValueError: The program is not of this kind; says why.
    """

    def __init__(
        self,
        name: str,
        model: Callable,
        args: tuple,
        kwargs: dict[str, Any],
        latent: Mapping[type, Sequence[str]] | None = None,
    ) -> None:
        self.owner, self.model = name, model
        self.latent_laws: dict[type, Sequence[str]] = {dist.Normal: ()} if latent is None else dict(latent)
        self._seen: tuple[list[Any], list[int], Tensor, Tensor | None] | None = None
        with torch.no_grad(), torch.random.fork_rng():
            first = self.rows(args, kwargs, torch.zeros(2, dtype=torch.long))
            trace = self._run(first, {})
            self.plate = row_plate(trace)
            self.latent, self.observed = self._sites(trace, False), self._sites(trace, True)
            if not self.latent or not self.observed:
                missing = "latent" if not self.latent else "observed"
                self._refuse(f"there is no {missing} site in the plate of the rows")
            self.like = trace.nodes[self.observed[0].name]["value"]
            with torch.enable_grad():  # values are looked at once for all steps
                values = self._run(first, {}).nodes
            for site in self.observed:
                if values[site.name]["value"].requires_grad:
                    self._refuse(f"what is observed at site '{site.name}' depends on parameters")
            self._probe(args, kwargs)

    def law(self, args: tuple, kwargs: dict[str, Any]) -> LinearGaussian:
        """What the program is at its current parameters, in double precision; differentiable by them.

        Of latent sites that are not normal, the squares of their scales stand for variances.

        Raises:
            ValueError: It is no affine map any more, or not the same for all rows.
        """
        return self.law_and_rest(args, kwargs)[0]

    def law_and_rest(self, args: tuple, kwargs: dict[str, Any]) -> tuple[LinearGaussian, list[Tensor]]:
        """The same, and what else the law of the latent sites has, shape (k,) each."""
        k, n = self.latent[-1].columns.stop, self.count(args, kwargs)
        units = FAR * torch.eye(k)
        others = torch.tensor([[3.0 * (-0.7) ** (i + j) for j in range(k)] for i in range(3)])
        points = torch.cat([torch.zeros(1, k), units, others]).to(self.like)
        which = torch.tensor([0] * (k + 1) + [n // 3, n // 2, n - 1])
        trace = self._at(args, kwargs, which, points)
        loc, scale = (self._joined(trace, self.observed, argument).double() for argument in ("loc", "scale"))
        prior = self._prior(trace)
        weight = (loc[1 : k + 1] - loc[0]).mT / FAR
        law = LinearGaussian(loc[0], weight, scale[0].square(), prior[0][0], prior[1][0].square())
        self._check(law, points[k + 1 :].double(), loc[k + 1 :], scale, prior)
        return law, [part[0] for part in prior[2:]]

    @property
    def latent_law(self) -> type:
        """The law of the latent sites."""
        return next(iter(self.latent_laws))

    def _prior(self, trace: Any) -> list[Tensor]:
        """All arguments of the law of the latent sites, shape (rows, k) each."""
        names = ("loc", "scale", *self.latent_laws[self.latent_law])
        return [self._joined(trace, self.latent, name).double() for name in names]

    def _check(self, law: LinearGaussian, h: Tensor, loc: Tensor, scale: Tensor, prior: list[Tensor]) -> None:
        """Refuse a program that is not affine in its latent sites, or whose rows differ in more than their values."""
        with torch.no_grad():
            moved = h @ law.weight.mT
            size = moved.abs().amax() + law.noise.sqrt().amax() + law.weight.abs().amax()
            rounding = 64 * torch.finfo(self.like.dtype).eps * law.loc.abs().amax()
            if not bool(((loc - law.loc - moved).abs() <= TOLERANCE * size + rounding).all()):
                self._refuse("the mean of its rows is not one affine map of its latent sites, the same for all rows")
            if not _near(scale, scale[:1]):
                self._refuse("the variance of its rows depends on more than parameters")
            if not all(_near(part, part[:1]) for part in prior):
                self._refuse("a latent site depends on another, or on the rows")

    def values(self, args: tuple, kwargs: dict[str, Any]) -> Tensor:
        """The observed rows, shape (n, d), NaN where they are masked out; found once for the same tensors."""
        return self._rows(args, kwargs)[0]

    def counts(self, args: tuple, kwargs: dict[str, Any]) -> Tensor | None:
        """How often each row counts, by the scale of its sites, float64 of shape (n,); None if all count once."""
        return self._rows(args, kwargs)[1]

    def _rows(self, args: tuple, kwargs: dict[str, Any]) -> tuple[Tensor, Tensor | None]:
        every = [*args, *kwargs.values()]
        versions = [value._version for value in every if isinstance(value, Tensor)]
        if self._seen is not None:
            before, written, values, counts = self._seen
            if len(before) == len(every) and all(map(operator.is_, before, every)) and versions == written:
                return values, counts
        with torch.no_grad(), torch.random.fork_rng():
            trace = self._run((args, kwargs), {})
        values, counts = self._observed(trace), self._scale(trace)
        self._seen = every, versions, values, counts
        return values, counts

    def _scale(self, trace: Any) -> Tensor | None:
        """How often each row counts."""
        first, *others = (trace.nodes[site.name]["scale"] for site in (*self.latent, *self.observed))
        n = len(trace.nodes[self.observed[0].name]["value"])
        if any(not same_scale(scale, first) for scale in others) or torch.as_tensor(first).numel() not in (1, n):
            self._refuse("its sites are not all scaled alike, by one number for each row")
        if not isinstance(first, Tensor) and first == 1.0:
            return None
        return torch.as_tensor(first, dtype=torch.float64, device=self.like.device).reshape(-1).expand(n)

    def _observed(self, trace: Any) -> Tensor:
        columns: list[Tensor] = []
        for site in self.observed:
            node = trace.nodes[site.name]
            value, mask = node["value"], _mask(node)
            columns.append((value if mask is None else torch.where(mask, value, torch.nan)).reshape(len(value), -1))
        return torch.cat(columns, -1)

    def latent_values(self, h: Tensor) -> dict[str, Tensor]:
        """Vectors, shape (n, k), as values of the latent sites."""
        return {site.name: h[:, site.columns].reshape(len(h), *site.shape) for site in self.latent}

    def observed_values(self, x: Tensor) -> dict[str, Tensor]:
        """Rows, shape (n, d), as values of the observed sites."""
        return {site.name: x[:, site.columns].reshape(len(x), *site.shape) for site in self.observed}

    def _run(self, arguments: tuple[tuple, dict[str, Any]], given: dict[str, Tensor]) -> Any:
        model = poutine.condition(self.model, given) if given else self.model
        with poutine.block(hide_types=["sample", "observe"]):  # parameters are read for whoever listens
            return _pyro.plain_trace(model, *arguments)

    def _at(self, args: tuple, kwargs: dict[str, Any], which: Tensor, h: Tensor) -> Any:
        """A trace of rows, some perhaps many times, at given latent vectors."""
        with torch.random.fork_rng():
            return self._run(self.rows(args, kwargs, which), self.latent_values(h))

    def rows(
        self, args: tuple, kwargs: dict[str, Any], which: Tensor, known: bool = False
    ) -> tuple[tuple, dict[str, Any]]:
        """The arguments of some rows, perhaps many times; with `known`, without gaps."""
        n = self.count(args, kwargs)

        def some(value: Any) -> Any:
            rowwise = isinstance(value, Tensor) and value.dim() and len(value) == n
            found = value.index_select(0, which.to(value.device)) if rowwise else value
            return torch.nan_to_num(found) if rowwise and known and found.is_floating_point() else found

        return tuple(some(a) for a in args), {name: some(v) for name, v in kwargs.items()}

    def _sites(self, trace: Any, observed: bool) -> list[_Site]:
        found: list[_Site] = []
        for name, site in trace.nodes.items():
            if site["type"] != "sample" or _pyro.site_is_subsample(site) or site["is_observed"] is not observed:
                continue
            plates = [frame.name for frame in site["cond_indep_stack"]]
            if self.plate not in plates:
                if observed:
                    self._refuse(f"site '{name}' is observed outside of the plate of the rows")
                self._refuse(f"site '{name}' is shared by all rows")
            expected = [dist.Normal] if observed else list(self.latent_laws)
            law: Any = next((kind for kind in expected if isinstance(_base(site["fn"]), kind)), None)
            if law is None:
                self._refuse(f"site '{name}' is {type(_base(site['fn'])).__name__}, not {_either(expected)}")
            if not observed:
                self.latent_laws = {law: self.latent_laws[law]}  # which the others must have, too
            if plates != [self.plate]:
                self._refuse(f"site '{name}' stands in further plates")
            if site["mask"] is not None:
                self._refuse(f"site '{name}' is masked by poutine.mask; mask its law instead")
            shape = site["value"].shape[1:]
            start = found[-1].columns.stop if found else 0
            found.append(_Site(name, slice(start, start + max(1, shape.numel())), shape))
        return found

    def _joined(self, trace: Any, sites: list[_Site], argument: str) -> Tensor:
        """An argument of the sites' laws, shape (rows, entries of a row)."""
        parts = []
        for site in sites:
            node = trace.nodes[site.name]
            value = getattr(_base(node["fn"]), argument)
            parts.append(value.expand(node["value"].shape).reshape(len(node["value"]), -1))
        return torch.cat(parts, -1)

    def _probe(self, args: tuple, kwargs: dict[str, Any]) -> None:
        """Look at all rows, and at the map."""
        law = self.law(args, kwargs)
        n, k = self.count(args, kwargs), law.weight.shape[1]
        trace = self._at(args, kwargs, torch.arange(n), self.like.new_zeros(n, k))
        loc, scale = (self._joined(trace, self.observed, argument).double() for argument in ("loc", "scale"))
        prior = self._prior(trace)
        self._check(law, law.weight.new_zeros(n, k), loc, scale, prior)

    def count(self, args: tuple, kwargs: dict[str, Any]) -> int:
        """How many rows there are."""
        every = [value for value in (*args, *kwargs.values()) if isinstance(value, Tensor) and value.dim()]
        if not every:
            self._refuse("it takes no rows")
        return len(every[0])

    def _refuse(self, why: str) -> None:
        kind = _either(list(self.latent_laws)).replace("Normal", "normal")
        raise PlainError(
            f"{self.owner}: expected a program of normal rows that are an affine map of {kind} latent sites; {why}. "
            "Use inference='svi' with another guide, as 'local'."
        )


def _either(laws: list[type]) -> str:
    return " or ".join(law.__name__ for law in laws)


def _base(fn: Any) -> Any:
    while isinstance(fn, (torch.distributions.Independent, dist.MaskedDistribution)):
        fn = fn.base_dist
    return fn


def _mask(site: dict[str, Any]) -> Tensor | None:
    """Which entries of an observed value count; None if all do."""
    fn = site["fn"]
    while isinstance(fn, torch.distributions.Independent):
        fn = fn.base_dist
    if isinstance(fn, dist.MaskedDistribution):
        return torch.as_tensor(fn._mask).expand_as(site["value"])
    return None


def unmasked(fn: Any) -> Any:
    """A law without its mask, of which all entries count."""
    if isinstance(fn, torch.distributions.Independent) and isinstance(fn.base_dist, dist.MaskedDistribution):
        return fn.base_dist.base_dist.to_event(fn.reinterpreted_batch_ndims)
    return fn.base_dist if isinstance(fn, dist.MaskedDistribution) else fn


def _near(value: Tensor, expected: Tensor) -> bool:
    return bool(((value - expected).abs() <= TOLERANCE * expected.abs()).all())
