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

from pyro_lvm.distributions.hidden_markov import HMM, exact_log_probs
from pyro_lvm.infer.by_state import by_state, components
from pyro_lvm.infer.factors import Factor
from pyro_lvm.infer.nonfinite import NonFiniteLoss
from pyro_lvm.ops import chains
from pyro_lvm.ops.cells import compact

__all__ = ["Chain", "open_chains", "states_name"]


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
    """A hidden Markov site in parts.

    Attributes:
        states: What its states are called.
        law: Its distribution.
        known: Which steps are there, plates + (T,); None if all are.
        counted: Which sequences are not masked, plates; None if all.
        lengths: Number of steps, plates; None if all have T.
        batch: The plates' shape.
        initial: Factor of the first state.
        transition: Factor of the next state.
        emission: Factors of a step: one, or mixture weights and components.
        marginals: Posterior of the states, plates + (T, K), once `run`.
    """

    states: str
    law: HMM
    site: dict
    known: Tensor | None
    counted: Tensor | None
    lengths: Tensor | None
    batch: torch.Size
    initial: Factor
    transition: Factor
    emission: list[Factor]
    marginals: Tensor | None = None

    @property
    def factors(self) -> list[Factor]:
        """All of its parts."""
        return [self.initial, self.transition, *self.emission]

    def describe(self) -> str:
        """One line for a plan."""
        steps = self.emission[-1].value.shape[-1 - self.law.emission.event_dim]
        return f"forward-backward over {self.states} ({self.law.num_states} states, {steps} steps)"

    def run(self, temperature: float) -> float:
        """Find the posterior weights of all parts; returns the log-likelihood, nats.

        Raises:
            NonFiniteLoss: A sequence has probability zero.
        """
        law, depth = self.law, len(self.batch)
        initial = self.initial.log_density.movedim(0, -1).squeeze(-2) * temperature
        transition = self.transition.log_density.movedim((0, 1), (-2, -1)) * temperature
        tables = [factor.log_density for factor in self.emission]
        joint = sum(tables[1:], tables[0])  # (components,) states, plates, steps
        parts = len(self.emission) > 1
        density = joint.logsumexp(0) if parts else joint
        steps = density.movedim(0, -1)
        total = self.emission[-1].value.shape[-1 - law.emission.event_dim]
        steps = law.restrict(steps.expand(*self.batch, total, law.num_states), self.known)
        if temperature != 1.0:
            steps = steps * temperature
        scale = self.site["scale"]
        per_row = isinstance(scale, Tensor) and scale.numel() > 1
        shared = self.transition.log_density.shape[2:].numel() == 1 and not per_row and self.counted is None
        found = chains.smooth(initial, transition, steps, self.lengths, sum_batch=shared)
        rows = found.log_likelihood
        if temperature != 1.0:
            rows = chains.log_likelihood(
                initial / temperature, transition / temperature, steps / temperature, self.lengths
            )
        counts = torch.as_tensor(scale, device=rows.device)
        if self.counted is not None:
            rows, counts = torch.where(self.counted, rows, 0.0), counts * self.counted
        self._check(rows)
        gamma = found.marginals
        self.marginals = gamma
        weighted = bool(counts.dim()) or float(counts) != 1.0
        if weighted:
            counts = counts.to(gamma.dtype)
            gamma = gamma * counts.reshape(*counts.shape, 1, 1)
        first = gamma[..., :1, :].movedim(-1, 0)
        self.initial.weights = _sum_to(first, self.initial.log_density.shape)
        moves = found.transitions
        if shared:
            moves = (moves * counts if weighted else moves).reshape(*moves.shape, *([1] * (depth + 1)))
        else:
            moves = moves if moves.dim() == depth + 3 else moves.unsqueeze(-3)
            moves = moves * counts.reshape(*counts.shape, 1, 1, 1) if weighted else moves
            moves = moves.movedim((-2, -1), (0, 1))
        self.transition.weights = _sum_to(moves, self.transition.log_density.shape)
        by_step = gamma.movedim(-1, 0)
        if self.known is not None:
            by_step = by_step * self.known
        if parts:
            share = torch.where(density == -torch.inf, 0.0, (joint - density).exp())
            by_step = by_step * share
        for factor in self.emission:
            factor.weights = by_step
        return float((rows.double() * counts).sum() if weighted else rows.double().sum())

    def _check(self, rows: Tensor) -> None:
        if bool(torch.isfinite(rows).all()):
            return
        place = (~torch.isfinite(rows)).nonzero()[0].tolist()
        name = self.site["name"]
        which = f"sequence {place[0] if len(place) == 1 else tuple(place)} of " if place else ""
        raise NonFiniteLoss(
            f"Forward-backward: {which}site '{name}' has probability zero under every path of '{self.states}'. "
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
            chain = _open(factor)
            found.append(chain)
            opened.update({part.name: part for part in chain.factors})
        else:
            opened[name] = factor
    return opened, found


def _open(factor: Factor) -> Chain:
    law, site, name = factor.fn, factor.site, factor.name
    value, known = law.steps(factor.value)
    batch = torch.broadcast_shapes(law.batch_shape, value.shape[: value.dim() - law.event_dim])
    depth, total = len(batch), value.shape[value.dim() - law.event_dim]
    lengths = None if law.lengths is None else law.lengths.expand(batch)
    mask = site["mask"]
    counted = None if mask is None else torch.as_tensor(mask).expand(batch)
    there = known
    if counted is not None:
        there = counted.unsqueeze(-1) if there is None else there & counted.unsqueeze(-1)
    k = law.num_states
    frames = [frame._replace(dim=frame.dim - 1) for frame in site["cond_indep_stack"] if frame.vectorized]
    steps = type(frames[0])(f"{name}_steps", -1, total, 0) if frames else _frame(f"{name}_steps", total)
    scale = site["scale"]
    scale = scale.unsqueeze(-1) if isinstance(scale, Tensor) and scale.dim() else scale

    def part(suffix: str, fn: Any, value: Tensor, mask: Tensor | None, kind: type[Factor] = Factor) -> Any:
        infer = {key: entry for key, entry in site["infer"].items() if key == "m_step"}
        new = {
            **site,
            "name": f"{name}{suffix}",
            "fn": fn,
            "value": value,
            "mask": mask,
            "scale": scale,
            "cond_indep_stack": (*frames, steps),
            "infer": infer,
        }
        return kind(new["name"], new, factor.differentiable)

    support = torch.arange(k, device=value.device).reshape(k, *([1] * (depth + 1)))
    rows = None if counted is None else counted.unsqueeze(-1)
    initial = part("_initial", _categorical(law.initial, depth, moved=0), support, rows, _StateFactor)
    initial.axis = -(depth + 2)
    transition = part("_transition", _categorical(law.transition, depth, moved=1), support, rows, _StateFactor)
    transition.axis = -(depth + 2)
    mixture = components(law.emission)
    if mixture is None:
        emission = [part("", by_state(law.emission, depth, 1), value, there)]
    else:
        mixing, component = mixture
        kinds = torch.arange(mixing.param_shape[-1], device=value.device).reshape(-1, *([1] * (depth + 2)))
        emission = [
            part("_component", by_state(mixing, depth, 1), kinds, there),
            part("", by_state(component, depth, 2), value, there),
        ]
    return Chain(states_name(site), law, site, known, counted, lengths, batch, initial, transition, emission)


def _categorical(fn: Any, depth: int, moved: int) -> Any:
    """A law of states with its batch padded to plates and steps, previous states (if any) in front of next ones."""
    kind = "probs" if "probs" in vars(fn) else "logits"
    param = compact(vars(fn)[kind], 1)
    k = param.shape[-1]
    if moved:  # plates, steps, previous, next -> previous, 1, plates, steps, next
        param = compact(vars(fn)[kind], 2).movedim(-2, 0)
        batch = param.shape[1:-1]
        param = param.reshape(k, *([1] * (depth + 2 - len(batch))), *batch, k)
    else:
        batch = param.shape[:-1]
        param = param.reshape(*([1] * (depth - len(batch))), *batch, 1, k)
        param = param.unsqueeze(0)
    return dist.Categorical(**{kind: param}, validate_args=False)


def _frame(name: str, size: int) -> Any:
    from pyro.poutine.indep_messenger import CondIndepStackFrame

    return CondIndepStackFrame(name, -1, size, 0)
