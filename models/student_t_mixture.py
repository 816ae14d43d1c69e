r"""Mixture of Student's t laws: clusters that a few outlying rows do not move.

.. math::

    z_n &\sim \mathrm{Categorical}(w) \\
    x_n \mid z_n = k &\sim \mathrm{StudentT}(\nu_k, \mu_k, \Sigma_k)
"""

from __future__ import annotations

from typing import Any, ClassVar

import pyro
import pyro.distributions as dist
import torch
from jaxtyping import Float, Num
from torch import Tensor
from torch.distributions import constraints

from pyro_lvm.models.real_rows import check_learnable, check_matrix, check_sample_weights, counted
from pyro_lvm.ops.clusters import cluster_moments
from pyro_lvm.protocols import LatentVariableModel

__all__ = ["StudentTMixture"]

COVARIANCES = ("full", "diag")

# Where learned degrees of freedom start: tails far from both the normal's and Cauchy's.
START = 10.0


class StudentTMixture(LatentVariableModel):
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
        super().__init__()
        if covariance not in COVARIANCES:
            raise ValueError(
                f"StudentTMixture: expected covariance to be one of {', '.join(COVARIANCES)}; got {covariance!r}."
            )
        if num_components < 1 or int(num_components) != num_components:
            raise ValueError(f"StudentTMixture: expected num_components >= 1; got {num_components}.")
        if data_dim is not None and data_dim < 1:
            raise ValueError(f"StudentTMixture: expected data_dim >= 1; got {data_dim}.")
        if degrees_of_freedom is not None and not 0 < degrees_of_freedom < torch.inf:
            raise ValueError(
                f"StudentTMixture: expected degrees_of_freedom > 0 and finite; got {degrees_of_freedom}. "
                "Pass None to learn them."
            )
        self.num_components = int(num_components)
        self.data_dim = data_dim
        self.covariance = covariance
        self.fixed_degrees_of_freedom = degrees_of_freedom
        if data_dim is not None:
            k = self.num_components
            self._declare(torch.full((k,), 1 / k), torch.zeros(k, data_dim), torch.eye(data_dim).expand(k, -1, -1))

    @property
    def config(self) -> dict[str, Any]:
        """The constructor's arguments."""
        return {
            "num_components": self.num_components,
            "data_dim": self.data_dim,
            "covariance": self.covariance,
            "degrees_of_freedom": self.fixed_degrees_of_freedom,
        }

    def forward(
        self,
        x: Float[Tensor, "n d"] | None = None,
        *,
        size: int | None = None,
        sample_weights: Num[Tensor, " n"] | None = None,
    ) -> Float[Tensor, "n d"]:
        """Run the program.

        Args:
            x: Observed rows, shape (n, d); None to generate.
            size: Number of rows to generate.
            sample_weights: How often each row counts, shape (n,), >= 0; once by default. For EM: Pyro's other
                inferences cannot sum `z` out under a scale of each row.

        Returns:
            Rows, shape (n, d).
        """
        if x is None and size is None:
            raise ValueError("StudentTMixture: expected rows x or a size to generate; got neither.")
        weights, scale, loc, df = self.weights, self.scale, self.loc, self.degrees_of_freedom
        root = torch.linalg.cholesky(scale) if self.covariance == "full" else scale.sqrt()
        with pyro.plate("data", size if x is None else len(x)), counted(sample_weights, weights):
            z = pyro.sample("z", dist.Categorical(weights), infer={"enumerate": "parallel"})
            return pyro.sample("x", self._component(df[z], loc[z], root[z]), obs=x)

    def _component(self, df: Tensor, loc: Tensor, root: Tensor) -> Any:
        if self.covariance == "full":
            return dist.MultivariateStudentT(df, loc, root)
        return dist.StudentT(df.unsqueeze(-1), loc, root).to_event(1)

    def check(self, x: Tensor) -> None:
        """Raise a ValueError unless `x` is a matrix with `data_dim` columns."""
        check_matrix("StudentTMixture", x, self.data_dim)

    def check_training(self, x: Tensor) -> None:
        """Raise a ValueError for fewer rows than components, fewer than two rows, or a constant column."""
        self.check(x)
        check_learnable("StudentTMixture", x, self.num_components)

    def initialize(self, x: Tensor, sample_weights: Tensor | None = None) -> None:
        """Start from k-means clusters of the standardised columns; other seeds give other starts.

        Args:
            x: Rows, shape (n, d).
            sample_weights: How often each row counts, shape (n,); rows that do not count give no start.

        Raises:
            ValueError: Fewer rows than components, fewer than two rows, a constant column, bad weights.
        """
        if sample_weights is not None:
            check_sample_weights("StudentTMixture", x, sample_weights)
            x = x[sample_weights > 0]
        self.check_training(x)
        self.data_dim = x.shape[1]
        self._declare(*cluster_moments(x, self.num_components))

    def _declare(self, weights: Tensor, loc: Tensor, within: Tensor) -> None:
        """Create the parameters at the given start."""
        full = self.covariance == "full"
        self.declare("weights", weights, constraints.simplex)
        scale = within if full else within.diagonal(dim1=-2, dim2=-1)
        self.declare("scale", scale, constraints.positive_definite if full else constraints.positive)
        self.declare("loc", loc, constraints.real)
        if self.fixed_degrees_of_freedom is None:
            self.declare("degrees_of_freedom", torch.full_like(weights, START), constraints.positive)
        else:
            self.register_buffer("degrees_of_freedom", torch.full_like(weights, self.fixed_degrees_of_freedom))
