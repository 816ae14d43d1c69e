"""Hidden Markov sites taken apart into factors: the laws of their states, and what is observed at a step."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import pyro.distributions as dist
import torch
from torch import Tensor

from pyro_lvm import _pyro
from pyro_lvm.distributions.hidden_markov import HMM
from pyro_lvm.distributions.state_laws import StateLaw, built_from, exact_log_probs
from pyro_lvm.handlers.hidden_states import states_of
from pyro_lvm.infer.by_state import by_state, components
from pyro_lvm.infer.chains import Chain
from pyro_lvm.infer.factors import Factor
from pyro_lvm.ops.cells import compact

__all__ = ["open_chain", "open_chains"]


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
