r"""Slow feature analysis: the closed form, and the law of sequences of which it is the limit without noise.

.. math::

    h_{nti} \mid h_{n,t-1,i} \sim \mathrm{Normal}(\lambda_i h_{n,t-1,i}, 1 - \lambda_i^2), \quad
    h_{n1i} \sim \mathrm{Normal}(0, 1), \\
    x_{nt} \mid h_{nt} \sim \mathrm{Normal}(b + W h_{nt}, \mathrm{diag}(\sigma^2))
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.distributions import constraints

from pyro_lvm.distributions.linear_gaussian_chain import LinearGaussianChain
from pyro_lvm.models.sequence_factors import SequenceFactors
from pyro_lvm.ops.dynamics_start import filled_steps
from pyro_lvm.ops.dynamics_updates import observation_update, slow_update
from pyro_lvm.ops.missing import column_moments
from pyro_lvm.ops.slow_features import EXPANSIONS, SlowFeatures, expanded, expanded_dim, slow_features
from pyro_lvm.ops.whole_number import whole_number

__all__ = ["SlowFeatureAnalysis"]

SILENT = 1e-12  # share of a column's variance that stands for no noise
SPECIFIC = 0.01  # least share that is noise at the start where noise is learned
SLOWEST = 1 - 1e-9  # largest modulus of an autocorrelation


class SlowFeatureAnalysis(SequenceFactors):
    r"""Features of sequences that vary as slowly as possible, uncorrelated and of variance one, slowest first.

    ===================  ==============================================  =========  =====================
    symbol               meaning                                         shape      code
    ===================  ==============================================  =========  =====================
    :math:`\lambda`      autocorrelations of the features, descending    (k,)       `autocorrelation`
    :math:`W`            weights, what each feature adds to the columns  (D, k)     `weight`
    :math:`b`            mean                                            (D,)       `loc`
    :math:`\sigma`       standard deviations of the noise                (D,)       `noise_scale`
    :math:`h_{nt}`       features                                        (n, T, k)  `fit.transform(x)`
    ===================  ==============================================  =========  =====================

    Without noise, the features are those of Wiskott and Sejnowski in closed form, of which there are as many as the
    columns have directions, k <= D, and the slowest `num_features` are told; only their autocorrelations, which the
    likelihood needs, remain to be learned. With noise, there are `num_features`, they begin at the closed form, and all
    parameters are learned by EM in closed form; features are then means of the posterior, which smooths them. Missing
    entries are NaN, single ones or whole steps, and are summed out exactly; much of them calls for noise, as the closed
    form looks only at steps that are known, or, where these are few, interpolates.

    With `expansion="quadratic"` the D = d + d (d + 1) / 2 columns that the program observes are those of the data and
    all their products of two, of columns centred and divided by their standard deviations: densities and generated
    rows are those of such columns, and no missing entries are imputed. The sign of a feature is such that the entry of
    its weights of the largest size is positive at the start.

    Args:
        num_features: At least 1, and at most the number of directions in which the (expanded) columns vary.
        expansion: "linear" or "quadratic".
        noise: Whether columns have noise of a variance of its own each, which is learned.
        data_dim: Number of columns d; taken from the data by `initialize` if None.

    Raises:
        ValueError: An argument is out of range.

    References:
        L. Wiskott, T. Sejnowski (2002), Slow feature analysis: unsupervised learning of invariances, Neural
            Computation 14.
        R. Turner, M. Sahani (2007), A maximum-likelihood interpretation for slow feature analysis, Neural
            Computation 19.

    Example:
        >>> import torch, pyro_lvm as lvm
        >>> t = torch.linspace(0, 2 * torch.pi, 500, dtype=torch.float64)
        >>> x = torch.stack([t.sin() + (11 * t).cos() ** 2, (11 * t).cos()], -1)
        >>> fit = lvm.fit(lvm.models.SlowFeatureAnalysis(1, "quadratic"), x, seed=0, progress=False)
        >>> float(torch.corrcoef(torch.stack([fit.transform(x)[:, 0], t.sin()]))[0, 1].abs()) > 1 - 1e-9
        True
    """

    dims: ClassVar[dict[str, list[str]]] = {
        "autocorrelation": ["feature"],
        "weight": ["expanded_column", "feature"],
        "loc": ["expanded_column"],
        "noise_scale": ["expanded_column"],
    }

    observing_rows = "Fit SlowFeatureAnalysis with expansion='linear', which observes the columns themselves."

    def __init__(
        self, num_features: int, expansion: str = "linear", noise: bool = False, data_dim: int | None = None
    ) -> None:
        super().__init__(data_dim)
        self.num_features = whole_number(self._name, "num_features", num_features)
        if expansion not in EXPANSIONS:
            raise ValueError(
                f"{self._name}: expected expansion to be one of {', '.join(EXPANSIONS)}; got {expansion!r}."
            )
        if not isinstance(noise, bool):
            raise ValueError(f"{self._name}: expected noise to be True or False; got {noise!r}.")
        self.expansion, self.noise = expansion, noise
        if self.data_dim is not None:
            wide = expanded_dim(self.data_dim, expansion)
            one, k = torch.ones(wide), self.num_features if noise else wide
            self._centre_at(torch.zeros(self.data_dim), torch.ones(self.data_dim))
            self._start_at(1, one)
            variance = one if noise else SILENT * one
            self._declare(torch.linspace(0.9, 0.1, k), torch.eye(wide, k), 0 * one, variance)

    def fixed_entries(self, name: str) -> int:
        """Noise that is not learned."""
        return len(self.noise_scale) if name == "noise_scale" and not self.noise else 0

    def _seen(self, x: Tensor) -> Tensor:
        if self.expansion == "linear":
            return x
        return expanded((x - self.centre) / self.unit, self.expansion)

    def _law(self, **options: Any) -> LinearGaussianChain:
        rate, parts = self.autocorrelation, (self.weight, self.noise_scale, self.loc)
        if not self.noise:
            parts = tuple(part.detach() for part in parts)
        options["num_shown"] = self.num_features
        moves = (1 - rate.double().square()).diag().to(rate)
        return LinearGaussianChain(rate.diag(), *parts, transition_covariance=moves, **options)

    def initialize(self, x: Tensor, lengths: Tensor | None = None, sample_weights: Tensor | None = None) -> None:
        """Find the slow features in closed form.

        Args:
            x: Sequences, shape (n, T, d), NaN where missing.
            lengths: Number of steps of every sequence, shape (n,).
            sample_weights: How often each sequence counts, shape (n,).

        Raises:
            ValueError: Sequences do not fit the model, or bad lengths or weights.
        """
        self.check_training(x, lengths, sample_weights)
        self.data_dim = x.shape[2]
        counts = x.new_ones(len(x)).double() if sample_weights is None else sample_weights.double()
        inside = torch.ones(x.shape[:2], dtype=torch.bool, device=x.device)
        if lengths is not None:
            inside = torch.arange(x.shape[1], device=x.device) < lengths.unsqueeze(-1)
        given = torch.where(inside.unsqueeze(-1), x.double(), torch.nan)
        mean, spread = column_moments(given.flatten(0, 1))
        self._centre_at(mean.to(x), torch.where(spread > 0, spread, 1.0).sqrt().to(x))
        taken = counts > 0
        found, rows, weights = self._closed_form(self._seen(given)[taken], inside[taken], counts[taken])
        k = self.num_features
        if len(found.delta) < k:
            raise ValueError(
                f"{self._name}: expected at most as many features as there are directions in which the columns vary, "
                f"{len(found.delta)}; got {k}. Lower num_features{'' if self.expansion != 'linear' else ', or expand'}."
            )
        variance = (weights * (rows - found.loc).square()).sum(0) / weights.sum()
        self._start_at(x.shape[1], variance.to(x))
        rate = (1 - found.delta / 2).clamp(-SLOWEST, SLOWEST)
        weight, noise = found.weight, SILENT * torch.where(variance > 0, variance, variance.mean())
        if self.noise:
            rate, weight = rate[:k], weight[:, :k]
            noise = (variance - weight.square().sum(-1)).maximum(SPECIFIC * variance)
        self._declare(*(part.to(x) for part in (rate, weight, found.loc, noise)))

    def _centre_at(self, mean: Tensor, unit: Tensor) -> None:
        """What is taken off columns before they are multiplied, and what they are divided by: sums lose no digits."""
        self.register_buffer("centre", mean)
        self.register_buffer("unit", unit)

    def _closed_form(self, seen: Tensor, inside: Tensor, counts: Tensor) -> tuple[SlowFeatures, Tensor, Tensor]:
        """The closed form, the steps that it looked at, and how often each of these counts, shape (steps, 1)."""
        known = inside & ~seen.isnan().any(-1)
        pairs = known[:, 1:] & known[:, :-1]
        if int(pairs.sum()) <= 2 * seen.shape[-1] and not bool((known == inside).all()):
            seen, known, pairs = filled_steps(seen), inside, inside[:, 1:]
        found = slow_features(torch.where(known.unsqueeze(-1), seen, 0.0), known, pairs, counts)
        return found, seen[known], counts.unsqueeze(-1).expand(known.shape)[known].unsqueeze(-1)

    def _declare(self, rate: Tensor, weight: Tensor, loc: Tensor, variance: Tensor) -> None:
        self.declare("autocorrelation", rate, constraints.interval(-1.0, 1.0))
        self.declare("weight", weight, constraints.real)
        self.declare("loc", loc, constraints.real)
        self.declare("noise_scale", variance.sqrt(), constraints.positive)

    def _maximise(self, law: LinearGaussianChain, x: Tensor, weights: Tensor) -> dict[str, Tensor]:
        found = law.statistics(x, weights)
        rate = slow_update(found).clamp(-SLOWEST, SLOWEST)
        if not self.noise:
            return {"autocorrelation": rate}
        weight, loc, noise = observation_update(found, law.loc.double(), self.noise_floor.double())
        order = rate.argsort(descending=True, stable=True)
        return {"autocorrelation": rate[order], "weight": weight[:, order], "loc": loc, "noise_scale": noise.sqrt()}
