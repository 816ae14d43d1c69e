r"""Autoregressive hidden Markov model: every step is a regression on those before it, which one changes.

.. math::

    z_{n1} \sim \mathrm{Categorical}(\pi), \quad z_{nt} \sim \mathrm{Categorical}(A_{z_{n,t-1}}), \quad
    x_{nt} \mid z_{nt} = k \sim
    \mathrm{Normal}\bigl(b_k + \textstyle\sum_{i=1}^{p} B_{ki} (x_{n,t-i} - c), \mathrm{diag}(s_k^2)\bigr)
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from jaxtyping import Float, Int, Num
from torch import Tensor

from pyro_lvm.distributions.regressed_rows import RegressedRows
from pyro_lvm.models.hidden_markov import HiddenMarkov, Priors, checked_width
from pyro_lvm.ops.missing import column_moments
from pyro_lvm.ops.steps import Steps
from pyro_lvm.ops.topology import Topology
from pyro_lvm.ops.whole_number import whole_number

__all__ = ["AutoregressiveHMM"]


class AutoregressiveHMM(HiddenMarkov):
    r"""Hidden Markov model whose steps are linear regressions on the p steps before: switching dynamics.

    ====================  ===========================================  ============  ====================
    symbol                meaning                                      shape         code
    ====================  ===========================================  ============  ====================
    :math:`\pi`           law of the first state                       (K,)          `initial_probs`
    :math:`A`             law of the next state, row by previous one   (K, K)        `transition_probs`
    :math:`B`             weights of lag 1 in all columns, then lag 2  (K, d, p d)   `coefficients`
    :math:`b`             means of a step after steps at the centre    (K, d)        `intercept`
    :math:`s`             residual scales                              (K, d)        `scale`
    :math:`c`             mean of the training steps                   (d,)          buffer `centre`
    ====================  ===========================================  ============  ====================

    Steps before the first count as being at the centre, so that whole sequences have a density; the classical
    treatment conditions on the first p steps instead. A missing step would have to be integrated out of those after
    it: NaN is turned away.

    Args:
        num_states: K >= 1.
        order: p >= 1.
        data_dim: Number of columns d; taken from the data by `initialize` if None.
        topology: As `HiddenMarkov` takes it.
        priors: As `HiddenMarkov` takes them.

    Raises:
        ValueError: An argument is out of range.

    References:
        J. Hamilton (1989), A new approach to the economic analysis of nonstationary time series, Econometrica 57(2).

    Example:
        >>> import pyro_lvm as lvm
        >>> x = lvm.datasets.load("geyser").x
        >>> fit = lvm.fit(lvm.models.AutoregressiveHMM(2, order=2), x, seed=0, max_epochs=20, progress=False)
        >>> fit.sample(3, num_steps=5).shape
        torch.Size([3, 5, 2])
    """

    handles_missing: ClassVar[bool] = False

    def __init__(
        self,
        num_states: int,
        order: int = 1,
        data_dim: int | None = None,
        topology: Topology = None,
        priors: bool | Priors | None = None,
    ) -> None:
        name = type(self).__name__
        self._regressed = RegressedRows(checked_width(name, data_dim), axis="lag")
        order = whole_number(name, "order", order)
        self._regressed.covariate_dim = None if data_dim is None else order * data_dim
        super().__init__(num_states, self._regressed, topology, priors)
        self.order = order
        self.register_buffer("centre", torch.zeros(data_dim or 1))

    @property
    def config(self) -> dict[str, Any]:
        """The constructor's arguments."""
        return {**self._config_of_chain, "data_dim": self.data_dim, "order": self.order}

    def forward(
        self,
        x: Float[Tensor, "n t d"] | None = None,
        lengths: Int[Tensor, " n"] | None = None,
        *,
        size: int | None = None,
        num_steps: int | None = None,
        sample_weights: Num[Tensor, " n"] | None = None,
    ) -> Float[Tensor, "n t d"]:
        """Run the program; arguments as those of `HiddenMarkov`."""
        if x is None and size is not None:
            x = self._generate(size, int(self.num_steps) if num_steps is None else num_steps)
        return self._run(x, lengths, size, num_steps, sample_weights, None if x is None else self._lags(x))

    def initialize(self, x: Tensor, lengths: Tensor | None = None, sample_weights: Tensor | None = None) -> None:
        """Start from a regression on the past in each k-means cluster of steps; arguments as those of `HiddenMarkov`.

        Raises:
            ValueError: Too few steps, steps that do not fit the model, or bad lengths or weights.
        """
        self.check(x)
        steps = Steps.of(self._name, x, lengths, sample_weights)
        self.register_buffer("centre", column_moments(steps.rows)[0])
        self._regressed.covariate_dim = self.order * x.shape[-1]
        self._initialize(x, lengths, sample_weights, self._lags(x))

    def _lags(self, x: Tensor) -> Tensor:
        """The p steps before each, about the centre, shape (n, T, p d)."""
        past = torch.nn.functional.pad(x - self.centre.to(x), (0, 0, self.order, 0))
        total = x.shape[1]
        return torch.cat([past[:, self.order - lag : self.order - lag + total] for lag in range(1, self.order + 1)], -1)

    @torch.no_grad()
    def _generate(self, size: int, num_steps: int) -> Tensor:
        """Draw sequences step by step: every step needs those before it."""
        initial, transition = self.chain()
        parameters = {name: getattr(self, name) for name in self.rows.parameters}
        x = self.centre.repeat(size, num_steps + self.order, 1)
        state = torch.multinomial(initial.expand(size, -1), 1)
        for t in range(self.order, num_steps + self.order):
            if t > self.order:
                state = torch.multinomial(transition[state.squeeze(-1)], 1)
            past = (x[:, t - self.order : t] - self.centre).flip(1).flatten(1)
            step = self._regressed.law(parameters, None, past).sample()
            x[:, t] = step.gather(1, state.unsqueeze(-1).expand(-1, 1, step.shape[-1])).squeeze(1)
        return x[:, self.order :]
