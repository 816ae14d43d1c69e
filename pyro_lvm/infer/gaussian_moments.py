r"""The E-step of programs whose rows are an affine map of normal latent sites, as rows to observe.

What an M-step needs of the joint law of latent vectors and rows, :math:`y_n = (h_n, x_n)`, are the sums of
:math:`\mathrm{E}[y_n]` and :math:`\mathrm{E}[y_n y_n^\top]`. A few points have the same sums: those of the means, and
a pair on either side of the overall mean for every column of a root of the mean covariance within rows. On these points
every site is observed, so the M-steps of complete data are those of the program, whatever its parameters are.

Rows without gaps are themselves replaced by the 2 d points that have their mean and covariance, once for all steps: the
cost of a step does not grow with the number of rows.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Any, NamedTuple, Protocol, TypeGuard, runtime_checkable

import torch
from pyro import poutine
from pyro.poutine.messenger import Messenger
from torch import Tensor

from pyro_lvm.handlers.affine_sites import AffineSites, unmasked
from pyro_lvm.infer.at_guide import at_guide
from pyro_lvm.ops.linear_gaussian import LinearGaussian, Posterior

__all__ = ["Completed", "ExactPosterior", "GaussianMoments", "is_exact", "sites_of_points"]


class Completed(NamedTuple):
    """A program for an E-step by enumeration.

    Attributes:
        program: It; if a normal posterior completed it, at points that stand for the rows.
        args: Its arguments.
        kwargs: Its keyword arguments.
        log_likelihood: Of the rows that it stands for, nats; None if it is that of the program itself.
        strategy: How it was completed, in a few words.
    """

    program: Callable
    args: tuple
    kwargs: dict[str, Any]
    log_likelihood: float | None = None
    strategy: str = ""


@runtime_checkable
class ExactPosterior(Protocol):
    """A guide that is the exact normal posterior of the latent sites of rows."""

    def row_log_likelihood(self, *args: Any, **kwargs: Any) -> Tensor:
        """Log p(x) of every row, nats, shape (n,)."""

    def sites(self, args: tuple, kwargs: dict[str, Any]) -> AffineSites:
        """The program's sites."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Draw the latent sites."""


def is_exact(guide: Callable | None) -> TypeGuard[ExactPosterior]:
    """Whether a guide is the exact normal posterior of the latent sites of rows."""
    return isinstance(guide, ExactPosterior)


def sites_of_points(guide: Callable | None, args: tuple, kwargs: dict[str, Any]) -> Collection[str]:
    """The sites that rows share at which a guide puts point masses."""
    if guide is None or is_exact(guide):
        return ()
    nodes = poutine.trace(guide).get_trace(*args, **kwargs).nodes
    plates = {getattr(guide, "row_plate", None)}
    return [
        name
        for name, site in nodes.items()
        if site["type"] == "sample" and plates.isdisjoint(frame.name for frame in site["cond_indep_stack"])
    ]


class GaussianMoments:
    """E-steps by an exact normal posterior, where a guide is one; else the program is left as it is."""

    def __init__(self) -> None:
        self._seen: tuple[Tensor, Tensor] | None = None

    def complete(self, model: Callable, guide: Callable | None, args: tuple, kwargs: dict[str, Any]) -> Completed:
        """What to run at the current parameters.

        Args:
            model: Any Pyro program.
            guide: Point masses over continuous sites, an exact normal posterior of those of rows, or None.
            args: The model's arguments.
            kwargs: Its keyword arguments.
        """
        if not is_exact(guide):
            return Completed(at_guide(model, guide), args, kwargs, strategy=getattr(guide, "strategy", ""))
        sites = guide.sites(args, kwargs)
        points, rows = self._points(sites, args, kwargs)
        with torch.no_grad():
            law = LinearGaussian(*(part.detach() for part in sites.law(args, kwargs)))
            found = law.posterior(points)
            joint = _points_of(law, points, found)
        k = found.loc.shape[1]
        values = {**sites.latent_values(joint[:, :k]), **sites.observed_values(joint[:, k:])}
        values = {name: value.to(sites.like) for name, value in values.items()}
        observed = poutine.condition(model, values)

        def program(*args: Any, **kwargs: Any) -> Any:
            with _Counted(values, rows / len(joint)):
                return observed(*args, **kwargs)

        some = sites.rows(args, kwargs, torch.arange(len(joint)) % rows, known=True)
        latent = ", ".join(f"{site.name} ({max(1, site.shape.numel())})" for site in sites.latent)
        total = float(found.log_likelihood.sum()) * rows / len(points)
        return Completed(program, *some, total, f"exact normal posterior of {latent}")

    def _points(self, sites: AffineSites, args: tuple, kwargs: dict[str, Any]) -> tuple[Tensor, int]:
        """The rows, or fewer points with their mean and covariance if nothing is missing; and how many rows there are.

        Found once for the same rows.
        """
        x = sites.values(args, kwargs)
        if self._seen is not None and self._seen[0] is x:
            return self._seen[1], len(x)
        found, x = x, x.double()
        rows, columns = x.shape
        points = x
        if rows > 2 * columns and not bool(x.isnan().any()):
            centre = x.mean(0)
            root = _root((x - centre).mT @ (x - centre) / rows)
            points = _pairs(centre, root.mT * columns**0.5)
        self._seen = found, points
        return points, rows


class _Counted(Messenger):
    """Lets every entry of some sites count, and for several."""

    def __init__(self, sites: Collection[str], count: float) -> None:
        super().__init__()
        self.sites, self.count = sites, count

    def _pyro_sample(self, msg: Any) -> None:
        if msg["name"] in self.sites:
            msg["fn"] = unmasked(msg["fn"])
            msg["scale"] = msg["scale"] * self.count


def _points_of(law: LinearGaussian, x: Tensor, found: Posterior) -> Tensor:
    """Points with the mean and covariance of latent vectors and rows under their posterior, shape (m, k + d)."""
    unknown = x.isnan()
    filled = torch.where(unknown, law.loc + found.loc @ law.weight.mT, x)
    means = torch.cat([found.loc, filled], 1)
    if bool(unknown.any()):
        within = _root(_within(law, unknown, found))
    else:
        k, d = law.weight.shape[1], law.weight.shape[0]
        within = torch.cat([found.scale_tril[0], found.loc.new_zeros(d, k)])
    rows, more = len(means), 2 * within.shape[1]
    centre = means.mean(0)
    spread = centre + (means - centre) * ((rows + more) / rows) ** 0.5
    return torch.cat([spread, _pairs(centre, within.mT * ((rows + more) / 2) ** 0.5)])


def _within(law: LinearGaussian, unknown: Tensor, found: Posterior) -> Tensor:
    """The mean over rows of the covariance of latent vector and row given what is known of it."""
    d, k = law.weight.shape
    total = law.weight.new_zeros(k + d, k + d)
    for pattern, count in enumerate(torch.bincount(found.pattern).tolist()):
        missing = unknown[(found.pattern == pattern).nonzero()[0, 0]]
        map_ = torch.cat([torch.eye(k).to(law.weight), law.weight * missing.unsqueeze(-1)])
        total += count * (map_ @ found.covariance[pattern] @ map_.mT)
        total[k:, k:] += count * (law.noise * missing).diag()
    return total / len(unknown)


def _root(covariance: Tensor) -> Tensor:
    """A root R of a covariance, R R' = C, which may be singular."""
    values, vectors = torch.linalg.eigh(covariance)
    return vectors * values.clamp_min(0).sqrt()


def _pairs(centre: Tensor, steps: Tensor) -> Tensor:
    """Points on both sides of a centre, by the rows of `steps`."""
    return torch.cat([centre + steps, centre - steps])
