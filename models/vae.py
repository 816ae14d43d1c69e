r"""Variational autoencoder: a network makes the law of every row from a normal latent vector.

.. math::

    z_n &\sim \mathrm{Normal}(0, I) \\
    x_n \mid z_n &\sim \mathrm{Bernoulli}(\sigma(f(z_n, c_n))) \quad \text{or} \quad
    \mathrm{Normal}(f_\mu(z_n, c_n), \mathrm{diag}(f_\sigma(z_n, c_n)^2))
"""

from __future__ import annotations

import copy
import re
from collections.abc import Sequence
from functools import partial
from typing import Any, ClassVar

import pyro
import pyro.distributions as dist
import torch
from jaxtyping import Float, Num
from torch import Tensor
from torch.nn.functional import softplus

from pyro_lvm._pyro import network
from pyro_lvm.distributions.standard_normal import standard_normal
from pyro_lvm.handlers.plate import plate
from pyro_lvm.nn.mlp import MLP, layer_sizes
from pyro_lvm.ops.plain_error import PlainError
from pyro_lvm.ops.real_number import real_number
from pyro_lvm.ops.row_checks import check_binary, check_matrix
from pyro_lvm.ops.whole_number import whole_number
from pyro_lvm.protocols import LatentVariableModel

__all__ = ["VAE"]

# Values of each kind of row that the decoder makes for every column.
OUTPUTS = {"bernoulli": 1, "gaussian": 2}

# What torch says of tensors that a network cannot take.
SIZES = re.compile(r"shapes?\b|dimensions?\b|channels\b|\bsizes? of\b")


class VAE(LatentVariableModel):
    r"""Variational autoencoder with Bernoulli rows, or normal ones with learned means and variances.

    ==============  ===========================================  ============  ======================
    symbol          meaning                                      shape         code
    ==============  ===========================================  ============  ======================
    :math:`f`       decoder network                              (d,), (2d,)   `decoder`
    :math:`z_n`     latent vector of a row                       (n, k)        site `z`
    :math:`c_n`     covariates of a row, if there are any       (n, q)        argument `covariates`
    :math:`x_n`     row                                          (n, d)        site `x`
    ==============  ===========================================  ============  ======================

    The model's own decoder corrects a start from the data: its last biases start at the log-odds of the columns' means,
    normal rows are on the scale of the columns. A decoder given by the user makes logits, or means and
    raw scales :math:`\rho`, itself, and keeps the weights that it comes with. The standard deviation is
    :math:`s\,(\epsilon + \mathrm{softplus}(\rho))` with :math:`s` the standard deviation of the column (1 for a given
    decoder and for a column that does not vary), so that a constant column cannot make the likelihood unbounded.

    Args:
        latent_dim: k >= 1.
        data_dim: Number of columns d; taken from the data by `initialize` if None.
        likelihood: "bernoulli" (rows of zeros and ones) or "gaussian".
        hidden: Sizes of the decoder's hidden layers; a guide's encoder has them in reverse.
        decoder: A torch module from latent vectors, followed by the covariates, (..., k + q), to (..., d) for Bernoulli
            rows, (..., 2d) for normal ones; it is copied.
        covariate_dim: q >= 0; taken from the data by `initialize` if None.
        min_scale: :math:`\epsilon` > 0.

    Raises:
        ValueError: An argument is out of range.

    References:
        D. Kingma, M. Welling (2014), Auto-encoding variational Bayes, ICLR, appendix C.
        D. Rezende, S. Mohamed, D. Wierstra (2014), Stochastic backpropagation and approximate inference in deep
            generative models, ICML.
        K. Sohn, H. Lee, X. Yan (2015), Learning structured output representation using deep conditional generative
            models, NeurIPS.

    Example:
        >>> import pyro_lvm as lvm
        >>> x = lvm.datasets.load("digits234").x
        >>> fit = lvm.fit(lvm.models.VAE(2, hidden=[16]), x, max_epochs=2, seed=0, progress=False)
        >>> fit.sample(3).shape
        torch.Size([3, 64])
    """

    dims: ClassVar[dict[str, list[str]]] = {}

    def __init__(
        self,
        latent_dim: int,
        data_dim: int | None = None,
        likelihood: str = "bernoulli",
        hidden: Sequence[int] = (512, 512),
        decoder: torch.nn.Module | None = None,
        covariate_dim: int | None = None,
        min_scale: float = 0.01,
    ) -> None:
        super().__init__()
        if likelihood not in OUTPUTS:
            raise ValueError(f"VAE: expected likelihood to be one of {', '.join(OUTPUTS)}; got {likelihood!r}.")
        if decoder is not None and not isinstance(decoder, torch.nn.Module):
            raise ValueError(f"VAE: expected decoder to be a torch module or None; got {type(decoder).__name__}.")
        checked = partial(whole_number, "VAE")
        self.latent_dim = checked("latent_dim", latent_dim)
        self.data_dim = None if data_dim is None else checked("data_dim", data_dim)
        self.covariate_dim = None if covariate_dim is None else checked("covariate_dim", covariate_dim, least=0)
        self.likelihood = likelihood
        self.hidden = layer_sizes("VAE", hidden)
        self.min_scale = real_number("VAE", "min_scale", min_scale)
        self._given = decoder is not None
        if decoder is not None:
            self.decoder = copy.deepcopy(decoder)
        if self.data_dim is not None:
            self.covariate_dim = self.covariate_dim or 0
            self._declare(torch.zeros(self.data_dim), torch.ones(self.data_dim))

    @property
    def config(self) -> dict[str, Any]:
        """The constructor's arguments."""
        return {
            "latent_dim": self.latent_dim,
            "data_dim": self.data_dim,
            "likelihood": self.likelihood,
            "hidden": list(self.hidden),
            "decoder": self.decoder if self._given else None,
            "covariate_dim": self.covariate_dim,
            "min_scale": self.min_scale,
        }

    def forward(
        self,
        x: Float[Tensor, "..."] | None = None,
        covariates: Num[Tensor, "..."] | None = None,
        *,
        size: int | None = None,
    ) -> Float[Tensor, "*particles n d"]:
        """Run the program.

        Args:
            x: Observed rows, shape (n, d); None to generate rows.
            covariates: What the rows depend on besides, shape (n, q), if the model has them.
            size: n, needed if there are neither rows nor covariates.

        Returns:
            Rows, shape (n, d).

        Raises:
            ValueError: The covariates are missing, or of another shape than (n, q).
        """
        covariates = self._checked(covariates, size if x is None else len(x))
        n: Any = len(x) if x is not None else len(covariates) if covariates is not None else size
        with plate("data", n):
            z = pyro.sample("z", standard_normal(n, self.latent_dim, self.centre))
            return pyro.sample("x", self.decode(z, covariates), obs=x)

    def decode(self, z: Float[Tensor, "*batch k"], covariates: Tensor | None = None) -> Any:
        """The law of rows given their latent vectors.

        Args:
            z: Latent vectors, shape (..., k).
            covariates: Shape (n, q), n the last axis but one of `z`, if the model has them.

        Returns:
            A distribution over rows, batch shape (...), event shape (d,).

        Raises:
            ValueError: A given decoder does not take such vectors, or its output has the wrong length.
        """
        if covariates is not None:
            z = torch.cat([z, covariates.to(z).expand(*z.shape[:-1], -1)], -1)
        centre, columns = self.centre, OUTPUTS[self.likelihood]
        try:
            rows = z.to(centre).reshape(-1, z.shape[-1])  # layers that normalise by the batch take two axes
            output = network(self, "decoder")(rows).unflatten(0, z.shape[:-1])
        except RuntimeError as error:
            if not self._given or SIZES.search(str(error)) is None:
                raise
            raise PlainError(
                f"VAE: expected a decoder of vectors of length {z.shape[-1]} (latent_dim={self.latent_dim}, then the "
                f"covariates); torch says of this one: {error}. Change its first layer."
            ) from error
        width = columns * len(centre)
        if output.shape[-1] != width:
            raise PlainError(
                f"VAE: expected a decoder of {width} outputs ({columns} for each of {self.data_dim} "
                f"columns of {self.likelihood} rows); got {output.shape[-1]}. Change its last layer."
            )
        if self.likelihood == "bernoulli":
            return dist.Bernoulli(logits=output).to_event(1)
        loc, raw = output.chunk(2, -1)
        return dist.Normal(centre + self.spread * loc, self.spread * (self.min_scale + softplus(raw))).to_event(1)

    def _checked(self, covariates: Any, rows: int | None) -> Tensor | None:
        """Context of the right shape, or none if the model takes none."""
        n, q = "n" if rows is None else rows, self.covariate_dim
        if covariates is None:
            if not q:
                return None
            raise ValueError(
                f"VAE: expected covariates of shape ({n}, {q}); got none. "
                "Pass a dict of both, {'x': x, 'covariates': c}; to sample(n, covariates=c)."
            )
        covariates = torch.as_tensor(covariates)
        shape = tuple(covariates.shape)
        if q == 0:
            raise ValueError(f"VAE: expected no covariates; got shape {shape}. Make the model with covariate_dim=q.")
        if len(shape) != 2 or rows not in (None, shape[0]) or q not in (None, shape[1]):
            hint = "Give one row of covariates for each row of x."
            if len(shape) == 1:
                hint = "Pass covariates.reshape(-1, 1) for a single one."
            raise ValueError(f"VAE: expected covariates of shape ({n}, {q or 'q'}); got {shape}. {hint}")
        return covariates

    def check(self, x: Tensor) -> None:
        """Raise a ValueError unless `x` is a matrix with `data_dim` columns, of zeros and ones for Bernoulli rows."""
        check_matrix("VAE", x, self.data_dim)
        if self.likelihood == "bernoulli":
            check_binary("VAE", x, "Threshold it, draw torch.bernoulli(x), or use likelihood='gaussian'.")

    def check_covariates(self, rows: int, covariates: Any = None, **others: Any) -> None:
        """Raise a ValueError unless there are covariates of shape (rows, `covariate_dim`), or none if that is 0."""
        self._checked(covariates, rows)

    def check_training(self, x: Tensor) -> None:
        """Raise a ValueError for fewer than two rows."""
        self.check(x)
        if len(x) < 2:
            raise ValueError("VAE: expected at least 2 rows to learn from; got 1. Add rows.")

    def initialize(self, x: Tensor, covariates: Tensor | None = None) -> None:
        """Take sizes, centres and scales from the rows, and draw the model's own decoder anew.

        Args:
            x: Rows, shape (n, d).
            covariates: Shape (n, q), if the rows have them.

        Raises:
            ValueError: Rows or covariates do not fit the model, or there are fewer than two rows.
        """
        self.check_training(x)
        covariates = self._checked(covariates, len(x))
        self.data_dim = x.shape[1]
        self.covariate_dim = 0 if covariates is None else covariates.shape[1]
        centre, spread = x.mean(0), x.std(0)
        if self.likelihood == "bernoulli":
            share = (x.sum(0) + 0.5) / (len(x) + 1)
            self._declare(share.logit(), torch.ones_like(share))
        else:
            self._declare(centre, torch.where(spread > 0, spread, 1.0))

    def _declare(self, centre: Tensor, spread: Tensor) -> None:
        """Keep a start, and make the decoder of the sizes that are known now."""
        if self._given:
            centre, spread = torch.zeros_like(centre), torch.ones_like(spread)
        else:
            size = self.latent_dim + (self.covariate_dim or 0)
            decoder = MLP(size, self.hidden, OUTPUTS[self.likelihood] * len(centre))
            last: Any = decoder[-1]
            if self.likelihood == "bernoulli":
                last.bias.data.copy_(centre)
            self.decoder = decoder
        self.register_buffer("centre", centre)
        self.register_buffer("spread", spread)
        self.decoder.to(centre)
