r"""Mixture of Student's t laws: clusters that a few outlying rows do not move.

.. math::

    z_n &\sim \mathrm{Categorical}(w) \\
    x_n \mid z_n = k &\sim \mathrm{StudentT}(\nu_k, \mu_k, \Sigma_k)
"""

from __future__ import annotations

from typing import Any, ClassVar

import pyro
import torch
from torch import Tensor
from torch.distributions import constraints

from pyro_lvm.distributions.student_t_rows import START, StudentTRows
from pyro_lvm.models.real_mixture import Moments, RealMixture

__all__ = ["StudentTMixture"]


class StudentTMixture(RealMixture):
    r"""Mixture of K Student's t distributions: the robust version of the Gaussian mixture.

    ==================  ===================  =========================================  ====================
    symbol              meaning              shape                                      code
    ==================  ===================  =========================================  ====================
    :math:`w`           mixture weights      (K,)                                       `weights`
    :math:`\mu`         component centres    (K, d)                                     `loc`
    :math:`\Sigma`      scale matrices       full (K, d, d); diag (K, d)                `scale`
    :math:`\nu`         degrees of freedom   (K,)                                       `degrees_of_freedom`
    ==================  ===================  =========================================  ====================

    The covariance of a component is :math:`\nu / (\nu - 2)` times its scale matrix, and exists for :math:`\nu > 2`.
    With "diag" the columns of a component are independent t variables, so that one wild entry leaves the rest of its
    row alone; with "full" a row is wild as a whole. The scale, squared, is in the units of a variance.

    Degrees of freedom are learned up to 200, where the law is the normal but for a total variation of 0.002.

    Args:
        num_components: K >= 1.
        data_dim: Number of columns d; taken from the data by `initialize` if None.
        covariance: "full" or "diag".
        degrees_of_freedom: A number > 0 for all components, or None to learn one for each.

    Raises:
        ValueError: An argument is out of range.

    References:
        D. Peel, G. McLachlan (2000), Robust mixture modelling using the t distribution, Statistics and Computing 10.

    Example:
        >>> import torch, pyro_lvm as lvm
        >>> x = lvm.datasets.load("faithful").x
        >>> x = torch.cat([x, torch.tensor([[3.0, 500.0]])])  # a slip of the pen
        >>> fit = lvm.fit(lvm.models.StudentTMixture(2, degrees_of_freedom=4), x, seed=0, progress=False)
        >>> [round(centre) for centre in fit.params["loc"][:, 1].tolist()]
        [54, 80]
    """

    dims: ClassVar[dict[str, list[str]]] = {
        "weights": ["component"],
        "loc": ["component", "dimension"],
        "scale": ["component", "dimension", "dimension_2"],
        "degrees_of_freedom": ["component"],
    }

    def __init__(
        self,
        num_components: int,
        data_dim: int | None = None,
        covariance: str = "full",
        degrees_of_freedom: float | int | None = None,
    ) -> None:
        super().__init__(num_components, data_dim)
        self._rows = StudentTRows("StudentTMixture", covariance, degrees_of_freedom)
        self.covariance = covariance
        if covariance == "diag":
            self.dims = {**self.dims, "scale": ["component", "dimension"]}  # type: ignore[misc]  # depends on its kind
        self.fixed_degrees_of_freedom = degrees_of_freedom
        self._declare_unseen()

    @property
    def config(self) -> dict[str, Any]:
        """The constructor's arguments."""
        return {
            "num_components": self.num_components,
            "data_dim": self.data_dim,
            "covariance": self.covariance,
            "degrees_of_freedom": self.fixed_degrees_of_freedom,
        }

    def _parameters_of_components(self) -> dict[str, Tensor]:
        return {"scale": self.scale, "loc": self.loc, "degrees_of_freedom": self.degrees_of_freedom}

    def _observe(self, parameters: dict[str, Tensor], z: Tensor, x: Tensor | None) -> Tensor:
        component = self._rows.law({name: value[z] for name, value in parameters.items()}, None)
        return pyro.sample("x", component, obs=x)

    def _declare(self, moments: Moments, weights: Tensor, loc: Tensor, within: Tensor) -> None:
        """Create the parameters at the given start."""
        scale = within if self.covariance == "full" else within.diagonal(dim1=-2, dim2=-1)
        self.declare("weights", weights, constraints.simplex)
        self.declare("scale", scale, self._rows.parameters["scale"].constraint)
        self.declare("loc", loc, constraints.real)
        if self.fixed_degrees_of_freedom is None:
            self.declare("degrees_of_freedom", torch.full_like(weights, START), constraints.positive)
        else:
            self.register_buffer("degrees_of_freedom", torch.full_like(weights, self.fixed_degrees_of_freedom))
