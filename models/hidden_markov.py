r"""Hidden Markov models: the steps of a sequence come from K states that follow one another as a Markov chain.

.. math::

    z_{n1} &\sim \mathrm{Categorical}(\pi) \\
    z_{nt} \mid z_{n,t-1} = i &\sim \mathrm{Categorical}(A_i) \\
    x_{nt} \mid z_{nt} = k &\sim \text{emission } k
"""

from __future__ import annotations

from functools import partial
from typing import Any, ClassVar

import pyro
import pyro.distributions as dist
import torch
from jaxtyping import Float, Int, Num
from torch import Tensor
from torch.distributions import constraints

from pyro_lvm.distributions.given_rows import as_row_family
from pyro_lvm.distributions.hidden_markov import HMM
from pyro_lvm.distributions.rows import Kind
from pyro_lvm.handlers.counted import counted
from pyro_lvm.ops.kmeans import kmeans
from pyro_lvm.ops.missing import fill, has_gaps
from pyro_lvm.ops.row_checks import check_sequences
from pyro_lvm.ops.steps import Steps, check_lengths
from pyro_lvm.ops.topology import Topology, possible_moves
from pyro_lvm.ops.whole_number import whole_number
from pyro_lvm.protocols import LatentVariableModel

__all__ = ["HiddenMarkov", "Priors", "checked_width"]

Priors = dict[str, Any]

# Pseudo-counts of the noise in a start: far enough from equal for seeds to differ, near enough for no move to be lost.
EVENNESS = 20.0


class HiddenMarkov(LatentVariableModel):
    r"""Hidden Markov model with emissions of any kind.

    ====================  ===========================================  ============  ====================
    symbol                meaning                                      shape         code
    ====================  ===========================================  ============  ====================
    :math:`\pi`           law of the first state                       (K,)          `initial_probs`
    :math:`A`             law of the next state, row by previous one   (K, K)        `transition_probs`
    :math:`z_{nt}`        state of a step                              (n, T)        `infer["states"]`
    :math:`x_{nt}`        step of a sequence                           (n, T, d)     site `x`
    ====================  ===========================================  ============  ====================

    States are summed out by the distribution at the site `x` (`pyro_lvm.distributions.HMM`), one sequence a row. A step
    whose entries are all NaN is missing and summed out.

    Args:
        num_states: K >= 1.
        emission: A distribution with states along its last batch dimension, whose arguments become parameters that
            start at its own; a function without arguments that returns such a distribution, and may have `pyro.param`
            and `pyro.sample` statements; the kind of columns that are independent given the state, "normal", "gamma",
            "lognormal", "exponential", "poisson" or "bernoulli"; or a `pyro_lvm.distributions.rows.RowFamily`.
        topology: Which transitions are possible: None for all; "left-to-right" for those to the same and to the next
            state, starting in the first; or a (K, K) table of zeros and ones, row by previous state.
        priors: None for maximum likelihood; True for the default priors (Dirichlet(1) for initial and transition
            probabilities); or a dict that replaces some of them, each a distribution or a function of the model that
            returns one.
        data_dim: Number of columns, for emissions by kind; taken from the data by `initialize` if None.

    Raises:
        ValueError: An argument is out of range.

    References:
        L. Rabiner (1989), A tutorial on hidden Markov models, Proceedings of the IEEE 77.

    Example:
        >>> import torch, pyro.distributions as dist, pyro_lvm as lvm
        >>> x = lvm.datasets.load("geyser").x[:, :1]
        >>> emission = dist.Gamma(torch.tensor([60.0, 80.0]), torch.tensor([1.0, 1.0]))
        >>> fit = lvm.fit(lvm.models.HiddenMarkov(2, emission), x, seed=0, max_epochs=20, progress=False)
        >>> sorted(fit.params)
        ['concentration', 'initial_probs', 'rate', 'transition_probs']
    """

    sequences: ClassVar[bool] = True
    handles_missing: ClassVar[bool] = True
    first: Tensor
    allowed: Tensor

    def __init__(
        self,
        num_states: int,
        emission: Any,
        topology: Topology = None,
        priors: bool | Priors | None = None,
        data_dim: int | None = None,
    ) -> None:
        super().__init__()
        self.num_states = whole_number(self._name, "num_states", num_states)
        self.given_emission = emission
        self.rows = as_row_family(self._name, emission, self.num_states, checked_width(self._name, data_dim))
        first, allowed, self.topology = self._possible(topology)
        self.register_buffer("first", first)
        self.register_buffer("allowed", allowed)
        self.priors = priors
        unknown = set(priors) - set(self._kinds) if isinstance(priors, dict) else set()
        if unknown:
            raise ValueError(
                f"{self._name}: expected priors for {', '.join(self._kinds)}; got {', '.join(sorted(unknown))}."
            )
        self.dims = {name: list(axes) for name, (_, axes) in self._kinds.items()}  # type: ignore[misc]  # by emission
        if self._complete:
            self._declare(torch.ones_like(first), torch.ones_like(allowed), *self.rows.unseen(self.num_states), 1)

    def _possible(self, topology: Topology) -> tuple[Tensor, Tensor, Any]:
        """Which first states and transitions are possible, zeros and ones; and the topology as it can be written."""
        return possible_moves(self._name, topology, self.num_states)

    @property
    def _complete(self) -> bool:
        """Whether the shapes of all parameters are known."""
        return self.rows.complete

    @property
    def _name(self) -> str:
        return type(self).__name__

    @property
    def config(self) -> dict[str, Any]:
        """The constructor's arguments."""
        return {**self._config_of_chain, "emission": self.given_emission, "data_dim": self.data_dim}

    @property
    def _config_of_chain(self) -> dict[str, Any]:
        return {"num_states": self.num_states, "topology": self.topology, "priors": self.priors}

    @property
    def _kinds(self) -> dict[str, Kind]:
        """Constraint and axes of every parameter."""
        states = {
            "initial_probs": Kind(constraints.simplex, ("state",)),
            "transition_probs": Kind(constraints.simplex, ("state", "next_state")),
        }
        return {**states, **self.rows.parameters}

    @property
    def data_dim(self) -> int | None:
        """Number of columns of a step."""
        return self.rows.data_dim

    def fixed_entries(self, name: str) -> int:
        """How many probabilities the topology rules out, or leaves no choice of."""
        possible = {"initial_probs": self.first, "transition_probs": self.allowed}.get(name)
        return 0 if possible is None else int((possible == 0).sum())

    # The program

    def forward(
        self,
        x: Float[Tensor, "n t d"] | None = None,
        lengths: Int[Tensor, " n"] | None = None,
        *,
        size: int | None = None,
        num_steps: int | None = None,
        sample_weights: Num[Tensor, " n"] | None = None,
    ) -> Float[Tensor, "n t d"]:
        """Run the program.

        Args:
            x: Observed sequences, shape (n, T, d), NaN where missing; None to generate.
            lengths: Number of steps of every sequence, shape (n,); T by default. What lies beyond does not matter.
            size: Number of sequences to generate.
            num_steps: Number of steps to generate; by default that of the longest training sequence.
            sample_weights: How often each sequence counts, shape (n,), >= 0; once by default.

        Returns:
            Sequences, shape (n, T, d).
        """
        return self._run(x, lengths, size, num_steps, sample_weights)

    def _run(
        self,
        x: Tensor | None,
        lengths: Tensor | None,
        size: int | None,
        num_steps: int | None,
        sample_weights: Tensor | None,
        covariates: Tensor | None = None,
    ) -> Tensor:
        if x is None and size is None:
            raise ValueError(f"{self._name}: expected sequences x or a size to generate; got neither.")
        steps = x.shape[1] if x is not None else int(self.num_steps) if num_steps is None else num_steps
        rows = size if x is None else len(x)
        parameters = {name: getattr(self, name) for name in self._kinds if name in self.rows.parameters}
        x, known = (None, None) if x is None else self._split(x)
        emission = self._emission(parameters, known, covariates)
        law = self._law(emission, covariates, num_steps=steps, lengths=lengths)
        with pyro.plate("data", rows), counted(sample_weights, self.initial_probs):
            return pyro.sample("x", law, obs=x, infer={"states": "z"}).to(self.initial_probs.dtype)

    def _law(self, emission: Any, covariates: Tensor | None, **options: Any) -> HMM:
        """The law of sequences, given that of steps in every state."""
        return HMM(*self.chain(), emission, **options)

    def chain(self) -> tuple[Float[Tensor, "*m k"], Float[Tensor, "*m k k"]]:
        """Probabilities of the first state and of transitions; impossible ones are exactly 0."""
        initial, transition = self.initial_probs, self.transition_probs
        if "transition_probs" not in self.initial_values or bool(self.allowed.all()):
            return initial, transition
        # a prior is one of whole rows; what is left of a Dirichlet row is again Dirichlet
        return initial, transition * self.allowed / (transition * self.allowed).sum(-1, keepdim=True)

    def _emission(self, parameters: dict[str, Tensor], known: Tensor | None, covariates: Tensor | None = None) -> Any:
        """The law of steps, states along the last batch dimension."""
        return self.rows.law(parameters, known, *(() if covariates is None else (covariates,)))

    def _split(self, x: Tensor) -> tuple[Tensor, Tensor | None]:
        """Sequences and which of their entries are known; None if steps are known as a whole or not at all."""
        if x.shape[-1] == 1 or not has_gaps(x):
            return x, None
        known = ~x.isnan()
        if bool((known.all(-1) | ~known.any(-1)).all()):
            return x, None
        return torch.where(known, x, self.rows.example), known.unsqueeze(-2)

    # Checks

    def _check_shape(self, x: Tensor) -> None:
        check_sequences(self._name, x, self.data_dim)

    def check(self, x: Tensor) -> None:
        """Raise a ValueError unless `x` has shape (n, T, d), with the right d and all known entries in the support."""
        self._check_shape(x)
        self.rows.check(self._name, x)

    def check_covariates(self, rows: int, lengths: Any = None, **covariates: Any) -> None:
        """Raise a ValueError unless `lengths`, if given, holds one whole number >= 1 for each of the sequences."""
        if lengths is not None:
            check_lengths(self._name, lengths, rows)

    def check_training(self, x: Tensor, lengths: Tensor | None = None, sample_weights: Tensor | None = None) -> None:
        """Raise a ValueError for fewer steps than states, or steps from which the emission cannot be learned."""
        self.check(x)
        self._check_steps(Steps.of(self._name, x, lengths, sample_weights))

    def _check_steps(self, steps: Steps) -> None:
        if len(steps.rows) < max(2, self.num_states):
            raise ValueError(
                f"{self._name}: expected at least {max(2, self.num_states)} steps (two, and as many as states); got "
                f"{len(steps.rows)} that are known. Lower num_states or add data."
            )
        self.rows.check_training(self._name, steps.rows)

    # The start

    def initialize(self, x: Tensor, lengths: Tensor | None = None, sample_weights: Tensor | None = None) -> None:
        """Start from k-means clusters of the steps and nearly equal transitions; other seeds give other starts.

        With `topology="left-to-right"` the clusters are successive parts of the sequences.

        Args:
            x: Sequences, shape (n, T, d), NaN where missing.
            lengths: Number of steps of every sequence, shape (n,).
            sample_weights: How often each sequence counts, shape (n,); those that do not count give no start.

        Raises:
            ValueError: Too few steps, steps that do not fit the model, or bad lengths or weights.
        """
        self._initialize(x, lengths, sample_weights)

    def _initialize(
        self, x: Tensor, lengths: Tensor | None, sample_weights: Tensor | None, covariates: Tensor | None = None
    ) -> None:
        self._check_shape(x)
        self.rows.arrange(x.reshape(-1, x.shape[-1]))
        self.check(x)
        steps = Steps.of(self._name, x, lengths, sample_weights)
        self._check_steps(steps)
        members = self._members(steps) * steps.counts.unsqueeze(-1)
        extra = () if covariates is None else (covariates[steps.used],)
        start = self.rows.start(steps.rows, members, *extra)
        summary = self.rows.summary(steps.rows, steps.counts, self.num_states, *extra)
        self._declare(*self._noisy_chain(x), start, summary, int(x.shape[1]))

    def _members(self, steps: Steps) -> Tensor:
        """Which steps start in which state, (m, K)."""
        k = self.num_states
        if self.topology == "left-to-right":
            cuts = torch.distributions.Dirichlet(torch.full((k,), EVENNESS)).sample().cumsum(0)[:-1]
            assignment = torch.bucketize(steps.progress, cuts.to(steps.progress))
        else:
            assignment = kmeans(fill(self.rows.features(steps.rows))[0], k)
        return torch.nn.functional.one_hot(assignment, k).to(steps.rows)

    def _noisy_chain(self, like: Tensor) -> tuple[Tensor, Tensor]:
        """Nearly equal probabilities, not normalised."""
        noise = [torch._standard_gamma(torch.full_like(table, EVENNESS)) for table in (self.first, self.allowed)]
        return noise[0].to(like), noise[1].to(like)

    def _declare(
        self, initial: Tensor, transition: Tensor, start: dict[str, Tensor], summary: dict[str, Tensor], steps: int
    ) -> None:
        """Create the parameters at a start, with priors that know the summary."""
        self.first, self.allowed = self.first.to(initial), self.allowed.to(initial)
        self.register_buffer("num_steps", torch.tensor(steps))
        for name, value in summary.items():
            self.register_buffer(f"prior_{name}", value)
        default: dict[str, Any] = {
            **self._chain_priors,
            **{name: partial(_prior_of_rows, name=name, summary=tuple(summary)) for name in self.rows.parameters},
        }
        given = self.priors if isinstance(self.priors, dict) else {}
        priors = {**(default if self.priors else {}), **given}
        if "transition_probs" not in priors:
            transition = transition * self.allowed
        transition = transition / transition.sum(-1, keepdim=True)
        starts = {**self._chain_start(transition), **start}
        initial = initial * self.first / (initial * self.first).sum(-1, keepdim=True)
        if self.topology == "left-to-right":
            self.register_buffer("initial_probs", initial)  # nothing is left to learn
        else:
            starts = {"initial_probs": initial, **starts}
        for name, value in starts.items():
            self.declare(name, value, self._kinds[name].constraint, priors.get(name))

    @property
    def _chain_priors(self) -> dict[str, Any]:
        """Default priors of the parameters of the chain."""
        return {name: partial(even_prior, name=name) for name in ("initial_probs", "transition_probs")}

    def _chain_start(self, transition: Tensor) -> dict[str, Tensor]:
        """Where the parameters of the chain start, but for those of the first state."""
        return {"transition_probs": transition}


def checked_width(caller: str, data_dim: int | None) -> int | None:
    """A number of columns, None while it is left to the data."""
    return None if data_dim is None else whole_number(caller, "data_dim", data_dim)


def even_prior(model: HiddenMarkov, *, name: str) -> Any:
    """Dirichlet(1) for each row of probabilities."""
    one = torch.ones_like(model.initial_values[name])
    return dist.Dirichlet(one).to_event(one.dim() - 1)


def _prior_of_rows(model: HiddenMarkov, *, name: str, summary: tuple[str, ...]) -> Any:
    known = {entry: getattr(model, f"prior_{entry}") for entry in summary}
    return model.rows.prior(name, model, known, model.num_states)
