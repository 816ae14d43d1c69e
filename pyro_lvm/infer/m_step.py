r"""Closed-form M-steps by exponential family.

A closed form maximises :math:`\sum_{c, n} w_{cn} \log p(x_n \mid \theta_c)` over one argument of a distribution, the
others held at their current value (conditional maximisation; for a location and the scale that it shares cells with,
one pass is the joint maximum). Every form is a pair of steps: *accumulate* statistics on the argument's cells, which
the caller scatter-adds into parameter blocks, and *solve* the summed statistics for a block.

Register a family of your own with `closed_form.register(MyDistribution)`.

References:
    X.-L. Meng and D. Rubin (1993), Maximum likelihood estimation via the ECM algorithm, Biometrika 80(2).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from functools import singledispatch
from typing import Any, ClassVar

import pyro.distributions as dist
import torch
from torch import Tensor

from pyro_lvm.ops.cells import compact, sum_to
from pyro_lvm.ops.moments import second_moment

__all__ = ["Argument", "ClosedForm", "View", "closed_form", "unwrap"]


class Statistics(dict[str, Tensor]):
    """Expected sufficient statistics by name, each of shape `cells` + its own trailing dimensions."""

    def __init__(self, cells: torch.Size, **statistics: Tensor) -> None:
        super().__init__(statistics)
        self.cells = cells



def _same(value: Tensor) -> Tensor:
    return value


@dataclass(frozen=True)
class View:
    """One way of writing an argument, in which a parameter may appear as a plain selection.

    Attributes:
        name: What the parameter then is: "scale", "variance", "log scale", ...
        encode: From the argument's canonical value to this view, differentiable.
        decode: The inverse.
        normalised: "sum" or "shift" if the distribution normalises rows of this view.
        symmetric: Whether blocks of this view are symmetric matrices.
    """

    name: str
    encode: Callable[[Tensor], Tensor] = _same
    decode: Callable[[Tensor], Tensor] = _same
    normalised: str | None = None
    symmetric: bool = False


@dataclass(frozen=True)
class Argument:
    """One argument of a family with its closed form.

    Attributes:
        name: The argument's canonical name.
        read: The argument's canonical value from a distribution.
        accumulate: From statistics and the current canonical arguments to tensors on the cells.
        solve: From those tensors, summed over the cells of a block, to the block's canonical value; NaN where the
            block got no weight.
        views: The ways in which a parameter can be read off.
        event_dim: Dimensions of one block.
        same_cells: A cheaper pair of accumulate and solve, valid if no two cells share a block.
    """

    name: str
    read: Callable[[Any], Tensor]
    accumulate: Callable[[Statistics, dict[str, Tensor]], tuple[Tensor, ...]]
    solve: Callable[..., Tensor]
    views: tuple[View, ...]
    event_dim: int = 0
    same_cells: tuple[Callable, Callable] | None = None


class ClosedForm(ABC):
    """The closed-form M-step of one family: its arguments, in order of maximisation, and its statistics."""

    arguments: ClassVar[tuple[Argument, ...]]

    @abstractmethod
    def statistics(self, fn: Any, value: Tensor, weights: Tensor, variance_floor: float) -> Statistics:
        """Expected sufficient statistics on the cells of the arguments.

        Args:
            fn: The distribution, unwrapped.
            value: The site's value.
            weights: Posterior weight of each cell of the log-density, broadcastable to `fn`'s batch.
            variance_floor: Smallest variance allowed, relative to that of the value.
        """


@singledispatch
def closed_form(fn: Any) -> ClosedForm | None:
    """The closed form of a distribution's family, or None."""
    return None


def unwrap(fn: Any, weights: Tensor) -> tuple[Any, Tensor]:
    """Strip `Independent`, `Masked` and `Expanded` wrappers; weights follow the batch shape inward."""
    while True:
        if isinstance(fn, dist.MaskedDistribution):
            weights = weights * fn._mask
            fn = fn.base_dist
        elif isinstance(fn, torch.distributions.Independent):
            weights = weights.reshape(*weights.shape, *([1] * fn.reinterpreted_batch_ndims))
            fn = fn.base_dist
        else:
            return fn, weights


def _shapes(fn: Any, value: Tensor, weights: Tensor, *arguments: Tensor, event_dim: int = 0) -> tuple:
    """The full batch shape of a site and the batch shape of its cells, of equal length."""
    value_batch = value.shape[: value.dim() - event_dim]
    full = torch.broadcast_shapes(fn.batch_shape, value_batch, weights.shape)
    cells = torch.broadcast_shapes(*(a.shape for a in arguments))
    return full, torch.Size((1,) * (len(full) - len(cells)) + tuple(cells))


def _log(name: str) -> View:
    return View(name, torch.log, torch.exp)


def _probs(fn: Any, event_dim: int, squash: Callable[[Tensor], Tensor]) -> Tensor:
    """Probabilities from whichever parametrisation the distribution was built with, not expanded."""
    raw = compact(fn._param, event_dim)
    return squash(raw) if fn._param is fn.__dict__.get("logits") else raw


def _ratio(numerator: Tensor, denominator: Tensor) -> Tensor:
    return numerator / denominator


class _MeanForm(ClosedForm):
    """Families whose only argument is a function of the mean: statistics are the total weight and weighted sum."""

    event_dim = 0

    def statistics(self, fn: Any, value: Tensor, weights: Tensor, variance_floor: float) -> Statistics:
        (argument,) = self.arguments
        value = value.to(weights.dtype)
        full, cells = _shapes(fn, value, weights, argument.read(fn))
        return Statistics(cells, total=sum_to(cells, full, weights), sum=sum_to(cells, full, weights, value))


def _sum_and_total(statistics: Statistics, current: dict[str, Tensor]) -> tuple[Tensor, ...]:
    return statistics["sum"], statistics["total"]


class _Bernoulli(_MeanForm):
    arguments = (
        Argument(
            "probs",
            lambda fn: _probs(fn, 0, torch.sigmoid),
            _sum_and_total,
            _ratio,
            (View("probs"), View("logits", torch.logit, torch.sigmoid)),
        ),
    )


class _Poisson(_MeanForm):
    arguments = (Argument("rate", lambda fn: compact(fn.rate), _sum_and_total, _ratio, (View("rate"), _log("log rate"))),)


class _Exponential(_MeanForm):
    arguments = (
        Argument(
            "rate",
            lambda fn: compact(fn.rate),
            _sum_and_total,
            lambda total, weight: weight / total,
            (View("rate"), View("mean", torch.reciprocal, torch.reciprocal), _log("log rate")),
        ),
    )


class _Categorical(ClosedForm):
    arguments = (
        Argument(
            "probs",
            lambda fn: _probs(fn, 1, lambda raw: raw.softmax(-1)),
            lambda statistics, current: (statistics["counts"],),
            lambda counts: counts / counts.sum(-1, keepdim=True),
            (
                View("probs", normalised="sum"),
                View("logits", torch.log, lambda v: v.softmax(-1), normalised="shift"),
            ),
            event_dim=1,
        ),
    )

    def statistics(self, fn: Any, value: Tensor, weights: Tensor, variance_floor: float) -> Statistics:
        probs = self.arguments[0].read(fn)
        states = probs.shape[-1]
        full, cells = _shapes(fn, value, weights, probs[..., 0])
        value = value.reshape((1,) * (len(full) - value.dim()) + tuple(value.shape)).long()
        varying = [d for d, size in enumerate(value.shape) if size > 1]
        if len(varying) == 1 and value.numel() == states and cells[varying[0]] == 1:  # an enumerated support
            (dim,) = varying
            order = value.reshape(-1).argsort()
            weights = weights.expand(full).movedim(dim, -1)[..., order].unsqueeze(dim)
            shape = torch.Size((*cells, states))
            full = torch.Size((*full[:dim], 1, *full[dim + 1 :], states))
            return Statistics(cells, counts=sum_to(shape, full, weights))
        strides = torch.arange(cells.numel(), device=value.device).reshape(cells)
        index = (strides * states + value).expand(full).reshape(-1)
        counts = weights.new_zeros(cells.numel() * states)
        counts.index_add_(0, index, weights.expand(full).reshape(-1))
        return Statistics(cells, counts=counts.reshape(*cells, states))


class _Normal(ClosedForm):
    arguments = (
        Argument(
            "loc",
            lambda fn: compact(fn.loc),
            lambda s, now: (s["sum"] / now["variance"], s["total"] / now["variance"]),
            _ratio,
            (View("loc"),),
            same_cells=(lambda s, now: (s["sum"], s["total"]), _ratio),
        ),
        Argument(
            "variance",
            lambda fn: compact(fn.scale).square(),
            lambda s, now: (
                _scatter(s, now["loc"].double() - s["centre"]),
                s["total"],
                s["floor"] * s["total"],
            ),
            lambda square, total, floor: torch.maximum(square, floor) / total,
            (
                View("scale", torch.sqrt, torch.square),
                View("variance"),
                View("log scale", lambda v: 0.5 * v.log(), lambda v: (2 * v).exp()),
                _log("log variance"),
                View("precision", torch.reciprocal, torch.reciprocal),
            ),
        ),
    )

    def statistics(self, fn: Any, value: Tensor, weights: Tensor, variance_floor: float) -> Statistics:
        full, cells = _shapes(fn, value, weights, compact(fn.loc), compact(fn.scale))
        value, weights = value.double(), weights.double()
        value = value.reshape((1,) * (len(full) - value.dim()) + tuple(value.shape))
        rows = [d for d, size in enumerate(cells) if size == 1]
        variance, centre = torch.var_mean(value, rows, correction=0, keepdim=True)
        value = value - centre
        total = sum_to(cells, full, weights)
        first = sum_to(cells, full, weights, value)
        return Statistics(
            cells,
            total=total,
            centre=centre,
            centred_sum=first,
            sum=first + centre * total,
            square=sum_to(cells, full, weights, value.square()),
            floor=(variance_floor * variance).clamp_min(torch.finfo(fn.loc.dtype).tiny).expand(cells),
        )


def _scatter(statistics: Statistics, loc: Tensor) -> Tensor:
    """Weighted squared distance to a location given about the statistics' centre."""
    return statistics["square"] - 2 * loc * statistics["centred_sum"] + loc.square() * statistics["total"]


class _MultivariateNormal(ClosedForm):
    arguments = (
        Argument(
            "loc",
            lambda fn: compact(fn.loc, 1),
            lambda s, now: _precision_weighted(s, now),
            lambda precision_sum, precision: torch.linalg.solve(precision, precision_sum),
            (View("loc"),),
            event_dim=1,
            same_cells=(lambda s, now: (s["sum"], s["total"].unsqueeze(-1)), _ratio),
        ),
        Argument(
            "covariance_matrix",
            lambda fn: _covariance(fn),
            lambda s, now: (_scatter_matrix(s, now["loc"].double() - s["centre"]), s["total"], s["floor"] * s["total"][..., None]),
            lambda scatter, total, floor: _floored(scatter / total[..., None, None], floor / total[..., None]),
            (
                View("covariance_matrix", symmetric=True),
                View("scale_tril", torch.linalg.cholesky, lambda v: _gram(v)),
                View("precision_matrix", torch.linalg.inv, torch.linalg.inv, symmetric=True),
            ),
            event_dim=2,
        ),
    )

    def statistics(self, fn: Any, value: Tensor, weights: Tensor, variance_floor: float) -> Statistics:
        loc, scale_tril = compact(fn.loc, 1), compact(fn.scale_tril, 2)
        full, cells = _shapes(fn, value, weights, loc[..., 0], scale_tril[..., 0, 0], event_dim=1)
        rows = value.reshape(-1, value.shape[-1])
        variance, centre = torch.var_mean(rows.double(), 0, correction=0)
        total, first, second = second_moment(value, weights, full, cells, centre)
        floor = variance_floor * variance.clamp_min(torch.finfo(fn.loc.dtype).tiny)
        return Statistics(
            cells,
            total=total,
            centre=centre,
            centred_sum=first,
            sum=first + centre * total.unsqueeze(-1),
            square=second,
            floor=floor.expand(*cells, -1),
        )


def _gram(factor: Tensor) -> Tensor:
    return factor @ factor.mT


def _covariance(fn: Any) -> Tensor:
    """The covariance as given, so that a parameter can be recognised in it exactly, else from the Cholesky factor."""
    given = fn.__dict__.get("covariance_matrix")
    return _gram(compact(fn.scale_tril, 2)) if given is None else compact(given, 2)


def _precision_weighted(statistics: Statistics, current: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    precision = torch.linalg.inv(current["covariance_matrix"].double())
    weighted = (precision @ statistics["sum"].unsqueeze(-1)).squeeze(-1)
    return weighted, precision * statistics["total"][..., None, None]


def _scatter_matrix(statistics: Statistics, loc: Tensor) -> Tensor:
    """Weighted scatter about a location given about the statistics' centre."""
    cross = statistics["centred_sum"].unsqueeze(-1) * loc.unsqueeze(-2)
    outer = statistics["total"][..., None, None] * loc.unsqueeze(-1) * loc.unsqueeze(-2)
    return statistics["square"] - cross - cross.mT + outer


def _floored(covariance: Tensor, floor: Tensor) -> Tensor:
    """Raise the eigenvalues of the covariance, each column in units of its floor, to at least one."""
    unit = floor.clamp_min(torch.finfo(floor.dtype).tiny).sqrt()
    scale = unit.unsqueeze(-1) * unit.unsqueeze(-2)
    relative = covariance / scale
    weighted = torch.isfinite(relative).flatten(1).all(-1)
    eye = torch.eye(unit.shape[-1]).to(relative)
    relative = torch.where(weighted[:, None, None], relative, 2 * eye)
    _, failed = torch.linalg.cholesky_ex(relative - eye)
    if bool((failed == 0).all()):
        return covariance
    values, vectors = torch.linalg.eigh(relative)
    raised = (vectors * values.clamp_min(1.0).unsqueeze(-2)) @ vectors.mT * scale
    return torch.where(((failed == 0) | ~weighted)[:, None, None], covariance, raised)


_FORMS: dict[type, ClosedForm] = {
    torch.distributions.Bernoulli: _Bernoulli(),
    torch.distributions.Categorical: _Categorical(),
    torch.distributions.Exponential: _Exponential(),
    torch.distributions.MultivariateNormal: _MultivariateNormal(),
    torch.distributions.Normal: _Normal(),
    torch.distributions.Poisson: _Poisson(),
}
for _family, _form in _FORMS.items():
    closed_form.register(_family)(lambda fn, form=_form: form)
