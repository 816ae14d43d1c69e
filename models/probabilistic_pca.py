r"""Probabilistic principal component analysis: normal components, and noise that is the same in all columns.

.. math:: h_n \sim \mathrm{Normal}(0, I), \qquad x_n \mid h_n \sim \mathrm{Normal}(b + W h_n, \sigma^2 I)
"""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor

from pyro_lvm.models.normal_factors import NormalFactors
from pyro_lvm.ops.linear_gaussian import principal_parts

__all__ = ["ProbabilisticPCA"]


class ProbabilisticPCA(NormalFactors):
    r"""Rows from k normal components with isotropic noise; with less and less noise, principal component analysis.

    ================  ==========================================  =========  ==============
    symbol            meaning                                     shape      code
    ================  ==========================================  =========  ==============
    :math:`W`         principal axes, scaled                      (d, k)     `weight`
    :math:`b`         mean                                        (d,)       `loc`
    :math:`\sigma`    standard deviation of the noise             ()         `noise_scale`
    :math:`h`         components                                  (n, k)     site `h`
    ================  ==========================================  =========  ==============

    Of rows without gaps the start is the maximum of the likelihood, in closed form. Missing entries are NaN and are
    marginalised exactly. Without constraints on its columns, W is known up to a rotation; the start's columns are the
    principal axes, by falling variance.

    Args:
        num_factors: k >= 1, at most the number of columns.
        data_dim: Number of columns d; taken from the data by `initialize` if None.
        priors: As `NormalFactors` takes them: with True, factors that the rows do not ask for are switched off.

    Raises:
        ValueError: An argument is out of range.

    References:
        M. Tipping, C. Bishop (1999), Probabilistic principal component analysis, JRSS B 61.

    Example:
        >>> import pyro_lvm as lvm
        >>> x = lvm.datasets.load("iris").x
        >>> fit = lvm.fit(lvm.models.ProbabilisticPCA(2), x, seed=0, progress=False)
        >>> round(fit.score(x), 2)
        -2.7
    """

    dims: ClassVar[dict[str, list[str]]] = {**NormalFactors.dims, "noise_scale": []}

    def _parts(self, covariance: Tensor) -> tuple[Tensor, Tensor]:
        return principal_parts(covariance, self.num_factors)
