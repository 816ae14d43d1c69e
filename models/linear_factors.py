"""What linear factor models share: rows are an affine map of a few independent factors, with independent noise."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any, ClassVar

import pyro
import pyro.distributions as dist
import torch
from jaxtyping import Float, Num
from torch import Tensor

from pyro_lvm.distributions.normal_rows import check_real_columns
from pyro_lvm.distributions.standard_normal import standard_normal
from pyro_lvm.handlers.counted import counted
from pyro_lvm.ops.missing import column_moments
from pyro_lvm.ops.row_checks import check_matrix, check_weights
from pyro_lvm.ops.whole_number import whole_number
from pyro_lvm.protocols import LatentVariableModel

__all__ = ["LinearFactors"]


class LinearFactors(LatentVariableModel):
    r"""Base of the models :math:`x_n = b + W h_n + \epsilon_n` with normal noise.

    Factors are standard normal unless a model says otherwise.

    Args:
        num_factors: k >= 1, at most the number of columns.
        data_dim: Number of columns d; taken from the data by `initialize` if None.

    Raises:
        ValueError: An argument is out of range.
    """

    handles_missing: ClassVar[bool] = True
    dims: ClassVar[dict[str, list[str]]] = {
        "weight": ["column", "factor"],
        "loc": ["column"],
        "noise_scale": ["column"],
    }

    def __init__(self, num_factors: int, data_dim: int | None = None) -> None:
        super().__init__()
        self.num_factors = whole_number(self._name, "num_factors", num_factors)
        self.data_dim = None if data_dim is None else whole_number(self._name, "data_dim", data_dim)

    @property
    def _name(self) -> str:
        return type(self).__name__

    def forward(
        self,
        x: Float[Tensor, "n d"] | None = None,
        *,
        size: int | None = None,
        sample_weights: Num[Tensor, " n"] | None = None,
    ) -> Float[Tensor, "n d"]:
        """Run the program.

        Args:
            x: Observed rows, shape (n, d), NaN where missing; None to generate.
            size: Number of rows to generate.
            sample_weights: How often each row counts, shape (n,), >= 0; once by default.

        Returns:
            Rows, shape (n, d).

        Raises:
            ValueError: There are neither rows nor a size.
        """
        if x is None and size is None:
            raise ValueError(f"{self._name}: expected rows x or a size to generate; got neither.")
        n: Any = size if x is None else len(x)
        parts = self.weight, self.loc, self.noise_scale  # with priors these are sites, of all rows
        with pyro.plate("data", n), counted(sample_weights, parts[1]):
            return self._observe(x, n, *parts)

    def _observe(self, x: Tensor | None, rows: int, weight: Tensor, loc: Tensor, noise_scale: Tensor | float) -> Tensor:
        """Factors of n rows, and the rows, inside of their plate."""
        h = pyro.sample("h", self._factor_law(rows, loc))
        law = dist.Normal(loc + h @ weight.mT, noise_scale)
        if x is None:
            return pyro.sample("x", law.to_event(1))
        infer = self._own_m_step(h, x)
        if not bool(x.sum().isnan()):
            return pyro.sample("x", law.to_event(1), obs=x, infer=infer)
        filled = torch.where(x.isnan(), loc.detach(), x)
        return pyro.sample("x", law.mask(~x.isnan()).to_event(1), obs=filled, infer=infer)

    def _own_m_step(self, h: Tensor, x: Tensor) -> dict[str, Any]:
        """What site `x` says of its M-step, if it has one of its own."""
        return {}

    def _factor_law(self, rows: int, like: Tensor) -> Any:
        """The law of the factors of n rows, batch shape (n,), event shape (k,); draws are of the type of `like`."""
        return standard_normal(rows, self.num_factors, like)

    def check(self, x: Tensor) -> None:
        """Raise a ValueError unless `x` is a matrix with the right number of columns."""
        check_matrix(self._name, x, self.data_dim)

    def check_training(self, x: Tensor) -> None:
        """Raise a ValueError for fewer than two rows, constant or empty columns, or fewer columns than factors."""
        self.check(x)
        if len(x) < 2:
            raise ValueError(f"{self._name}: expected at least 2 rows to learn from; got {len(x)}. Add rows.")
        self._check_count(x.shape[1])
        check_real_columns(self._name, x, constants=not self.dims.get("noise_scale"))  # then they have that of others

    def _check_count(self, columns: int) -> None:
        """Raise a ValueError if so many columns do not tell of so many factors."""
        if columns < self.num_factors:
            raise ValueError(
                f"{self._name}: expected at most as many factors as columns ({columns}); got {self.num_factors}. "
                "Lower num_factors."
            )

    def initialize(self, x: Tensor, sample_weights: Tensor | None = None) -> None:
        """Start from the covariance of the rows; with gaps, that of what is known of pairs of columns.

        Args:
            x: Rows, shape (n, d), NaN where missing.
            sample_weights: How often each row counts, shape (n,); rows that do not count give no start.

        Raises:
            ValueError: Rows do not fit the model, or bad weights.
        """
        x, counts = self._counted(x, sample_weights)
        self.data_dim = x.shape[1]
        mean, variance = (part.to(x) for part in column_moments(x.double(), counts))
        centred = torch.where(x.isnan(), 0.0, x - mean)
        weighted = centred if counts is None else centred * (counts / counts.mean()).unsqueeze(-1)
        covariance = weighted.mT @ centred / len(x)
        share = (variance / covariance.diagonal().clamp_min(torch.finfo(x.dtype).tiny)).sqrt()  # gaps shrink variances
        self._declare(mean, covariance * share * share.unsqueeze(-1))

    def _counted(self, x: Tensor, sample_weights: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """The rows that count, which are enough to learn from, and how often."""
        self.check(x)
        if sample_weights is not None:
            check_weights(self._name, len(x), sample_weights)
            x, sample_weights = x[sample_weights > 0], sample_weights[sample_weights > 0].to(x)
        self.check_training(x)
        return x, sample_weights

    @abstractmethod
    def _declare(self, mean: Tensor, covariance: Tensor) -> None:
        """Create the parameters at a start that has this mean and, nearly, this covariance of the rows."""
