"""Scores of things that are chosen from varying subsets: Luce's choice model, by an MM algorithm."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

__all__ = ["fit_choice_scores"]


def fit_choice_scores(
    counts: Float[Tensor, " k"],
    offered: Float[Tensor, "offers k"],
    times: Float[Tensor, " offers"],
    start: Float[Tensor, " k"],
    num_iterations: int = 50,
) -> Float[Tensor, " k"]:
    r"""Raise the likelihood of choices in which k wins against what else is offered in proportion to its score.

    .. math:: L(c) = \sum_k N_k \log c_k - \sum_o n_o \log \sum_k m_{ok} c_k

    Every iteration maximises a lower bound that touches at the current scores, so that L never falls.

    Args:
        counts: How often each was chosen, :math:`N_k`.
        offered: How often each stands in each offer, :math:`m_{ok}`.
        times: How often something was chosen from each offer, :math:`n_o`.
        start: Scores to start from, > 0 where `counts` are.
        num_iterations: How many iterations.

    Returns:
        Scores that sum to one.

    References:
        D. Hunter (2004), MM algorithms for generalized Bradley-Terry models, Annals of Statistics 32, equation 30.

    Example:
        >>> import torch
        >>> offered = torch.tensor([[1.0, 1.0, 0.0], [0.0, 1.0, 1.0]])
        >>> fit_choice_scores(torch.tensor([2.0, 2.0, 1.0]), offered, torch.tensor([3.0, 2.0]), torch.ones(3))
        tensor([0.5000, 0.2500, 0.2500])
    """
    counts, offered, times, scores = counts.double(), offered.double(), times.double(), start.double()
    seen = times > 0
    if not bool(seen.any()):
        return start / start.sum()
    offered, times = offered[seen], times[seen]
    for _ in range(num_iterations):
        pull = (times / (offered @ scores)) @ offered
        scores = torch.where(counts > 0, counts / torch.where(counts > 0, pull, 1.0), 0.0)
        scores = scores / scores.sum()
    return scores.to(start)
