"""What maximum likelihood of independent sources asks of their density."""

from __future__ import annotations

from typing import NamedTuple, Protocol

import torch
from torch import Tensor

__all__ = ["Density", "Scores", "student_t_information"]

LEAST_INFORMATION = 0.01  # on the degrees of freedom: of many, rows tell next to nothing


class Scores(NamedTuple):
    """What a density says of sources.

    Attributes:
        log_prob: Log-densities, nats, shape (n, k).
        score: Minus their derivatives by the sources, shape (n, k).
        slope: Their derivatives by the logarithm of the degrees of freedom, shape (n, k); None if there are none.
    """

    log_prob: Tensor
    score: Tensor
    slope: Tensor | None = None


class Density(Protocol):
    """What `climb` asks of the law of the sources.

    Attributes:
        kinked: Whether the log-density has a kink, so that its maxima lie at the kinks of many rows.
    """

    kinked: bool

    def __call__(self, y: Tensor, freedom: Tensor | None, width: float = 0.0) -> Scores:
        """Scores of sources (n, k) at degrees of freedom (k,); a kink is rounded off over `width` scales."""


def student_t_information(freedom: Tensor, ended: Tensor) -> Tensor:
    """Fisher's information of Student's t on minus its log scale and the logarithm of its degrees of freedom.

    Args:
        freedom: Degrees of freedom, shape (k,).
        ended: Which of them do not move, shape (k,): they are taken apart from the scale.

    Returns:
        Shape (k, 2, 2), positive definite.

    References:
        K. Lange, R. Little, J. Taylor (1989), Robust statistical modeling using the t distribution, JASA 84, app. B.
    """
    v = freedom
    trigamma = torch.polygamma(1, v / 2) - torch.polygamma(1, (v + 1) / 2)
    of_freedom = 0.5 * (0.5 * trigamma - (v + 5) / (v * (v + 1) * (v + 3)))
    scale, both = 2 * v / (v + 3), torch.where(ended, 0.0, 2 * v / ((v + 1) * (v + 3)))
    last = (v.square() * of_freedom).maximum(both.square() / scale + LEAST_INFORMATION)
    return torch.stack([torch.stack([scale, both], -1), torch.stack([both, last], -1)], -2)
