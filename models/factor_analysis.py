r"""Factor analysis: normal factors, and noise of a variance of its own in every column.

.. math:: h_n \sim \mathrm{Normal}(0, I), \qquad x_n \mid h_n \sim \mathrm{Normal}(b + W h_n, \mathrm{diag}(\psi^2))
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from pyro_lvm.models.normal_factors import NormalFactors
from pyro_lvm.ops.factor_parts import HEYWOOD, factor_parts
from pyro_lvm.ops.linear_gaussian import principal_parts

__all__ = ["FactorAnalysis"]


class FactorAnalysis(NormalFactors):
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
    of the inference, and a warning names it. Of rows without gaps the start is the maximum of the likelihood, found
    from their covariance. :math:`W^\top \psi^{-2} W` is diagonal and falling; `lvm.diagnostics.loadings` rotates.

    Args:
        num_factors: k >= 1, at most the number of columns.
        data_dim: Number of columns d; taken from the data by `initialize` if None.
        priors: As `NormalFactors` takes them: with True, factors that the rows do not ask for are switched off.

    Raises:
        ValueError: An argument is out of range.

    References:
        D. Rubin, D. Thayer (1982), EM algorithms for ML factor analysis, Psychometrika 47.
        D. Lawley, A. Maxwell (1971), Factor analysis as a statistical method, chapter 4.

    Example:
        >>> import pyro_lvm as lvm
        >>> wine = lvm.datasets.load("wine").x
        >>> fit = lvm.fit(lvm.models.FactorAnalysis(2), wine, seed=0, progress=False)
        >>> fit.params["weight"].shape
        torch.Size([13, 2])
    """

    def _parts(self, covariance: Tensor) -> tuple[Tensor, Tensor]:
        if not self.priors:
            return factor_parts(covariance, self.num_factors)
        scale = covariance.diagonal().sqrt()  # principal components are small where there is no factor
        weight, noise = principal_parts(covariance / scale / scale.unsqueeze(-1), self.num_factors)
        return weight * scale.unsqueeze(-1), noise * scale.square()

    def remarks(self, columns: Sequence[str] | None = None) -> list[str]:
        """Which columns the factors explain wholly, if any."""
        if self.priors:
            return []
        noise = self.noise_scale.detach().square()
        share = noise / (noise + self.weight.detach().square().sum(-1))
        found = (share < HEYWOOD).nonzero().flatten().tolist()
        if not found:
            return []
        names = ", ".join(str(columns[i]) if columns else str(i) for i in found)
        return [
            f"FactorAnalysis({self.num_factors}): the factors explain column {names} wholly (a Heywood case); its "
            "noise is held at the inference's variance_floor. Take fewer factors, or leave such columns out."
        ]
