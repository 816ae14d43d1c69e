"""What every function on chains is given: checked once, the batch flattened, the padding emptied."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from pyro_lvm.ops.scratch import Scratch

__all__ = ["ALGORITHMS", "Chains", "prepare"]

ALGORITHMS = ("auto", "sequential", "blocked", "scan")


@dataclass(frozen=True)
class Chains:
    """N chains over K states and at most T steps, in logarithms.

    Attributes:
        initial: Shape (N, K), or (1, K) if all chains share it.
        transition: Shape (N, T - 1, K, K); the first axis is 1 if all chains share it, the second if all steps do.
        emission: Shape (N, T, K), zero in the padding.
        lengths: Shape (N,), each in [1, T]; None if all are T.
        batch: The shape of the batch as it was given.
        scratch: Where large intermediate results go.
    """

    initial: Tensor
    transition: Tensor
    emission: Tensor
    lengths: Tensor | None
    batch: torch.Size
    scratch: Scratch = field(default_factory=Scratch)

    @property
    def num_chains(self) -> int:
        """N, the number of chains."""
        return self.emission.shape[0]

    @property
    def num_steps(self) -> int:
        """T, the number of steps, padding included."""
        return self.emission.shape[1]

    @property
    def num_states(self) -> int:
        """K, the number of states."""
        return self.emission.shape[2]

    @property
    def homogeneous(self) -> bool:
        """Whether all steps share one transition matrix."""
        return self.transition.shape[1] == 1

    @property
    def last(self) -> Tensor:
        """The last step of each chain, shape (N,)."""
        if self.lengths is None:
            return torch.full((self.num_chains,), self.num_steps - 1, device=self.emission.device)
        return self.lengths - 1

    @property
    def valid(self) -> Tensor | None:
        """Which steps are no padding, shape (N, T); None if all are."""
        if self.lengths is None:
            return None
        return torch.arange(self.num_steps, device=self.emission.device) < self.lengths.unsqueeze(-1)

    def at_last(self, values: Tensor) -> Tensor:
        """The values at the last step of each chain, shape (N, K), of values at all, shape (N, T, K)."""
        return values[torch.arange(self.num_chains, device=values.device), self.last]

    def select(self, rows: Tensor) -> Chains:
        """Some of the chains, shape (m,)."""
        return replace(
            self,
            initial=self.initial if len(self.initial) == 1 else self.initial[rows],
            transition=self.transition if len(self.transition) == 1 else self.transition[rows],
            emission=self.emission[rows],
            lengths=None if self.lengths is None else self.lengths[rows],
            batch=torch.Size([len(rows)]),
            scratch=Scratch(),
        )

    def double(self) -> Chains:
        """The same in float64."""
        return replace(
            self,
            initial=self.initial.double(),
            transition=self.transition.double(),
            emission=self.emission.double(),
        )

    def detach(self) -> Chains:
        """The same without gradients."""
        return replace(
            self,
            initial=self.initial.detach(),
            transition=self.transition.detach(),
            emission=self.emission.detach(),
        )


def prepare(
    name: str,
    initial: Tensor,
    transition: Tensor,
    emission: Tensor,
    lengths: Tensor | None,
    algorithm: str = "auto",
    scratch: Scratch | None = None,
) -> Chains:
    """Check the arguments of a function on chains and flatten their batch.

    Raises:
        ValueError: A shape, a dtype, a length or the algorithm is not what it should be.
    """
    if algorithm not in ALGORITHMS:
        raise ValueError(f"{name}: expected algorithm to be one of {', '.join(ALGORITHMS)}; got {algorithm!r}.")
    if emission.dim() < 2 or 0 in emission.shape[-2:]:
        raise ValueError(
            f"{name}: expected emission of shape (*batch, T, K), T and K at least 1; got {tuple(emission.shape)}."
        )
    if not emission.is_floating_point():
        raise ValueError(f"{name}: expected emission to hold logarithms as floats; got {emission.dtype}. Convert it.")
    *sizes, num_steps, num_states = emission.shape
    batch = torch.Size(sizes)
    initial, transition = initial.to(emission.dtype), transition.to(emission.dtype)
    if not _fits(initial.shape, (*batch, num_states)) or initial.shape[-1:] != (num_states,):
        raise ValueError(
            f"{name}: expected initial to broadcast to (*batch, K) = {(*batch, num_states)}; "
            f"got {tuple(initial.shape)}. Give one logarithm for each state."
        )
    steps = transition.shape[-3] if transition.dim() >= 3 else None
    if (
        steps not in (1, num_steps - 1)
        or transition.shape[-2:] != (num_states, num_states)
        or not _fits(transition.shape[:-3], batch)
    ):
        raise ValueError(
            f"{name}: expected transition to broadcast to (*batch, T - 1, K, K) = "
            f"{(*batch, num_steps - 1, num_states, num_states)}, its time axis 1 if all steps share one matrix; "
            f"got {tuple(transition.shape)}. Index it [..., step, previous, next]."
        )
    if lengths is not None:
        lengths = _lengths(name, lengths, batch, num_steps).to(emission.device)
    count = batch.numel()
    chains = Chains(
        initial=_flat(initial, batch, 1),
        transition=_flat(transition, batch, 3),
        emission=emission.reshape(count, num_steps, num_states),
        lengths=lengths,
        batch=batch,
        scratch=Scratch() if scratch is None else scratch,
    )
    return chains if lengths is None else _without_padding(chains)


def _lengths(name: str, lengths: Tensor, batch: torch.Size, num_steps: int) -> Tensor:
    if lengths.shape != batch or lengths.is_floating_point() or lengths.dtype == torch.bool:
        raise ValueError(
            f"{name}: expected lengths as integers of shape {tuple(batch)}, one for each chain; "
            f"got {lengths.dtype} of shape {tuple(lengths.shape)}."
        )
    if lengths.numel() and not (int(lengths.min()) >= 1 and int(lengths.max()) <= num_steps):
        raise ValueError(
            f"{name}: expected lengths between 1 and T = {num_steps}; "
            f"got {int(lengths.min())} to {int(lengths.max())}. Leave out empty chains."
        )
    return lengths.reshape(-1).long()


def _fits(shape: torch.Size, target: tuple[int, ...]) -> bool:
    """Whether a shape broadcasts to a target without changing it."""
    return len(shape) <= len(target) and all(
        size in (1, wanted) for size, wanted in zip(reversed(shape), reversed(target), strict=False)
    )


def _flat(values: Tensor, batch: torch.Size, kept: int) -> Tensor:
    """One axis in place of the batch, of size 1 if all chains share the values."""
    own = values.shape[values.dim() - kept :]
    if values.shape[: values.dim() - kept].numel() == 1:
        return values.reshape(1, *own)
    return values.expand(*batch, *own).reshape(batch.numel(), *own)


def _without_padding(chains: Chains) -> Chains:
    """Zeros where the padding is, so that nothing in it is seen and nothing in it gets a gradient."""
    valid = chains.valid
    if valid is None:
        return chains
    emission = torch.where(valid.unsqueeze(-1), chains.emission, 0.0)
    if chains.homogeneous:
        return replace(chains, emission=emission)
    transition = torch.where(valid[:, 1:, None, None], chains.transition, 0.0)
    return replace(chains, emission=emission, transition=transition)
