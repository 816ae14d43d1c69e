"""The gradient of a normalizer that nobody can compute, from Markov chains."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from typing import Any

import torch
from pyro.poutine.messenger import Messenger
from torch import Tensor

from pyro_lvm import _pyro
from pyro_lvm.distributions.energy import EnergyDistribution, energy_law
from pyro_lvm.ops.whole_number import whole_number

__all__ = ["negative_phase"]


class negative_phase(Messenger):  # noqa: N801 - handlers are verbs, as in Pyro
    r"""Replace the normalizer of every `EnergyDistribution` by a surrogate with the gradient of the negative phase.

    .. math:: \nabla \log Z = -\mathrm{E}_{p}[\nabla F(v)] \approx -\nabla \frac1C \sum_{c=1}^{C} F(v_c)

    The points :math:`v_c` are ends of Markov chains, taken as constants. Where the normalizer was given, the surrogate
    has its value. Elsewhere its value is :math:`-\frac1C \sum_c F(v_c)`, and a log-density is the free energy of the
    chains less that of the row: near zero where the model fits, but no likelihood.

    The surrogate stands in `log_prob` like any normalizer, so scales, masks and subsampled plates weigh it as they
    weigh the rows. Without `persistent`, each row has a chain that starts from it; persistent chains start from rows
    of the first batch and stay, and are averaged for all rows.

    A program that draws from such a law is given ends of the chains that moved last, if there are any: a dream costs no
    more than the gradient did.

    Enter it outside of whatever traces the program, as in `with negative_phase(): loss(model, guide, x)`.

    Args:
        model: The program to wrap; leave out to use the handler as a context.
        num_steps: Gibbs steps of the chains, >= 1.
        persistent: Whether chains go on where they stopped.
        num_chains: How many persistent chains; by default as many as the first batch has rows.
        chains: Where persistent chains are kept, by name of site; changed in place.

    Raises:
        ValueError: An argument is out of range.

    References:
        G. Hinton (2002), Training products of experts by minimizing contrastive divergence, equation 5.
        T. Tieleman (2008), Training restricted Boltzmann machines using approximations to the likelihood gradient.

    Example:
        >>> import torch, pyro, pyro_lvm as lvm
        >>> weight = torch.zeros(3, 2, requires_grad=True)
        >>> law = lvm.distributions.RBM(weight, torch.zeros(3), torch.zeros(2))
        >>> with lvm.handlers.negative_phase():
        ...     trace = pyro.poutine.trace(lambda: pyro.sample("v", law, obs=torch.ones(3))).get_trace()
        >>> trace.nodes["v"]["fn"].log_normalizer.requires_grad
        True
    """

    def __new__(cls, model: Callable | None = None, **kwargs: Any) -> Any:
        """Wrap a model, or make a context."""
        handler = super().__new__(cls)
        if model is None:
            return handler
        handler.__init__(None, **kwargs)
        return handler(model)

    def __init__(
        self,
        model: Callable | None = None,
        *,
        num_steps: int = 1,
        persistent: bool = False,
        num_chains: int | None = None,
        chains: dict[str, Tensor] | None = None,
    ) -> None:
        super().__init__()
        self.num_steps = whole_number("negative_phase", "num_steps", num_steps)
        num_chains = None if num_chains is None else whole_number("negative_phase", "num_chains", num_chains)
        if num_chains is not None and not persistent:
            raise ValueError(
                f"negative_phase: expected num_chains with persistent=True, or none; got {num_chains} with "
                f"persistent={persistent}. Chains that do not persist are one a row."
            )
        self.persistent = persistent
        self.num_chains = num_chains
        self.chains = {} if chains is None else chains
        self._ends: dict[str, Tensor] = {}

    def _pyro_sample(self, msg: Any) -> None:
        law, ends = energy_law(msg["fn"]), self._ends.get(msg["name"])
        if law is None or ends is None or msg["value"] is not None or law.parameter_shape:
            return
        flat, shape = ends.reshape(-1, *law.event_shape), msg["fn"].shape()
        rows = shape[: len(shape) - law.event_dim].numel()
        msg["value"] = flat[torch.arange(rows, device=flat.device) % len(flat)].reshape(shape)
        msg["done"] = True

    def _pyro_post_sample(self, msg: Any) -> None:
        # After the value is known, and before an inner trace notes the distribution.
        if _pyro.site_is_subsample(msg) or energy_law(msg["fn"]) is None:
            return
        msg["fn"] = _replace(msg["fn"], lambda law: self._surrogate(msg["name"], law, msg))

    def _surrogate(self, name: str, law: EnergyDistribution, msg: Any) -> EnergyDistribution:
        rows = msg["value"].detach()
        if self.persistent:
            state = self.chains.get(name)
            if state is None:
                state = law.chain_start(self._first(rows, law, msg))
            values, state = law.chain_steps(state.to(rows), self.num_steps)
            self.chains[name] = state
        else:
            values, _ = law.chain_steps(law.chain_start(rows), self.num_steps)
        self._ends[name] = values = values.detach()
        surrogate = -law.free_energy(values)
        if self.persistent and not law.parameter_shape:
            surrogate = surrogate.mean()
        if law.given_log_normalizer is not None:
            known = torch.as_tensor(law.given_log_normalizer).detach().to(surrogate)
            surrogate = known + (surrogate - surrogate.detach())
        return law.with_log_normalizer(surrogate)

    def _first(self, rows: Tensor, law: EnergyDistribution, msg: Any) -> Tensor:
        """Rows for persistent chains to start from: any that count, as many as there are to be chains."""
        if law.parameter_shape:  # laws that differ have a chain each
            return rows
        depth = rows.dim() - law.event_dim
        flat = rows.reshape(-1, *rows.shape[depth:])
        if isinstance(msg["mask"], Tensor):
            counts = msg["mask"].expand(rows.shape[:depth]).reshape(-1)
            flat = flat[counts] if bool(counts.any()) else flat
        count = self.num_chains or math.prod(rows.shape[:depth])
        index = torch.arange(count, device=flat.device) % len(flat)
        return flat[index]


def _replace(fn: Any, change: Callable[[EnergyDistribution], EnergyDistribution]) -> Any:
    """The same wrappers around a changed energy distribution."""
    if isinstance(fn, EnergyDistribution):
        return change(fn)
    outer = copy.copy(fn)
    outer.base_dist = _replace(fn.base_dist, change)
    return outer
