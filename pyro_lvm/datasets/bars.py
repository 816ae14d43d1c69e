r"""Bars: images made of whole rows or whole columns, the classical test of networks that learn causes.

.. math:: v \sim \mathrm{Bernoulli}(1/2), \qquad b_1, \dots, b_s \sim \mathrm{Bernoulli}(p), \qquad
    x_{ij} = v\, b_j + (1 - v)\, b_i
"""

from __future__ import annotations

import itertools
from collections import defaultdict
from dataclasses import dataclass

import torch
from torch import Tensor

from pyro_lvm.ops.whole_number import whole_number

__all__ = ["Bars", "bars"]


@dataclass(frozen=True, eq=False)
class Bars:
    """The law of images of bars.

    Attributes:
        x: Every possible image, row by row, zeros and ones, shape (m, size * size).
        probabilities: The probability of each, shape (m,), summing to one.
    """

    x: Tensor
    probabilities: Tensor

    @property
    def entropy(self) -> float:
        """Entropy in nats: no model has a smaller mean negative log-likelihood."""
        return -float(torch.xlogy(self.probabilities, self.probabilities).sum())

    def sample(self, size: int, generator: torch.Generator | None = None) -> Tensor:
        """Draw images.

        Args:
            size: How many, n >= 1.
            generator: The source of randomness; by default that of torch.

        Returns:
            Zeros and ones, shape (n, size * size).
        """
        size = whole_number("Bars.sample", "size", size)
        return self.x[torch.multinomial(self.probabilities, size, replacement=True, generator=generator)]


def bars(size: int = 4, probability: float = 0.5) -> Bars:
    """Images of rows or of columns, one orientation an image, every bar on by a coin of its own.

    The blank image and the full one arise either way; all others have one cause.

    Args:
        size: Width and height of the images, 2 to 12.
        probability: Chance that a bar is on, between 0 and 1, both left out.

    Returns:
        All 2 ** (size + 1) - 2 images with their probabilities, in float32.

    Raises:
        ValueError: An argument is out of range.

    References:
        G. Hinton, P. Dayan, B. Frey, R. Neal (1995), The wake-sleep algorithm for unsupervised neural networks,
            Science 268, figure 2, where bars are on with probability 0.2 and vertical with probability 2/3.

    Example:
        >>> import pyro_lvm as lvm
        >>> law = lvm.datasets.bars(size=4)
        >>> law.x.shape, round(law.entropy, 4)
        (torch.Size([30, 16]), 3.3791)
    """
    size = whole_number("datasets.bars", "size", size, least=2)
    if size > 12:
        raise ValueError(f"datasets.bars: expected size <= 12, since all images are listed; got {size}.")
    if not 0 < probability < 1:
        raise ValueError(f"datasets.bars: expected probability between 0 and 1; got {probability}.")
    chances: defaultdict[tuple[int, ...], float] = defaultdict(float)
    for on in itertools.product((0, 1), repeat=size):
        chance = probability ** sum(on) * (1 - probability) ** (size - sum(on))
        chances[on * size] += chance / 2  # columns: every line of pixels shows all bars
        chances[tuple(b for b in on for _ in range(size))] += chance / 2
    return Bars(torch.tensor(list(chances)).float(), torch.tensor(list(chances.values())).float())
