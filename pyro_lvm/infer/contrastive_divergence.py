r"""Maximum likelihood of undirected models by Markov chains: contrastive divergence and its persistent form.

.. math:: \nabla \log p(v) = -\nabla F(v) + \mathrm{E}_{p}[\nabla F]

The expectation is over Gibbs chains that start from the rows (CD), or that go on from step to step (persistent CD).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, ClassVar

import torch
from pyro.infer import ELBO, Trace_ELBO
from torch import Tensor

from pyro_lvm.handlers.negative_phase import negative_phase
from pyro_lvm.infer.nonfinite import NonFiniteLoss

__all__ = ["ContrastiveDivergence"]


class ContrastiveDivergence(ELBO):
    r"""The loss of a base ELBO, its energy-based sites normalised by `negative_phase`.

    Energy distributions may stand anywhere in the program, under plates, subsampling, scales and masks: as observed
    sites, or as the prior of latent ones that the guide draws.

    The loss of a machine whose normalizer is not known is the free energy of the rows less that of the chains, nats
    over all rows. It is near zero where chains and rows look alike, and no likelihood, so nothing stops early by it
    (`loss_may_rise`); `fit.log_likelihood` tells how good the model is.

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

    def __init__(
        self,
        num_steps: int = 1,
        persistent: bool = False,
        num_chains: int | None = None,
        base: Any = None,
    ) -> None:
        super().__init__()
        negative_phase(num_steps=num_steps, persistent=persistent, num_chains=num_chains)  # checks them
        self.num_steps = num_steps
        self.persistent = persistent
        self.num_chains = num_chains
        self.base = base
        self._base = Trace_ELBO() if base is None else base
        self.chains: dict[str, Tensor] = {}

    def loss(self, model: Callable, guide: Callable, *args: Any, **kwargs: Any) -> float:
        """The loss in nats; chains stay where they are."""
        with self._phase(dict(self.chains)):
            return float(self._base.loss(model, guide, *args, **kwargs))

    def loss_and_grads(self, model: Callable, guide: Callable, *args: Any, **kwargs: Any) -> float:
        """The loss in nats; gradients are left in `.grad`, and persistent chains move.

        Raises:
            NonFiniteLoss: Parameters or chains have run away; the chains are those of before.
        """
        chains = dict(self.chains)
        with self._phase(chains):
            loss = float(self._base.loss_and_grads(model, guide, *args, **kwargs))
        if not math.isfinite(loss):
            raise NonFiniteLoss(
                f"ContrastiveDivergence: expected a finite loss; got {loss}: parameters or chains have run away. "
                "Lower the learning rate, bring the columns to unit variance, or raise num_steps."
            )
        self.chains = chains
        return loss

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
