r"""Gradients of the importance-weighted bound.

With weights :math:`w_k = p(x, z_k) / q(z_k)`,

.. math::
    L = \log \frac1K \sum_k w_k, \qquad
    \nabla L \approx \sum_k (L - L_{-k}) \nabla \log q(z_k) + \sum_k \tilde w_k \nabla \log w_k,

where :math:`L_{-k}` is the bound with :math:`w_k` replaced by the geometric mean of the others, and
:math:`\tilde w_k = w_k / \sum_j w_j`.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from pyro_lvm.infer.estimators.multi_sample import Draws, MultiSampleELBO

__all__ = ["VIMCO"]


class VIMCO(MultiSampleELBO):
    """The importance-weighted bound; the gradient of discrete sites by K draws, each with a baseline from the others.

    The bound is tighter than the evidence lower bound, and tighter the more draws. Sites with reparameterised draws
    are differentiated through their draws.

    Args:
        num_samples: Draws of the guide for each row, K >= 2.
        max_plate_nesting: Number of batch dimensions that plates of model and guide use; by default found by a run.

    References:
        A. Mnih, D. Rezende (2016), Variational inference for Monte Carlo objectives, ICML, equations 7 to 10.
        Y. Burda, R. Grosse, R. Salakhutdinov (2016), Importance weighted autoencoders, ICLR, equation 8.

    Example:
        >>> import pyro_lvm as lvm
        >>> lvm.infer.VIMCO(num_samples=20).num_samples
        20
    """

    def bound(self, draws: Draws) -> Tensor:
        """The logarithm of the mean weight."""
        return draws.log_weight.logsumexp(0) - math.log(self.num_samples)

    def surrogate(self, draws: Draws) -> Tensor:
        """Every draw's advantage times its score, and the weights' own gradient."""
        log_weight = draws.log_weight.detach()
        others = (log_weight.sum(0) - log_weight) / (self.num_samples - 1)
        advantage = log_weight.logsumexp(0) - _without_each(log_weight, others)
        return (advantage * draws.score + log_weight.softmax(0) * draws.log_weight).sum(0)


def _without_each(log_weight: Tensor, instead: Tensor) -> Tensor:
    """The log-sum of weights for each of them replaced in turn, shape (K, rows...).

    All K x K terms are summed: subtracting one from the total would cancel where it dominates.
    """
    k = len(log_weight)
    replaced = log_weight.unsqueeze(0).expand(k, *log_weight.shape).clone()
    torch.diagonal(replaced, dim1=0, dim2=1).copy_(instead.movedim(0, -1))
    return replaced.logsumexp(1)
