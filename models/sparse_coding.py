r"""Sparse coding: rows are sums of a few columns of a dictionary, which may have more columns than rows have entries.

.. math::

    h_{nj} \sim \mathrm{Laplace}(0, 1 / \lambda), \qquad x_n \mid h_n \sim \mathrm{Normal}(b + W h_n, \sigma^2 I),
    \qquad \|w_j\| = 1
"""

from __future__ import annotations

import math
from functools import partial
from typing import Any, ClassVar

import pyro.distributions as dist
import torch
from torch import Tensor
from torch.distributions import constraints

from pyro_lvm.distributions.spike_and_slab import SpikeAndSlab
from pyro_lvm.distributions.unit_columns import columns_of_length_one
from pyro_lvm.models.linear_factors import LinearFactors
from pyro_lvm.ops.dictionary import better_dictionary, first_dictionary, unit_columns
from pyro_lvm.ops.missing import column_moments
from pyro_lvm.ops.real_number import real_number

__all__ = ["SparseCoding"]

FIRST_ROWS = 4096  # that a start looks at

TAKES: dict[str, tuple[str, ...]] = {
    "laplace": ("sparsity",),
    "student-t": ("sparsity", "degrees_of_freedom"),
    "spike-and-slab": ("inclusion_probability", "slab_scale"),
}
"""Priors of codes by name, and what they take."""

SHARE = 0.3  # of the columns' spread, which is noise where nobody says more
DEFAULTS = {"degrees_of_freedom": 1.0, "inclusion_probability": 0.2}


class SparseCoding(LinearFactors):
    r"""Rows as sums of few columns of a dictionary, by a prior of codes that has its mode at zero.

    ==================  ==============================================  =========  =======================
    symbol              meaning                                         shape      code
    ==================  ==============================================  =========  =======================
    :math:`W`           dictionary, columns of length 1                 (d, k)     `weight`
    :math:`b`           mean                                            (d,)       `loc`
    :math:`h`           codes                                           (n, k)     site `h`
    :math:`\sigma`      standard deviation of the noise, given          ()         `noise_scale`
    :math:`\lambda`     one over the scale of the prior, given          ()         `sparsity`
    :math:`\nu`         degrees of freedom of Student's t, given        ()         `degrees_of_freedom`
    :math:`\pi`         probability that a code is not zero, given      ()         `inclusion_probability`
    :math:`s`           standard deviation of codes that are not zero   ()         `slab_scale`
    ==================  ==============================================  =========  =======================

    Three priors of codes share one interface:

    * "laplace", :math:`\mathrm{Laplace}(0, 1 / \lambda)`: codes are the lasso's; many are exactly zero, the others are
      smaller than what made the rows.
    * "student-t", :math:`\mathrm{StudentT}(\nu, 0, 1 / \lambda)`: heavier tails, so that large codes hardly
      shrink. None is exactly zero, and the mode is a local one. :math:`\nu = 1` is Olshausen and Field's cost.
    * "spike-and-slab", zero with probability :math:`1 - \pi`, else :math:`\mathrm{Normal}(0, s^2)`: which codes are
      zero is part of the answer, and others hardly shrink. Densities count over such a length that a code alone is zero
      at the mode just where it is probably zero; units do not matter. `fit.score` is exact up to 10 factors.

    By default dictionary and codes are found together as the mode: codes by a search, the dictionary in closed form,
    in turn. What never rises is the negative log joint density; with the Laplace prior it is, up to a constant,

    .. math:: \sum_n \frac{1}{2 \sigma^2} \|x_n - b - W h_n\|^2 + \lambda \|h_n\|_1,

    which is :math:`1/\sigma^2` times the objective of scikit-learn's `MiniBatchDictionaryLearning` at
    :math:`\alpha = \lambda \sigma^2` (there is no b there, and columns may be shorter than 1). It knows no normalised
    density of dictionaries: the mode alone cannot tell the numbers of the noise and of the prior, which are therefore
    given, in the units of the data. A column that no row uses is put in the place of a row that fits badly, which
    changes no log-density. For the posterior of codes fit with inference "svi" and guide "local", or draw from it with
    NUTS; not with "spike-and-slab", whose zeros such laws never meet.

    How to choose: `noise_scale` first, how far a row may be from its sum of columns: what measurement leaves, else a
    third or a tenth of the columns' standard deviation. Then, the smaller `sparsity` is, the more columns a row uses;
    by default noise alone makes next to none count. Of "spike-and-slab", `inclusion_probability` times `num_factors` is
    how many columns a row uses. `fit.transform(x) != 0` tells how many it did use, `fit.reconstruct(x)` what is lost,
    and `fit.score` of other rows ranks choices, up to 64 factors.

    Args:
        num_factors: k >= 1, as many as wanted.
        sparsity: > 0, of "laplace" and "student-t"; by default :math:`\sqrt{2 \log k} / \sigma`, beyond which noise
            alone does not reach.
        noise_scale: > 0, in the units of the data; by default 0.3 of the columns' standard deviation, the root of
            their mean variance.
        data_dim: Number of columns d; taken from the data by `initialize` if None.
        prior: "laplace", "student-t" or "spike-and-slab".
        degrees_of_freedom: > 0, of "student-t"; by default 1.
        inclusion_probability: Between 0 and 1, of "spike-and-slab"; by default 0.2.
        slab_scale: > 0, of "spike-and-slab"; by default codes have the variance of the rows.

    Raises:
        ValueError: An argument is out of range, or of another prior.

    References:
        B. Olshausen, D. Field (1996), Emergence of simple-cell receptive field properties by learning a sparse code
            for natural images, Nature 381.
        S. Chen, D. Donoho, M. Saunders (1998), Atomic decomposition by basis pursuit, SIAM Journal on Scientific
            Computing 20: the default of `sparsity`.
        J. Mairal, F. Bach, J. Ponce, G. Sapiro (2010), Online learning for matrix factorization and sparse coding,
            JMLR 11.
        M. Titsias, M. Lazaro-Gredilla (2011), Spike and slab variational inference for multi-task and multiple kernel
            learning, NeurIPS.

    Example:
        >>> import pyro_lvm as lvm
        >>> x = lvm.datasets.load("iris").x
        >>> fit = lvm.fit(lvm.models.SparseCoding(6), x, max_epochs=20, seed=0, progress=False)
        >>> codes = fit.transform(x)
        >>> codes.shape, bool((codes == 0).any())
        (torch.Size([150, 6]), True)
    """

    dims: ClassVar[dict[str, list[str]]] = {"weight": ["column", "factor"], "loc": ["column"]}

    sparsity: float
    degrees_of_freedom: float
    inclusion_probability: float
    slab_scale: float

    def __init__(
        self,
        num_factors: int,
        sparsity: float | int | None = None,
        noise_scale: float | int | None = None,
        data_dim: int | None = None,
        prior: str = "laplace",
        degrees_of_freedom: float | int | None = None,
        inclusion_probability: float | None = None,
        slab_scale: float | int | None = None,
    ) -> None:
        super().__init__(num_factors, data_dim)
        if prior not in TAKES:
            raise ValueError(f"{self._name}: expected prior to be one of {', '.join(TAKES)}; got {prior!r}.")
        self.prior = prior
        given = {
            "noise_scale": noise_scale,
            "sparsity": sparsity,
            "degrees_of_freedom": degrees_of_freedom,
            "inclusion_probability": inclusion_probability,
            "slab_scale": slab_scale,
        }
        for name, value in given.items():
            limits = "in (0, 1)" if name == "inclusion_probability" else "> 0"
            setattr(self, name, None if value is None else real_number(self._name, name, value, limits))
            if value is not None and name not in ("noise_scale", *TAKES[prior]):
                raise ValueError(
                    f"{self._name}: expected {' and '.join(TAKES[prior])} for prior={prior!r}; got {name}={value!r}. "
                    "Leave it out."
                )
        self._open = [name for name in ("noise_scale", *TAKES[prior]) if given[name] is None]
        if self.data_dim is not None:
            self._choose(torch.ones(self.data_dim))
            weight = unit_columns(torch.randn(self.data_dim, self.num_factors))
            self._declare_parts(torch.zeros(self.data_dim), weight)

    def _choose(self, variance: Tensor) -> None:
        """Numbers that were not given, in the units of columns with these variances."""
        total, k = float(variance.sum()), self.num_factors
        for name in self._open:
            if name == "noise_scale":
                self.noise_scale = SHARE * math.sqrt(total / len(variance))
            elif name == "sparsity":
                self.sparsity = math.sqrt(2 * math.log(max(k, 2))) / self.noise_scale
            elif name == "slab_scale":
                self.slab_scale = math.sqrt(total / (self.inclusion_probability * k))
            else:
                setattr(self, name, DEFAULTS[name])

    def _factor_law(self, rows: int, like: Tensor) -> Any:
        zero = like.new_zeros(rows, self.num_factors)
        if self.prior == "laplace":
            law: Any = dist.Laplace(zero, 1 / self.sparsity)
        elif self.prior == "student-t":
            law = dist.StudentT(self.degrees_of_freedom, zero, 1 / self.sparsity)
        else:
            law = SpikeAndSlab(self.inclusion_probability, zero, self.slab_scale, self._unit)
        return law.to_event(1)

    @property
    def _unit(self) -> float:
        """Where densities of codes count over it, a code alone is zero at the mode just where it is probably zero."""
        return math.sqrt(2 * math.pi / (self.noise_scale**-2 + self.slab_scale**-2))

    @property
    def _start_penalty(self) -> float:
        """Of a lasso whose codes are about as large as those of the prior."""
        if self.prior == "laplace":
            rate = self.sparsity
        elif self.prior == "student-t":  # the steepest that its cost becomes
            rate = self.sparsity * (self.degrees_of_freedom + 1) / (2 * math.sqrt(self.degrees_of_freedom))
        else:  # codes alone that are not zero are as far from it
            odds = (1 - self.inclusion_probability) / self.inclusion_probability
            cost = math.log(max(odds, 1.0)) + 0.5 * math.log1p((self.slab_scale / self.noise_scale) ** 2)
            rate = math.sqrt(2 * cost) / self.noise_scale
        return rate * self.noise_scale**2

    def _own_m_step(self, h: Tensor, x: Tensor) -> dict[str, Any]:
        return {"statistics": partial(self._sums, h, x), "m_step": partial(self._maximise, h, x)}

    def _check_count(self, columns: int) -> None:
        """Any number of columns will do: codes may be longer than rows."""

    def initialize(self, x: Tensor, sample_weights: Tensor | None = None) -> None:
        """Start from the mean, and a dictionary that a few steps on up to 4096 rows make of rows drawn at random.

        Args:
            x: Rows, shape (n, d), NaN where missing.
            sample_weights: How often each row counts, shape (n,); rows that do not count give no start.

        Raises:
            ValueError: Rows do not fit the model, or bad weights.
        """
        x, counts = self._counted(x, sample_weights)
        self.data_dim = x.shape[1]
        mean, variance = (part.to(x) for part in column_moments(x.double(), counts))
        self._choose(variance)
        centred = torch.where(x.isnan(), 0.0, x - mean)
        far = torch.linalg.vector_norm(centred, dim=-1)
        drawn = torch.multinomial(far, min(self.num_factors, int((far > 0).sum())))  # none that is the mean itself
        others = torch.randn(x.shape[1], self.num_factors - len(drawn)).to(x)
        first = centred[torch.randperm(len(x))[:FIRST_ROWS].to(x.device)]
        columns = unit_columns(torch.cat([centred[drawn].mT, others], 1))
        with torch.no_grad():
            self._declare_parts(mean, first_dictionary(first, columns, self._start_penalty))

    def _declare(self, mean: Tensor, covariance: Tensor) -> None:
        """Not by covariance: `initialize` looks at rows."""

    def _declare_parts(self, mean: Tensor, weight: Tensor) -> None:
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
