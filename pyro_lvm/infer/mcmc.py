"""Posterior draws by Pyro's NUTS with discrete sites summed out: the reference that other inferences are held to."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from typing import Any

import torch
from pyro import infer
from pyro.infer import NUTS, config_enumerate
from pyro.infer.autoguide.initialization import init_to_uniform
from torch import Tensor

from pyro_lvm import _pyro
from pyro_lvm.handlers.starting_values import StartingValues
from pyro_lvm.infer.structure import plate_nesting, structure
from pyro_lvm.ops.constructor_repr import ConstructorRepr
from pyro_lvm.ops.real_number import real_number
from pyro_lvm.ops.whole_number import whole_number
from pyro_lvm.protocols import LatentVariableModel

__all__ = ["MCMC"]


class MCMC(ConstructorRepr):
    """The No-U-Turn sampler over the continuous sites of a model, its discrete sites summed out.

    Chains run one after another in this process and start where the model's own initialisation says.

    Args:
        model: Any Pyro program without parameters, or with fixed ones.
        num_samples: Draws kept per chain.
        warmup_steps: Draws per chain used to adapt step size and mass matrix, then dropped.
        num_chains: Independent chains; two or more show whether they agree.
        target_accept_prob: Acceptance probability that the step size is adapted to.
        max_tree_depth: Largest trajectory is `2 ** max_tree_depth` steps.
        initial_values: Where chains start, by site; else where the model's own initialisation says.

    References:
        M. Hoffman, A. Gelman (2014), The No-U-Turn sampler, JMLR 15.

    Example:
        >>> import pyro_lvm as lvm
        >>> sampler = lvm.infer.MCMC(num_samples=100, warmup_steps=100)
    """

    guides = ()

    def __init__(
        self,
        model: Callable | None = None,
        *,
        num_samples: int = 500,
        warmup_steps: int = 300,
        num_chains: int = 2,
        target_accept_prob: float = 0.8,
        max_tree_depth: int = 8,
        initial_values: Mapping[str, Tensor] | None = None,
    ) -> None:
        self.model = model
        self.guide: Callable | None = None
        self.num_samples = whole_number("MCMC", "num_samples", num_samples)
        self.warmup_steps = whole_number("MCMC", "warmup_steps", warmup_steps, least=0)
        self.num_chains = whole_number("MCMC", "num_chains", num_chains)
        self.target_accept_prob = real_number("MCMC", "target_accept_prob", target_accept_prob, "in (0, 1)")
        self.max_tree_depth = whole_number("MCMC", "max_tree_depth", max_tree_depth)
        self.initial_values = initial_values
        self.diagnostics: dict[str, Any] = {}
        self.interrupted = False

    def run(self, *args: Any, callback: Callable[[int, int], None] | None = None, **kwargs: Any) -> dict[str, Tensor]:
        """Draw from the posterior.

        Args:
            args: The model's arguments.
            callback: Called with the chain's number and the number of its steps so far, after every step.
            kwargs: The model's keyword arguments.

        Returns:
            Draws of every continuous latent site, shape (chains, draws, ...). On Ctrl-C: of the chains that were
            finished, with a warning; if none was, the interruption goes on.

        Raises:
            ValueError: The model has no continuous latent site.
        """
        if self.model is None:
            raise ValueError("MCMC: expected a model. Pass one: MCMC(model), or lvm.fit(model, x, inference='mcmc').")
        model = config_enumerate(self.model)
        nesting = plate_nesting(model, args, kwargs)
        trace = structure(model, args, kwargs)
        points = isinstance(self.model, LatentVariableModel) and not self.model.initial_values
        if points or all(trace.nodes[n]["infer"].get("enumerate") for n in trace.stochastic_nodes):
            raise ValueError(
                "MCMC: expected a model whose parameters are latent sites; they are points. "
                "Give them priors (priors=True for models of this package), or use inference='em'."
            )
        if isinstance(self.model, LatentVariableModel):
            args, kwargs = self.model.condensed(args, kwargs)
        chains: list[dict[str, Tensor]] = []
        diverging: list[int] = []
        for chain in range(self.num_chains):
            kernel = NUTS(
                model,
                max_plate_nesting=nesting,
                init_strategy=StartingValues(self.model, self.initial_values, init_to_uniform),
                target_accept_prob=self.target_accept_prob,
                max_tree_depth=self.max_tree_depth,
            )
            steps = 0

            def hook(kernel: Any, samples: Any, stage: str, i: int, chain: int = chain) -> None:
                nonlocal steps
                steps += 1
                if callback:
                    callback(chain, steps)

            sampler = infer.MCMC(
                kernel,
                num_samples=self.num_samples,
                warmup_steps=self.warmup_steps,
                num_chains=1,
                disable_progbar=True,
                hook_fn=hook,
            )
            try:
                with _pyro.validation(False), _pyro.exact_log_sums():
                    sampler.run(*args, **kwargs)
            except KeyboardInterrupt:
                if not chains:
                    raise
                self.interrupted = True
                warnings.warn(f"MCMC: interrupted; {len(chains)} finished chains kept.", RuntimeWarning, stacklevel=2)
                break
            chains.append(sampler.get_samples())
            diverging.append(len(sampler.diagnostics()["divergences"]["chain 0"]))
        self.diagnostics = {"divergences": diverging}
        return {name: torch.stack([c[name] for c in chains]) for name in chains[0]}
