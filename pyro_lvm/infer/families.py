"""Closed-form M-steps of the exponential families; register your own with `closed_form.register(MyDistribution)`."""

from __future__ import annotations

from collections.abc import Callable
from functools import singledispatch
from typing import Any

import torch
from torch import Tensor

from pyro_lvm.infer.m_step import Argument, ClosedForm, Statistics, View
from pyro_lvm.ops.cells import compact, sum_to
from pyro_lvm.ops.moments import second_moment

__all__ = ["closed_form"]


@singledispatch
def closed_form(fn: Any) -> ClosedForm | None:
    """The closed form of a distribution's family, or None."""
    return None


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
    arguments = (
        Argument("rate", lambda fn: compact(fn.rate), _sum_and_total, _ratio, (View("rate"), _log("log rate"))),
    )


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


def _gram(factor: Tensor) -> Tensor:
    return factor @ factor.mT


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
            lambda s, now: (
                _scatter_matrix(s, now["loc"].double() - s["centre"]),
                s["total"],
                s["floor"] * s["total"][..., None],
            ),
            lambda scatter, total, floor: _floored(scatter / total[..., None, None], floor / total[..., None]),
            (
                View("covariance_matrix", matrix="symmetric"),
                View("scale_tril", torch.linalg.cholesky, _gram, matrix="lower"),
                View("precision_matrix", torch.linalg.inv, torch.linalg.inv, matrix="symmetric"),
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
