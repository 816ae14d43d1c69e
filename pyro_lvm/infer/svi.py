"""Stochastic variational inference with one fused optimizer over all parameters."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import torch
from pyro import poutine
from pyro.infer import Trace_ELBO, TraceEnum_ELBO, config_enumerate
from torch import Tensor

from pyro_lvm import _pyro
from pyro_lvm.infer.nonfinite import NonFiniteLoss
from pyro_lvm.infer.parameters import Parameters
from pyro_lvm.infer.structure import plate_nesting, structure

__all__ = ["SVI", "no_guide"]


def no_guide(*args: Any, **kwargs: Any) -> None:
    """The guide of a model without continuous latent sites."""


class SVI:
    """Stochastic variational inference: gradient steps on the evidence lower bound.

    Discrete latent sites of the model are summed out exactly. A model without continuous latent sites needs no guide:
    the bound is then its log-likelihood.

    Args:
        model: Any Pyro program.
        guide: Any Pyro program over its continuous sites, with the same arguments.
        optimizer: Makes a torch optimizer from parameters; by default fused Adam.
        loss: Any `pyro.infer.ELBO`; by default `TraceEnum_ELBO` if there are discrete sites, else `Trace_ELBO`.
        learning_rate: Step size of the default optimizer.
        num_particles: Guide samples per step of the default loss.

    References:
        R. Ranganath, S. Gerrish, D. Blei (2014), Black box variational inference, AISTATS.
        D. Wingate, T. Weber (2013), Automated variational inference in probabilistic programming.

    Example:
        >>> import torch, pyro_lvm as lvm
        >>> x = lvm.datasets.load("faithful").x
        >>> model = lvm.models.GaussianMixture(2, priors=True)
        >>> svi = lvm.infer.SVI(learning_rate=0.05)
        >>> fit = lvm.fit(model, x, guide="normal", inference=svi, max_epochs=3, progress=False, seed=0)
        >>> len(fit.history["loss"])
        3
    """

    full_batch = False

    def __init__(
        self,
        model: Callable | None = None,
        guide: Callable | None = None,
        optimizer: Callable[[Iterable[Tensor]], torch.optim.Optimizer] | None = None,
        loss: Any = None,
        *,
        learning_rate: float = 0.01,
        num_particles: int = 1,
    ) -> None:
        if not learning_rate > 0:
            raise ValueError(f"SVI: expected learning_rate > 0; got {learning_rate}.")
        if num_particles < 1:
            raise ValueError(f"SVI: expected num_particles >= 1; got {num_particles}.")
        self.model = model
        self.guide = guide
        self.optimizer = optimizer or partial(torch.optim.Adam, lr=learning_rate, fused=True)
        self.objective = loss
        self.learning_rate = learning_rate
        self.num_particles = num_particles
        self._optimizer: torch.optim.Optimizer | None = None
        self._names: dict[str, Tensor] = {}
        self._pending: dict[str, Any] | None = None
        self._enumerating: Callable | None = None

    def step(self, *args: Any, **kwargs: Any) -> float:
        """One gradient step.

        Args:
            args: The arguments of model and guide.
            kwargs: Their keyword arguments.

        Returns:
            The loss before the step, in nats.

        Raises:
            NonFiniteLoss: The loss is not finite; no parameter was changed.
        """
        objective, model, guide = self._prepare(args, kwargs)
        with Parameters() as parameters:
            loss = float(objective.loss_and_grads(model, guide, *args, **kwargs))
        found = {n: p.unconstrained for n, p in parameters.found.items() if p.unconstrained.requires_grad}
        if not math.isfinite(loss):
            for tensor in found.values():
                tensor.grad = None
            raise NonFiniteLoss(f"SVI: the loss became {loss}{_blame(model, guide, args, kwargs)}.")
        self._register(found)
        if self._optimizer is not None:
            self._optimizer.step()
            self._optimizer.zero_grad()
        return loss

    def loss(self, *args: Any, **kwargs: Any) -> float:
        """An estimate of the loss in nats, without a step."""
        objective, model, guide = self._prepare(args, kwargs)
        with torch.no_grad():
            return float(objective.loss(model, guide, *args, **kwargs))

    def state_dict(self) -> dict[str, Any]:
        """The optimizer's state and the order of its parameters."""
        optimizer = self._optimizer.state_dict() if self._optimizer is not None else None
        nesting = getattr(self.objective, "max_plate_nesting", None)
        return {"optimizer": optimizer, "names": list(self._names), "nesting": nesting}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore `state_dict`; the optimizer follows at the next step, when its parameters are known."""
        self._pending = state

    def _prepare(self, args: tuple, kwargs: dict[str, Any]) -> tuple[Any, Callable, Callable]:
        if self.model is None:
            raise ValueError(
                "SVI: expected a model. Pass one: SVI(model, guide), or lvm.fit(model, x, inference=SVI())."
            )
        guide = self.guide or no_guide
        if self._enumerating is None:
            self._enumerating = config_enumerate(self.model)
            if self.objective is None:
                self.objective = self._default_loss(args, kwargs)
        return self.objective, self._enumerating, guide

    def _default_loss(self, args: tuple, kwargs: dict[str, Any]) -> Any:
        with _pyro.validation(True):
            trace = structure(self._enumerating, args, kwargs)  # type: ignore[arg-type]
            nesting = plate_nesting(self._enumerating, args, kwargs)  # type: ignore[arg-type]
        discrete = any(trace.nodes[n]["infer"].get("enumerate") for n in trace.stochastic_nodes)
        loss = TraceEnum_ELBO if discrete else Trace_ELBO
        return loss(num_particles=self.num_particles, max_plate_nesting=nesting)

    def _register(self, found: dict[str, Tensor]) -> None:
        new = {name: tensor for name, tensor in found.items() if name not in self._names}
        if not new:
            return
        pending, self._pending = self._pending, None
        if pending and pending["optimizer"] is not None:
            new = {name: new[name] for name in [*pending["names"], *new] if name in new}
        self._names.update(new)
        if self._optimizer is None:
            self._optimizer = self.optimizer(list(new.values()))
        else:
            self._optimizer.add_param_group({"params": list(new.values())})
        if pending and pending["optimizer"] is not None:
            self._optimizer.load_state_dict(pending["optimizer"])


def _blame(model: Callable, guide: Callable, args: tuple, kwargs: dict[str, Any]) -> str:
    """Name the first site whose log-density is not finite."""
    with torch.no_grad(), _pyro.validation(False):
        guide_trace = poutine.trace(guide).get_trace(*args, **kwargs)
        model_trace = poutine.trace(poutine.replay(model, trace=guide_trace)).get_trace(*args, **kwargs)
        for kind, trace in (("guide", guide_trace), ("model", model_trace)):
            for name, site in trace.nodes.items():
                if site["type"] == "sample" and not _pyro.site_is_subsample(site):
                    value = site["fn"].log_prob(site["value"], *site["args"], **site["kwargs"])
                    if not bool(torch.isfinite(torch.as_tensor(value)).all()):
                        return f" at site '{name}' of the {kind}"
    return ""
