"""What mixtures over real vectors share: the number of columns, what their rows must be like, a start."""

from __future__ import annotations

from abc import abstractmethod

import torch
from torch import Tensor

from pyro_lvm.distributions.normal_rows import check_real_columns
from pyro_lvm.models.mixture import Mixture, Priors
from pyro_lvm.ops.clusters import cluster_moments
from pyro_lvm.ops.missing import column_moments

__all__ = ["Moments", "RealMixture"]

Moments = tuple[Tensor, Tensor]


class RealMixture(Mixture):
    """Base of the mixtures over real vectors.

    Args:
        num_components: K >= 1.
        data_dim: Number of columns d; taken from the data by `initialize` if None.
        priors: As `Mixture` takes them.

    Raises:
        ValueError: An argument is out of range.
    """

    def __init__(self, num_components: int, data_dim: int | None = None, priors: bool | Priors | None = None) -> None:
        super().__init__(num_components, priors)
        self.data_dim = self._checked_columns(data_dim)

    @abstractmethod
    def _declare(self, moments: Moments, weights: Tensor, loc: Tensor, within: Tensor) -> None:
        """Create the parameters at the moments of clusters: shapes (K,), (K, d) and (K, d, d).

        Args:
            moments: Mean and variance of the columns, shape (d,) each.
            weights: Shares of the clusters.
            loc: Their means.
            within: Their covariances.
        """

    def _declare_unseen(self) -> None:
        """Create the parameters before any data are there, alike for all components."""
        if self.data_dim is not None:
            k, d = self.num_components, self.data_dim
            within = torch.eye(d).expand(k, -1, -1)
            self._declare((torch.zeros(d), torch.ones(d)), torch.full((k,), 1 / k), torch.zeros(k, d), within)

    @property
    def _num_columns(self) -> int | None:
        return self.data_dim

    def _arrange(self, x: Tensor) -> None:
        self.data_dim = x.shape[1]

    def _start(self, x: Tensor, sample_weights: Tensor | None) -> None:
        clusters = cluster_moments(x, self.num_components, sample_weights)
        self._declare(column_moments(x, sample_weights), *clusters)

    def check_training(self, x: Tensor) -> None:
        """Raise a ValueError for fewer rows than components, fewer than two rows, or a constant or empty column."""
        super().check_training(x)
        if len(x) < 2:
            raise ValueError(
                f"{self._name}: expected at least 2 rows, since one row has no covariance; got 1. Add rows."
            )
        check_real_columns(self._name, x)
