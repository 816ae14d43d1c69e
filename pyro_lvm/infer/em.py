r"""Expectation-maximisation for any enumerable Pyro program.

References:
    A. Dempster, N. Laird, D. Rubin (1977), Maximum likelihood from incomplete data via the EM algorithm, JRSS B 39.
    R. Neal, G. Hinton (1998), A view of the EM algorithm that justifies incremental, sparse, and other variants.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from typing import Any

import pyro
from torch import Tensor

from pyro_lvm.infer.averaging import Averages, keep_averages
from pyro_lvm.infer.derive import make_plan, refresh
from pyro_lvm.infer.em_variants import check_program, check_variant
from pyro_lvm.infer.enumeration import expect
from pyro_lvm.infer.expectation import Expectation
from pyro_lvm.infer.few_rows import plan_of_few_rows, settings_of
from pyro_lvm.infer.gaussian_moments import GaussianMoments, is_exact, sites_of_points
from pyro_lvm.infer.gradient_step import GradientStep, Optimizer
from pyro_lvm.infer.guard import LOWERED, Step
from pyro_lvm.infer.lost import report_lost
from pyro_lvm.infer.maximise import maximise, own_log_prior, own_m_step
from pyro_lvm.infer.nonfinite import NonFiniteLoss, in_one_sentence
from pyro_lvm.infer.plan import Plan
from pyro_lvm.infer.row_pass import Memory
from pyro_lvm.infer.seeding import reseed
from pyro_lvm.infer.squarem import extrapolate, put
from pyro_lvm.infer.structure import plate_nesting
from pyro_lvm.ops.constructor_repr import ConstructorRepr
from pyro_lvm.ops.real_number import real_number
from pyro_lvm.ops.whole_number import whole_number

__all__ = ["EM"]


class EM(ConstructorRepr):
    r"""Exact EM: posterior of all discrete sites by enumeration, closed-form M-steps wherever they exist.

    Each call of `step` finds the posterior :math:`p(z \mid x, \theta)` and moves :math:`\theta` to a maximum (or, for
    parameters without a closed form, uphill) of :math:`\mathrm{E}[\log p(x, z \mid \theta')]`, so the log-likelihood
    never falls. Should a closed form be wrong for a program, the fall is undone and that parameter gets gradient steps.

    A site may bring its own M-step: `infer={"m_step": f}` with `f(fn, value, weights)` that returns new values of
    parameters by name, given the site's distribution, its value and the posterior weight of every cell of its
    log-density; with `"statistics": s`, f gets sums `s(fn, value, weights)`, a dict that batches average, for weights.
    Or it may ask for gradient steps by `infer={"m_step": "gradient"}`. `infer={"log_prior": g}` tells of a prior that
    it maximises with: `g()` is its log-density in nats, up to a constant.

    With a guide of point masses over continuous sites outside of the plate of the rows (`lvm.guides.MAP`), it finds
    their mode (MAP-EM): conjugate priors enter the closed forms as pseudo-counts. With `lvm.guides.ExactGaussian` the
    latent sites of rows are normal, and the rows an affine map of them with normal noise (factor analysis and its kin):
    the E-step is their posterior in closed form, at a cost that does not grow with the number of complete rows. With
    `lvm.guides.SparseCodes` they are Laplace, and the E-step is their mode.

    Args:
        model: Any Pyro program whose latent sites are discrete and enumerable; parameters by `pyro.param` or
            `PyroParam`. May be left out when passed to `lvm.fit`.
        guide: Point masses over the model's continuous sites, for MAP-EM; or one of the guides above.
        max_plate_nesting: Batch dimensions that plates use; found by running the model once if None.
        variance_floor: Smallest variance relative to that of the observed value; keeps likelihoods bounded.
        gradient_steps: Gradient steps (L-BFGS iterations) per M-step for parameters without a closed form.
        optimizer: Makes the torch optimizer for them from parameters; by default L-BFGS with line search.
        decay: For minibatches: exponent of the step size :math:`(t + 1)^{-\kappa}` by which statistics are averaged
            over batches, 0.5 < decay <= 1 (stepwise EM). None for full batches.
        acceleration: None or "squarem": squared extrapolation over two steps, with a monotone fallback. One call of
            `step` is then one cycle of up to three evaluations of the EM map.
        annealing: Inverse temperatures of the first steps, each in (0, 1]: the posterior is flattened by them, which
            helps out of poor starts (deterministic annealing).

    Attributes:
        evaluations: E-steps so far, those of rejected extrapolations included.

    References:
        N. Ueda, R. Nakano (1998), Deterministic annealing EM algorithm, Neural Networks 11(2).

    Example:
        >>> import torch, pyro, pyro.distributions as dist, pyro_lvm as lvm
        >>> def coins(x):
        ...     weights = pyro.param("weights", torch.tensor([0.4, 0.6]), constraint=dist.constraints.simplex)
        ...     probs = pyro.param("probs", torch.tensor([0.3, 0.6]), constraint=dist.constraints.unit_interval)
        ...     with pyro.plate("data", len(x)):
        ...         z = pyro.sample("z", dist.Categorical(weights), infer={"enumerate": "parallel"})
        ...         each = probs[z].unsqueeze(-1).expand(*z.shape, 10)
        ...         pyro.sample("x", dist.Bernoulli(each).to_event(1), obs=x)
        >>> x = torch.tensor([[1.0] * 9 + [0.0], [0.0] * 8 + [1.0] * 2, [1.0] * 8 + [0.0] * 2])
        >>> with pyro.get_param_store().scope():
        ...     em = lvm.infer.EM(coins)
        ...     losses = [em.step(x) for _ in range(5)]
        >>> losses[-1] < losses[0]
        True

        A mixture of regressions is weighted least squares:

        >>> def lines(x, t):
        ...     slope = pyro.param("slope", torch.tensor([-1.0, 1.0]))
        ...     intercept = pyro.param("intercept", torch.zeros(2))
        ...     with pyro.plate("data", len(x)):
        ...         z = pyro.sample("z", dist.Categorical(torch.ones(2)), infer={"enumerate": "parallel"})
        ...         pyro.sample("x", dist.Normal(slope[z] * t + intercept[z], 0.5), obs=x)
        >>> with pyro.get_param_store().scope():
        ...     print(lvm.infer.EM(lines).plan(torch.tensor([1.0, -2.0, 3.0]), torch.tensor([1.0, 2.0, 3.0])))
        E-step: exact enumeration of z (2 states), one backward pass
        parameter  shape  M-step       because
        slope      (2,)   closed form  it is a coefficient of x.loc (least squares)
        intercept  (2,)   closed form  it is a coefficient of x.loc (least squares)
    """

    guides = ("map", "exact-gaussian", "sparse-codes")

    def __init__(
        self,
        model: Callable | None = None,
        guide: Callable | None = None,
        *,
        max_plate_nesting: int | None = None,
        variance_floor: float = 1e-6,
        gradient_steps: int = 10,
        optimizer: Optimizer | None = None,
        decay: float | None = None,
        acceleration: str | None = None,
        annealing: Sequence[float] = (),
    ) -> None:
        check_variant(decay, acceleration, annealing)
        self.model, self.guide = model, guide
        self.max_plate_nesting = max_plate_nesting
        self.variance_floor = real_number("EM", "variance_floor", variance_floor, ">= 0")
        self.gradient_steps = whole_number("EM", "gradient_steps", gradient_steps)
        self.optimizer = optimizer
        self.own = () if optimizer is None else ("optimizer",)
        self.decay = decay
        self.acceleration = acceleration
        self.annealing = tuple(annealing)
        self.evaluations = self._steps = 0
        self._plan: Plan | None = None
        self._weights_wanted = True
        self._demoted: dict[str, str] = {}
        self._lost: set[tuple[str, int]] = set()
        self._last: Step | None = None
        self._settings: tuple = ()
        self._memory = Memory(fixed=decay is not None)
        self._averages = None if decay is None else Averages(decay)
        self._gradient = GradientStep(gradient_steps, optimizer)
        self._moments = GaussianMoments(self._averages)

    @property
    def full_batch(self) -> bool:
        """Whether every step wants all rows."""
        return self.decay is None

    def step(self, *args: Any, **kwargs: Any) -> float:
        """One E-step and one M-step; with acceleration, one cycle of them.

        Args:
            args: The model's arguments.
            kwargs: The model's keyword arguments.

        Returns:
            Negative log-likelihood of the data at the parameters *before* the step, in nats (with a guide, negative log
            joint density of data and guide's values).
        """
        expectation = self._map(args, kwargs)
        if self.acceleration is not None and self._temperature == 1.0:
            self._extrapolated(expectation, args, kwargs)
        return -expectation.log_likelihood

    def seed(self, *args: Any, **kwargs: Any) -> None:
        """Move the parameters to a start that depends on the data: an M-step on k-means++ clusters of the rows.

        For programs whose starting values are constants, so that restarts differ; other programs than mixtures get an
        M-step under perturbed posteriors. Draws from torch's generator.
        """
        reseed(expectation := self._expect(args, kwargs))
        self._maximise(expectation, args, kwargs)
        self._last = None

    def loss(self, *args: Any, **kwargs: Any) -> float:
        """Negative log-likelihood of the data at the current parameters, nats; nothing is updated."""
        return -self._expect(args, kwargs, keep_weights=False).log_likelihood

    def held_out_loss(self, *args: Any, **kwargs: Any) -> float:
        """Negative log-likelihood of other data, in nats: with a guide, the density of its values does not count."""
        found = self._expect(args, kwargs, keep_weights=False, unscored=sites_of_points(self.guide, args, kwargs))
        return own_log_prior(found) - found.log_likelihood

    def posterior(self, *args: Any, **kwargs: Any) -> dict[str, Tensor]:
        """Posterior of every discrete site: its plates' shape, then its states along the last axis."""
        return self._expect(args, kwargs).marginals()

    def plan(self, *args: Any, **kwargs: Any) -> Plan:
        """How each parameter will be updated, and why; print it. Parameters that the program creates do not stay."""
        with (store := pyro.get_param_store()).scope(store.get_state()):
            return self._current_plan(self._expect(args, kwargs), args, kwargs)

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run needs besides the parameters."""
        return {
            "demoted": dict(self._demoted),
            "steps": self._steps,
            "averages": None if self._averages is None else self._averages.state_dict(),
            "references": self._memory.state_dict(),
            "optimizer": self._gradient.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore `state_dict`."""
        self._demoted = dict(state["demoted"])
        self._steps = state["steps"]
        if self._averages is not None:
            self._averages.load_state_dict(state["averages"])
            self._memory.load_state_dict(state["references"])
        self._gradient.pending = state["optimizer"]

    def release(self) -> None:
        """Give back the memory that steps work in; another step takes it again."""
        self._memory.scratch.release()

    def _map(self, args: tuple, kwargs: dict[str, Any]) -> Expectation:
        """One EM step, taken back and repeated with gradients if the step before made the log-likelihood fall."""
        expectation = self._expect(args, kwargs, temperature := self._temperature, self._weights_wanted)
        last = self._last
        if (
            last is not None
            and self._plan is not None
            and last.same_data(args, kwargs)
            and last.fell(expectation)
            and not self._excused(last, self._plan, args, kwargs, expectation)
        ):
            self._undo(last, self._plan, args, kwargs, expectation)
            expectation = self._expect(args, kwargs, temperature)
        self._maximise(expectation, args, kwargs)
        self._steps += 1
        if temperature < 1.0 or self._averages is not None:
            self._last = None
        return expectation

    @property
    def loss_may_rise(self) -> bool:
        """Whether the last step was one of the annealed ones."""
        return 0 < self._steps <= len(self.annealing)

    @property
    def _temperature(self) -> float:
        return self.annealing[self._steps] if self._steps < len(self.annealing) else 1.0

    def _maximise(self, expectation: Expectation, args: tuple, kwargs: dict[str, Any]) -> None:
        plan = self._current_plan(expectation, args, kwargs)
        self._weights_wanted = plan.wants_weights(expectation)
        if self._weights_wanted and not expectation.has_weights:
            expectation = self._expect(args, kwargs, self._temperature)
        self._last = Step(args, kwargs, expectation)
        report_lost(expectation, plan, self._lost)
        try:
            with in_one_sentence("EM", started=True):
                averages = None if expectation.completed.averaged else self._averages
                updates = maximise(plan, expectation, self.variance_floor, self._memory, averages)
                for site in plan.own:
                    updates.update(own_m_step(expectation, site, averages))
                for name, value in updates.items():
                    expectation.parameters[name].write(value)
                if self._averages is not None:
                    self._averages.advance(expectation.completed.averaged)
                if plan.gradient:
                    program, args, kwargs, *_ = expectation.completed
                    self._gradient.run(program, self.max_plate_nesting or 0, plan, expectation, args, kwargs)
        except NonFiniteLoss:
            self._last.restore(expectation)
            raise

    def _extrapolated(self, first: Expectation, args: tuple, kwargs: dict[str, Any]) -> None:
        """The rest of a cycle of squared extrapolation."""
        start = list(self._last.values.values()) if self._last is not None else []
        second = self._map(args, kwargs)
        last = self._last
        if last is None or not start:
            return
        tensors = [second.parameters[name].unconstrained for name in last.values]
        two = [tensor.detach().clone() for tensor in tensors]
        target = extrapolate(start, list(last.values.values()), two)
        if target is None:
            return
        put(tensors, target)
        try:
            tried = self._expect(args, kwargs, keep_weights=self._weights_wanted)
        except NonFiniteLoss:
            tried = None
        if tried is None or last.fell(tried):
            put(tensors, two)
        else:
            self._maximise(tried, args, kwargs)

    def _expect(
        self,
        args: tuple,
        kwargs: dict[str, Any],
        temperature: float = 1.0,
        keep_weights: bool = True,
        floor: float | None = None,
        unscored: Collection[str] = (),
    ) -> Expectation:
        model = check_program(self.model, is_exact(self.guide), self.annealing)
        if self.max_plate_nesting is None:
            self.max_plate_nesting = plate_nesting(model, args, kwargs)
        self.evaluations += 1
        with in_one_sentence("EM", started=self._steps > 0):
            completed = self._moments.complete(model, self.guide, args, kwargs)
            found = expect(
                completed.program,
                self.max_plate_nesting,
                completed.args,
                completed.kwargs,
                temperature=temperature,
                memory=self._memory,
                unscored=unscored,
                keep_weights=keep_weights,
                variance_floor=self.variance_floor if floor is None else floor,
            )
        if completed.log_likelihood is not None:
            found.log_likelihood = completed.log_likelihood
        found.completed = completed
        found.log_likelihood += own_log_prior(found)
        return found

    def _current_plan(self, expectation: Expectation, args: tuple, kwargs: dict[str, Any]) -> Plan:
        """The plan, derived once and again whenever the sites or the shapes of their arguments change."""
        settings = settings_of(args, kwargs)
        changed, self._settings = settings != self._settings, settings
        if self._plan is None or changed or not refresh(self._plan, expectation):
            program, args, kwargs, *_ = expectation.completed
            few = plan_of_few_rows(program, self.max_plate_nesting or 0, expectation, args, kwargs)
            self._plan = few or make_plan(expectation, True)
            self._plan.strategy = expectation.completed.strategy or self._plan.strategy
            if self._averages is not None and not expectation.completed.averaged:
                keep_averages(self._plan, expectation)
            for name, reason in self._demoted.items():
                self._plan.demote(name, reason)
        return self._plan

    def _excused(self, last: Step, plan: Plan, args: tuple, kwargs: dict[str, Any], fallen: Expectation) -> bool:
        """Whether no closed form is to blame for a fall."""

        def score() -> float:
            return self._expect(args, kwargs, keep_weights=False).log_likelihood

        def unfloored() -> dict[str, Tensor]:
            lower = 1e-3 * self.variance_floor
            return maximise(plan, self._expect(args, kwargs, floor=lower), lower, self._memory)

        return last.is_rounding(fallen, score) or last.is_floor(fallen, plan, unfloored, score)

    def _undo(self, last: Step, plan: Plan, args: tuple, kwargs: dict[str, Any], fallen: Expectation) -> None:
        """Go back one step and hand the parameters that caused the fall over to the gradient step."""
        for name in last.culprits(plan, fallen, lambda: self._expect(args, kwargs), self.optimizer is not None):
            self._demoted[name] = LOWERED
            plan.demote(name, LOWERED)
