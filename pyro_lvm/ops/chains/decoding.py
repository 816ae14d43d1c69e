"""The most probable paths."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor

from pyro_lvm.ops.chains.exact import block_length, pieces
from pyro_lvm.ops.chains.inputs import Chains, prepare
from pyro_lvm.ops.chains.log_space import maximum, messages
from pyro_lvm.ops.chains.paths import follow

__all__ = ["viterbi"]


def viterbi(
    initial: Float[Tensor, "*#batch K"],
    transition: Float[Tensor, "*#batch #steps K K"],
    emission: Float[Tensor, "*batch T K"],
    lengths: Int[Tensor, "*batch"] | None = None,
    *,
    num_best: int = 1,
    algorithm: str = "auto",
) -> tuple[Int[Tensor, "..."], Float[Tensor, "..."]]:
    """The most probable paths of states given x, best first. Arguments and errors are those of `smooth`.

    Args:
        initial: Log p(first state).
        transition: Log p(next state | previous state).
        emission: Log p(x_t | state).
        lengths: Steps of each chain, or None.
        num_best: How many paths, all different. More than one takes a loop over the steps, whatever the algorithm.
        algorithm: "sequential", "blocked", "scan" or "auto".

    Returns:
        The states, int64, shape (*batch, T), and log p(x, states), shape (*batch,), nats; with another axis (num_best)
        after the batch if num_best is above 1. States are -1 in the padding. Where fewer paths are possible than asked
        for, the others are -1 with -inf.

    Raises:
        ValueError: As `smooth`; or num_best is below 1.

    References:
        A. Viterbi (1967), Error bounds for convolutional codes and an asymptotically optimum decoding algorithm, IEEE
        Transactions on Information Theory 13.
        N. Seshadri, C.-E. Sundberg (1994), List Viterbi decoding algorithms with applications, IEEE Transactions on
        Communications 42.

    Example:
        >>> import torch
        >>> initial = torch.tensor([0.6, 0.4]).log()
        >>> transition = torch.tensor([[[0.7, 0.3], [0.4, 0.6]]]).log()
        >>> emission = torch.tensor([[0.5, 0.1], [0.4, 0.3], [0.1, 0.6]]).log()
        >>> viterbi(initial, transition, emission)[0]
        tensor([0, 0, 1])
    """
    chains = prepare("viterbi", initial, transition, emission, lengths, algorithm).detach().double()
    if num_best < 1:
        raise ValueError(f"viterbi: expected num_best of at least 1; got {num_best}.")
    pointers, scores = _best(chains, algorithm) if num_best == 1 else _several_best(chains, num_best)
    log_joint, last = scores.topk(num_best, -1)
    paths = follow(pointers.repeat_interleave(num_best, 0), last.flatten()).div(num_best, rounding_mode="floor")
    paths = paths.reshape(chains.num_chains, num_best, chains.num_steps)
    paths = paths.masked_fill(log_joint.isneginf().unsqueeze(-1), -1)
    if chains.valid is not None:
        paths = paths.masked_fill(~chains.valid.unsqueeze(1), -1)
    batch = (*chains.batch, *(() if num_best == 1 else (num_best,)))
    return paths.reshape(*batch, chains.num_steps), log_joint.to(emission.dtype).reshape(batch)


def _best(chains: Chains, algorithm: str) -> tuple[Tensor, Tensor]:
    """The best previous state of each step and state, shape (N, T - 1, K), and the last scores, shape (N, K)."""
    scores = messages(chains, block_length(chains, algorithm), maximum)
    stay = torch.arange(chains.num_states, device=scores.device)
    pointers = stay.repeat(chains.num_chains, chains.num_steps - 1, 1)
    for steps in pieces(chains):
        transition = chains.transition if chains.homogeneous else chains.transition[:, steps]
        pointers[:, steps] = (scores[:, steps].unsqueeze(-1) + transition).argmax(-2)
    if chains.valid is not None:
        pointers = torch.where(chains.valid[:, 1:, None], pointers, stay)
    return pointers, scores[:, -1]


def _several_best(chains: Chains, num_best: int) -> tuple[Tensor, Tensor]:
    """Pointers and last scores of states that are pairs of a state and a rank, K * num_best of them."""
    scores = (chains.initial + chains.emission[:, 0]).unsqueeze(-1)
    scores = torch.cat([scores, scores.new_full((1, 1, 1), -torch.inf).expand(*scores.shape[:2], num_best - 1)], -1)
    stay = torch.arange(chains.num_states * num_best, device=scores.device).expand(chains.num_chains, -1)
    pointers = []
    for step in range(1, chains.num_steps):
        transition = chains.transition[:, 0 if chains.homogeneous else step - 1]
        candidates = (scores.unsqueeze(-1) + transition.unsqueeze(-2)).flatten(1, 2)
        best, origin = candidates.topk(num_best, 1)
        best = best.mT + chains.emission[:, step].unsqueeze(-1)
        origin = origin.mT.flatten(1)
        if chains.valid is not None:
            best = torch.where(chains.valid[:, step, None, None], best, scores)
            origin = torch.where(chains.valid[:, step, None], origin, stay)
        scores = best
        pointers.append(origin)
    stacked = torch.stack(pointers, 1) if pointers else stay.new_zeros(chains.num_chains, 0, stay.shape[1])
    return stacked, scores.flatten(1)
