"""The contracts, on one page: what a model, a guide, an inference and a sampler are to each other.

They meet only at sample sites. A model knows no inference, an inference knows no model.
"""

from __future__ import annotations

import inspect
from abc import abstractmethod
from collections.abc import Callable, Sequence
from typing import Any, ClassVar, Protocol, runtime_checkable

from pyro.nn import PyroModule, PyroParam, PyroSample
from torch import Tensor
from torch.distributions import constraints

from pyro_lvm.ops.shaped_prior import shaped_prior

__all__ = ["Guide", "Inference", "LatentVariableModel", "Model", "Objective", "Sampler"]

Model = Callable[..., Any]
"""Any Pyro program. The leading axis of every data argument is the plate of the rows, by custom named "data"."""

Guide = Callable[..., Any]
"""Any Pyro program with the model's arguments.

A method `means()`, if there is one, returns the exact mean of every site; else draws are averaged. A guide that
searches for the laws of the rows at hand has `settle(*args, **kwargs)`, which returns a guide for these rows, taken as
new, that does not search again; it learns which rows those of a step are from `handlers.rows.rows_at_hand()`.
One of point masses has `proposal(*args, **kwargs)`, which returns a guide for these rows with a density, by which the
log-likelihood of rows is weighted. One that a single inference trains names it in an attribute `trained_by`. One that
is the exact posterior has a method `row_log_likelihood(*args, **kwargs)`, log p(x) of every row in nats, and rows whose
means are affine in its sites.
"""


@runtime_checkable
class Objective(Protocol):
    """A loss for `SVI`; every `pyro.infer.ELBO` is one.

    It may have `state_dict()` and `load_state_dict(state)`: what a resumed run needs besides parameters, as chains and
    averages, in tensors, numbers and text. An attribute `loss_may_rise = True` says that its loss does not tell how far
    training has come, so that nothing stops early by it; `loss_ranks = False` that a lower one need not be
    better, so that no restart and no epoch is chosen by it. Constructor arguments are kept in attributes of their
    names.
    """

    def loss(self, model: Model, guide: Guide, *args: Any, **kwargs: Any) -> float:
        """The loss in nats."""

    def loss_and_grads(self, model: Model, guide: Guide, *args: Any, **kwargs: Any) -> float:
        """The loss in nats; gradients are left in `.grad`."""


@runtime_checkable
class Inference(Protocol):
    """What `lvm.fit` trains by. `model` and `guide` may be None until `fit` fills them in.

    An attribute `guides`, if there is one, names the guides that it takes, the default first. A method
    `expect_steps(num_steps)`, if there is one, is told before training how many steps are to
    come, and again when a stream's length is known.
    """

    model: Model | None
    guide: Guide | None
    full_batch: bool

    def step(self, *args: Any, **kwargs: Any) -> float:
        """One update on a batch; returns the loss in nats, before the update."""

    def loss(self, *args: Any, **kwargs: Any) -> float:
        """The loss in nats, without an update."""

    def state_dict(self) -> dict[str, Any]:
        """Everything but the parameters that a resumed run needs."""

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore `state_dict`."""


@runtime_checkable
class Sampler(Protocol):
    """What `lvm.fit` draws posterior samples by."""

    model: Model | None

    def run(self, *args: Any, **kwargs: Any) -> dict[str, Tensor]:
        """Draws of every continuous latent site, each of shape (chains, draws, ...)."""


class LatentVariableModel(PyroModule):
    """Base of the models in this package: what `fit`, checkpoints and plots may ask of a model beyond calling it.

    Subclasses keep every constructor argument in an attribute of the same name. Parameters are `PyroParam`s (maximum
    likelihood), or `PyroSample`s (Bayesian) where `priors` has an entry.

    Attributes:
        dims: Names of the axes of each parameter, for labelled output.
        handles_missing: Whether NaN in `x` means missing and is summed out; else the front door turns it away.
        sequences: Whether a row is a sequence, `x` of shape (n, T, d), with an argument `lengths`.
        initial_values: Where inference starts the sites with priors.
        least_gain: Gain of an epoch of EM, nats per known entry, that is worth another, unless `fit` is told a `tol`.
        observing_rows: What to do for a site to observe rows as they are, a sentence, where none does.
        latent_site: Name of the latent vector of every row, for encoders.
        rows_site: The program's only site besides parameters, if its rows are independent draws from `law()`; else "".
    """

    dims: ClassVar[dict[str, list[str]]] = {}
    handles_missing: ClassVar[bool] = False
    sequences: ClassVar[bool] = False
    latent_site: ClassVar[str] = "z"
    rows_site: ClassVar[str] = ""
    least_gain: ClassVar[float] = 0.0
    observing_rows: str = "Observe the rows in one site."

    def __init__(self) -> None:
        super().__init__()
        self.initial_values: dict[str, Tensor] = {}

    @abstractmethod
    def forward(self, x: Tensor | None = None, *, size: int | None = None) -> Tensor:
        """Run the program on rows `x`, or generate `size` rows."""

    @abstractmethod
    def initialize(self, x: Tensor) -> None:
        """Declare the parameters for rows like `x`, at a start that depends on them and on the random seed."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run the program; of tensors."""
        for value in (*args, *kwargs.values()):
            if hasattr(value, "__array__") and not isinstance(value, Tensor):
                raise TypeError(
                    f"{type(self).__name__}: expected tensors; got {type(value).__name__}. "
                    "Pass torch.as_tensor of it, or call lvm.fit, which takes arrays and tables."
                )
        return super().__call__(*args, **kwargs)

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            if name not in self.dims and name not in inspect.get_annotations(type(self)):
                raise
        raise AttributeError(
            f"{type(self).__name__}: expected parameters; '{name}' is not declared yet. "
            "Call model.initialize(x) first, or lvm.fit, which does."
        )

    @property
    def starts(self) -> tuple[dict[str, Any], ...]:
        """Keyword arguments of `initialize` for the kinds of start that a fit should try, one at least."""
        return ({},)

    @abstractmethod
    def check(self, x: Tensor) -> None:
        """Raise a ValueError if rows `x` do not fit the model."""

    def check_covariates(self, rows: int, **covariates: Any) -> None:
        """Raise a ValueError if what else the program takes does not fit `rows` rows."""

    def check_training(self, x: Tensor) -> None:
        """Raise a ValueError if rows `x` are not enough to learn from."""
        self.check(x)

    def canonicalise(self) -> None:
        """Move parameters to those agreed on, of all with the same law of rows; called after epochs of full batches."""

    def condensed(self, args: tuple, kwargs: dict[str, Any]) -> tuple[tuple, dict[str, Any]]:
        """Arguments of fewer rows, where some make the program as likely at all values of its sites: for samplers."""
        return args, kwargs

    def remarks(self, columns: Sequence[str] | None = None) -> list[str]:
        """What people should know of the parameters learned, a sentence each; `fit` warns of it.

        Args:
            columns: Names of the data's columns, if they have any.
        """
        return []

    def fixed_entries(self, name: str) -> int:
        """How many entries of a parameter are constants, as probabilities of what the model rules out."""
        return 0

    @property
    def config(self) -> dict[str, Any]:
        """The constructor's arguments."""
        return {name: getattr(self, name) for name in inspect.signature(type(self)).parameters}

    def __repr__(self) -> str:
        given = ", ".join(f"{name}={value!r}" for name, value in self.config.items() if value is not None)
        return f"{type(self).__name__}({given})"

    def declare(self, name: str, start: Tensor, constraint: constraints.Constraint, prior: Any | None = None) -> None:
        """A parameter that starts at `start`: learned as a point, or, with a prior, inferred.

        Args:
            name: Attribute and site name.
            start: Constrained value.
            constraint: Where a point estimate may lie.
            prior: A distribution, or a function of the model that returns one: of the parameter, or of each entry.

        Raises:
            ValueError: The prior is of another shape.
        """
        if prior is None:
            setattr(self, name, PyroParam(start.detach().clone(), constraint))
        else:
            setattr(
                self, name, PyroSample(shaped_prior(type(self).__name__, name, prior, tuple(start.shape), constraint))
            )
            self.initial_values[name] = start.detach().clone()
