r"""Linear dynamical systems: sequences seen from normal states that move linearly.

.. math::

    h_{n1} \sim \mathrm{Normal}(m_0, P_0), \quad h_{n,t+1} \mid h_{nt} \sim \mathrm{Normal}(A h_{nt}, I), \quad
    x_{nt} \mid h_{nt} \sim \mathrm{Normal}(b + C h_{nt}, \mathrm{diag}(\sigma^2))
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.distributions import constraints

from pyro_lvm.distributions.linear_gaussian_chain import LinearGaussianChain
from pyro_lvm.models.sequence_factors import SequenceFactors
from pyro_lvm.ops.dynamics_start import dynamics_start, filled_steps, rescaled
from pyro_lvm.ops.dynamics_updates import first_state_update, initial_update, observation_update, transition_update
from pyro_lvm.ops.missing import column_moments
from pyro_lvm.ops.steps import Steps
from pyro_lvm.ops.whole_number import whole_number

__all__ = ["LinearDynamicalSystem"]

# Least variance of a first state, where moves have variance one: of a single series it would go to zero.
CERTAIN = 1e-4
GROWING = 1e-3  # how far beyond one an eigenvalue of the transition is more than a trend
WORTH = 1e-6  # nats that a better mean of the first state must gain for its posterior to be found anew


class LinearDynamicalSystem(SequenceFactors):
    r"""Sequences of real vectors with hidden linear dynamics: Kalman filter and smoother, learned by EM.

    ==================  =========================================  =========  ======================
    symbol              meaning                                    shape      code
    ==================  =========================================  =========  ======================
    :math:`A`           transition, next state by previous one     (k, k)     `transition`
    :math:`C`           weights                                    (d, k)     `weight`
    :math:`b`           mean of steps at the state zero            (d,)       `loc`
    :math:`\sigma`      standard deviations of the noise           (d,)       `noise_scale`
    :math:`m_0`         mean of the first state                    (k,)       `initial_loc`
    :math:`P_0`         covariance of the first state              (k, k)     `initial_covariance`
    :math:`h_{nt}`      states                                     (n, T, k)  `fit.transform(x)`
    ==================  =========================================  =========  ======================

    States are summed out by the law of the site `x` (`pyro_lvm.distributions.LinearGaussianChain`), one sequence a row.
    Their scale is that of their moves, whose covariance is the identity; they are determined up to a rotation. Missing
    entries are NaN, single ones or whole steps, and are summed out exactly, in learning too.

    The M-step is in closed form. It maximises over the covariance of moves too, and then takes it as the unit of the
    states, which makes EM faster (parameter expansion). The variances of first states are held at :math:`10^{-4}` at
    least, and those of the noise at a millionth of the column's variance. A single series tells nothing of how first
    states vary: they have the least variance then, and their mean is found by maximising the likelihood itself, as EM
    would take ever smaller steps to either.

    Args:
        latent_dim: k >= 1; may be more than the number of columns.
        data_dim: Number of columns d; taken from the data by `initialize` if None.

    Raises:
        ValueError: An argument is out of range.

    References:
        R. Shumway, D. Stoffer (1982), An approach to time series smoothing and forecasting using the EM algorithm.
        Z. Ghahramani, G. Hinton (1996), Parameter estimation for linear dynamical systems, CRG-TR-96-2.
        C. Liu, D. Rubin, Y. Wu (1998), Parameter expansion to accelerate EM: the PX-EM algorithm, Biometrika 85.

    Example:
        >>> import pyro_lvm as lvm
        >>> x = lvm.datasets.load("geyser").x
        >>> fit = lvm.fit(lvm.models.LinearDynamicalSystem(1), x, seed=0, max_epochs=5, progress=False)
        >>> fit.transform(x).shape
        torch.Size([299, 1])
    """

    dims: ClassVar[dict[str, list[str]]] = {
        "transition": ["next_state", "state"],
        "weight": ["column", "state"],
        "loc": ["column"],
        "noise_scale": ["column"],
        "initial_loc": ["state"],
        "initial_covariance": ["state", "state_2"],
    }

    def __init__(self, latent_dim: int, data_dim: int | None = None) -> None:
        super().__init__(data_dim)
        self.latent_dim = whole_number(self._name, "latent_dim", latent_dim)
        if self.data_dim is not None:
            k, d = self.latent_dim, self.data_dim
            one = torch.ones(d)
            self._start_at(1, one)
            self.register_buffer("single_series", torch.tensor(False))
            self._declare(0.5 * torch.eye(k), torch.eye(d, k), 0 * one, one, torch.zeros(k), torch.eye(k))

    def fixed_entries(self, name: str) -> int:
        """Of the weights, those that a rotation of the states takes away; of a single series, all first covariances."""
        if name == "initial_covariance" and bool(self.single_series):
            return self.latent_dim * (self.latent_dim + 1) // 2
        return self.latent_dim * (self.latent_dim - 1) // 2 if name == "weight" else 0

    def remarks(self, columns: Sequence[str] | None = None) -> list[str]:
        """Whether the states grow without bounds."""
        radius = float(torch.linalg.eigvals(self.transition.detach()).abs().max())
        if radius <= 1 + GROWING:
            return []
        return [
            f"{self._name}({self.latent_dim}): states grow, as the transition has an eigenvalue of modulus "
            f"{radius:.3f}; forecasts of many steps grow too. Train on, take fewer latent dimensions, or take a trend "
            "out first."
        ]

    def _law(self, **options: Any) -> LinearGaussianChain:
        first = {"initial_loc": self.initial_loc, "initial_covariance": self.initial_covariance}
        return LinearGaussianChain(self.transition, self.weight, self.noise_scale, self.loc, **{**first, **options})

    def initialize(self, x: Tensor, lengths: Tensor | None = None, sample_weights: Tensor | None = None) -> None:
        """Start from principal components of the steps, or of windows of steps, and their autoregression.

        Args:
            x: Sequences, shape (n, T, d), NaN where missing.
            lengths: Number of steps of every sequence, shape (n,).
            sample_weights: How often each sequence counts, shape (n,); those that do not count give no start.

        Raises:
            ValueError: Sequences do not fit the model, or bad lengths or weights.
        """
        self.check_training(x, lengths, sample_weights)
        self.data_dim = x.shape[2]
        counts = slice(None) if sample_weights is None else sample_weights > 0
        total = x.shape[1]
        inside = torch.ones(x.shape[:2], dtype=torch.bool, device=x.device)
        if lengths is not None:
            inside = torch.arange(total, device=x.device) < lengths.unsqueeze(-1)
        steps = Steps.of(self._name, x, lengths, sample_weights).rows
        self._start_at(total, column_moments(steps.double())[1].to(x))
        known = torch.where(inside.unsqueeze(-1), x.double(), torch.nan)[counts]
        start = dynamics_start(filled_steps(known), inside[counts], self.latent_dim)
        alone = len(known) == 1
        self.register_buffer("single_series", torch.tensor(alone, device=x.device))
        if alone:
            start = (*start[:-1], CERTAIN * torch.eye(self.latent_dim).to(start[-1]))
        self._declare(*(part.to(x) for part in start))

    def _declare(
        self, transition: Tensor, weight: Tensor, loc: Tensor, noise: Tensor, first: Tensor, covariance: Tensor
    ) -> None:
        self.declare("transition", transition, constraints.real)
        self.declare("weight", weight, constraints.real)
        self.declare("loc", loc, constraints.real)
        self.declare("noise_scale", noise.sqrt(), constraints.positive)
        self.declare("initial_loc", first, constraints.real)
        self.declare("initial_covariance", covariance, constraints.positive_definite)

    def _maximise(self, law: LinearGaussianChain, x: Tensor, weights: Tensor) -> dict[str, Tensor]:
        found, alone = law.statistics(x, weights), bool(self.single_series)
        if alone:
            better, gain = first_state_update(found, law.initial_loc.double(), CERTAIN)
            if float(gain) > WORTH:
                law = self._law(initial_loc=better)
                found = law.statistics(x, weights)
        weight, loc, noise = observation_update(found, law.loc.double(), self.noise_floor.double())
        transition, moves = transition_update(found)
        parts = transition, weight, loc, noise, *initial_update(found)
        if alone:  # the first state is one move more, of so much less a covariance
            moves = (moves * found.moves + found.first_spread / CERTAIN) / (found.moves + found.sequences)
            parts = (*parts[:-1], CERTAIN * moves)
        expanded = rescaled(*parts, moves)
        values, vectors = torch.linalg.eigh(expanded[-1])
        if not alone and not bool((values > CERTAIN).all()):  # the bound is one on the coordinates that there are
            values, vectors = torch.linalg.eigh(parts[-1])
            expanded = (*parts[:-1], (vectors * values.clamp_min(CERTAIN)) @ vectors.mT)
        names = ("transition", "weight", "loc", "noise_scale", "initial_loc", "initial_covariance")
        new = dict(zip(names, expanded, strict=True))
        return {**new, "noise_scale": new["noise_scale"].sqrt()}
