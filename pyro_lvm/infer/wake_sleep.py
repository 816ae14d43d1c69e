r"""Wake-sleep: the model learns from the guide's draws, the guide from the model's dreams.

.. math::

    \text{wake: } \nabla_\theta \sum_n \sum_k w_{nk} \log p_\theta(x_n, h_{nk}), \quad h_{nk} \sim q_\phi(h \mid x_n),
    \qquad
    \text{sleep: } \nabla_\phi \log q_\phi(\tilde h \mid \tilde x), \quad \tilde x, \tilde h \sim p_\theta

With one draw :math:`w_n = 1`, the classical algorithm; with more, :math:`w_{nk} \propto p(x_n, h_{nk}) / q(h_{nk} \mid
x_n)` sums to one over k, reweighted wake-sleep.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import torch
from pyro import poutine
from pyro.distributions.util import scale_and_mask
from pyro.infer import ELBO
from torch import Tensor

from pyro_lvm import _pyro
from pyro_lvm.distributions.energy import energy_law
from pyro_lvm.handlers.dream import dream
from pyro_lvm.handlers.rows import rows
from pyro_lvm.handlers.wake import wake
from pyro_lvm.infer.dreams import dreamt_arguments
from pyro_lvm.infer.parameters import Parameters
from pyro_lvm.ops.constructor_repr import ConstructorRepr
from pyro_lvm.ops.real_number import real_number
from pyro_lvm.ops.whole_number import whole_number

__all__ = ["WakeSleep"]


class WakeSleep(ELBO, ConstructorRepr):
    r"""Objective of Helmholtz machines, for any model and guide whose sites have densities.

    The guide's draws may be discrete or continuous: no gradient passes through them. The guide must draw every latent
    site of the model, given what the model observes as an argument of both. A dream is as large as the batch, and takes
    the place of the observed argument. Its loss is minus the evidence lower bound, which sleep does not lower, so that
    it may rise.

    Args:
        num_samples: Draws of the guide for each row in the wake phase, K >= 1.
        num_dreams: Dreams of the size of the batch in each sleep phase, >= 0; 0 leaves sleep out.
        wake_guide: Weight, >= 0, of updates of the guide on its own weighted draws (K > 1).
        wake_every: The model learns at every such step, >= 1.
        sleep_every: The guide dreams at every such step, >= 1.

    Raises:
        ValueError: An argument is out of range, or the guide would learn nothing.

    References:
        G. Hinton, P. Dayan, B. Frey, R. Neal (1995), The wake-sleep algorithm for unsupervised neural networks,
            Science 268.
        J. Bornschein, Y. Bengio (2015), Reweighted wake-sleep, ICLR, equations 5, 7 and 9.

    Example:
        >>> import pyro_lvm as lvm
        >>> x = (lvm.datasets.load("digits234").x > 0).float()
        >>> svi = lvm.infer.SVI(loss=lvm.infer.WakeSleep())
        >>> fit = lvm.fit(lvm.models.SigmoidBeliefNet(8), x, "recognition-net", svi, max_epochs=2, progress=False)
        >>> len(fit.history["loss"])
        2
    """

    loss_may_rise = True

    def __init__(
        self,
        num_samples: int = 1,
        num_dreams: int = 1,
        wake_guide: float = 0.0,
        wake_every: int = 1,
        sleep_every: int = 1,
    ) -> None:
        self.num_samples = whole_number("WakeSleep", "num_samples", num_samples)
        self.num_dreams = whole_number("WakeSleep", "num_dreams", num_dreams, least=0)
        self.wake_every = whole_number("WakeSleep", "wake_every", wake_every)
        self.sleep_every = whole_number("WakeSleep", "sleep_every", sleep_every)
        wake_guide = real_number("WakeSleep", "wake_guide", wake_guide, ">= 0")
        if wake_guide and self.num_samples == 1:
            raise ValueError(
                "WakeSleep: expected num_samples >= 2 with wake_guide, since one draw says nothing about the guide; "
                "got num_samples=1. Pass num_samples=5."
            )
        if not wake_guide and not self.num_dreams:
            raise ValueError("WakeSleep: expected num_dreams >= 1 or wake_guide > 0; got neither. Pass num_dreams=1.")
        self.wake_guide = wake_guide
        self.steps = 0
        super().__init__(num_particles=self.num_samples)

    def state_dict(self) -> dict[str, Any]:
        """How many steps were made: it decides whose turn it is."""
        return {"steps": self.steps}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore `state_dict`."""
        self.steps = state["steps"]

    def loss(self, model: Callable, guide: Callable, *args: Any, **kwargs: Any) -> float:
        """Minus the evidence lower bound, averaged over the guide's draws, nats."""
        with torch.no_grad():
            draws = [self._get_trace(model, guide, args, kwargs) for _ in range(self.num_samples)]
        return -_bound(draws)

    def loss_and_grads(self, model: Callable, guide: Callable, *args: Any, **kwargs: Any) -> float:
        """The loss in nats; gradients of wake and sleep are left in `.grad` of the network that each is for."""
        step, self.steps = self.steps, self.steps + 1
        awake, asleep = step % self.wake_every == 0, step % self.sleep_every == 0 and self.num_dreams > 0
        guide_learns = asleep or (awake and self.wake_guide > 0)
        idle: list[Callable] = [p for p, learns in ((model, awake), (guide, guide_learns)) if not learns]
        resting = Parameters()
        if idle:  # an optimizer with momentum would move them along a gradient of zero
            with torch.no_grad(), torch.random.fork_rng(), resting:
                for program in idle:
                    program(*args, **kwargs)
            for parameter in resting.found.values():
                parameter.unconstrained.grad = None
        loss = self._wake(model, guide, args, kwargs) if awake else self.loss(model, guide, *args, **kwargs)
        if asleep and math.isfinite(loss):
            self._sleep(model, guide, args, kwargs)
        return loss

    def _get_trace(self, model: Callable, guide: Callable, args: tuple, kwargs: dict[str, Any]) -> Any:
        """Traces of the model and of the guide at one draw of the guide, densities computed."""
        with (
            nullcontext() if self.wake_guide else torch.no_grad(),
            wake(),
        ):  # around the trace, which then holds cut draws
            theirs = poutine.trace(guide).get_trace(*args, **kwargs)
        ours = poutine.trace(poutine.replay(model, trace=theirs)).get_trace(*args, **kwargs)
        _check(ours, theirs)
        ours, theirs = _pyro.prune_subsample_sites(ours), _pyro.prune_subsample_sites(theirs)
        ours.compute_log_prob()
        with nullcontext() if self.wake_guide else torch.no_grad():
            theirs.compute_log_prob()
        return ours, theirs

    def _wake(self, model: Callable, guide: Callable, args: tuple, kwargs: dict[str, Any]) -> float:
        draws = [self._get_trace(model, guide, args, kwargs) for _ in range(self.num_samples)]
        frames, weights = _weights(draws)
        surrogate: Any = 0.0
        for k, (ours, theirs) in enumerate(draws):
            for trace, share in ((ours, 1.0), (theirs, self.wake_guide)):
                for site in _sites(trace) if share else ():
                    inside = _stands_in(site, frames)
                    weight = weights[k] if inside else 1 / len(draws)
                    surrogate = surrogate - share * (weight * site["log_prob"]).sum()
        loss = -_bound(draws)
        if math.isfinite(loss) and isinstance(surrogate, Tensor) and surrogate.requires_grad:
            surrogate.backward()
        return loss

    def _sleep(self, model: Callable, guide: Callable, args: tuple, kwargs: dict[str, Any]) -> None:
        for _ in range(self.num_dreams):
            dreamed = poutine.trace(dream(model)).get_trace(*args, **kwargs)
            seen = dreamt_arguments(dreamed, args, kwargs)
            with rows():  # new ones, whatever the batch holds
                trace = poutine.trace(poutine.replay(guide, trace=dreamed)).get_trace(*seen[0], **seen[1])
            surrogate = -_pyro.prune_subsample_sites(trace).log_prob_sum() / self.num_dreams
            if isinstance(surrogate, Tensor) and surrogate.requires_grad:
                surrogate.backward()


def _sites(trace: Any) -> list[Any]:
    return [site for site in trace.nodes.values() if site["type"] == "sample"]


def _bound(draws: list[Any]) -> float:
    """The evidence lower bound, nats."""
    total = sum(
        sum(float(site["log_prob"].detach().sum()) for site in _sites(ours))
        - sum(float(site["log_prob"].detach().sum()) for site in _sites(theirs))
        for ours, theirs in draws
    )
    return total / len(draws)


def _stands_in(site: Any, frames: dict[str, int]) -> bool:
    return frames.keys() <= {frame.name for frame in site["cond_indep_stack"] if frame.vectorized}


def _weights(draws: list[Any]) -> tuple[dict[str, int], list[Any]]:
    """Normalised importance weights of the draws in each cell of the plates that all latent sites share.

    Sites outside of these plates do not depend on what is drawn. Scales do not count: a row that stands for many has
    the posterior of one. Nor does a normalizer that all draws share, of which there may be but a noisy surrogate.
    """
    if len(draws) == 1:
        return {}, [1.0]
    latent = _sites(draws[0][1])
    stacks = [{f.name: f.dim for f in site["cond_indep_stack"] if f.vectorized} for site in latent]
    frames = {name: dim for name, dim in (stacks[0] if stacks else {}).items() if all(name in s for s in stacks)}

    def density(trace: Any) -> Any:
        total: Any = 0.0
        for site in _sites(trace):
            if _stands_in(site, frames):
                value, law = site["unscaled_log_prob"].detach(), energy_law(site["fn"])
                if law is not None and law.given_log_normalizer is not None and not law.parameter_shape:
                    value = value + torch.as_tensor(law.given_log_normalizer).detach()
                value = scale_and_mask(value, 1.0, site["mask"])
                others = [dim for dim in range(-value.dim(), 0) if dim not in frames.values()]
                total = total + (value.sum(others, keepdim=True) if others else value)
        return total

    ratios = torch.stack([torch.as_tensor(density(ours) - density(theirs)) for ours, theirs in draws])
    return frames, list(ratios.softmax(0))


def _check(ours: Any, theirs: Any) -> None:
    """Raise a ValueError unless the guide draws the model's latent sites and no others."""
    latent = [n for n in ours.stochastic_nodes if not _pyro.site_is_subsample(ours.nodes[n])]
    drawn = [n for n in theirs.stochastic_nodes if not _pyro.site_is_subsample(theirs.nodes[n])]
    for name in latent:
        if name not in drawn:
            raise ValueError(
                f"WakeSleep: expected the guide to draw every latent site of the model; it lacks '{name}'. "
                "Add pyro.sample for it to the guide."
            )
    for name in drawn:
        if name not in latent:
            raise ValueError(
                f"WakeSleep: expected the guide to draw latent sites of the model only; it draws '{name}', which no "
                "dream holds. Use a guide of the model's own sites, or inference='svi'."
            )
