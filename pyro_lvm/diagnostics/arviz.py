"""Fits as ArviZ data, for both generations of ArviZ.

The conversion itself is in `Groups`, plain numpy; only `Groups.build` touches ArviZ.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pyro_lvm import _pyro
from pyro_lvm.diagnostics.labels import align, component_axes
from pyro_lvm.diagnostics.paths import discrete_kinds
from pyro_lvm.diagnostics.psis import pareto_k
from pyro_lvm.evidence.exact import pointwise
from pyro_lvm.evidence.importance import weighted_samples
from pyro_lvm.infer.structure import structure
from pyro_lvm.ops.threads import fitting_threads
from pyro_lvm.training.data import Arguments
from pyro_lvm.training.guide_draws import draws_rows

if TYPE_CHECKING:
    from pyro_lvm.training.result import Fit

__all__ = ["Groups", "name_axes", "to_arviz"]

ROW_DRAWS = 100  # of the guide for every row
Arrays = dict[str, NDArray[Any]]


@dataclass
class Groups:
    """What ArviZ needs, as numpy arrays.

    Attributes:
        posterior: Draws by site, shape (chain, draw, ...).
        log_likelihood: Nats by row, shape (chain, draw, n).
        observed_data: Shape (n, ...).
        sample_stats: Shape (chain, draw, ...).
        coords: Coordinate values by dimension.
        dims: Names of the dimensions of each variable beyond chain and draw.
        attrs: Facts about the fit, kept with the posterior, or with the whole if there is none.
    """

    posterior: Arrays
    log_likelihood: Arrays = field(default_factory=dict)
    observed_data: Arrays = field(default_factory=dict)
    sample_stats: Arrays = field(default_factory=dict)
    coords: dict[str, Any] = field(default_factory=dict)
    dims: dict[str, list[str]] = field(default_factory=dict)
    attrs: dict[str, Any] = field(default_factory=dict)

    def build(self) -> Any:
        """An `InferenceData` (ArviZ before 1.0) or a `DataTree` (after)."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # ArviZ warns of its own coming changes at import
            import arviz

        groups = {
            name: arrays
            for name in ("posterior", "log_likelihood", "observed_data", "sample_stats")
            if (arrays := getattr(self, name))
        }
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="More chains")  # a point is one draw of one chain
            if int(arviz.__version__.split(".")[0]) >= 1:
                data = arviz.from_dict(groups, coords=self.coords, dims=self.dims)
                (data["posterior"] if self.posterior else data).attrs.update(self.attrs)
            else:
                data = arviz.from_dict(**groups, coords=self.coords, dims=self.dims)
                (data.posterior if self.posterior else data).attrs.update(self.attrs)
        return data


def to_arviz(fit: Fit, arguments: Arguments | None) -> Any:
    """Convert a fit; see `Fit.to_arviz`."""
    return groups_of(fit, arguments).build()


def groups_of(fit: Fit, arguments: Arguments | None) -> Groups:
    """A fit's draws, pointwise log-likelihood of the given rows, and importance ratios of its guide."""
    draws = fit.draws
    attrs: dict[str, Any] = {
        "inference_library": "pyro_lvm",
        "inference": type(fit.inference).__name__,
        "kind": "draws" if fit.sampled else "independent draws of a guide" if fit.guide is not None else "one point",
    }
    if fit.guide is not None:
        attrs["guide"] = type(fit.guide).__name__
    if arguments is None:
        groups = Groups({name: _numpy(v) for name, v in draws.items()}, attrs=attrs)
        name_axes(groups, fit)
        return groups
    if draws_rows(fit):
        return _given_rows(fit, arguments, attrs)
    likelihood = pointwise(fit, arguments)
    sequential = bool(discrete_kinds(fit, arguments)[1])
    observed = {name: _with_gaps(value, arguments) for name, value in fit.observed(arguments).items()}
    groups = Groups(
        {name: _numpy(v) for name, v in align(fit, arguments, draws).items()},
        observed_data={name: _numpy(value) for name, value in observed.items()},
        attrs=attrs,
    )
    _score(groups, _numpy(likelihood))
    if fit.guide is not None and likelihood.shape[1] > 1:
        ratios = _importance_ratios(fit, arguments, likelihood * arguments.weights)
        groups.sample_stats["log_importance_ratio"] = ratios[None]
        groups.attrs["pareto_k"] = pareto_k(ratios)
    if fit.sampled:
        groups.attrs.update(getattr(fit.inference, "diagnostics", {}))
    name_axes(groups, fit, arguments if sequential else None)
    return groups


def _given_rows(fit: Fit, arguments: Arguments, attrs: dict[str, Any]) -> Groups:
    """Of a guide that draws sites of rows: its draws given the rows, their log-ratios, and the rows' evidence."""
    evidence = fit.evidence(arguments)
    ratios, draws = weighted_samples(fit, arguments, ROW_DRAWS)
    observed = {name: value for name, value in fit.observed(arguments).items() if name not in draws}
    groups = Groups(
        {name: _numpy(values)[None] for name, values in draws.items()},
        observed_data={name: _numpy(value) for name, value in observed.items()},
        sample_stats={"log_importance_ratio": _numpy(ratios)[None]},
        attrs={**attrs, "kind": "independent draws of a guide, given each row", "log_likelihood": evidence.estimator},
    )
    _score(groups, _numpy(evidence.values)[None, None])
    name_axes(groups, fit)
    row = [f"{name}_row" for name in observed][:1]
    groups.dims["log_importance_ratio"] = row
    for name in draws:
        if name in fit.guide_sites[1]:
            rest = groups.posterior[name].ndim - 3
            groups.dims[name] = [*row, *(f"{name}_dim_{i}" for i in range(1, 1 + rest))]
    return groups


def _score(groups: Groups, values: NDArray[Any]) -> None:
    """Put the rows' log-likelihood where ArviZ's comparisons look, if there are draws of it for them to weigh.

    At one point they would fail, or take for a prediction what says how well the rows were learned.
    """
    site = next(iter(groups.observed_data), "x")
    if values.shape[0] * values.shape[1] > 1:
        groups.log_likelihood[site] = values
    else:
        groups.sample_stats["row_log_likelihood"] = values
        groups.dims["row_log_likelihood"] = [f"{site}_row", *(f"{site}_dim_{i}" for i in range(1, values.ndim - 2))]


def _numpy(tensor: Tensor) -> NDArray[Any]:
    return tensor.detach().cpu().numpy()


def _with_gaps(value: Tensor, arguments: Arguments) -> Tensor:
    """A site's value with NaN back where a step is padding, or something was put in place of a missing entry."""
    x, steps = arguments.main, arguments.steps
    if value.shape != x.shape or not x.is_floating_point():
        return value
    x = x if steps is None else torch.where(steps.reshape(*steps.shape, *[1] * (x.dim() - 2)), x, torch.nan)
    return torch.where(x.isnan(), x, value)


def _importance_ratios(fit: Fit, arguments: Arguments, likelihood: Tensor) -> NDArray[np.float64]:
    """Log p(x, theta) - log q(theta) of the guide's draws, all in the model's space."""
    priors = []
    with fit.scope(), torch.no_grad(), torch.random.fork_rng(), _pyro.validation(False), fitting_threads(0):
        for s in range(likelihood.shape[1]):
            given = {name: values[0, s] for name, values in fit.draws.items()}
            trace = structure(fit.program_at(given), arguments.args, arguments.kwargs, fresh=False)
            priors.append(torch.as_tensor(trace.log_prob_sum(lambda name, _: name in fit.draws)))
    log_joint = likelihood[0].double().sum(-1) + torch.stack(priors).double()
    return _numpy(log_joint - fit.guide_log_density.double())


def name_axes(groups: Groups, fit: Fit, sequences: Arguments | None = None) -> None:
    """Name the axes: by the model's own table, by the data's columns, by row, or by sequence and step."""
    declared = getattr(fit.model, "dims", None) or ({} if sequences is None else _state_dims(fit, sequences))
    columns = list(fit.columns) if fit.columns else None
    axes = {name: values.shape[2:] for name, values in groups.posterior.items()}
    # a parameter with all of its axes says how long each is; one with fewer is then told which it has
    for name in sorted(axes, key=lambda name: len(axes[name]) < len(declared.get(name, ()))):
        names, shape = declared.get(name), axes[name]
        if names is None or (len(shape) > len(names)):
            continue
        names = list(names) if len(shape) == len(names) else _shorter(names, shape, groups)
        groups.dims[name] = names
        for axis, size in zip(names, shape, strict=True):
            labels = columns if columns and axis.startswith("dimension") and len(columns) == size else range(size)
            groups.coords.setdefault(axis, list(labels))
    for name, values in groups.observed_data.items():
        leading = [f"{name}_row"] if sequences is None else ["sequence", "step"]
        rest = [f"{name}_dim_{i}" for i in range(len(leading), values.ndim)]
        if len(rest) == 1 and columns and len(columns) == values.shape[-1]:
            rest = ["dimension"]
            groups.coords.setdefault("dimension", columns)
        for axis, size in zip(leading, values.shape, strict=False):
            groups.coords[axis] = list(range(size))
        groups.dims[name] = [*leading, *rest]


def _state_dims(fit: Fit, arguments: Arguments) -> dict[str, list[str]]:
    """Names of the axes of a program of the user's own: where its parameters are indexed by states."""
    values = {name: v[0, 0] for name, v in fit.draws.items()}
    axes, _ = component_axes(fit, arguments, values)
    dims = {}
    for name, found in axes.items():
        names = dict(zip(found, ("state", "next_state"), strict=False))
        dims[name] = [names.get(i, f"{name}_dim_{i}") for i in range(values[name].dim())]
    return dims


def _shorter(names: list[str], shape: tuple[int, ...], groups: Groups) -> list[str]:
    """Names for a parameter with fewer axes than declared: a tied covariance has no components, a diagonal one row."""
    sizes = {axis: len(labels) for axis, labels in groups.coords.items()}
    for start in range(len(names) - len(shape), -1, -1):
        candidate = names[start : start + len(shape)]
        if all(sizes.get(axis, size) == size for axis, size in zip(candidate, shape, strict=True)):
            return candidate
    return names[: len(shape)]
