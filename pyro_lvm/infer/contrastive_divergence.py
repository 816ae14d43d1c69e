r"""Maximum likelihood of undirected models by Markov chains: contrastive divergence and its persistent form.

.. math:: \nabla \log p(v) = -\nabla F(v) + \mathrm{E}_{p}[\nabla F]

The expectation is over Gibbs chains that start from the rows (CD), or that go on from step to step (persistent CD).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, ClassVar

import torch
from pyro.distributions.util import scale_and_mask
from pyro.infer import ELBO, Trace_ELBO
from pyro.infer.util import is_validation_enabled
from pyro.poutine.messenger import Messenger
from torch import Tensor

from pyro_lvm import _pyro
from pyro_lvm.distributions.energy import energy_law
from pyro_lvm.handlers.minibatch import minibatch
from pyro_lvm.handlers.negative_phase import negative_phase
from pyro_lvm.infer.kept_law import KeptLaw
from pyro_lvm.infer.nonfinite import NonFiniteLoss
from pyro_lvm.infer.objective import check_objective
from pyro_lvm.infer.structure import structure
from pyro_lvm.ops.constructor_repr import ConstructorRepr

__all__ = ["ContrastiveDivergence"]


class ContrastiveDivergence(ELBO, ConstructorRepr):
    r"""The loss of a base ELBO, its energy-based sites normalised by `negative_phase`.

    Energy distributions may stand anywhere in the program, under plates, subsampling, scales and masks: as observed
    sites, or as the prior of latent ones that the guide draws.

    The loss of a machine whose normalizer is not known is the free energy of the rows less that of the chains, nats
    over all rows. It is near zero where chains and rows look alike, and no likelihood, so nothing stops early by it
    (`loss_may_rise`); `fit.log_likelihood` tells how good the model is.

    Where nothing but the batch's scale is around a model of this package whose rows are independent draws from its law,
    and there is no guide, the law is asked for the gradients, which `RBM` has in closed form: the same numbers, up to
    rounding, without running the program. Handlers, guides, other bases and other programs are never passed over.

    Args:
        num_steps: Gibbs steps of the chains before each gradient.
        persistent: Whether chains go on where they stopped; they are state of this object, and of checkpoints.
        num_chains: How many persistent chains; by default as many as the first batch has rows.
        base: The ELBO; by default `Trace_ELBO()`.

    Raises:
        ValueError: An argument is out of range.

    References:
        G. Hinton (2002), Training products of experts by minimizing contrastive divergence, equation 5.
        T. Tieleman (2008), Training restricted Boltzmann machines using approximations to the likelihood gradient.

    Example:
        >>> import pyro_lvm as lvm
        >>> x = lvm.datasets.load("digits234").x
        >>> cd = lvm.infer.SVI(loss=lvm.infer.ContrastiveDivergence(persistent=True), learning_rate=0.01)
        >>> fit = lvm.fit(lvm.models.RBM(8), x, inference=cd, max_epochs=3, seed=0, progress=False)
        >>> fit.params["weight"].shape
        torch.Size([64, 8])
    """

    loss_may_rise: ClassVar[bool] = True
    loss_ranks: ClassVar[bool] = False

    def __init__(
        self,
        num_steps: int = 1,
        persistent: bool = False,
        num_chains: int | None = None,
        base: Any = None,
    ) -> None:
        super().__init__()
        check_objective("ContrastiveDivergence", "base", base)
        checked = negative_phase(num_steps=num_steps, persistent=persistent, num_chains=num_chains)
        self.num_steps = checked.num_steps
        self.persistent = persistent
        self.num_chains = checked.num_chains
        self.base = base
        self._base = Trace_ELBO() if base is None else base
        self.chains: dict[str, Tensor] = {}
        self._guided = False
        self._looked = False
        self._law_of = KeptLaw()

    @property
    def sums_out(self) -> bool:
        """Whether discrete sites may be summed out: by another base."""
        return self.base is not None

    def loss(self, model: Callable, guide: Callable, *args: Any, **kwargs: Any) -> float:
        """The loss in nats; chains stay where they are."""
        with self._phase(dict(self.chains)):
            return float(self._base.loss(model, guide, *args, **kwargs))

    def loss_and_grads(self, model: Callable, guide: Callable, *args: Any, **kwargs: Any) -> float:
        """The loss in nats; gradients are left in `.grad`, and persistent chains move.

        Raises:
            ValueError: The model has no undirected site.
            NonFiniteLoss: Parameters or chains have run away; the chains are those of before.
        """
        if not self._looked:
            _check_sites(model, args, kwargs)
            self._looked = True
        chains = dict(self.chains)
        loss = self._of_rows_alone(chains, model, guide, args, kwargs)
        if loss is None:
            with self._phase(chains):
                loss = self._loss_and_grads(model, guide, *args, **kwargs)
        if not math.isfinite(loss):
            raise NonFiniteLoss(
                f"ContrastiveDivergence: expected a finite loss; got {loss}: parameters or chains have run away. "
                "Lower the learning rate, bring the columns to unit variance, or raise num_steps."
            )
        self.chains = chains
        return loss

    def _of_rows_alone(
        self, chains: dict[str, Tensor], model: Any, guide: Callable, args: tuple, kwargs: dict[str, Any]
    ) -> float | None:
        """The same loss and gradients without running the program; None where what it would do must be looked at.

        A model of this package may say that its rows are independent draws from its law (`rows_site`). If no handler
        but that of batches sees sample sites, and the guide draws nothing, the law is all that matters. Persistent
        chains start in the program.
        """
        site, alone = getattr(model, "rows_site", ""), len(args) == 1 and not kwargs
        if self.base is not None or not site or not alone or self._draws(guide, args, kwargs):
            return None
        scale = 1.0
        for handler in _pyro.sample_listeners():
            if not isinstance(handler, minibatch):
                return None
            scale *= handler.scale(len(args[0]))
        law = self._law_of(model)
        state = chains.get(site)
        if self.persistent and state is None:
            return None
        loss, state = law.contrast(args[0], state, self.num_steps, scale)
        if self.persistent:
            chains[site] = state
        return loss.item()

    def _draws(self, guide: Callable, args: tuple, kwargs: dict[str, Any]) -> bool:
        """Whether the guide has ever had a sample site."""
        if not self._guided:
            with _Sites() as sites:
                guide(*args, **kwargs)
            self._guided = sites.count > 0
        return self._guided

    def _loss_and_grads(self, model: Callable, guide: Callable, *args: Any, **kwargs: Any) -> float:
        """The base's; without traces where the default base has no checks to make and the guide draws nothing."""
        if self.base is None and not is_validation_enabled() and not self._draws(guide, args, kwargs):
            with _Sites() as sites:
                model(*args, **kwargs)
            surrogate = -torch.as_tensor(sites.log_density)
            if surrogate.requires_grad:
                surrogate.backward()
            return -sites.total
        return float(self._base.loss_and_grads(model, guide, *args, **kwargs))

    def differentiable_loss(self, model: Callable, guide: Callable, *args: Any, **kwargs: Any) -> Tensor:
        """The loss in nats as a tensor to take gradients of; persistent chains move."""
        with self._phase(self.chains):
            return self._base.differentiable_loss(model, guide, *args, **kwargs)

    def state_dict(self) -> dict[str, Any]:
        """The persistent chains by name of site, and the base's own state if it has one."""
        state: dict[str, Any] = {"chains": {name: chain.clone() for name, chain in self.chains.items()}}
        if hasattr(self._base, "state_dict"):
            state["base"] = self._base.state_dict()
        return state

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore `state_dict`."""
        self.chains = {name: torch.as_tensor(chain).clone() for name, chain in state["chains"].items()}
        if "base" in state:
            self._base.load_state_dict(state["base"])

    def _get_trace(self, model: Callable, guide: Callable, args: tuple, kwargs: dict[str, Any]) -> Any:
        return self._base._get_trace(model, guide, args, kwargs)  # abstract in Pyro; the base's own methods call it

    def _phase(self, chains: dict[str, Tensor]) -> Any:
        return negative_phase(
            num_steps=self.num_steps, persistent=self.persistent, num_chains=self.num_chains, chains=chains
        )


def _check_sites(model: Callable, args: tuple, kwargs: dict[str, Any]) -> None:
    nodes = structure(model, args, kwargs).nodes.values()
    if not any(site["type"] == "sample" and energy_law(site["fn"]) is not None for site in nodes):
        raise ValueError(
            "ContrastiveDivergence: expected a model with an undirected site, as distributions.RBM; got none. Use "
            "another objective, as inference='svi'."
        )


class _Sites(Messenger):
    """Counts the sample sites of a program, and adds up their log-densities, scaled and masked, nats.

    Attributes:
        log_density: To take gradients of.
        total: The same in double precision, as Pyro's objectives add them up.
    """

    def __init__(self) -> None:
        super().__init__()
        self.count = 0
        self.log_density: Tensor | float = 0.0
        self.total = 0.0

    def _pyro_post_sample(self, msg: Any) -> None:
        self.count += 1
        if not _pyro.site_is_subsample(msg):
            value = msg["fn"].log_prob(msg["value"], *msg["args"], **msg["kwargs"])
            density = scale_and_mask(value, msg["scale"], msg["mask"]).sum()
            self.log_density = self.log_density + density
            self.total += density.item()
