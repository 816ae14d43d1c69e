"""Stochastic variational inference with one fused optimizer over all parameters, or with an inner loop over rows."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from contextlib import nullcontext
from functools import partial
from typing import Any

import torch
from pyro.infer import Trace_ELBO, TraceEnum_ELBO, TraceGraph_ELBO, config_enumerate
from torch import Tensor

from pyro_lvm import _pyro
from pyro_lvm.infer.evidence_bound import EvidenceBound, is_reparameterised
from pyro_lvm.infer.fused_adam import FusedAdam
from pyro_lvm.infer.held_out import rows_alone
from pyro_lvm.infer.local_parameters import find_local
from pyro_lvm.infer.mismatch import check_names, check_sizes, warn_of_silent_parameters
from pyro_lvm.infer.nonfinite import NonFiniteLoss, blamed_site, in_one_sentence
from pyro_lvm.infer.objective import check_objective
from pyro_lvm.infer.parameters import Parameters
from pyro_lvm.infer.row_adam import RowAdam
from pyro_lvm.infer.structure import plate_nesting, structure
from pyro_lvm.infer.updates import SCHEDULES, Updates
from pyro_lvm.ops.constructor_repr import ConstructorRepr
from pyro_lvm.ops.real_number import real_number
from pyro_lvm.ops.whole_number import whole_number

__all__ = ["SVI", "no_guide"]


def no_guide(*args: Any, **kwargs: Any) -> None:
    """The guide of a model without continuous latent sites."""


class SVI(ConstructorRepr):
    """Stochastic variational inference: gradient steps on the evidence lower bound.

    Discrete latent sites of the model are summed out exactly. A model without continuous latent sites needs no guide:
    the bound is then its log-likelihood.

    With `local` and `inner_steps` it is variational EM: every step first optimises the local variational parameters of
    the batch's rows for `inner_steps` steps with all else fixed, then takes one step on everything else. Local
    parameters hold one entry per row of the whole data set along their first axis, and the guide picks the batch's. It
    learns which those are either from an argument of model and guide, as in

        lvm.fit(model, {"x": x, "index": torch.arange(len(x))}, guide, SVI(inner_steps=10, local="z"), batch_size=100)

    with `pyro.param("z_loc", torch.zeros(total))[index]` in the guide and a plate of `len(x)` rows in both; or, when
    stepping by hand, from `pyro.plate("data", total, subsample=index)` in both, where
    `pyro.param("z_loc", torch.zeros(total), event_dim=0)` picks them by itself. Each row has an Adam state of its own,
    which rests while the row is not in the batch.

    Args:
        model: Any Pyro program.
        guide: Any Pyro program over its continuous sites, with the same arguments.
        optimizer: Makes a torch optimizer from parameters; by default fused Adam.
        loss: Any `pyro.infer.ELBO` or other `Objective`; by default `TraceEnum_ELBO` if model or guide have sites to be
            summed out, else `TraceGraph_ELBO` if the guide draws sites without a reparameterised gradient, else
            `EvidenceBound`, which takes closed forms of divergences where they stand.
        learning_rate: Step size of the default optimizer.
        schedule: How the step size changes during training: "linear" holds it for the first half and lets it fall to
            zero in the second, "cosine" lets it fall from the start, and any function of the fraction that is done, in
            [0, 1), gives a multiplier. The rate of local steps stays. With a schedule training ends at `max_epochs`,
            never earlier; resumed, it is spread over all steps, those before and those to come.
        num_steps: Steps of the whole training, for a schedule when stepping by hand; `lvm.fit` knows it.
        num_particles: Guide samples per step of the default loss.
        inner_steps: Steps on the local parameters before each step on the others.
        local: What is local, separated by commas or in a list: sites of the guide (the parameters that no site but
            those depends on), or beginnings of parameter names.
        local_learning_rate: Step size of the inner steps; by default `learning_rate`.

    References:
        M. Hoffman, D. Blei, C. Wang, J. Paisley (2013), Stochastic variational inference, JMLR 14, figure 4.
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
        schedule: str | Callable[[float], float] | None = None,
        num_steps: float | None = None,
        num_particles: int = 1,
        inner_steps: int = 0,
        local: str | Sequence[str] = "",
        local_learning_rate: float | None = None,
    ) -> None:
        real_number("SVI", "learning_rate", learning_rate)
        num_particles = whole_number("SVI", "num_particles", num_particles)
        check_objective("SVI", "loss", loss)
        if schedule is not None and not callable(schedule) and schedule not in list(SCHEDULES):
            raise ValueError(
                f"SVI: expected schedule to be one of {', '.join(SCHEDULES)}, or a function of the fraction done; "
                f"got {schedule!r}."
            )
        if num_steps is not None and not (isinstance(num_steps, (int, float)) and num_steps >= 1):
            raise ValueError(f"SVI: expected num_steps >= 1; got {num_steps!r}.")
        local = local if isinstance(local, str) else ",".join(local)
        inner_steps = whole_number("SVI", "inner_steps", inner_steps, least=0)
        if bool(inner_steps) != bool(local):
            raise ValueError(
                f"SVI: expected inner_steps >= 1 together with local, or neither; got inner_steps={inner_steps} and "
                f"local={local!r}. Say which parameters belong to rows, as in inner_steps=10, local='z'."
            )
        if local_learning_rate is not None:
            real_number("SVI", "local_learning_rate", local_learning_rate)
        self.model = model
        self.guide = guide
        self.inner_steps = inner_steps
        self.local = local
        self.local_learning_rate = local_learning_rate
        self.optimizer = optimizer or partial(FusedAdam, lr=learning_rate)
        self.objective = loss
        parts = {"optimizer": optimizer, "loss": loss, "schedule": schedule if callable(schedule) else None}
        self.own = tuple(name for name, value in parts.items() if value is not None)
        self.schedule = schedule
        self.num_steps = num_steps
        self._steps = 0
        self.learning_rate = learning_rate
        self.num_particles = num_particles
        self._updates = Updates(self.optimizer)
        self._local_updates = Updates(partial(RowAdam, lr=local_learning_rate or learning_rate))
        self._is_local: dict[str, bool] = {}
        self._networks: list[tuple[str, torch.nn.Module]] = []
        self._weights: dict[str, Tensor] = {}
        self._enumerating: Callable | None = None
        self._enumerated: Callable | None = None

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
        if not self._steps and self.model is not None:
            check_names("SVI", self.model, self.guide, args, kwargs)
        try:
            for _ in range(self.inner_steps):
                self._one(args, kwargs, self._local_updates, local=True)
            return self._one(args, kwargs, self._updates, local=False, multiplier=self._multiplier())
        except (RuntimeError, ValueError) as error:
            if not self._steps:
                check_sizes("SVI", error, self.model, self.guide, args, kwargs)
            raise

    def expect_steps(self, num_steps: float) -> None:
        """Say that so many steps are to come: what the schedule is spread over; `inf` if that is not known."""
        self.num_steps = self._steps + num_steps

    def _one(
        self, args: tuple, kwargs: dict[str, Any], updates: Updates, local: bool, multiplier: float | None = None
    ) -> float:
        """A step on the local parameters or on the others; the loss before it."""
        objective, model, guide = self._prepare(args, kwargs)
        enumerating = _pyro.exact_log_sums() if getattr(objective, "sums_out", True) else nullcontext()
        parameters, found = _Read(), dict[str, Tensor]()
        try:
            with parameters, enumerating, in_one_sentence("SVI", self._steps > 0, lambda: self._tensors(parameters)):
                loss = float(objective.loss_and_grads(model, guide, *args, **kwargs))
            if not math.isfinite(loss):
                raise NonFiniteLoss(f"SVI: the loss became {loss}{blamed_site(model, guide, args, kwargs)}.")
            found = self._tensors(parameters)
            if not self._steps:
                warn_of_silent_parameters("SVI", (model, guide), found, args, kwargs)
            updates.step(self._chosen(local, found, guide, args, kwargs) if self.local else found, multiplier)
        finally:
            for tensor in (found or self._tensors(parameters)).values():
                tensor.grad = None
        self._steps += not local
        return loss

    def _tensors(self, parameters: _Read) -> dict[str, Tensor]:
        """What the optimizer may write to."""
        inside = self._inside(parameters.networks)
        if not parameters.found:
            return inside
        found = {n: p.unconstrained for n, p in parameters.found.items() if p.unconstrained.requires_grad}
        return found | inside

    def _chosen(
        self, local: bool, found: dict[str, Tensor], guide: Callable, args: tuple, kwargs: dict[str, Any]
    ) -> dict[str, Tensor]:
        """The local parameters, or the others."""
        if found.keys() - self._is_local.keys():
            self._is_local = find_local(self.local, found, guide, args, kwargs)
        return {name: tensor for name, tensor in found.items() if self._is_local[name] == local}

    def loss(self, *args: Any, **kwargs: Any) -> float:
        """An estimate of the loss in nats, without a step."""
        objective, model, guide = self._prepare(args, kwargs)
        with torch.no_grad(), _pyro.exact_log_sums(), in_one_sentence("SVI", self._steps > 0):
            return float(objective.loss(model, guide, *args, **kwargs))

    def held_out_loss(self, *args: Any, **kwargs: Any) -> float:
        """An estimate of the loss of other data, in nats: what is outside of the plate of the rows does not count."""
        objective, model, guide = self._prepare(args, kwargs)
        with torch.no_grad(), _pyro.exact_log_sums(), in_one_sentence("SVI", self._steps > 0):
            model, guide = rows_alone(model, guide, args, kwargs)
            return float(objective.loss(model, guide, *args, **kwargs))

    def state_dict(self) -> dict[str, Any]:
        """The optimizer's state and the order of its parameters, and the objective's own state if it has one."""
        nesting = getattr(self.objective, "max_plate_nesting", None)
        state = {
            **self._updates.state_dict(),
            "nesting": nesting,
            "local": self._local_updates.state_dict(),
            "steps": self._steps,
        }
        if hasattr(self.objective, "state_dict"):
            state["objective"] = self.objective.state_dict()
        return state

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore `state_dict`; the optimizer follows at the next step, when its parameters are known."""
        self._updates.restore(state)
        self._local_updates.restore(state.get("local"))
        self._steps = state.get("steps", 0)
        if "objective" in state and hasattr(self.objective, "load_state_dict"):
            self.objective.load_state_dict(state["objective"])

    @property
    def loss_may_rise(self) -> bool:
        """Whether nothing may stop early by the loss: it does not tell how far training is, or a schedule does."""
        return self.schedule is not None or bool(getattr(self.objective, "loss_may_rise", False))

    @property
    def loss_ranks(self) -> bool:
        """Whether of two fits, or epochs, that with the lower loss is the better one."""
        return bool(getattr(self.objective, "loss_ranks", True))

    def _multiplier(self) -> float | None:
        """What the schedule makes of the learning rate at this step."""
        if self.schedule is None:
            return None
        if self.num_steps is None:
            raise ValueError("SVI: a schedule needs the number of steps. Pass num_steps=, or train by lvm.fit.")
        shape = SCHEDULES[self.schedule] if isinstance(self.schedule, str) else self.schedule
        done = min(1.0, self._steps / self.num_steps)
        return real_number("SVI", f"schedule({done:g})", shape(done), ">= 0")

    def _prepare(self, args: tuple, kwargs: dict[str, Any]) -> tuple[Any, Callable, Callable]:
        if self.model is None:
            raise ValueError(
                "SVI: expected a model. Pass one: SVI(model, guide), or lvm.fit(model, x, inference=SVI())."
            )
        guide = self.guide or no_guide
        if self.objective is None:
            with in_one_sentence("SVI", started=False):
                self.objective = self._default_loss(guide, args, kwargs)
        if not isinstance(self.objective, TraceEnum_ELBO):
            return self.objective, self.model, guide
        if self._enumerating is None or self._enumerated is not self.model:
            self._enumerating, self._enumerated = config_enumerate(self.model), self.model
        return self.objective, self._enumerating, guide

    def _inside(self, networks: list[tuple[str, torch.nn.Module]]) -> dict[str, Tensor]:
        """The parameters of networks; those of the last step are known."""
        if networks != self._networks:
            self._networks = networks
            self._weights = {name: leaf for at, net in networks for name, leaf in _pyro.leaves(at, net).items()}
        return self._weights

    def _default_loss(self, guide: Callable, args: tuple, kwargs: dict[str, Any]) -> Any:
        """The loss for the latent sites that the guide draws, and for those that it leaves to be summed out."""
        enumerating: Callable = config_enumerate(self.model)
        with _pyro.validation(True):
            ours = structure(enumerating, args, kwargs)
            nesting = plate_nesting(enumerating, args, kwargs)
        unfit = [n for n in ours.stochastic_nodes if not getattr(ours.nodes[n]["fn"], "has_rsample", False)]
        with torch.random.fork_rng(), torch.no_grad():
            theirs = _pyro.plain_trace(guide, args, kwargs)
        sites = [site for site in theirs.nodes.values() if site["type"] == "sample"]
        if not unfit and all(map(is_reparameterised, sites)):
            bound = EvidenceBound(num_particles=self.num_particles)
            bound.max_plate_nesting = nesting
            return bound
        scored = [n for n in unfit if n in theirs and not _is_given(theirs.nodes[n])]
        summed = [n for n in unfit if n not in theirs and ours.nodes[n]["infer"].get("enumerate")]
        if summed and scored:
            raise ValueError(
                f"SVI: the guide draws site '{scored[0]}' and leaves '{summed[0]}' to be summed out, which no "
                "objective does both by default. Draw both in the guide, or pass loss=."
            )
        weighed = any(site["infer"].get("enumerate") for site in sites)  # by the guide itself
        loss = TraceEnum_ELBO if summed or weighed else TraceGraph_ELBO if scored else Trace_ELBO
        return loss(num_particles=self.num_particles, max_plate_nesting=nesting)


def _is_given(site: dict) -> bool:
    """Whether a guide's site needs no gradient of its log-density: reparameterised, a point, or enumerated."""
    fn = site["fn"]
    return getattr(fn, "has_rsample", False) or bool(site["infer"].get("enumerate"))


class _Read(Parameters):
    """Collects parameters, and lets every read have a graph of its own: each particle frees the one it used."""

    def __init__(self) -> None:
        super().__init__()
        self.networks: list[tuple[str, torch.nn.Module]] = []

    def _pyro_param(self, msg: Any) -> None:
        pass

    def take_network(self, prefix: str, network: torch.nn.Module) -> None:
        self.networks.append((prefix, network))
