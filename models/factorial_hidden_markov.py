r"""Factorial hidden Markov model: several chains run side by side, and every step adds up what they contribute.

.. math::

    z^m_{n1} \sim \mathrm{Categorical}(\pi_m), \quad z^m_{nt} \sim \mathrm{Categorical}(A_{m, z^m_{n,t-1}}), \quad
    x_{nt} \sim \mathrm{Normal}\bigl(\textstyle\sum_m W_{m, z^m_{nt}}, \mathrm{diag}(s^2)\bigr)
"""

from __future__ import annotations

from typing import Any

from jaxtyping import Int
from torch import Tensor
from torch.distributions import constraints

from pyro_lvm.distributions import structured_hidden_markov as laws
from pyro_lvm.distributions.additive_rows import AdditiveRows
from pyro_lvm.distributions.rows import Kind
from pyro_lvm.models.hidden_markov import HiddenMarkov, Priors, checked_width
from pyro_lvm.ops.topology import Topology
from pyro_lvm.ops.whole_number import whole_number

__all__ = ["FactorialHMM"]

# The exact posterior is quadratic in their number.
MOST_JOINT_STATES = 4096


class FactorialHMM(HiddenMarkov):
    r"""M independent Markov chains of K states each, whose contributions add up to the mean of a step.

    ==================  ==========================================  =============  ====================
    symbol              meaning                                     shape          code
    ==================  ==========================================  =============  ====================
    :math:`\pi`         laws of the chains' first states            (M, K)         `initial_probs`
    :math:`A`           laws of their next states                   (M, K, K)      `transition_probs`
    :math:`W`           contributions                               (M, K, d)      `loc`
    :math:`s`           residual scales                             (d,)           `scale`
    :math:`z_{nt}`      joint state of a step                       (n, T)         `infer["states"]`
    :math:`x_{nt}`      step of a sequence                          (n, T, d)      site `x`
    ==================  ==========================================  =============  ====================

    K states in each of M chains make :math:`K^M` joint states, numbered with the last chain's counting fastest: what
    `fit.predict` gives, and `split` takes apart into one state for each chain. Under EM everything has a closed form:
    counts, and least squares for the contributions. These are determined only up to constants that one chain adds and
    another takes away; EM moves them as little as it must. Differs from the paper in its diagonal residual covariance.

    Args:
        num_chains: M >= 1.
        num_states: K >= 1.
        data_dim: Number of columns d; taken from the data by `initialize` if None.
        topology: As `HiddenMarkov` takes it, for every chain.
        priors: As `HiddenMarkov` takes them.

    Raises:
        ValueError: An argument is out of range, or there are too many joint states.

    References:
        Z. Ghahramani, M. Jordan (1997), Factorial hidden Markov models, Machine Learning 29.

    Example:
        >>> import torch, pyro_lvm as lvm
        >>> model = lvm.models.FactorialHMM(num_chains=3, num_states=2, data_dim=1)
        >>> model(size=3, num_steps=5).shape
        torch.Size([3, 5, 1])
        >>> model.split(torch.tensor([0, 5]))
        tensor([[0, 0, 0],
                [1, 0, 1]])
    """

    def __init__(
        self,
        num_chains: int,
        num_states: int,
        data_dim: int | None = None,
        topology: Topology = None,
        priors: bool | Priors | None = None,
    ) -> None:
        name = self._name
        self.num_chains = whole_number(name, "num_chains", num_chains)
        states = whole_number(name, "num_states", num_states)
        if states**self.num_chains > MOST_JOINT_STATES:
            raise ValueError(
                f"{name}: expected at most {MOST_JOINT_STATES} joint states, num_states ** num_chains; got "
                f"{states**self.num_chains}. Lower num_chains or num_states."
            )
        super().__init__(states, AdditiveRows(self.num_chains, states, checked_width(name, data_dim)), topology, priors)

    @property
    def config(self) -> dict[str, Any]:
        """The constructor's arguments."""
        return {**self._config_of_chain, "num_chains": self.num_chains, "data_dim": self.data_dim}

    @property
    def _kinds(self) -> dict[str, Kind]:
        """Constraint and axes of every parameter."""
        return {
            **super()._kinds,
            "initial_probs": Kind(constraints.simplex, ("chain", "state")),
            "transition_probs": Kind(constraints.simplex, ("chain", "state", "next_state")),
        }

    def split(self, states: Int[Tensor, "*shape"]) -> Int[Tensor, "*shape m"]:
        """The state of every chain, along a new last axis, of joint states; -1 (padding) remains."""
        return laws.split_states(states, (self.num_states,) * self.num_chains)

    def _law(self, emission: Any, covariates: Tensor | None, **options: Any) -> laws.FactorialHMM:
        initial, transition = self.chain()
        return laws.FactorialHMM(initial.unbind(0), transition.unbind(0), emission, **options)

    def _possible(self, topology: Topology) -> tuple[Tensor, Tensor, Any]:
        first, allowed, written = super()._possible(topology)
        return first.repeat(self.num_chains, 1), allowed.repeat(self.num_chains, 1, 1), written
