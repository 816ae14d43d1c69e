r"""Factor analysis: normal factors, and noise of a variance of its own in every column.

.. math:: h_n \sim \mathrm{Normal}(0, I), \qquad x_n \mid h_n \sim \mathrm{Normal}(b + W h_n, \mathrm{diag}(\psi^2))
"""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor

from pyro_lvm.models.linear_factors import LinearFactors
from pyro_lvm.ops.linear_gaussian import principal_parts

__all__ = ["FactorAnalysis"]

SPECIFIC = 0.05  # least share of a column's variance that is noise at the start


class FactorAnalysis(LinearFactors):
    r"""Rows whose columns are correlated because a few factors act on all of them.

    ================  ==========================================  =========  ==============
    symbol            meaning                                     shape      code
    ================  ==========================================  =========  ==============
    :math:`W`         loadings                                    (d, k)     `weight`
    :math:`b`         mean                                        (d,)       `loc`
    :math:`\psi`      standard deviations of the noise            (d,)       `noise_scale`
    :math:`h`         factors                                     (n, k)     site `h`
    ================  ==========================================  =========  ==============

    The likelihood does not depend on the columns' units, nor W on more than a rotation. Missing entries are NaN and are
    marginalised exactly. A column that factors explain wholly (a Heywood case) has its noise held at `variance_floor`
    of the inference.

    Args:
        num_factors: k >= 1, at most the number of columns.
        data_dim: Number of columns d; taken from the data by `initialize` if None.

    Raises:
        ValueError: An argument is out of range.

    References:
        D. Rubin, D. Thayer (1982), EM algorithms for ML factor analysis, Psychometrika 47.

    Example:
        >>> import pyro_lvm as lvm
        >>> wine = lvm.datasets.load("wine").x
        >>> fit = lvm.fit(lvm.models.FactorAnalysis(2), wine, seed=0, progress=False)
        >>> fit.params["weight"].shape
        torch.Size([13, 2])
    """

    dims: ClassVar[dict[str, list[str]]] = {**LinearFactors.dims, "noise_scale": ["column"]}

    def _declare(self, mean: Tensor, covariance: Tensor) -> None:
        variance = covariance.diagonal()
        scale = variance.sqrt()
        weight, _ = principal_parts(covariance / scale / scale.unsqueeze(-1), self.num_factors)
        weight = weight * scale.unsqueeze(-1)
        noise = (variance - weight.square().sum(-1)).maximum(SPECIFIC * variance)
        self._declare_parts(mean, weight, noise)
