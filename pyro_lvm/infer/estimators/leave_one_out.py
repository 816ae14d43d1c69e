r"""The score function with each draw's baseline from the others.

With :math:`f_k = \log p(x, z_k) - \log q(z_k)` the estimate of the gradient is that of :math:`f_k` itself, and

.. math:: \frac1K \sum_k \Big( f_k - \frac{1}{K-1} \sum_{j \ne k} f_j \Big) \nabla \log q(z_k).
"""

from __future__ import annotations

from torch import Tensor

from pyro_lvm.infer.estimators.multi_sample import Draws, MultiSampleELBO

__all__ = ["LeaveOneOut"]


class LeaveOneOut(MultiSampleELBO):
    """The evidence lower bound; the gradient of discrete sites by K draws, each with the others' mean as baseline.

    Sites with reparameterised draws are differentiated through their draws.

    Args:
        num_samples: Draws of the guide for each row, K >= 2.
        max_plate_nesting: Number of batch dimensions that plates of model and guide use; by default found by a run.

    References:
        T. Salimans, D. Knowles (2014), On using control variates with stochastic approximation for variational Bayes.
        W. Kool, H. van Hoof, M. Welling (2019), Buy 4 REINFORCE samples, get a baseline for free!, equation 8.

    Example:
        >>> import pyro_lvm as lvm
        >>> lvm.infer.LeaveOneOut(num_samples=4).num_samples
        4
    """

    def bound(self, draws: Draws) -> Tensor:
        """The mean of log p - log q."""
        return draws.log_weight.mean(0)

    def surrogate(self, draws: Draws) -> Tensor:
        """Every draw's advantage times its score, and what is differentiated through draws and in the model."""
        signal = draws.log_weight.detach()
        advantage = (signal - signal.mean(0)) * (self.num_samples / (self.num_samples - 1))
        return (advantage * draws.score + draws.log_joint - draws.entropy).mean(0)
