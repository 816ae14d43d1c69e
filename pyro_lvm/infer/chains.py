r"""The E-step of hidden Markov sites: forward-backward instead of enumeration.

A site whose law is `HMM` is taken apart into the factors that it is made of: the categorical laws of its states (that
of the first one, that of the next one given the previous one, or whatever `HMM.laws` says) and the emission of a step
given its state. The kernel of `pyro_lvm.ops.chains` finds the posterior of the chain; since the chain's log-tables
:math:`\ell` are a linear map of those of the laws, :math:`\ell = S \lambda`, the posterior weights of the laws are
:math:`S^\top` times those of the chain. From there on they are factors like any other, and every M-step applies.

Axes, from the right: steps, then the site's plates, then states (then previous states, or mixture components).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from pyro_lvm.distributions.hidden_markov import HMM
from pyro_lvm.distributions.state_laws import restrict
from pyro_lvm.infer.factors import Factor
from pyro_lvm.infer.log_density import product_form
from pyro_lvm.infer.m_step import ExponentialFamily, Statistics, closed_form
from pyro_lvm.infer.natural import Kernel
from pyro_lvm.infer.nonfinite import NonFiniteLoss
from pyro_lvm.ops import chains
from pyro_lvm.ops.scratch import Scratch

if TYPE_CHECKING:
    from pyro_lvm.infer.row_pass import Memory

__all__ = ["Chain"]


@dataclass
class Chain:
    """Hidden states that follow one another, in parts.

    Attributes:
        name: The site, or sites, that the states explain.
        states: What the states are called.
        law: Their law.
        num_steps: T.
        batch: Shape of the plates.
        parts: Factors of the laws that the chain's tables are made of, by their names there.
        emissions: Factors of a step by site: one, or mixture weights and components.
        lengths: Number of steps, plates; None if all have T.
        counted: Which sequences are not masked, plates; None if all.
        scale: How often sequences count: a number, or plates.
        sites: Names of the states one by one, if the program has a site for each.
        inner: Number of plates to the right of theirs.
        marginals: Posterior of the states, plates + (T, K), once `run` to keep it.
        totals: Expected number of steps in every state, (K,), once `run`.
        gathered: Statistics of parts, where they come without passing over single steps again, once `run`.
    """

    name: str
    states: str
    law: HMM
    num_steps: int
    batch: torch.Size
    parts: dict[str, Factor]
    emissions: list[list[Factor]]
    lengths: Tensor | None = None
    counted: Tensor | None = None
    scale: Any = 1.0
    sites: list[str] | None = None
    inner: int = 0
    marginals: Tensor | None = None
    totals: Tensor | None = None
    gathered: dict[str, Statistics] = field(default_factory=dict)

    @property
    def factors(self) -> list[Factor]:
        """All of its parts."""
        return [*self.parts.values(), *(factor for parts in self.emissions for factor in parts)]

    @property
    def num_states(self) -> int:
        """K."""
        return self.law.num_states

    def describe(self) -> str:
        """One line for a plan."""
        return f"forward-backward over {self.states} ({self.num_states} states, {self.num_steps} steps)"

    def posterior(self) -> dict[str, Tensor]:
        """Posterior of the states by name, states along the last axis."""
        if self.marginals is None:
            return {}
        if self.sites is None:
            return {self.states: self.marginals}
        steps = self.marginals.reshape(*self.batch, *([1] * self.inner), self.num_steps, self.num_states)
        return dict(zip(self.sites, steps.unbind(-2), strict=True))

    def steps(self, kernels: list[Kernel | None], scratch: Scratch) -> tuple[Tensor, list[Tensor]]:
        """Log-densities of steps, plates + (T, K), and those by site, states (and components) first."""
        joints, densities = [], []
        for parts, kernel in zip(self.emissions, kernels, strict=True):
            if kernel is None:
                joint = sum((factor.log_density for factor in parts[1:]), parts[0].log_density)
            else:
                joint = kernel.scores(scratch if kernel is kernels[0] else None)  # it has room for one table
            joints.append(joint)
            density = joint.logsumexp(0) if len(parts) > 1 else joint
            mask = parts[0].site["mask"]
            densities.append(density if mask is None else torch.where(mask, density, 0.0))
        total = sum(densities[1:], densities[0]) if densities else torch.zeros(())
        steps = total.movedim(0, -1).expand(*self.batch, self.num_steps, self.num_states)
        return restrict(steps, self.law.known_states), joints

    def run(self, temperature: float, memory: Memory, keep: bool, variance_floor: float) -> float:
        """Find the posterior weights of all parts; returns the log-likelihood, nats.

        Args:
            temperature: Inverse temperature: the posterior's logarithm is multiplied by it.
            memory: What an earlier E-step left behind.
            keep: Whether weights of single steps are wanted; statistics of emissions in natural form come without.
            variance_floor: Smallest variance allowed in statistics, relative to that of the value.

        Raises:
            NonFiniteLoss: A sequence has probability zero.
        """
        scratch = memory.scratch
        kernels = [self._kernel(parts, memory) for parts in self.emissions]
        steps, joints = self.steps(kernels, scratch)
        emission = self.law.spread(steps)
        with torch.enable_grad():
            leaves = {name: self._leaf(name) for name in self.parts}
            assembled = self.law.assemble(leaves)
        initial, transition = (table.detach() for table in assembled)
        tables = (initial, transition, emission)
        if temperature != 1.0:
            tables = (initial * temperature, transition * temperature, emission * temperature)
        scale, homogeneous = self.scale, transition.shape[:-2].numel() == 1
        shared = homogeneous and self.counted is None and not (isinstance(scale, Tensor) and scale.numel() > 1)
        found = chains.smooth(*tables, self.lengths, sum_batch=shared, scratch=scratch)
        rows = found.log_likelihood
        if temperature != 1.0:
            rows = chains.log_likelihood(initial, transition, emission, self.lengths)
        counts = torch.as_tensor(scale, device=rows.device)
        if self.counted is not None:
            rows, counts = torch.where(self.counted, rows, 0.0), counts * self.counted
        self._check(rows)
        gamma = found.marginals.clone() if keep else found.marginals
        marginals = self.law.collect(gamma)
        self.totals = marginals.flatten(0, -2).sum(0)
        weighted = bool(counts.dim()) or float(counts) != 1.0
        counts = counts.to(gamma.dtype)
        first, moves = gamma[..., 0, :], found.transitions
        if shared:
            moves = (moves * counts if weighted else moves).reshape(transition.shape)
        else:
            moves = moves if moves.dim() == len(self.batch) + 3 else moves.unsqueeze(-3)
            moves = moves * counts.reshape(*counts.shape, 1, 1, 1) if weighted else moves
        first = first * counts.unsqueeze(-1) if weighted else first
        cotangents = (first.sum_to_size(initial.shape), moves.sum_to_size(transition.shape))
        found_weights = torch.autograd.grad(assembled, list(leaves.values()), cotangents, materialize_grads=True)
        for name, weights in zip(leaves, found_weights, strict=True):
            self._weigh(name, weights)
        if keep:
            self.marginals = marginals
        marginals = marginals * counts.reshape(*counts.shape, 1, 1) if weighted else marginals
        weights = marginals.movedim(-1, 0)
        if keep:
            self._hand_out(weights, joints)
        for (factor, *_), kernel in zip(self.emissions, kernels, strict=True):
            if kernel is not None:
                self.gathered[factor.name] = kernel.gather(_masked(weights, factor), variance_floor, scratch)
        return float((rows.double() * counts).sum() if weighted else rows.double().sum())

    def _kernel(self, parts: list[Factor], memory: Memory) -> Kernel | None:
        """The natural form of an emission, one row a step; None if it has none."""
        (factor, *more), site = parts, parts[0].site
        if more or site["args"] or site["kwargs"] or factor.differentiable:
            return None
        known = memory.reference(factor.name, factor.value)
        kernel = product_form(factor.fn, factor.value, known, factor.correction)
        if kernel is None or kernel.cells.shape != (self.num_states, *self.batch, self.num_steps):
            return None
        memory.remember(factor.name, factor.value, kernel.reference)
        return kernel

    def _leaf(self, name: str) -> Tensor:
        """The log-table of a law as the assembly takes it: plates + (steps,) + given states + states."""
        law = self.law.laws[name]
        axes = law.given + 1
        table = self.parts[name].log_density.movedim(tuple(range(axes)), tuple(range(-axes, 0)))
        return (table if law.timed else table.squeeze(-axes - 1)).detach().requires_grad_()

    def _weigh(self, name: str, weights: Tensor) -> None:
        """The posterior weights of a law, shaped like that table, in the layout of its factor."""
        law, factor = self.law.laws[name], self.parts[name]
        axes = law.given + 1
        weights = weights if law.timed else weights.unsqueeze(-axes - 1)
        factor.weights = weights.movedim(tuple(range(-axes, 0)), tuple(range(axes)))
        family = closed_form(factor.fn)
        if isinstance(family, ExponentialFamily) and weights.shape[:-axes].numel() == 1:
            # weights of the whole support are the expected counts
            counts = factor.weights.double().unsqueeze(-1).transpose(law.given, -1)
            self.gathered[factor.name] = family.collect(factor.fn, None, counts.sum(-1), (counts,), 0.0)

    def _hand_out(self, gamma: Tensor, joints: list[Tensor]) -> None:
        """Give every emission its weights, states first."""
        for parts, joint in zip(self.emissions, joints, strict=True):
            weights = _masked(gamma, parts[0])
            if len(parts) > 1:
                weights = weights * torch.where(joint.amax(0) == -torch.inf, 0.0, joint.softmax(0))
            for factor in parts:
                factor.weights = weights

    def _check(self, rows: Tensor) -> None:
        if bool(torch.isfinite(rows).all()):
            return
        place = (~torch.isfinite(rows)).nonzero()[0].tolist()
        which = f"sequence {place[0] if len(place) == 1 else tuple(place)} of " if place else ""
        raise NonFiniteLoss(
            f"Forward-backward: {which}site '{self.name}' has probability zero under every path of '{self.states}'. "
            "Check the support of the emission and transitions of probability zero, or start from other parameters."
        )


def _masked(weights: Tensor, factor: Factor) -> Tensor:
    mask = factor.site["mask"]
    return weights if mask is None else weights * mask
