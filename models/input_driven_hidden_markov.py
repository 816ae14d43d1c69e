r"""Input-driven hidden Markov model: covariates decide how states follow one another.

.. math::

    z_{n1} \sim \mathrm{Categorical}(\pi), \quad
    z_{nt} \mid z_{n,t-1} = i \sim \mathrm{Categorical}(\mathrm{softmax}_j(b_{ij} + W_{ij} \cdot \tilde u_{nt})), \quad
    x_{nt} \mid z_{nt} = k \sim \text{emission } k
"""

from __future__ import annotations

from functools import partial
from typing import Any

import pyro.distributions as dist
import torch
from jaxtyping import Float, Num
from torch import Tensor
from torch.distributions import constraints

from pyro_lvm.distributions.hidden_markov import HMM
from pyro_lvm.distributions.rows import Kind
from pyro_lvm.models.conditional_hidden_markov import ConditionalHiddenMarkov
from pyro_lvm.models.hidden_markov import Priors
from pyro_lvm.ops.missing import column_moments
from pyro_lvm.ops.steps import Steps
from pyro_lvm.ops.topology import Topology

__all__ = ["InputDrivenHMM"]

# Prior scale of logits, and of their change by one standard deviation of a covariate: weak.
WIDE = 3.0


class InputDrivenHMM(ConditionalHiddenMarkov):
    r"""Hidden Markov model whose transitions depend on covariates; maximises the likelihood of x given u.

    ====================  ===========================================  ============  =========================
    symbol                meaning                                      shape         code
    ====================  ===========================================  ============  =========================
    :math:`\pi`           law of the first state                       (K,)          `initial_probs`
    :math:`b`             transition logits at average covariates      (K, K)        `transition_logits`
    :math:`W`             how they change with covariates              (K, K, q)     `transition_coefficients`
    :math:`u_{nt}`        covariates of a step                         (n, T, q)     argument `covariates`
    ====================  ===========================================  ============  =========================

    The move into a step goes by the covariates of that step, standardised: their mean and scale over the training
    steps are kept in `centre` and `spread`. Under EM the transitions climb by gradient, everything else is in closed
    form. A constant for all next states in a row of logits makes no difference; nothing fixes it but a prior.

    Args:
        num_states: K >= 1.
        emission: As `HiddenMarkov` takes it; "normal" for columns that are normal and independent given the state.
        data_dim: Number of columns d; taken from the data by `initialize` if None.
        covariate_dim: Number of covariates q; likewise.
        topology: As `HiddenMarkov` takes it: transitions that no covariate makes possible.
        priors: As `HiddenMarkov` takes them; wide normal laws for the transitions by default.

    Raises:
        ValueError: An argument is out of range.

    References:
        Y. Bengio, P. Frasconi (1996), Input-output HMMs for sequence processing, IEEE Trans. Neural Networks 7(5).

    Example:
        >>> import torch, pyro_lvm as lvm
        >>> model = lvm.models.InputDrivenHMM(2, data_dim=1, covariate_dim=3)
        >>> model(covariates=torch.randn(5, 10, 3)).shape
        torch.Size([5, 10, 1])
    """

    def __init__(
        self,
        num_states: int,
        emission: Any = "normal",
        data_dim: int | None = None,
        covariate_dim: int | None = None,
        topology: Topology = None,
        priors: bool | Priors | None = None,
    ) -> None:
        super().__init__(num_states, emission, covariate_dim, topology, priors, data_dim)
        self.register_buffer("centre", torch.zeros(self.covariate_dim or 1))
        self.register_buffer("spread", torch.ones(self.covariate_dim or 1))

    @property
    def _complete(self) -> bool:
        return super()._complete and self.covariate_dim is not None

    @property
    def _kinds(self) -> dict[str, Kind]:
        """Constraint and axes of every parameter."""
        found = super()._kinds
        del found["transition_probs"]
        return {
            **found,
            "transition_logits": Kind(constraints.real, ("state", "next_state")),
            "transition_coefficients": Kind(constraints.real, ("state", "next_state", "covariate")),
        }

    def fixed_entries(self, name: str) -> int:
        """How many numbers make no difference: one of each row, and those of impossible transitions."""
        idle = int((self.allowed == 0).sum()) + self.num_states
        return {"transition_logits": idle, "transition_coefficients": idle * (self.covariate_dim or 1)}.get(
            name, super().fixed_entries(name)
        )

    def transition_probs(self, covariates: Num[Tensor, "*batch q"]) -> Float[Tensor, "*batch k k"]:
        """Probabilities of the next state, row by previous one, given the next step's covariates, shape (..., q)."""
        return self._logits(covariates).softmax(-1)

    def _logits(self, covariates: Tensor) -> Tensor:
        standardised = (covariates.to(self.centre) - self.centre) / self.spread
        logits = self.transition_logits + torch.einsum("ijq,...q->...ij", self.transition_coefficients, standardised)
        return torch.where(self.allowed > 0, logits, -torch.inf)

    def _law(self, emission: Any, covariates: Tensor | None, **options: Any) -> HMM:
        if covariates is None:
            raise ValueError(f"{self._name}: expected covariates.")
        # of a single step the covariates make no difference, but there must be a matrix
        moves = self._logits(covariates[:, min(1, covariates.shape[1] - 1) :])
        return HMM(self.initial_probs, transition_logits=moves, emission=emission, **options)

    def _emission(self, parameters: dict[str, Tensor], known: Tensor | None, covariates: Tensor | None = None) -> Any:
        return super()._emission(parameters, known)

    def _initialize(
        self, x: Tensor, lengths: Tensor | None, sample_weights: Tensor | None, covariates: Tensor | None = None
    ) -> None:
        used = Steps.of(self._name, x, lengths, sample_weights).used
        centre, variance = column_moments(covariates[used])  # type: ignore[index]  # `initialize` has checked them
        self.register_buffer("centre", centre)
        self.register_buffer("spread", torch.where(variance > 0, variance, 1.0).sqrt())
        super()._initialize(x, lengths, sample_weights)

    @property
    def _chain_priors(self) -> dict[str, Any]:
        wide = {name: partial(_wide_prior, name=name) for name in ("transition_logits", "transition_coefficients")}
        return {"initial_probs": super()._chain_priors["initial_probs"], **wide}

    def _chain_start(self, transition: Tensor) -> dict[str, Tensor]:
        logits = torch.where(transition > 0, transition, 1.0).log()
        slopes = logits.new_zeros(*logits.shape, self.covariate_dim or 1)
        return {"transition_logits": logits, "transition_coefficients": slopes}


def _wide_prior(model: InputDrivenHMM, *, name: str) -> Any:
    zero = torch.zeros_like(model.initial_values[name])
    return dist.Normal(zero, WIDE).to_event(zero.dim())
