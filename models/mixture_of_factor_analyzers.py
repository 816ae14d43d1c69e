r"""Mixture of factor analysers: clusters of rows, each spread along a few directions of its own.

.. math::

    z_n &\sim \mathrm{Categorical}(w), \qquad h_n \sim \mathrm{Normal}(0, I) \\
    x_n \mid z_n = c, h_n &\sim \mathrm{Normal}(b_c + W_c h_n, \mathrm{diag}(\psi_c^2))
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import pyro
import torch
from torch import Tensor
from torch.distributions import constraints

from pyro_lvm.distributions.linear_gaussian_rows import LinearGaussianRows
from pyro_lvm.models.real_mixture import Moments, RealMixture
from pyro_lvm.ops.factor_parts import HEYWOOD, NOISE_FLOOR, canonical
from pyro_lvm.ops.factor_sweeps import factor_sweeps
from pyro_lvm.ops.linear_gaussian import principal_parts
from pyro_lvm.ops.whole_number import whole_number

__all__ = ["MixtureOfFactorAnalyzers"]

NOISES = {"diag": ["component", "column"], "tied": ["column"], "spherical": ["component"]}
SWEEPS = 20  # of the start, from principal components


class MixtureOfFactorAnalyzers(RealMixture):
    r"""Mixture of K factor analyses: normal components whose covariances have d k numbers instead of d d.

    The factors h are summed out in the law of the rows, exactly: `z` is the only latent site.

    ================  ======================================  ================================  =============
    symbol            meaning                                 shape                             code
    ================  ======================================  ================================  =============
    :math:`w`         mixture weights                         (K,)                              `weights`
    :math:`b`         component means                         (K, d)                            `loc`
    :math:`W`         loadings                                (K, d, k)                         `loading`
    :math:`\psi`      standard deviations of the noise        diag (K, d); tied (d,);           `noise_scale`
                                                              spherical (K,)
    ================  ======================================  ================================  =============

    With spherical noise it is the mixture of probabilistic principal component analysers. Missing entries are NaN and
    are marginalised exactly. Each W is known but for a rotation: :math:`W_c^\top \psi_c^{-2} W_c` is diagonal and
    falling. Where factors explain a column of a component wholly (a Heywood case), its noise is held at
    `variance_floor` of the inference, and a warning says so; such cases are frequent where a component has few rows,
    and tied noise has none.

    `fit.transform(x)` returns the posterior means of the factors of each row's most probable component, which
    `fit.predict(x)` names: axes of different components are not to be compared. `fit.posterior(x)` draws `z` and `h`.

    Args:
        num_components: K >= 1.
        num_factors: k >= 1, at most the number of columns.
        data_dim: Number of columns d; taken from the data by `initialize` if None.
        noise: "diag" (a variance for each column of each component), "tied" (for each column) or "spherical" (for each
            component).

    Raises:
        ValueError: An argument is out of range.

    References:
        Z. Ghahramani, G. Hinton (1996), The EM algorithm for mixtures of factor analyzers, Toronto CRG-TR-96-1.
        G. McLachlan, D. Peel (2000), Mixtures of factor analyzers, ICML.
        M. Tipping, C. Bishop (1999), Mixtures of probabilistic principal component analyzers, Neural Computation 11.

    Example:
        >>> import pyro_lvm as lvm
        >>> x = lvm.datasets.load("wine").x
        >>> fit = lvm.fit(lvm.models.MixtureOfFactorAnalyzers(2, 1), x, max_epochs=5, seed=0, progress=False)
        >>> fit.params["loading"].shape, fit.transform(x).shape
        (torch.Size([2, 13, 1]), torch.Size([178, 1]))
    """

    handles_missing: ClassVar[bool] = True
    dims: ClassVar[dict[str, list[str]]] = {
        "weights": ["component"],
        "loc": ["component", "column"],
        "loading": ["component", "column", "factor"],
        "noise_scale": NOISES["diag"],
    }

    def __init__(self, num_components: int, num_factors: int, data_dim: int | None = None, noise: str = "diag") -> None:
        super().__init__(num_components, data_dim)
        self.num_factors = whole_number(self._name, "num_factors", num_factors)
        if noise not in NOISES:
            raise ValueError(f"{self._name}: expected noise to be one of {', '.join(NOISES)}; got {noise!r}.")
        self.noise = noise
        self.dims = {**self.dims, "noise_scale": NOISES[noise]}  # type: ignore[misc]  # depends on its kind
        if self.data_dim is not None:
            self._check_count(self.data_dim)
        self._declare_unseen()

    def _parameters_of_components(self) -> dict[str, Tensor]:
        return {"loc": self.loc, "loading": self.loading, "noise_scale": self.noise_scale}

    def _observe(self, parameters: dict[str, Tensor], z: Tensor, x: Tensor | None) -> Tensor:
        noise = parameters["noise_scale"]
        if self.noise != "tied":
            noise = noise[z] if self.noise == "diag" else noise[z].unsqueeze(-1)
        law = LinearGaussianRows(parameters["loc"][z], parameters["loading"][z], noise)
        return pyro.sample("x", law, obs=x)

    def _declare(self, moments: Moments, weights: Tensor, loc: Tensor, within: Tensor) -> None:
        """Create the parameters at the principal components of clusters; where noise may differ, a little better."""
        if self.noise == "spherical":
            parts = [principal_parts(covariance, self.num_factors) for covariance in within]
            loading, noise = (torch.stack(part) for part in zip(*parts, strict=True))
        else:
            scale = within.double().diagonal(dim1=-2, dim2=-1).sqrt()
            correlation = within / scale.unsqueeze(-1) / scale.unsqueeze(-2)
            parts = [principal_parts(matrix, self.num_factors) for matrix in correlation]
            loading, noise = (torch.stack(part) for part in zip(*parts, strict=True))
            noise = noise.unsqueeze(-1).expand_as(scale)
            loading, noise = factor_sweeps(correlation, loading, noise, torch.full_like(scale, NOISE_FLOOR), SWEEPS)
            loading, noise = loading * scale.unsqueeze(-1), noise * scale.square()
            noise = noise if self.noise == "diag" else weights.to(noise) @ noise
        self.declare("weights", weights, constraints.simplex)
        self.declare("loc", loc, constraints.real)
        self.declare("loading", loading.to(loc), constraints.real)
        self.declare("noise_scale", noise.sqrt().to(loc), constraints.positive)

    def check_training(self, x: Tensor) -> None:
        """Raise a ValueError as other mixtures do, or for fewer columns than factors."""
        super().check_training(x)
        self._check_count(x.shape[1])

    def _check_count(self, columns: int) -> None:
        if columns < self.num_factors:
            raise ValueError(
                f"{self._name}: expected at most as many factors as columns ({columns}); got {self.num_factors}. "
                "Lower num_factors."
            )

    def _noise(self) -> Tensor:
        """Noise variances, shape (K, d)."""
        scale = self.noise_scale.detach()
        return (scale.unsqueeze(-1) if self.noise == "spherical" else scale).square().expand_as(self.loc)

    def fixed_entries(self, name: str) -> int:
        """What rotations make zero of the loadings."""
        return self.num_components * self.num_factors * (self.num_factors - 1) // 2 if name == "loading" else 0

    def canonicalise(self) -> None:
        """Turn the factors of each component: columns of `loading` by how much they tell, with agreed signs."""
        with torch.no_grad():
            self.loading.copy_(canonical(self.loading, self._noise()))

    def remarks(self, columns: Sequence[str] | None = None) -> list[str]:
        """In how many places factors explain a column wholly."""
        noise = self._noise()
        share = noise / (noise + self.loading.detach().square().sum(-1))
        found = (share < HEYWOOD).nonzero().tolist()
        if not found:
            return []
        component, column = found[0]
        name = columns[column] if columns else column
        return [
            f"{self._name}({self.num_components}, {self.num_factors}): in {len(found)} of {share.numel()} places, "
            f"column {name} of component {component} the first, factors explain a column wholly (a Heywood case); the "
            "noise is held at the inference's variance_floor. Take fewer factors or components, or noise='tied'."
        ]
