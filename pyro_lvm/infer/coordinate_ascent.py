r"""Variational Bayes by coordinate ascent for conjugate-exponential programs.

.. math:: q(z, \theta) = q(z) \prod_s q_s(\theta_s)

The E-step is exact enumeration under expected natural parameters: in an exponential family
:math:`\mathrm{E}_q \log p(x \mid \theta)` is the log-density at the parameters :math:`\hat\theta` whose natural
parameters are the expected ones, plus a number that does not depend on x. The program is run at :math:`\hat\theta`,
the number is added, and what EM's M-step would sum up, pseudo-counts of the prior included, are the natural parameters
of the next :math:`q_s`. So every program that MAP-EM trains in closed form is trained here by the same statistics.

References:
    H. Attias (2000), A variational Bayesian framework for graphical models, NIPS.
    J. Winn, C. Bishop (2005), Variational message passing, JMLR 6, section 3.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from pyro import poutine
from torch import Tensor

from pyro_lvm.handlers.starting_values import StartingValues
from pyro_lvm.infer.derive import make_plan
from pyro_lvm.infer.enumeration import expect
from pyro_lvm.infer.expectation import Expectation
from pyro_lvm.infer.factors import Factor
from pyro_lvm.infer.m_step import ExponentialFamily, innermost
from pyro_lvm.infer.maximise import Sites, counts_of, groups, sums_of
from pyro_lvm.infer.parameters import Parameter
from pyro_lvm.infer.plan import ParameterPlan, Plan
from pyro_lvm.infer.row_pass import Memory
from pyro_lvm.infer.seeding import reseed
from pyro_lvm.infer.structure import plate_nesting, structure
from pyro_lvm.ops.constructor_repr import ConstructorRepr

__all__ = ["CoordinateAscent"]


class CoordinateAscent(ConstructorRepr):
    r"""Coordinate ascent on the evidence lower bound, every update in closed form.

    Needs a program whose parameters are sample sites with conjugate priors and whose other latent sites are enumerable.
    The bound is exact and never falls.

    Args:
        model: The program; may be left out when passed to `lvm.fit`.
        guide: A `lvm.guides.Conjugate`, which takes the posterior; likewise.
        max_plate_nesting: Batch dimensions that plates use; found by running the model once if None.

    Raises:
        ValueError: A site has no conjugate prior; the message names it.

    Example:
        >>> import pyro_lvm as lvm
        >>> x = lvm.datasets.load("faithful").x
        >>> model = lvm.models.GaussianMixture(2, priors=True)
        >>> fit = lvm.fit(model, x, inference="coordinate-ascent", seed=0, progress=False)
        >>> fit.converged
        True
    """

    full_batch = True
    guides = ("conjugate",)

    def __init__(
        self, model: Callable | None = None, guide: Any = None, *, max_plate_nesting: int | None = None
    ) -> None:
        self.model = model
        self.guide = guide
        self.max_plate_nesting = max_plate_nesting
        self._plan: Plan | None = None
        self._known: tuple | None = None
        self._memory = Memory()

    def step(self, *args: Any, **kwargs: Any) -> float:
        """Update the posterior of the discrete sites, then that of every parameter.

        Args:
            args: The model's arguments.
            kwargs: The model's keyword arguments.

        Returns:
            Negative evidence lower bound before the update, in nats.
        """
        if not self._guide.sites:
            self._start(args, kwargs)
        expectation, loss = self._evaluate(args, kwargs)
        self._update(expectation)
        return loss

    def loss(self, *args: Any, **kwargs: Any) -> float:
        """Negative evidence lower bound at the present posterior, in nats; nothing is updated."""
        if not self._guide.sites:
            self._start(args, kwargs)
        return self._evaluate(args, kwargs)[1]

    def held_out_loss(self, *args: Any, **kwargs: Any) -> float:
        """The same of other data, without the divergence of the parameters' posterior from their prior."""
        return -self._evaluate(args, kwargs)[0].log_likelihood

    def posterior(self, *args: Any, **kwargs: Any) -> dict[str, Tensor]:
        """Variational posterior of every discrete site, its states along the last axis."""
        return self._evaluate(args, kwargs)[0].marginals()

    def plan(self, *args: Any, **kwargs: Any) -> Plan:
        """Which site is conjugate to what; print it."""
        values = self._starting_values(args, kwargs)
        return make_plan(self._expect(values, args, kwargs))

    def state_dict(self) -> dict[str, Any]:
        """Nothing: the guide holds all there is."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore `state_dict`."""

    @property
    def _guide(self) -> Any:
        if self.model is None or not hasattr(self.guide, "sites"):
            got = "none" if self.guide is None else type(self.guide).__name__
            raise ValueError(
                f"CoordinateAscent: expected a model and a lvm.guides.Conjugate; got guide {got}. Pass both, or use "
                "lvm.fit(model, x, inference='coordinate-ascent')."
            )
        return self.guide

    def _expect(
        self, values: dict[str, Tensor], args: tuple, kwargs: dict[str, Any], corrections: Any = None
    ) -> Expectation:
        """An E-step with the continuous sites at given values."""
        leaves = {name: value.detach().clone().requires_grad_() for name, value in values.items()}
        program = poutine.condition(self.model, data=leaves)
        if self.max_plate_nesting is None:
            self.max_plate_nesting = plate_nesting(program, args, kwargs)
        expectation = expect(
            program,
            self.max_plate_nesting,
            args,
            kwargs,
            corrections=corrections,
            unscored=set(leaves),
            memory=self._memory,
        )
        learned = [name for name, p in expectation.parameters.items() if p.unconstrained.requires_grad]
        if learned:
            raise ValueError(
                f"CoordinateAscent: expected parameters with priors; '{learned[0]}' is a point. "
                "Give it a prior (pyro.sample), or use inference='em'."
            )
        real = torch.distributions.constraints.real
        expectation.parameters = {name: Parameter(name, leaf, leaf, real) for name, leaf in leaves.items()}
        return expectation

    def _starting_values(self, args: tuple, kwargs: dict[str, Any]) -> dict[str, Tensor]:
        trace = structure(self.model, args, kwargs, fresh=False)  # type: ignore[arg-type]
        start = StartingValues(self.model)  # type: ignore[arg-type]
        return {
            name: start(trace.nodes[name])  # type: ignore[misc]
            for name in trace.stochastic_nodes
            if not trace.nodes[name]["fn"].has_enumerate_support
        }

    def _start(self, args: tuple, kwargs: dict[str, Any]) -> None:
        """The first posterior: that of the E-step at the model's initial values, or of k-means clusters."""
        values = self._starting_values(args, kwargs)
        expectation = self._expect(values, args, kwargs)
        self._plan = _conjugate_plan(expectation)
        if not getattr(self.model, "initial_values", {}):
            reseed(expectation)
        self._guide.configure(_sites(self._plan, expectation))
        self._update(expectation)

    def _plug_in(self) -> dict[str, Tensor]:
        """Parameters whose natural parameters are the expected ones."""
        values: dict[str, Tensor] = {}
        for name in self._guide.sites:
            entry = self._plan.parameters[name]  # type: ignore[union-attr]
            conjugate, use = entry.priors[0].conjugate, entry.uses[0]
            value = conjugate.plug_in(self._guide.posterior(name, values))  # type: ignore[union-attr, misc]
            values[name] = use.view.encode(value)
        return values

    def _evaluate(self, args: tuple, kwargs: dict[str, Any]) -> tuple[Expectation, float]:
        """The E-step under the present posterior, and minus the bound."""
        known = self._known is not None and all(
            a is b for a, b in zip(self._known, (*args, *kwargs.values()), strict=False)
        )
        self._known = (*args, *kwargs.values())
        if self._plan is None or not known:  # other rows may be selected by, or the posterior was read from a file
            self._plan = _conjugate_plan(self._expect(self._starting_values(args, kwargs), args, kwargs))
        values = self._plug_in()
        guide, plan = self._guide, self._plan

        def corrections(factors: dict[str, Factor]) -> dict[str, Tensor]:
            found: dict[str, Tensor] = {}
            for entry in plan.closed:
                prior = entry.priors[0]
                gap = _by_block(prior.conjugate.gap(guide.posterior(entry.name, values)), entry)  # type: ignore
                for use in entry.uses:
                    if use.site in guide.sites:
                        continue  # the prior of a child: its expectation is part of the divergence
                    fn = innermost(factors[use.site].fn)
                    now = {argument.name: argument.read(fn).detach() for argument in use.form.arguments}
                    cells = gap[use.blocks.block].reshape((*use.blocks.batch, *gap.shape[1:]))
                    term = use.argument.correct(cells, now)
                    found[use.site] = found.get(use.site, 0.0) + term
            return found

        expectation = self._expect(values, args, kwargs, corrections)
        divergence = 0.0
        for name in guide.sites:
            prior = innermost(expectation.factors[name].fn)
            terms = _divergence(guide.posterior(name, values), prior)
            divergence += counts_of(expectation.factors[name]) * float(terms.detach().double().sum())
        return expectation, divergence - expectation.log_likelihood

    def _update(self, expectation: Expectation) -> None:
        """The posterior of every parameter from the statistics of the E-step."""
        guide, plan = self._guide, self._plan
        if plan is None:
            raise ValueError("CoordinateAscent: expected a first step before an update.")
        children = {name for name, site in guide.sites.items() if site["parent"]}
        with torch.no_grad():
            sites = Sites(plan, expectation, 0.0, self._memory, uncounted=children)
            for entries in groups(plan):
                for entry in entries:
                    sums = sums_of(entry, sites)
                    prior = entry.priors[0]
                    q = prior.conjugate.posterior(*sums)  # type: ignore[union-attr, misc]
                    arguments = {
                        name: _by_cell(getattr(q, name), entry)
                        for name in guide.sites[entry.name]["shapes"]
                        if name not in ("count", "index")
                    }
                    if entry.name in children:
                        parent = guide.sites[entry.name]["parent"]
                        shape = guide.sites[entry.name]["shapes"]["index"]
                        arguments["index"] = _parent_index(plan.parameters[parent], entry.name).expand(shape)
                        arguments["count"] = _by_cell(_count(sums, entry, sites, plan.parameters[parent]), entry)
                    guide.update(entry.name, **arguments)
                    values = {name: leaf.value.detach() for name, leaf in expectation.parameters.items()}
                    posterior = guide.posterior(entry.name, values)
                    point = entry.uses[0].view.encode(prior.conjugate.plug_in(posterior))  # type: ignore
                    sites.update(entry, point.to(expectation.parameters[entry.name].value.dtype))
                    if entry.name not in children and entry.uses[0].argument.name == "loc":
                        gap = _by_block(prior.conjugate.gap(posterior), entry)  # type: ignore[union-attr, misc]
                        for use in entry.uses:
                            spread = gap[use.blocks.block].reshape((*use.blocks.batch, *gap.shape[1:]))
                            sites[use.site].now["loc spread"] = spread


def _divergence(q: Any, p: Any) -> Tensor:
    """Kullback-Leibler divergence between members of one family, nats, by entry."""
    if type(q).__name__ == "InverseGamma":  # the same as that of the gamma laws of the inverses
        q, p = (torch.distributions.Gamma(f.concentration, f.rate) for f in (q, p))
    return torch.distributions.kl_divergence(q, p)


def _conjugate_plan(expectation: Expectation) -> Plan:
    """The plan, if every site is conjugate."""
    plan = make_plan(expectation)
    for entry in plan:
        for use in entry.uses:
            if not isinstance(use.form, ExponentialFamily):
                kind = type(innermost(expectation.factors[use.site].fn)).__name__
                raise ValueError(
                    f"CoordinateAscent: site '{use.site}' ({kind}) has no natural form, as normal rows with missing "
                    "entries under full or tied covariances. Use covariance='diag' or 'spherical', 'em' or 'svi'."
                )
        if not entry.closed or len(entry.priors) != 1 or entry.priors[0].conjugate.posterior is None:  # type: ignore
            reason = entry.reason or "its posterior is not of its prior's family"
            raise ValueError(
                f"CoordinateAscent: site '{entry.name}' has no conjugate update ({reason}). "
                "Use inference='svi' or 'mcmc', or a conjugate prior."
            )
    return plan


ARGUMENTS = {
    "Normal": ("loc", "scale"),
    "MultivariateNormal": ("loc", "covariance_matrix"),
    "InverseWishart": ("df", "scale"),
    "Gamma": ("concentration", "rate"),
    "InverseGamma": ("concentration", "rate"),
    "Beta": ("concentration1", "concentration0"),
    "Dirichlet": ("concentration",),
}


def _sites(plan: Plan, expectation: Expectation) -> dict[str, Any]:
    """What `Conjugate.configure` takes: parents before children."""
    parents = {use.site: entry.name for entry in plan.closed for use in entry.uses if use.site in plan.parameters}
    found = {}
    for entry in sorted(plan.closed, key=lambda e: e.name in parents):
        fn = expectation.factors[entry.name].fn
        prior = innermost(fn)
        batch = list(prior.batch_shape)
        shapes = {name: list(getattr(prior, name).shape) for name in ARGUMENTS[entry.priors[0].kind]}
        parent = parents.get(entry.name)
        if parent is not None:
            value = list(expectation.factors[entry.name].value.shape)
            matrix = value[-1:] if prior.event_dim else []
            shapes = {"loc": value, "count": batch, "index": value + matrix}
        found[entry.name] = {
            "family": entry.priors[0].kind,
            "event_dim": fn.event_dim,
            "dtype": str(expectation.parameters[entry.name].value.dtype).removeprefix("torch."),
            "parent": parent,
            "shapes": shapes,
        }
    return found


def _by_cell(blocks: Tensor, entry: ParameterPlan) -> Tensor:
    """From blocks of a parameter to the layout of its prior."""
    return blocks[entry.priors[0].blocks.block]


def _by_block(cells: Tensor, entry: ParameterPlan) -> Tensor:
    """From the layout of a prior to blocks of its parameter."""
    blocks = entry.priors[0].blocks
    flat = cells.reshape((len(blocks.block), *cells.shape[len(blocks.batch) :]))
    out = flat.new_empty(len(blocks.elements), *flat.shape[1:])
    out[blocks.block] = flat
    return out


def _parent_index(parent: ParameterPlan, child: str) -> Tensor:
    """Which entries of the parent's value are the spread of every entry of the child."""
    use = next(use for use in parent.uses if use.site == child)
    return use.blocks.elements[use.blocks.block].reshape((*use.blocks.batch, *use.blocks.elements.shape[1:]))


def _count(sums: tuple[Tensor, ...], entry: ParameterPlan, sites: Sites, parent: ParameterPlan) -> Tensor:
    r"""The number of rows :math:`\kappa` that a location's posterior is worth: precision in units of the rows' own."""
    alone = sums_of(entry, sites, priors_only=True)[1]
    use = next(use for use in parent.uses if use.site == entry.name)
    factor = torch.ones(()) if use.blocks.factor is None else use.blocks.factor.reshape(-1)[0]
    total = sums[1]
    if total.dim() > 1:
        total, alone = total[:, 0, 0], alone[:, 0, 0]
    return total / alone / factor
