r"""The E-step of hidden Markov sites: forward-backward instead of enumeration.

A site whose law is `HMM` is taken apart into the factors that it is made of: the categorical laws of its states (that
of the first one, that of the next one given the previous one, or whatever `HMM.laws` says) and the emission of a step
given its state. The kernel of `pyro_lvm.ops.chains` finds the posterior of the chain; since the chain's log-tables
:math:`\ell` are a linear map of those of the laws, :math:`\ell = S \lambda`, the posterior weights of the laws are
:math:`S^\top` times those of the chain. From there on they are factors like any other, and every M-step applies.

Axes, from the right: steps, then the site's plates, then states (then previous states, or mixture components).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import pyro.distributions as dist
import torch
from torch import Tensor

from pyro_lvm import _pyro
from pyro_lvm.distributions.hidden_markov import HMM
from pyro_lvm.distributions.state_laws import StateLaw, built_from, exact_log_probs, restrict
from pyro_lvm.handlers.hidden_states import states_of
from pyro_lvm.infer.by_state import by_state, components
from pyro_lvm.infer.factors import Factor
from pyro_lvm.infer.log_density import product_form
from pyro_lvm.infer.m_step import Statistics
from pyro_lvm.infer.natural import Kernel
from pyro_lvm.infer.nonfinite import NonFiniteLoss
from pyro_lvm.ops import chains
from pyro_lvm.ops.cells import compact
from pyro_lvm.ops.scratch import Scratch

if TYPE_CHECKING:
    from pyro_lvm.infer.row_pass import Memory

__all__ = ["Chain", "open_chain", "open_chains"]


class _StateFactor(Factor):
    """A categorical factor whose value is its whole support, along `axis`; probabilities may be exactly zero."""

    axis: int

    @property
    def log_density(self) -> Tensor:
        if self._log_density is None:
            with torch.set_grad_enabled(self.differentiable):
                table = exact_log_probs(self.fn).transpose(-1, self.axis - 1).squeeze(-1)
                table = table if self.correction is None else table + self.correction
            self._log_density = table if self.differentiable else table.detach()
        return self._log_density


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
        gathered: Statistics of emissions that are in natural form, once `run`.
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
                joint = kernel.scores(scratch)
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
        scratch = Scratch() if keep else memory.scratch
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
        gamma = found.marginals
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
        law = self.law.laws[name]
        axes = law.given + 1
        weights = weights if law.timed else weights.unsqueeze(-axes - 1)
        self.parts[name].weights = weights.movedim(tuple(range(-axes, 0)), tuple(range(axes)))

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


def open_chains(factors: dict[str, Factor]) -> tuple[dict[str, Factor], list[Chain]]:
    """Take hidden Markov sites apart; programs that enumerate other sites keep them whole.

    Args:
        factors: All factors of a program.

    Returns:
        The factors, hidden Markov sites replaced by their parts, and those sites.
    """
    if any(factor.enumerated for factor in factors.values()):
        return factors, []
    opened: dict[str, Factor] = {}
    found = []
    for name, factor in factors.items():
        if isinstance(factor.fn, HMM) and isinstance(factor.value, Tensor):
            chain = open_chain(factor)
            found.append(chain)
            opened.update({part.name: part for part in chain.factors})
        else:
            opened[name] = factor
    return opened, found


def open_chain(factor: Factor, names: Mapping[str, str] | None = None) -> Chain:
    """Take a hidden Markov site apart.

    Args:
        factor: The site.
        names: What to call the factors of its laws, and that of a step ("emission"), if not after the site.
    """
    law, site, name = factor.fn, factor.site, factor.name
    value, known = law.steps(factor.value)
    batch = torch.broadcast_shapes(law.batch_shape, value.shape[: value.dim() - law.event_dim])
    depth, total = len(batch), value.shape[value.dim() - law.event_dim]
    mask, scale = site["mask"], site["scale"]
    counted = None if mask is None else torch.as_tensor(mask).expand(batch)
    rows = None if counted is None else counted.unsqueeze(-1)
    there = known if rows is None else (rows.expand(*batch, total) if known is None else known & rows)
    names = names or {**{part: f"{name}_{part}" for part in law.laws}, "emission": name}
    step = names["emission"]
    parts = Parts(factor, depth, total)
    states = {part: parts.state(names[part], small, rows) for part, small in law.laws.items()}
    mixture = components(law.emission)
    if mixture is None:
        emission = [parts.make(step, by_state(law.emission, depth, 1), value, there)]
    else:
        mixing, component = mixture
        kinds = torch.arange(mixing.param_shape[-1], device=value.device).reshape(-1, *([1] * (depth + 2)))
        emission = [
            parts.make(f"{step}_component", by_state(mixing, depth, 1), kinds, there),
            parts.make(step, by_state(component, depth, 2), value, there),
        ]
    lengths = None if law.lengths is None else law.lengths.expand(batch)
    return Chain(
        name,
        states_of(site) or "states",
        law,
        total,
        batch,
        states,
        [emission],
        lengths=lengths,
        counted=counted,
        scale=scale,
    )


@dataclass
class Parts:
    """Makes the factors of a chain from the site that they come from.

    Attributes:
        origin: The site.
        depth: Number of batch dimensions of its plates.
        num_steps: T.
    """

    origin: Factor
    depth: int
    num_steps: int

    def make(self, name: str, fn: Any, value: Tensor, mask: Tensor | None, kind: type[Factor] = Factor) -> Any:
        """A factor that stands in the site's plates and in one of steps."""
        site = self.origin.site
        frames = [frame._replace(dim=frame.dim - 1) for frame in site["cond_indep_stack"] if frame.vectorized]
        scale = site["scale"]
        new = {
            **site,
            "name": name,
            "fn": fn,
            "value": value,
            "mask": mask,
            "scale": scale.unsqueeze(-1) if isinstance(scale, Tensor) and scale.dim() else scale,
            "cond_indep_stack": (*frames, _pyro.frame(f"{self.origin.name}_steps", -1, self.num_steps)),
            "infer": {key: entry for key, entry in site["infer"].items() if key == "m_step"},
        }
        return kind(name, new, self.origin.differentiable)

    def state(self, name: str, law: StateLaw, mask: Tensor | None) -> Any:
        """The factor of a law of states, at all states."""
        fn = _categorical(law, self.depth)
        support = torch.arange(fn.param_shape[-1], device=fn._param.device).reshape(-1, *([1] * (self.depth + 1)))
        factor = self.make(name, fn, support, mask, _StateFactor)
        factor.axis = -(self.depth + 2)
        return factor


def _categorical(law: StateLaw, depth: int) -> Any:
    """A law of states, its batch padded to plates and steps, given states in front."""
    kind = built_from(law.fn)
    param = compact(vars(law.fn)[kind], law.given + 1)
    if not law.timed:
        param = param.unsqueeze(-law.given - 2)
    param = param.movedim(tuple(range(-law.given - 1, -1)), tuple(range(law.given)))
    given, batch, states = param.shape[: law.given], param.shape[law.given : -1], param.shape[-1:]
    param = param.reshape(*given, *([1] * (depth + 2 - len(batch))), *batch, *states)
    return dist.Categorical(**{kind: param}, validate_args=False)
