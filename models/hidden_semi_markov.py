r"""Hidden semi-Markov model: states last as long as laws of their own say.

.. math::

    z \sim \mathrm{Categorical}(\pi), \quad r \mid z = k \sim d_k, \quad
    \text{then } r \text{ steps } x_t \mid z = k \sim \text{emission } k, \quad z' \mid z = i \sim A_i, \quad \dots
"""

from __future__ import annotations

from functools import partial
from typing import Any

import pyro.distributions as dist
import torch
from jaxtyping import Float
from torch import Tensor
from torch.distributions import constraints

from pyro_lvm.distributions import structured_hidden_markov as laws
from pyro_lvm.distributions.rows import Kind
from pyro_lvm.models.hidden_markov import HiddenMarkov, Priors, even_prior
from pyro_lvm.ops.topology import Topology
from pyro_lvm.ops.whole_number import whole_number

__all__ = ["HiddenSemiMarkov"]

DURATIONS = ("free", "poisson", "negative-binomial")


class HiddenSemiMarkov(HiddenMarkov):
    r"""Hidden Markov model with explicit durations, up to D steps; a plain one can only have geometric durations.

    ==================  =========================================  ============  ====================
    symbol              meaning                                    shape         code
    ==================  =========================================  ============  ====================
    :math:`\pi`         law of the first state                     (K,)          `initial_probs`
    :math:`A`           law of the next state once one has ended   (K, K)        `transition_probs`
    :math:`d`           law of the durations 1, 2, ..., D          (K, D)        `duration_probs`
    :math:`z_{nt}`      state of a step                            (n, T)        `infer["states"]`
    :math:`x_{nt}`      step of a sequence                         (n, T, d)     site `x`
    ==================  =========================================  ============  ====================

    Sequences begin with a new state; the last one may be cut by the end (its duration is right-censored). Under EM all
    of the above have closed forms but durations of a parametric family, which climb by gradient: `duration_rate`, the
    mean of :math:`r - 1`, shape (K,), and for the negative binomial `duration_total_count`, shape (K,), before their
    laws are cut off at D steps. A step costs :math:`(K D)^2`.

    Args:
        num_states: K >= 1.
        max_duration: D >= 1; states that last longer have to be entered anew.
        emission: As `HiddenMarkov` takes it; "normal" for columns that are normal and independent given the state.
        durations: "free" for any law over 1 to D; "poisson" or "negative-binomial" for one shifted by one and cut off.
        topology: As `HiddenMarkov` takes it, but that a state does not follow itself, unless a table says so or there
            is no other.
        priors: As `HiddenMarkov` takes them; Dirichlet(1) for free durations by default.
        data_dim: As `HiddenMarkov` takes it.

    Raises:
        ValueError: An argument is out of range.

    References:
        S.-Z. Yu (2010), Hidden semi-Markov models, Artificial Intelligence 174.
        Y. Guédon (2003), Estimating hidden semi-Markov chains from discrete sequences, J. Comput. Graph. Stat. 12(3).

    Example:
        >>> import pyro_lvm as lvm
        >>> model = lvm.models.HiddenSemiMarkov(2, max_duration=10, data_dim=1)
        >>> model(size=3, num_steps=20).shape
        torch.Size([3, 20, 1])
    """

    def __init__(
        self,
        num_states: int,
        max_duration: int,
        emission: Any = "normal",
        durations: str = "free",
        topology: Topology = None,
        priors: bool | Priors | None = None,
        data_dim: int | None = None,
    ) -> None:
        if durations not in DURATIONS:
            raise ValueError(
                f"{self._name}: expected durations to be one of {', '.join(DURATIONS)}; got {durations!r}."
            )
        self.durations = durations
        self.max_duration = whole_number(self._name, "max_duration", max_duration)
        super().__init__(num_states, emission, topology, priors, data_dim)

    @property
    def config(self) -> dict[str, Any]:
        """The constructor's arguments."""
        return {**super().config, "max_duration": self.max_duration, "durations": self.durations}

    @property
    def _kinds(self) -> dict[str, Kind]:
        """Constraint and axes of every parameter."""
        found = {"duration_rate": Kind(constraints.positive, ("state",))}
        if self.durations == "free":
            found = {"duration_probs": Kind(constraints.simplex, ("state", "duration"))}
        elif self.durations == "negative-binomial":
            found["duration_total_count"] = Kind(constraints.positive, ("state",))
        return {**found, **super()._kinds}

    def duration_law(self) -> Float[Tensor, "k d"]:
        """Probabilities of 1, 2, ..., D steps in every state."""
        if self.durations == "free":
            return self.duration_probs
        further, rate = torch.arange(self.max_duration).to(self.duration_rate), self.duration_rate.unsqueeze(-1)
        law = dist.Poisson(rate)
        if self.durations == "negative-binomial":
            total = self.duration_total_count.unsqueeze(-1)
            law = dist.NegativeBinomial(total, logits=(rate / total).log())
        return law.log_prob(further).softmax(-1)

    def _law(self, emission: Any, covariates: Tensor | None, **options: Any) -> laws.HiddenSemiMarkov:
        return laws.HiddenSemiMarkov(*self.chain(), self.duration_law(), emission, **options)

    def _possible(self, topology: Topology) -> tuple[Tensor, Tensor, Any]:
        first, allowed, written = super()._possible(topology)
        others = allowed * (1 - torch.eye(self.num_states))
        if topology is None or isinstance(topology, str):
            allowed = torch.where(others.sum(-1, keepdim=True) > 0, others, allowed)
        return first, allowed, written

    @property
    def _chain_priors(self) -> dict[str, Any]:
        return {
            **super()._chain_priors,
            "duration_probs": partial(even_prior, name="duration_probs"),
            "duration_rate": _wide_prior,
            "duration_total_count": _wide_prior,
        }

    def _chain_start(self, transition: Tensor) -> dict[str, Tensor]:
        k, longest = self.num_states, self.max_duration
        starts = {
            "duration_probs": transition.new_full((k, longest), 1 / longest),
            "duration_rate": transition.new_full((k,), max(longest / 4, 0.5)),
            "duration_total_count": transition.new_full((k,), 4.0),
        }
        found = {name: value for name, value in starts.items() if name in self._kinds}
        return {**found, **super()._chain_start(transition)}


def _wide_prior(model: HiddenSemiMarkov) -> Any:
    one = torch.ones(model.num_states)
    return dist.LogNormal(one, one).to_event(1)
