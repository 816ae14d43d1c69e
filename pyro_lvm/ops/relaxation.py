r"""Continuous values behind discrete draws, and how they move with the log-odds that the draws come from.

A draw is :math:`b = \arg\max_k z_k` with :math:`z_k = l_k + g_k`, :math:`g_k` standard Gumbel; of two classes only
the difference :math:`z = l + \text{logistic noise}` matters, and :math:`b = [z > 0]`. With uniform noise v the values
have their law given the draw, :math:`\tilde z(v, b, l)`. The same values move with the log-odds in two ways: with g
held, by :math:`\partial z / \partial l = I`, or with v and b held, by :math:`\partial \tilde z / \partial l`.
For every smooth c with slope :math:`c'` at the values, and s the score of the log-odds,

.. math::

    \mathrm{E}\left[- c(z)\, s + \bigl(I - \partial \tilde z / \partial l\bigr)^\top c'\right] = 0 .

With :math:`p = \mathrm{softmax}(l)` and :math:`w_k = e^{z_k - z_b}` the second term is
:math:`w \odot c' - p\,(w \cdot c')`. Of two classes it is :math:`\sigma(-m)\, c'`, and
:math:`z = \pm(\log(1 + e^m) - \log(1 - v))`, with :math:`m = \pm l + \log v` and the sign that of the draw.

References:
    G. Tucker, A. Mnih, C. Maddison, D. Lawson, J. Sohl-Dickstein (2017), REBAR: low-variance, unbiased gradient
        estimates for discrete latent variable models, NeurIPS, equation 4 and appendix.
    W. Grathwohl, D. Choi, Y. Wu, G. Roeder, D. Duvenaud (2018), Backpropagation through the void, ICLR, equation 7.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import softplus

__all__ = ["Bits", "Classes"]

LARGEST = 1e6  # of log-odds: probabilities are 0 and 1 long before, and infinite values have no slopes


@dataclass(frozen=True)
class Bits:
    """Values behind draws of two classes.

    Attributes:
        logits: Log-odds, any shape.
        hard: The draws, zeros and ones.
        values: Continuous values, > 0 where the draw is 1.
        motion: Factor of the slope, in [0, 1].
    """

    logits: Tensor
    hard: Tensor
    values: Tensor
    motion: Tensor

    @classmethod
    def behind(cls, logits: Tensor, hard: Tensor) -> Bits:
        """Draw the values given log-odds and draws of the same shape."""
        logits = logits.detach().clamp(-LARGEST, LARGEST)
        sign, uniform = 2 * hard - 1, _uniform(logits)
        reach = sign * logits + uniform.log()
        return cls(logits, hard, sign * (softplus(reach) - torch.log1p(-uniform)), torch.sigmoid(-reach))

    def soft(self, values: Tensor, temperature: Tensor) -> Tensor:
        """Values in [0, 1] that tend to the draws as the temperature falls to 0."""
        return torch.sigmoid(values / temperature)

    @property
    def score(self) -> Tensor:
        """The derivative of the draws' log-probability in the log-odds."""
        return self.hard - torch.sigmoid(self.logits)

    def moved(self, slope: Tensor) -> Tensor:
        """The second term: what a slope in the values is in the log-odds."""
        return self.motion * slope


@dataclass(frozen=True)
class Classes:
    """Values behind draws of any number of classes, which stand on the last axis.

    Attributes:
        logits: Logarithms of the probabilities.
        hard: The draws, one-hot.
        values: Continuous values, largest at the class drawn.
        weights: Exponentials of the values less the largest.
    """

    logits: Tensor
    hard: Tensor
    values: Tensor
    weights: Tensor

    @classmethod
    def behind(cls, logits: Tensor, hard: Tensor) -> Classes:
        """Draw the values given log-probabilities, up to a constant, and one-hot draws."""
        logits = logits.detach().log_softmax(-1).clamp(-LARGEST)
        waiting = -_uniform(logits).log()  # standard exponential
        first = (waiting * hard).sum(-1, keepdim=True).log()  # minus the largest value
        others = torch.logaddexp(waiting.log() - logits, first)
        values = -torch.where(hard > 0, first, others)
        return cls(logits, hard, values, (values + first).exp())

    def soft(self, values: Tensor, temperature: Tensor) -> Tensor:
        """Points of the simplex that tend to the draws as the temperature falls to 0."""
        return (values / temperature).softmax(-1)

    @property
    def score(self) -> Tensor:
        """The derivative of the draws' log-probability in the log-odds."""
        return self.hard - self.logits.exp()

    def moved(self, slope: Tensor) -> Tensor:
        """The second term: what a slope in the values is in the log-odds."""
        weighted = self.weights * slope
        return weighted - self.logits.exp() * weighted.sum(-1, keepdim=True)


def _uniform(like: Tensor) -> Tensor:
    """Numbers strictly between 0 and 1."""
    tiny = torch.finfo(like.dtype)
    return torch.rand_like(like).clamp(tiny.tiny, 1 - tiny.eps)
