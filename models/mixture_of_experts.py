r"""Mixture of experts: every row follows one of K regressions, which of them depends on its covariates.

.. math::

    z_n &\sim \mathrm{Categorical}(\mathrm{softmax}(g(c_n))) \\
    x_n \mid z_n = k &\sim \mathrm{Normal}(B_k c_n + b_k, \mathrm{diag}(s_k^2))
"""

from __future__ import annotations

import copy
from functools import partial
from typing import Any, ClassVar

import pyro
import pyro.distributions as dist
import torch
from jaxtyping import Float, Num
from pyro.nn.module import to_pyro_module_
from torch import Tensor
from torch.distributions import constraints

from pyro_lvm.handlers.counted import counted
from pyro_lvm.ops.kmeans import kmeans
from pyro_lvm.ops.regressions import centre_and_spread, member_regressions
from pyro_lvm.ops.row_checks import check_matrix, check_weights
from pyro_lvm.ops.whole_number import whole_number
from pyro_lvm.protocols import LatentVariableModel

__all__ = ["MixtureOfExperts"]


class MixtureOfExperts(LatentVariableModel):
    r"""Mixture of K linear regressions under a gate; maximises the likelihood of x given the covariates.

    ==================  =========================  ===========================  ===================
    symbol              meaning                    shape                        code
    ==================  =========================  ===========================  ===================
    :math:`B`           slopes of the experts      (K, d, q)                    `coefficients`
    :math:`b`           intercepts of the experts  (K, d)                       `intercept`
    :math:`s`           residual scales            (K, d)                       `scale`
    :math:`g`           gate, linear               (K - 1, q) and (K - 1,)      `gate_coefficients`, `gate_intercept`
    :math:`z_n`         expert of a row            (n,)                         site `z`
    :math:`c_n`         covariates of a row        (n, q)                       argument `covariates`
    :math:`x_n`         row                        (n, d)                       site `x`
    ==================  =========================  ===========================  ===================

    The gate sees standardised covariates: their mean and scale over the training rows are kept in `centre` and
    `spread`. The last expert has logit zero under a linear gate. Under EM the experts are weighted least squares, in
    closed form, and the gate climbs by gradient.

    Args:
        num_components: K >= 1.
        gate: "linear", or a torch module from standardised covariates (n, q) to logits (n, K); it is copied.
        data_dim: d; taken from the data if None.
        covariate_dim: q; taken from the data if None.

    Raises:
        ValueError: An argument is out of range.

    References:
        R. Jacobs, M. Jordan, S. Nowlan, G. Hinton (1991), Adaptive mixtures of local experts, Neural Computation 3(1).
        M. Jordan, R. Jacobs (1994), Hierarchical mixtures of experts and the EM algorithm, Neural Computation 6(2).

    Example:
        >>> import pyro_lvm as lvm
        >>> x = lvm.datasets.load("faithful").x
        >>> data = {"x": x[:, 1:], "covariates": x[:, :1]}  # waiting times on eruptions
        >>> fit = lvm.fit(lvm.models.MixtureOfExperts(2), data, seed=0, progress=False)
        >>> fit.model.mean(x[:2, :1]).shape
        torch.Size([2, 1])
    """

    dims: ClassVar[dict[str, list[str]]] = {
        "coefficients": ["component", "dimension", "covariate"],
        "intercept": ["component", "dimension"],
        "scale": ["component", "dimension"],
        "gate_coefficients": ["gated_component", "covariate"],
        "gate_intercept": ["gated_component"],
    }

    def __init__(
        self,
        num_components: int,
        gate: str | torch.nn.Module = "linear",
        data_dim: int | None = None,
        covariate_dim: int | None = None,
    ) -> None:
        super().__init__()
        if gate != "linear" and not isinstance(gate, torch.nn.Module):
            raise ValueError(f"MixtureOfExperts: expected gate to be 'linear' or a torch module; got {gate!r}.")
        checked = partial(whole_number, "MixtureOfExperts")
        self.num_components = checked("num_components", num_components)
        self.data_dim = None if data_dim is None else checked("data_dim", data_dim)
        self.covariate_dim = None if covariate_dim is None else checked("covariate_dim", covariate_dim)
        if isinstance(gate, torch.nn.Module):
            gate = copy.deepcopy(gate)
            to_pyro_module_(gate)  # its weights then are parameters of the program
        self.gate = gate
        if self.data_dim is not None and self.covariate_dim is not None:
            shape = (self.num_components, self.data_dim)
            self._declare(torch.zeros(*shape, self.covariate_dim + 1), torch.ones(shape))

    def forward(
        self,
        x: Float[Tensor, "..."] | None = None,
        covariates: Num[Tensor, "..."] | None = None,
        *,
        size: int | None = None,
        sample_weights: Num[Tensor, "..."] | None = None,
    ) -> Float[Tensor, "*states n d"]:
        """Run the program.

        Args:
            x: Observed rows, shape (n, d); None to generate one row for each row of covariates.
            covariates: What the rows are explained by, shape (n, q).
            size: n; need not be given.
            sample_weights: How often each row counts, shape (n,), >= 0; once by default.

        Returns:
            Rows, shape (n, d).

        Raises:
            ValueError: The covariates are missing, or of another shape than (n, q).
        """
        covariates = self._checked(covariates, size if x is None else len(x)).to(self.scale)
        logits = self._logits(covariates)
        coefficients, intercept, scale = self.coefficients, self.intercept, self.scale
        with pyro.plate("data", len(covariates)), counted(sample_weights, scale):
            z = pyro.sample("z", dist.Categorical(logits=logits), infer={"enumerate": "parallel"})
            loc = torch.einsum("...dq,...q->...d", coefficients[z], covariates) + intercept[z]
            return pyro.sample("x", dist.Normal(loc, scale[z]).to_event(1), obs=x)

    def mean(self, covariates: Num[Tensor, "..."]) -> Float[Tensor, "n d"]:
        """The expected row given its covariates: the experts' means, weighted by the gate.

        Args:
            covariates: Shape (n, q).

        Returns:
            Shape (n, d).
        """
        with torch.no_grad():
            covariates = self._checked(covariates, None).to(self.scale)
            each = torch.einsum("kdq,nq->nkd", self.coefficients, covariates) + self.intercept
            return (self._logits(covariates).softmax(-1).unsqueeze(-1) * each).sum(1)

    def _logits(self, covariates: Tensor) -> Tensor:
        standardised = (covariates - self.centre) / self.spread
        if isinstance(self.gate, torch.nn.Module):
            return self.gate(standardised)
        if self.num_components == 1:
            return covariates.new_zeros(len(covariates), 1)
        return torch.nn.functional.pad(standardised @ self.gate_coefficients.T + self.gate_intercept, (0, 1))

    def _checked(self, covariates: Any, rows: int | None) -> Tensor:
        """Covariates of the right shape."""
        n, q = "n" if rows is None else rows, self.covariate_dim or "q"
        if covariates is None:
            raise ValueError(
                f"MixtureOfExperts: expected covariates of shape ({n}, {q}); got none. "
                "Pass a dict of both, {'x': x, 'covariates': c}; to sample(n, covariates=c)."
            )
        covariates = torch.as_tensor(covariates)
        shape = tuple(covariates.shape)
        if len(shape) != 2 or rows not in (None, shape[0]) or self.covariate_dim not in (None, shape[1]):
            hint = "Give one row of covariates for each row of x."
            if len(shape) == 1:
                hint = "Pass covariates.reshape(-1, 1) for a single one."
            elif len(shape) == 2 and self.covariate_dim not in (None, shape[1]):
                hint = f"Pass covariate_dim={shape[1]}, or give {q} columns."
            raise ValueError(f"MixtureOfExperts: expected covariates of shape ({n}, {q}); got {shape}. {hint}")
        return covariates

    def check(self, x: Tensor) -> None:
        """Raise a ValueError unless `x` is a matrix with `data_dim` columns."""
        check_matrix("MixtureOfExperts", x, self.data_dim)

    def check_covariates(self, rows: int, covariates: Any = None, **others: Any) -> None:
        """Raise a ValueError unless there are covariates of shape (rows, `covariate_dim`)."""
        self._checked(covariates, rows)

    def check_training(self, x: Tensor) -> None:
        """Raise a ValueError for fewer rows than components, fewer than two rows, or a constant column."""
        self.check(x)
        least = max(2, self.num_components)
        if len(x) < least:
            raise ValueError(
                f"MixtureOfExperts: expected at least {least} rows (two, and as many rows as components); "
                f"got {len(x)}. Lower num_components or add rows."
            )
        constant = (x == x[0]).all(0).nonzero().flatten().tolist()
        if constant:
            raise ValueError(
                f"MixtureOfExperts: expected columns that vary; got constant column {constant[0]} "
                f"(always {x[0, constant[0]].item():g}), whose likelihood is unbounded. Drop it."
            )

    def initialize(self, x: Tensor, covariates: Tensor | None = None, sample_weights: Tensor | None = None) -> None:
        """Start from a regression in each k-means cluster of rows and covariates; other seeds give other starts.

        Args:
            x: Rows, shape (n, d).
            covariates: Shape (n, q).
            sample_weights: How often each row counts, shape (n,); rows that do not count give no start.

        Raises:
            ValueError: Too few rows, a constant column, or covariates or weights that do not fit the rows.
        """
        self.check_training(x)
        covariates = self._checked(covariates, len(x)).to(x)
        if sample_weights is not None:
            check_weights("MixtureOfExperts", len(x), sample_weights)
            x, covariates, sample_weights = (t[sample_weights > 0].to(x) for t in (x, covariates, sample_weights))
            self.check_training(x)
        (n, d), k = x.shape, self.num_components
        self.data_dim, self.covariate_dim = d, covariates.shape[1]
        clusters = kmeans(torch.cat([x, covariates], 1), k, sample_weights=sample_weights)
        counts = x.new_ones(n) if sample_weights is None else sample_weights
        members = torch.nn.functional.one_hot(clusters, k).to(x) * counts.unsqueeze(-1)
        centre, spread = centre_and_spread(covariates, counts)
        slopes, intercept, scale = member_regressions(x, covariates, members)
        share = ((members.sum(0) + 1) / (counts.sum() + k)).log()
        self._declare(torch.cat([slopes, intercept.unsqueeze(-1)], -1), scale, centre, spread, share)

    def _declare(
        self,
        coefficients: Tensor,
        scale: Tensor,
        centre: Tensor | None = None,
        spread: Tensor | None = None,
        log_share: Tensor | None = None,
    ) -> None:
        """Create the parameters at a start: slopes with the intercept as the last column, (K, d, q + 1)."""
        k, q = len(scale), coefficients.shape[-1] - 1
        log_share = scale.new_zeros(k) if log_share is None else log_share
        self.register_buffer("centre", scale.new_zeros(q) if centre is None else centre)
        self.register_buffer("spread", scale.new_ones(q) if spread is None else spread)
        self.declare("coefficients", coefficients[..., :-1], constraints.real)
        self.declare("intercept", coefficients[..., -1], constraints.real)
        self.declare("scale", scale, constraints.positive)
        if isinstance(self.gate, torch.nn.Module):
            self.gate.to(scale)
        elif k > 1:
            self.declare("gate_coefficients", scale.new_zeros(k - 1, q), constraints.real)
            self.declare("gate_intercept", log_share[:-1] - log_share[-1], constraints.real)
