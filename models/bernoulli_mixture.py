r"""Bernoulli mixture: every row of zeros and ones comes from one of K sets of independent coins.

.. math::

    z_n &\sim \mathrm{Categorical}(w) \\
    x_{nj} \mid z_n = k &\sim \mathrm{Bernoulli}(p_{kj})
"""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor

from pyro_lvm.distributions.columns import Bernoulli
from pyro_lvm.models.factorised_mixture import FactorisedMixture, Group
from pyro_lvm.models.mixture import Priors

__all__ = ["BernoulliMixture"]


class BernoulliMixture(FactorisedMixture):
    r"""Mixture of K products of Bernoulli distributions.

    ==============  =================================  =========  =============
    symbol          meaning                            shape      code
    ==============  =================================  =========  =============
    :math:`w`       mixture weights                    (K,)       `weights`
    :math:`p`       probability of a one               (K, d)     `probs`
    ==============  =================================  =========  =============

    Without priors the parameters are point estimates (`PyroParam`). With priors they are sample sites; the default
    ones are uniform: :math:`w \sim` Dirichlet(1), :math:`p_{kj} \sim` Beta(1, 1). Missing entries are NaN and are
    marginalised. Components are told from each other by their data only: labels may be permuted.

    Args:
        num_components: K >= 1.
        data_dim: Number of columns d; taken from the data by `initialize` if None.
        priors: None for maximum likelihood; True for the default priors; or a dict that replaces some of them, each a
            distribution or a function of the model that returns one.

    Raises:
        ValueError: An argument is out of range.

    References:
        C. Bishop (2006), Pattern Recognition and Machine Learning, section 9.3.3, equations 9.44 to 9.60.

    Example:
        >>> import pyro_lvm as lvm
        >>> data = lvm.datasets.load("digits234")
        >>> fit = lvm.fit(lvm.models.BernoulliMixture(3), data.x, seed=0, progress=False)
        >>> fit.params["probs"].shape
        torch.Size([3, 64])
    """

    dims: ClassVar[dict[str, list[str]]] = {"weights": ["component"], "probs": ["component", "dimension"]}

    def __init__(self, num_components: int, data_dim: int | None = None, priors: bool | Priors | None = None) -> None:
        super().__init__(num_components, priors)
        self.data_dim = self._checked_columns(data_dim)
        if data_dim is not None:
            self._declare_unseen()

    def _learn_columns(self, x: Tensor) -> None:
        self.data_dim = x.shape[1]

    def _grouped(self) -> tuple[Group, ...]:
        return (Group("x", Bernoulli(), tuple(range(self.data_dim or 0)), {"probs": "probs"}),)

    def _other_support(self, group: Group) -> str:
        return "Threshold the column, e.g. (x > 0), or use HeterogeneousMixture."
