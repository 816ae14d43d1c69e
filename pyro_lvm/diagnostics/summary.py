"""Parameters of a fit as a table, one line a number, or a network."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from pyro.nn import PyroModule

from pyro_lvm import _pyro
from pyro_lvm.diagnostics.arviz import Groups, name_axes
from pyro_lvm.diagnostics.labels import align
from pyro_lvm.diagnostics.table import Table

if TYPE_CHECKING:
    from pyro_lvm.training.data import Arguments
    from pyro_lvm.training.result import Fit

__all__ = ["summary"]


def summary(fit: Fit, arguments: Arguments | None = None, probability: float = 0.94, networks: bool = False) -> Table:
    """Estimates by parameter and entry; of a posterior its mean, standard deviation and central interval.

    Args:
        fit: Any fit.
        arguments: Rows by which the components of a sampler's draws are aligned.
        probability: What the interval holds, in (0, 1).
        networks: Whether to list the numbers of networks too, else a network is one line, without an estimate.

    Returns:
        A line for every number, named like `loc[0, eruptions]`: by the model's own components and the data's columns
        where they are known, else by position. A point has the column `estimate`; a posterior has `mean`, `sd` and the
        two ends of the interval, NaN for parameters that are points in it.

    Raises:
        ValueError: The probability is out of range.

    Example:
        >>> import pyro_lvm as lvm
        >>> x = lvm.datasets.load("faithful").x
        >>> fit = lvm.fit(lvm.models.GaussianMixture(2), x, seed=0, progress=False)
        >>> fit.summary().round(3).loc["weights[0]":"weights[1]"]
                    estimate
        weights[0]     0.356
        weights[1]     0.644
    """
    if not 0 < probability < 1:
        raise ValueError(f"summary: expected a probability between 0 and 1; got {probability:g}.")
    draws = fit.draws if fit.latent else {}
    if fit.sampled and arguments is not None:
        draws = align(fit, arguments, draws)
    draws = {name: value.flatten(0, 1) for name, value in draws.items() if value.shape[:2].numel() > 1}
    points = {**fit.params, **({name: value.mean(0) for name, value in draws.items()} if fit.sampled else {})}
    sizes: dict[str, int] = {}
    for name in [] if networks else list(points):
        owner = _network_of(fit, name)
        if owner is not None and name not in draws:
            sizes[owner] = sizes.get(owner, 0) + points.pop(name).numel()
    arrays = {name: value.detach().cpu().numpy() for name, value in points.items()}
    labels = _labels(fit, arrays)
    ends = ((1 - probability) / 2, (1 + probability) / 2)
    parts = []
    for name, point in arrays.items():
        columns = {"mean" if draws else "estimate": point.ravel()}
        if name in draws:
            values = draws[name].cpu().numpy().reshape(len(draws[name]), -1)
            columns["sd"] = values.std(0, ddof=1)
            columns.update({f"{100 * end:g}%": np.quantile(values, end, axis=0) for end in ends})
        parts.append(Table(columns, index=labels[name]))
    if sizes:
        lines = [f"{name} (network of {size:,} numbers)" for name, size in sizes.items()]
        parts.append(Table({"mean" if draws else "estimate": np.full(len(lines), np.nan)}, index=lines))
    return pd.concat(parts) if parts else Table(columns=["estimate"])


def _network_of(fit: Fit, name: str) -> str | None:
    """The torch module, a part of the model or known to `pyro.module`, that a parameter belongs to; None if to none."""
    part, mark, _ = name.partition("$$$")
    if mark:
        return part
    module, path = _pyro.without_handlers(fit.model), ""
    for piece in name.split(".")[:-1]:
        module, path = getattr(module, piece, None), f"{path}.{piece}".lstrip(".")
        if isinstance(module, torch.nn.Module) and not isinstance(module, PyroModule):
            return path
    return None


def _labels(fit: Fit, arrays: dict[str, NDArray[Any]]) -> dict[str, list[str]]:
    """A label for every entry of every parameter."""
    groups = Groups({name: value[None, None] for name, value in arrays.items()})
    name_axes(groups, fit)
    labels = {}
    for name, value in arrays.items():
        axes = groups.dims.get(name)
        along = [groups.coords[axis] for axis in axes] if axes else [range(size) for size in value.shape]
        entries = [", ".join(map(str, entry)) for entry in itertools.product(*along)]
        labels[name] = [f"{name}[{entry}]" if entry else name for entry in entries]
    return labels
