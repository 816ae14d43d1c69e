r"""The E-step of hidden Markov sites: forward-backward instead of enumeration.

A site whose law is `HMM` is taken apart into the factors that it is made of: the law of the first state, that of the
next state given the previous one, and the emission of a step given its state. Their posterior weights come from the
kernel of `pyro_lvm.ops.chains`; from there on they are factors like any other, and every M-step applies.

Axes, from the right: steps, then the site's plates, then states (then previous states, or mixture components).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pyro.distributions as dist
import torch
from torch import Tensor

from pyro_lvm import _pyro
from pyro_lvm.distributions.hidden_markov import HMM, built_from, exact_log_probs, restrict
from pyro_lvm.infer.by_state import by_state, components
from pyro_lvm.infer.factors import Factor
from pyro_lvm.infer.nonfinite import NonFiniteLoss
from pyro_lvm.ops import chains
from pyro_lvm.ops.cells import compact

__all__ = ["Chain", "open_chain", "open_chains", "states_name"]


def states_name(site: dict) -> str:
    """What the hidden states of a site are called."""
    return str(site["infer"].get("states", f"{site['name']}_states"))


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
        num_states: K.
        num_steps: T.
        batch: Shape of the plates.
        initial: Factor of the first state.
        transition: Factor of the next state.
        emissions: Factors of a step by site: one, or mixture weights and components.
        lengths: Number of steps, plates; None if all have T.
        counted: Which sequences are not masked, plates; None if all.
        scale: How often sequences count: a number, or plates.
        known_states: States where they are known, plates + (T,), -1 elsewhere.
        sites: Names of the states one by one, if the program has a site for each.
        inner: Number of plates to the right of theirs.
        marginals: Posterior of the states, plates + (T, K), once `run`.
    """

    name: str
    states: str
    num_states: int
    num_steps: int
    batch: torch.Size
    initial: Factor
    transition: Factor
    emissions: list[list[Factor]]
    lengths: Tensor | None = None
    counted: Tensor | None = None
    scale: Any = 1.0
    known_states: Tensor | None = None
    sites: list[str] | None = None
    inner: int = 0
    marginals: Tensor | None = None

    @property
    def factors(self) -> list[Factor]:
        """All of its parts."""
        return [self.initial, self.transition, *(factor for parts in self.emissions for factor in parts)]

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

    def tables(self) -> tuple[Tensor, Tensor, Tensor, list[Tensor]]:
        """Log-probabilities as the kernel takes them, and those of steps by site, states (and components) first."""
        initial = self.initial.log_density.movedim(0, -1).squeeze(-2)
        transition = self.transition.log_density.movedim((0, 1), (-2, -1))
        joints, total = [], torch.zeros(())
        for parts in self.emissions:
            joint = sum((factor.log_density for factor in parts[1:]), parts[0].log_density)
            joints.append(joint)
            density = joint.logsumexp(0) if len(parts) > 1 else joint
            mask = parts[0].site["mask"]
            total = total + (density if mask is None else torch.where(mask, density, 0.0))
        steps = total.movedim(0, -1).expand(*self.batch, self.num_steps, self.num_states)
        return initial, transition, restrict(steps, self.known_states), joints

    def run(self, temperature: float) -> float:
        """Find the posterior weights of all parts; returns the log-likelihood, nats.

        Raises:
            NonFiniteLoss: A sequence has probability zero.
        """
        initial, transition, steps, joints = self.tables()
        tables = (initial * temperature, transition * temperature, steps * temperature)
        tables = (initial, transition, steps) if temperature == 1.0 else tables
        scale, homogeneous = self.scale, self.transition.log_density.shape[2:].numel() == 1
        shared = homogeneous and self.counted is None and not (isinstance(scale, Tensor) and scale.numel() > 1)
        found = chains.smooth(*tables, self.lengths, sum_batch=shared)
        rows = found.log_likelihood
        if temperature != 1.0:
            rows = chains.log_likelihood(initial, transition, steps, self.lengths)
        counts = torch.as_tensor(scale, device=rows.device)
        if self.counted is not None:
            rows, counts = torch.where(self.counted, rows, 0.0), counts * self.counted
        self._check(rows)
        self.marginals = gamma = found.marginals
        weighted = bool(counts.dim()) or float(counts) != 1.0
        counts = counts.to(gamma.dtype)
        if weighted:
            gamma = gamma * counts.reshape(*counts.shape, 1, 1)
        self.initial.weights = _sum_to(gamma[..., :1, :].movedim(-1, 0), self.initial.log_density.shape)
        moves = found.transitions
        if shared:
            moves = (moves * counts if weighted else moves).reshape(*moves.shape, *([1] * (len(self.batch) + 1)))
        else:
            moves = moves if moves.dim() == len(self.batch) + 3 else moves.unsqueeze(-3)
            moves = moves * counts.reshape(*counts.shape, 1, 1, 1) if weighted else moves
            moves = moves.movedim((-2, -1), (0, 1))
        self.transition.weights = _sum_to(moves, self.transition.log_density.shape)
        self._hand_out(gamma.movedim(-1, 0), joints)
        return float((rows.double() * counts).sum() if weighted else rows.double().sum())

    def _hand_out(self, gamma: Tensor, joints: list[Tensor]) -> None:
        """Give every emission its weights, states first."""
        for parts, joint in zip(self.emissions, joints, strict=True):
            mask = parts[0].site["mask"]
            weights = gamma if mask is None else gamma * mask
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


def _sum_to(weights: Tensor, shape: torch.Size) -> Tensor:
    """Sum over dimensions that a factor does not have."""
    repeated = [d for d, size in enumerate(shape) if size == 1 and weights.shape[d] > 1]
    return weights.sum(repeated, keepdim=True) if repeated else weights


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


def open_chain(factor: Factor, names: tuple[str, str, str] | None = None) -> Chain:
    """Take a hidden Markov site apart.

    Args:
        factor: The site.
        names: What to call the factors of the first state, of the next one, and of a step.
    """
    law, site, name = factor.fn, factor.site, factor.name
    value, known = law.steps(factor.value)
    batch = torch.broadcast_shapes(law.batch_shape, value.shape[: value.dim() - law.event_dim])
    depth, total = len(batch), value.shape[value.dim() - law.event_dim]
    mask, scale = site["mask"], site["scale"]
    counted = None if mask is None else torch.as_tensor(mask).expand(batch)
    rows = None if counted is None else counted.unsqueeze(-1)
    there = known if rows is None else (rows.expand(*batch, total) if known is None else known & rows)
    support = torch.arange(law.num_states, device=value.device).reshape(-1, *([1] * (depth + 1)))
    parts = Parts(factor, depth, total)
    first, following, step = names or (f"{name}_initial", f"{name}_transition", name)
    initial = parts.state(first, law.initial, support, rows)
    transition = parts.state(following, law.transition, support, rows, moves=True)
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
        states_name(site),
        law.num_states,
        total,
        batch,
        initial,
        transition,
        [emission],
        lengths=lengths,
        counted=counted,
        scale=scale,
        known_states=law.known_states,
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

    def state(self, name: str, law: Any, support: Tensor, mask: Tensor | None, moves: bool = False) -> Any:
        """The factor of the first state, or of the next one, at all states."""
        factor = self.make(name, _categorical(law, self.depth, moves), support, mask, _StateFactor)
        factor.axis = -(self.depth + 2)
        return factor


def _categorical(law: Any, depth: int, moves: bool) -> Any:
    """A law of states with its batch padded to plates and steps, previous states (if any) in front of next ones."""
    kind = built_from(law)
    param = vars(law)[kind]
    k = param.shape[-1]
    if moves:  # plates, steps, previous, next -> previous, 1, plates, steps, next
        param = compact(param, 2).movedim(-2, 0)
        batch = param.shape[1:-1]
        param = param.reshape(k, *([1] * (depth + 2 - len(batch))), *batch, k)
    else:
        param = compact(param, 1)
        batch = param.shape[:-1]
        param = param.reshape(*([1] * (depth + 1 - len(batch))), *batch, 1, k)
    return dist.Categorical(**{kind: param}, validate_args=False)
