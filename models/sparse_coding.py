r"""Sparse coding: rows are sums of a few columns of a dictionary, which may have more columns than rows have entries.

.. math::

    h_{nj} \sim \mathrm{Laplace}(0, 1 / \lambda), \qquad x_n \mid h_n \sim \mathrm{Normal}(b + W h_n, \sigma^2 I),
    \qquad \|w_j\| = 1
"""

from __future__ import annotations

from functools import partial
from typing import Any, ClassVar

import pyro
import pyro.distributions as dist
import torch
from jaxtyping import Float
from torch import Tensor
from torch.distributions import constraints

from pyro_lvm.distributions.normal_rows import check_real_columns
from pyro_lvm.distributions.unit_columns import columns_of_length_one
from pyro_lvm.ops.dictionary import better_dictionary, first_dictionary, unit_columns
from pyro_lvm.ops.missing import column_moments
from pyro_lvm.ops.real_number import real_number
from pyro_lvm.ops.row_checks import check_matrix
from pyro_lvm.ops.whole_number import whole_number
from pyro_lvm.protocols import LatentVariableModel

__all__ = ["SparseCoding"]

FIRST_ROWS = 4096  # that a start looks at


class SparseCoding(LatentVariableModel):
    r"""Rows as sums of few columns of a dictionary, by a prior of codes that has its mode at zero.

    ==================  ==========================================  =========  ==============
    symbol              meaning                                     shape      code
    ==================  ==========================================  =========  ==============
    :math:`W`           dictionary, columns of length 1             (d, k)     `weight`
    :math:`b`           mean                                        (d,)       `loc`
    :math:`h`           codes                                       (n, k)     site `h`
    :math:`\lambda`     rate of the prior, given                    ()         `sparsity`
    :math:`\sigma`      standard deviation of the noise, given      ()         `noise_scale`
    ==================  ==========================================  =========  ==============

    By default dictionary and codes are found together as the mode: codes by the lasso, the dictionary in closed form,
    in turn. What never rises is the negative log joint density, up to a constant

    .. math:: \sum_n \frac{1}{2 \sigma^2} \|x_n - b - W h_n\|^2 + \lambda \|h_n\|_1,

    which is :math:`1/\sigma^2` times the objective of scikit-learn's `MiniBatchDictionaryLearning` at
    :math:`\alpha = \lambda \sigma^2` (there is no b there, and columns may be shorter than 1). It knows no normalised
    density of dictionaries: the mode alone cannot tell :math:`\lambda` and :math:`\sigma`, which are therefore given,
    in the units of the data. A column that no row uses is put in the place of a row that fits badly, which changes
    no log-density. For the posterior of codes fit with
    inference "svi" and guide "local", or draw from it with NUTS.

    Args:
        num_factors: k >= 1, as many as wanted.
        sparsity: > 0; the larger, the fewer entries of codes are not zero.
        noise_scale: > 0, in the units of the data.
        data_dim: Number of columns d; taken from the data by `initialize` if None.

    Raises:
        ValueError: An argument is out of range.

    References:
        B. Olshausen, D. Field (1996), Emergence of simple-cell receptive field properties by learning a sparse code
            for natural images, Nature 381.
        J. Mairal, F. Bach, J. Ponce, G. Sapiro (2010), Online learning for matrix factorization and sparse coding,
            JMLR 11.

    Example:
        >>> import pyro_lvm as lvm
        >>> x = lvm.datasets.load("iris").x
        >>> fit = lvm.fit(lvm.models.SparseCoding(6, noise_scale=0.3), x, max_epochs=20, seed=0, progress=False)
        >>> codes = fit.transform(x)
        >>> codes.shape, bool((codes == 0).any())
        (torch.Size([150, 6]), True)
    """

    handles_missing: ClassVar[bool] = True
    dims: ClassVar[dict[str, list[str]]] = {"weight": ["column", "factor"], "loc": ["column"]}

    def __init__(
        self, num_factors: int, sparsity: float = 1.0, noise_scale: float = 1.0, data_dim: int | None = None
    ) -> None:
        super().__init__()
        self.num_factors = whole_number("SparseCoding", "num_factors", num_factors)
        self.sparsity = real_number("SparseCoding", "sparsity", sparsity)
        self.noise_scale = real_number("SparseCoding", "noise_scale", noise_scale)
        self.data_dim = None if data_dim is None else whole_number("SparseCoding", "data_dim", data_dim)
        if self.data_dim is not None:
            self._declare(torch.zeros(self.data_dim), unit_columns(torch.randn(self.data_dim, self.num_factors)))

    def forward(self, x: Float[Tensor, "n d"] | None = None, *, size: int | None = None) -> Float[Tensor, "n d"]:
        """Run the program.

        Args:
            x: Observed rows, shape (n, d), NaN where missing; None to generate.
            size: Number of rows to generate.

        Returns:
            Rows, shape (n, d).

        Raises:
            ValueError: There are neither rows nor a size.
        """
        if x is None and size is None:
            raise ValueError("SparseCoding: expected rows x or a size to generate; got neither.")
        weight, loc = self.weight, self.loc
        n: Any = size if x is None else len(x)
        with pyro.plate("data", n):
            h = pyro.sample("h", dist.Laplace(loc.new_zeros(n, self.num_factors), 1 / self.sparsity).to_event(1))
            law = dist.Normal(loc + h @ weight.mT, self.noise_scale)
            if x is None:
                return pyro.sample("x", law.to_event(1))
            own = {"statistics": partial(self._sums, h, x), "m_step": partial(self._maximise, h, x)}
            if not bool(x.sum().isnan()):
                return pyro.sample("x", law.to_event(1), obs=x, infer=own)
            filled = torch.where(x.isnan(), loc.detach(), x)
            return pyro.sample("x", law.mask(~x.isnan()).to_event(1), obs=filled, infer=own)

    def check(self, x: Tensor) -> None:
        """Raise a ValueError unless `x` is a matrix with the right number of columns."""
        check_matrix("SparseCoding", x, self.data_dim)

    def check_training(self, x: Tensor) -> None:
        """Raise a ValueError for fewer than two rows that differ, or empty columns."""
        self.check(x)
        if len(x) < 2:
            raise ValueError(f"SparseCoding: expected at least 2 rows to learn from; got {len(x)}. Add rows.")
        check_real_columns("SparseCoding", x, constants=True)

    def initialize(self, x: Tensor) -> None:
        """Start from the mean, and a dictionary that a few steps on up to 4096 rows make of rows drawn at random.

        Args:
            x: Rows, shape (n, d), NaN where missing.

        Raises:
            ValueError: Rows do not fit the model.
        """
        self.check_training(x)
        self.data_dim = x.shape[1]
        mean = column_moments(x.double())[0].to(x)
        centred = torch.where(x.isnan(), 0.0, x - mean)
        far = torch.linalg.vector_norm(centred, dim=-1)
        drawn = torch.multinomial(far, min(self.num_factors, int((far > 0).sum())))  # none that is the mean itself
        others = torch.randn(x.shape[1], self.num_factors - len(drawn)).to(x)
        first = centred[torch.randperm(len(x))[:FIRST_ROWS].to(x.device)]
        columns = unit_columns(torch.cat([centred[drawn].mT, others], 1))
        with torch.no_grad():
            self._declare(mean, first_dictionary(first, columns, self.sparsity * self.noise_scale**2))

    def _declare(self, mean: Tensor, weight: Tensor) -> None:
        self.declare("weight", weight, columns_of_length_one)
        self.declare("loc", mean, constraints.real)

    def _sums(self, h: Tensor, x: Tensor, law: Any, value: Tensor, weights: Tensor) -> dict[str, Tensor]:
        """What an M-step needs of rows and their codes; missing entries are where the codes put them."""
        count = weights.reshape(len(x), -1)[:, :1]
        filled = self._filled(h, x)
        weighted = count * h
        return {
            "rows": count.sum(),
            "first": (count * filled).sum(0),
            "codes": weighted.sum(0),
            "second": h.mT @ weighted,
            "cross": filled.mT @ weighted,
        }

    def _maximise(self, h: Tensor, x: Tensor, law: Any, value: Tensor, sums: dict[str, Tensor]) -> dict[str, Tensor]:
        """The M-step: mean, then dictionary, at given codes."""
        weight, second = self.weight, sums["second"]
        loc = (sums["first"] - weight @ sums["codes"]) / sums["rows"]
        found = better_dictionary(weight, second, sums["cross"] - loc.unsqueeze(-1) * sums["codes"])
        unused = (second.diagonal() == 0).nonzero()[:, 0]
        if len(unused):
            rest = self._filled(h, x) - loc - h @ found.mT
            worst = rest[rest.square().sum(-1).topk(min(len(unused), len(x))).indices]
            worst = worst[torch.linalg.vector_norm(worst, dim=-1) > 0]
            found[:, unused[: len(worst)]] = unit_columns(worst.mT)
        return {"loc": loc, "weight": found}

    def _filled(self, h: Tensor, x: Tensor) -> Tensor:
        return torch.where(x.isnan(), self.loc + h @ self.weight.mT, x) if bool(x.sum().isnan()) else x
