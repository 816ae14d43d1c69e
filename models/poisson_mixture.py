r"""Poisson mixture: every row of counts comes from one of K sets of independent rates.

.. math::

    z_n &\sim \mathrm{Categorical}(w) \\
    x_{nj} \mid z_n = k &\sim \mathrm{Poisson}(\lambda_{kj})
"""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor

from pyro_lvm.distributions.columns import Poisson
from pyro_lvm.models.factorised_mixture import FactorisedMixture, Group
from pyro_lvm.models.mixture import Priors

__all__ = ["PoissonMixture"]


class PoissonMixture(FactorisedMixture):
    r"""Mixture of K products of Poisson distributions.

    ================  =================================  =========  =============
    symbol            meaning                            shape      code
    ================  =================================  =========  =============
    :math:`w`         mixture weights                    (K,)       `weights`
    :math:`\lambda`   expected counts                    (K, d)     `rate`
    ================  =================================  =========  =============

    Without priors the parameters are point estimates (`PyroParam`). With priors they are sample sites; the default
    ones are weak: :math:`w \sim` Dirichlet(1), :math:`\lambda_{kj} \sim` Gamma(1, 1 / mean of column j). Missing
    entries are NaN and are marginalised. A single column is a table of shape (n, 1).

    Args:
        num_components: K >= 1.
        data_dim: Number of columns d; taken from the data by `initialize` if None.
        priors: None for maximum likelihood; True for the default priors; or a dict that replaces some of them, each a
            distribution or a function of the model that returns one.

    Raises:
        ValueError: An argument is out of range.

    References:
        G. McLachlan, D. Peel (2000), Finite Mixture Models, chapter 5.

    Example:
        >>> import pyro_lvm as lvm
        >>> x = lvm.datasets.load("visits").x
        >>> fit = lvm.fit(lvm.models.PoissonMixture(3), x, seed=0, progress=False)
        >>> [round(rate, 1) for rate in sorted(fit.params["rate"].flatten().tolist())]
        [0.9, 5.3, 18.8]
    """

    dims: ClassVar[dict[str, list[str]]] = {"weights": ["component"], "rate": ["component", "dimension"]}

    def __init__(self, num_components: int, data_dim: int | None = None, priors: bool | Priors | None = None) -> None:
        super().__init__(num_components, priors)
        self.data_dim = self._checked_columns(data_dim)
        if data_dim is not None:
            self._declare_unseen()

    def _learn_columns(self, x: Tensor) -> None:
        self.data_dim = x.shape[1]

    def _grouped(self) -> tuple[Group, ...]:
        return (Group("x", Poisson(), tuple(range(self.data_dim or 0)), {"rate": "rate"}),)

    def _other_support(self, group: Group) -> str:
        return "Pass whole numbers >= 0, or use HeterogeneousMixture for other columns."
