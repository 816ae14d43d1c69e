"""What the factors of a linear model mean: loadings, rotated if asked, and how much of the rows each explains."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from pyro_lvm.diagnostics.table import Table
from pyro_lvm.ops.factor_parts import canonical, signs
from pyro_lvm.ops.rotation import promax, varimax

if TYPE_CHECKING:
    from pyro_lvm.training.result import Fit

__all__ = ["explained_variance", "has_loadings", "loadings", "parts"]

ROTATIONS = {"varimax": varimax, "promax": promax}


def loadings(fit: Fit, rotation: str | None = None, standardised: bool = True) -> Table:
    r"""The loadings of the factors, a line for every column of the data.

    Factors come in the model's order, or, rotated, by how much they explain; the largest loading of each is positive.
    `communality` is the share of a column's variance that the factors explain, `uniqueness` that of its noise.

    Args:
        fit: A fit of a linear factor model, as `FactorAnalysis`.
        rotation: "varimax" (orthogonal) or "promax" (oblique); None for the model's own.
        standardised: Whether loadings are divided by the columns' standard deviations, correlations then of columns and
            orthogonal factors; else in the columns' units.

    Returns:
        Columns `factor 0`, ..., `communality`, `uniqueness`. In `attrs`, arrays: `fit.transform(x) @ attrs["rotation"]`
        are scores of the rotated factors of a point fit, and `attrs["correlation"]` is the factors' correlation.

    Raises:
        ValueError: The model has no loadings, or the rotation no name.

    Example:
        >>> import pyro_lvm as lvm
        >>> x = lvm.datasets.load("wine").x
        >>> fit = lvm.fit(lvm.models.FactorAnalysis(3), x, seed=0, progress=False)
        >>> lvm.diagnostics.loadings(fit, "varimax").shape
        (13, 5)
    """
    return _loadings("loadings", fit, rotation, standardised)


def _loadings(caller: str, fit: Fit, rotation: str | None, standardised: bool = True) -> Table:
    if rotation is not None and rotation not in ROTATIONS:
        raise ValueError(f"{caller}: expected rotation to be {' or '.join(ROTATIONS)}, or None; got {rotation!r}.")
    weight, noise = parts(fit, caller)
    variance = weight.square().sum(-1) + noise
    unit = variance.sqrt().unsqueeze(-1)
    turn = torch.eye(weight.shape[1]).to(weight)
    if rotation is not None:
        turn = ROTATIONS[rotation](weight / unit)
        turn = turn[:, (weight / unit @ turn).square().sum(0).argsort(descending=True)]
    turn = turn * signs(weight / unit @ turn)
    turned = weight @ turn / (unit if standardised else 1.0)
    columns = {f"factor {j}": turned[:, j].numpy() for j in range(turned.shape[1])}
    shares = {"communality": (1 - noise / variance).numpy(), "uniqueness": (noise / variance).numpy()}
    table = Table({**columns, **shares}, index=fit.columns or [f"column {i}" for i in range(len(weight))])
    inverse = torch.linalg.inv(turn)
    table.attrs = {"rotation": inverse.mT.numpy(), "correlation": (inverse @ inverse.mT).numpy()}
    return table


def explained_variance(fit: Fit, rotation: str | None = None) -> Table:
    """How much of the rows each factor explains, and what the noise leaves, of columns that all have variance one.

    Args:
        fit: A fit of a linear factor model, as `FactorAnalysis`.
        rotation: As `loadings` takes it; the factors are those that it returns. Of oblique ones, each has its share of
            what it explains together with others.

    Returns:
        A line for every factor, in the order of `loadings`, and one for the noise: `variance` (the number of columns in
        all), `share` of it, and `cumulative` shares.

    Raises:
        ValueError: The model has no loadings, or the rotation no name.
    """
    table = _loadings("explained_variance", fit, rotation)
    weight = table.drop(columns=["communality", "uniqueness"])
    joint = table.attrs["correlation"] @ (weight.T.to_numpy() @ weight.to_numpy())
    each = np.append(np.diag(joint), table.uniqueness.sum())
    share = each / len(table)
    columns = {"variance": each, "share": share, "cumulative": np.cumsum(share)}
    return Table(columns, index=[*weight.columns, "noise"])


def has_loadings(fit: Fit) -> bool:
    """Whether a fit is one of a linear factor model with normal noise."""
    dims = getattr(fit.model, "dims", {})
    return dims.get("weight") == ["column", "factor"] and "noise_scale" in dims


def parts(fit: Fit, caller: str = "loadings") -> tuple[Tensor, Tensor]:
    """Loadings, in the agreed order, and noise variances, shapes (d, k) and (d,), in double precision.

    Of a posterior they are those of the mean covariance: draws may differ by rotations, which mean nothing.

    Raises:
        ValueError: The model has no loadings.
    """
    if not has_loadings(fit):
        raise ValueError(
            f"{caller}: expected a linear factor model, as FactorAnalysis; got {fit.name}. Its numbers are in "
            "fit.summary()."
        )
    given = {name: value.flatten(0, 1) for name, value in fit.draws.items()} if fit.latent else {}
    every = {**{name: value.unsqueeze(0) for name, value in fit.params.items()}, **given}
    weight, scale = (every[name].detach().cpu().double() for name in ("weight", "noise_scale"))
    noise = scale.square().mean(0)
    noise = noise.expand(weight.shape[-2]).clone()
    if len(weight) == 1:
        return canonical(weight[0], noise), noise
    root = noise.sqrt().unsqueeze(-1)
    joint = torch.einsum("sik,sjk->ij", weight / root, weight / root) / len(weight)
    values, vectors = torch.linalg.eigh(joint)
    k = weight.shape[-1]
    best = vectors[:, -k:] * values[-k:].clamp_min(0).sqrt() * root
    noise = noise + (joint.diagonal() * root.squeeze(-1).square() - best.square().sum(-1)).clamp_min(0)
    return canonical(best, noise), noise
