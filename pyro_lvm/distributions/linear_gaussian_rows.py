r"""The law of rows that are an affine map of a few normal factors, with independent noise, the factors summed out.

.. math:: x \sim \mathrm{Normal}(b + W m,\; W P W^\top + \mathrm{diag}(\psi^2)), \qquad m = 0, \; P = I
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from jaxtyping import Float
from pyro.distributions.torch_distribution import TorchDistribution
from torch import Tensor
from torch.distributions import constraints

from pyro_lvm.ops.cells import Cells, compact
from pyro_lvm.ops.linear_gaussian_cells import cells_log_likelihood, each_posterior, factor_law

__all__ = ["LinearGaussianRows"]


class LinearGaussianRows(TorchDistribution):
    r"""Normal rows of which a few factors explain how the columns go together.

    Entries that are NaN are not known, and are marginalised. The cost is that of k x k matrices. Arguments may be
    batches of laws, and are broadcast against each other: `loc[z]`, `weight[z]` and `noise_scale[z]` of an enumerated
    `z` are scored by products of whole matrices, and EM learns them in closed form.

    ================  ================================  ========================  ===============
    symbol            meaning                           shape                     code
    ================  ================================  ========================  ===============
    :math:`b`         mean                              batch + (d,)              `loc`
    :math:`W`         loadings                          batch + (d, k)            `weight`
    :math:`\psi`      standard deviations of the noise  batch + (d,) or (1,); ()  `noise_scale`
    ================  ================================  ========================  ===============

    Args:
        loc: Mean.
        weight: Loadings.
        noise_scale: Standard deviations of the noise, along the last axis: one for each column, or one for all.
        validate_args: Check arguments.

    Raises:
        ValueError: Shapes do not fit.

    Attributes:
        summed_out: What latent variables the law sums out, in a word.
        latent: What they are called among draws from their posterior.

    References:
        D. Rubin, D. Thayer (1982), EM algorithms for ML factor analysis, Psychometrika 47.
        Z. Ghahramani, G. Hinton (1996), The EM algorithm for mixtures of factor analyzers, Toronto CRG-TR-96-1.

    Example:
        >>> import torch
        >>> from pyro_lvm.distributions import LinearGaussianRows
        >>> law = LinearGaussianRows(torch.zeros(2), torch.ones(2, 1), torch.tensor(1.0))
        >>> law.log_prob(torch.tensor([[0.0, 0.0], [0.0, torch.nan]]))
        tensor([-2.3872, -1.2655])
    """

    arg_constraints: ClassVar[dict[str, constraints.Constraint]] = {
        "loc": constraints.real_vector,
        "weight": constraints.independent(constraints.real, 2),
        "noise_scale": constraints.independent(constraints.positive, 1),
    }
    support = constraints.real_vector
    has_rsample = True
    summed_out, latent = "normal factors", "h"

    def __init__(
        self,
        loc: Float[Tensor, "*#batch d"],
        weight: Float[Tensor, "*#batch d k"],
        noise_scale: Float[Tensor, "..."],
        validate_args: bool | None = None,
    ) -> None:
        if not all(isinstance(part, Tensor) for part in (loc, weight, noise_scale)):
            got = ", ".join(type(part).__name__ for part in (loc, weight, noise_scale))
            raise TypeError(
                f"LinearGaussianRows: expected loc, weight and noise_scale to be tensors; got {got}. Pass "
                "torch.tensor(...)."
            )
        noise = noise_scale if noise_scale.dim() else noise_scale.reshape(1)
        d = loc.shape[-1] if loc.dim() else 0
        batches = loc.shape[:-1], weight.shape[:-2], noise.shape[:-1]
        fits = d > 0 and weight.dim() > 1 and weight.shape[-2] == d and noise.shape[-1] in (1, d)
        batch = _broadcast(*batches) if fits else None
        if batch is None:
            got = ", ".join(str(tuple(part.shape)) for part in (loc, weight, noise_scale))
            raise ValueError(
                "LinearGaussianRows: expected loc of shape (..., d), weight (..., d, k) and noise_scale (..., d), "
                f"(..., 1) or (); got {got}. Give one line of weight for each column."
            )
        self._set(loc, weight, noise, batch)
        super().__init__(batch, loc.shape[-1:], validate_args=validate_args)

    def _set(self, loc: Tensor, weight: Tensor, noise: Tensor, batch: torch.Size) -> None:
        self.loc = loc.expand(*batch, *loc.shape[-1:])
        self.weight = weight.expand(*batch, *weight.shape[-2:])
        self.noise_scale = noise.expand(*batch, *noise.shape[-1:])

    def expand(self, batch_shape: Any, _instance: Any = None) -> LinearGaussianRows:
        """The same law over a batch."""
        new = type(self).__new__(type(self)) if _instance is None else _instance
        new._set(self.loc, self.weight, self.noise_scale, torch.Size(batch_shape))
        TorchDistribution.__init__(new, torch.Size(batch_shape), self.event_shape, validate_args=False)
        new._validate_args = self._validate_args
        return new

    @property
    def mean(self) -> Tensor:
        """Mean of the rows."""
        return self.loc

    @property
    def variance(self) -> Tensor:
        """Variances of the columns."""
        weight, noise = compact(self.weight, 2), compact(self.noise_scale, 1)
        return (weight.square().sum(-1) + noise.square()).expand(self._extended_shape())

    def rsample(self, sample_shape: Any = ()) -> Tensor:
        """Whole rows."""
        shape = self._extended_shape(sample_shape)
        factors = self.loc.new_empty((*shape[:-1], self.weight.shape[-1])).normal_()
        noise = self.noise_scale * self.loc.new_empty(shape).normal_()
        return self.loc + _mapped(compact(self.weight, 2), factors) + noise

    def log_prob(self, value: Tensor) -> Tensor:
        """Log-density of what is known of the rows, nats, the shape of the batch."""
        loc, weight, noise, x = self._doubles(value)
        cells = self._cells(loc, weight, noise, x)
        if cells is None:
            found = each_posterior(loc, weight, noise, x)[2]
            return found.expand(self._full(value)).to(self.loc.dtype)
        b, w, psi = cells.parameters
        table = None if cells.num_cells == 1 else cells_log_likelihood(b, w, psi, cells.rows)
        if table is None:
            laws = (factor_law(*law) for law in zip(*cells.parameters, strict=True))
            table = torch.stack([law.posterior(cells.rows).log_likelihood for law in laws])
        return cells.unflatten(table).to(self.loc.dtype)

    def latent_mean(self, value: Tensor) -> Tensor:
        """Means of the factors given rows, batch + (k,)."""
        return self._factors(value)[0].to(self.loc.dtype)

    def posterior_sample(self, value: Tensor, count: int) -> Tensor:
        """Factors drawn given rows, (count,) + batch + (k,)."""
        with torch.no_grad():
            mean, root = self._factors(value)
            noise = torch.randn(count, *mean.shape, dtype=mean.dtype, device=mean.device)
            return (mean + _mapped(root, noise)).to(self.loc.dtype)

    def conditional_mean(self, value: Tensor) -> Tensor:
        """Means of all entries of the rows given those that are known, as if each were measured anew."""
        return self.loc + _mapped(compact(self.weight, 2), self.latent_mean(value))

    def _factors(self, value: Tensor) -> tuple[Tensor, Tensor]:
        """Means of factors, batch + (k,), and Cholesky factors of their covariances, batch + (k, k)."""
        loc, weight, noise, x = self._doubles(value)
        full, k = self._full(value), weight.shape[-1]
        cells = self._cells(loc, weight, noise, x)
        if cells is None:
            mean, root, _ = each_posterior(loc, weight, noise, x)
            return mean.expand(*full, k), root.expand(*full, k, k)
        found = [factor_law(*law).posterior(cells.rows) for law in zip(*cells.parameters, strict=True)]
        mean = torch.stack([law.loc for law in found])
        root = torch.stack([law.scale_tril[law.pattern] for law in found])
        means = torch.stack([cells.unflatten(part) for part in mean.unbind(-1)], -1)
        roots = torch.stack([cells.unflatten(part) for part in root.flatten(2).unbind(-1)], -1)
        return means, roots.unflatten(-1, (k, k))

    def _full(self, value: Tensor) -> torch.Size:
        return torch.broadcast_shapes(self.batch_shape, value.shape[:-1])

    def _doubles(self, value: Tensor) -> tuple[Tensor, ...]:
        """Mean, loadings, variances of the noise and rows, in double precision, not expanded."""
        if value.shape[-1:] != self.event_shape:
            raise ValueError(
                f"LinearGaussianRows: expected values of shape (..., {self.event_shape[0]}); got {tuple(value.shape)}. "
                "Give one entry for each line of weight."
            )
        if _broadcast(self.batch_shape, value.shape[:-1]) is None:
            raise ValueError(
                f"LinearGaussianRows: expected values for a batch of laws of shape {tuple(self.batch_shape)}; got "
                f"{tuple(value.shape[:-1])} of them. Give one row for each law, or an axis of length 1."
            )
        loc, weight, noise = compact(self.loc, 1), compact(self.weight, 2), compact(self.noise_scale, 1)
        noise = noise.double().square().expand(*noise.shape[:-1], loc.shape[-1])
        return loc.double(), weight.double(), noise, value.double()

    def _cells(self, loc: Tensor, weight: Tensor, noise: Tensor, x: Tensor) -> Cells | None:
        """Rows apart from laws; None where every row has a law of its own."""
        return Cells.of(self._full(x), x, 1, (loc, 1), (weight, 2), (noise, 1))


def _broadcast(*shapes: torch.Size) -> torch.Size | None:
    try:
        return torch.broadcast_shapes(*shapes)
    except RuntimeError:
        return None


def _mapped(weight: Tensor, factors: Tensor) -> Tensor:
    """Every row of factors, (..., k), under the map of its own, (..., d, k), or of all."""
    if weight.shape[:-2].numel() == 1:
        return factors @ weight.reshape(weight.shape[-2:]).mT
    return (weight @ factors.unsqueeze(-1)).squeeze(-1)
