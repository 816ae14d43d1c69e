r"""The E-step of programs whose rows are an affine map of normal latent sites, as rows to observe.

What an M-step needs of the joint law of latent vectors and rows, :math:`y_n = (h_n, x_n)`, are the sums of
:math:`\mathrm{E}[y_n]` and :math:`\mathrm{E}[y_n y_n^\top]`. A few points have the same sums: pairs
on either side of the overall mean, one for every column of a root of the overall covariance. On these points every site
is observed, so the M-steps of complete data are those of the program, whatever its parameters are. Of batches of rows
the sums are averaged before the points are made of them (stepwise EM); where a first batch has no more rows than
columns, they are averaged with those that the program at its start expects.

Rows without gaps are themselves replaced by the 2 d points that have their mean and covariance, once for all steps: the
cost of a step does not grow with the number of rows.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import Any, NamedTuple, Protocol, TypeGuard, runtime_checkable

import torch
from pyro import poutine
from pyro.poutine.messenger import Messenger
from torch import Tensor

from pyro_lvm.handlers.affine_sites import AffineSites, unmasked
from pyro_lvm.handlers.minibatch import STANDS_FOR_ROWS, rows_stand_for
from pyro_lvm.infer.at_guide import at_guide
from pyro_lvm.infer.averaging import Averages
from pyro_lvm.infer.m_step import Statistics
from pyro_lvm.ops.linear_gaussian import LinearGaussian
from pyro_lvm.ops.normal_moments import NormalMoments

__all__ = ["Completed", "ExactPosterior", "GaussianMoments", "is_exact", "sites_of_points"]

JOINT = "latent vectors and rows"  # under which their moments are averaged


class Completed(NamedTuple):
    """A program for an E-step by enumeration.

    Attributes:
        program: It; if a normal posterior completed it, at points that stand for the rows.
        args: Its arguments.
        kwargs: Its keyword arguments.
        log_likelihood: Of the rows that it stands for, nats; None if it is that of the program itself.
        strategy: How it was completed, in a few words.
        averaged: What it was completed with that is an average over batches, to be kept after an M-step.
    """

    program: Callable
    args: tuple
    kwargs: dict[str, Any]
    log_likelihood: float | None = None
    strategy: str = ""
    averaged: Mapping[str, Statistics] = {}


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
    """E-steps by an exact normal posterior, where a guide is one; else the program is left as it is.

    Args:
        averages: Blends what an M-step needs with that of earlier batches; None for full batches.
    """

    def __init__(self, averages: Averages | None = None) -> None:
        self.averages = averages
        self._seen: tuple[Tensor, NormalMoments | None] | None = None

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
        x, counts = self._rows(sites, args, kwargs)
        scale = rows_stand_for(sites.plate, n := sites.count(args, kwargs))
        with torch.no_grad():
            law = LinearGaussian(*(part.detach() for part in sites.law(args, kwargs)))
            found = law.posterior(x)
            moments = NormalMoments.of_posterior(law, x, found, counts)
            moments = moments._replace(total=moments.total * scale)
            likely = found.log_likelihood.sum() if counts is None else counts @ found.log_likelihood
            averaged = {}
            if self.averages is not None:
                few = len(x) <= x.shape[1]  # such rows lie in a plane, about which there would be no noise
                start = _statistics(NormalMoments.of_law(law, moments.total)) if few else None
                averaged[JOINT] = self.averages.blend(JOINT, _statistics(moments), start)
                moments = _moments(averaged[JOINT])
            points = moments.points()
        k = found.loc.shape[1]
        values = {**sites.latent_values(points[:, :k]), **sites.observed_values(points[:, k:])}
        values = {name: value.to(sites.like) for name, value in values.items()}
        observed = poutine.condition(model, values)

        def program(*args: Any, **kwargs: Any) -> Any:
            with _Counted(values, float(moments.total) / len(points)):
                return observed(*args, **kwargs)

        some = sites.rows(args, kwargs, torch.arange(len(points)) % n, known=True)
        latent = ", ".join(f"{site.name} ({max(1, site.shape.numel())})" for site in sites.latent)
        strategy = f"exact normal posterior of {latent}"
        return Completed(program, *some, float(likely) * scale, strategy, averaged)

    def _rows(self, sites: AffineSites, args: tuple, kwargs: dict[str, Any]) -> tuple[Tensor, Tensor | None]:
        """The rows and how often each counts, or fewer points with their mean and covariance if nothing is missing.

        The latter are found once for the same rows.
        """
        x, counts = sites.values(args, kwargs), sites.counts(args, kwargs)
        if self._seen is None or self._seen[0] is not x:
            few = len(x) > 2 * x.shape[1] and not bool(x.isnan().any())
            self._seen = x, NormalMoments.of_rows(x.double(), counts) if few else None
        moments = self._seen[1]
        if moments is None:
            return x.double(), counts
        points = moments.points()
        return points, (moments.total / len(points)).expand(len(points))


class _Counted(Messenger):
    """Lets every entry of some sites count, and for several."""

    def __init__(self, sites: Collection[str], count: float) -> None:
        super().__init__()
        self.sites, self.count = sites, count

    def _pyro_sample(self, msg: Any) -> None:
        if msg["name"] in self.sites:
            msg["fn"] = unmasked(msg["fn"])
            msg["scale"] = self.count
            msg["infer"] = {**msg["infer"], STANDS_FOR_ROWS: True}


def _statistics(moments: NormalMoments) -> Statistics:
    """Moments as sums, about their mean."""
    square = moments.total * moments.covariance
    zero = torch.zeros_like(moments.mean)
    return Statistics(torch.Size(), total=moments.total, centre=moments.mean, centred_sum=zero, square=square)


def _moments(sums: Statistics) -> NormalMoments:
    """The inverse, about any centre."""
    shift = sums["centred_sum"] / sums["total"]
    covariance = sums["square"] / sums["total"] - torch.outer(shift, shift)
    return NormalMoments(sums["total"], sums["centre"] + shift, covariance)
