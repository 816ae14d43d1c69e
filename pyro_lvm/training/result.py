"""A fitted model: parameters, history, and one verb for each thing people do with it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from pyro_lvm import _pyro
from pyro_lvm.evidence import Evidence, concatenate, log_likelihood
from pyro_lvm.infer.parameters import Parameter, Parameters
from pyro_lvm.infer.structure import structure
from pyro_lvm.ops.whole_number import whole_number
from pyro_lvm.protocols import LatentVariableModel
from pyro_lvm.training.data import Arguments
from pyro_lvm.training.guide_draws import draw_guide, posterior_means
from pyro_lvm.training.labels import Labelled, as_labelled, in_order
from pyro_lvm.training.scope import Scope
from pyro_lvm.training.sites import check_plate
from pyro_lvm.training.stream import as_stream

if TYPE_CHECKING:
    from pyro_lvm.diagnostics.forecast import Forecast

__all__ = ["Fit"]

GUIDE_DRAWS = 500


class Fit:
    """What `lvm.fit` returns.

    Verbs mean what they mean in scikit-learn; all densities are in nats.

    Attributes:
        model: The fitted copy of the model.
        guide: The fitted copy of the guide, or None.
        inference: What trained it, with its state.
        history: Loss by epoch (nats over all rows), and validation loss if there was any.
        converged: Whether training stopped because nothing improved any more.
        stopped: Why training stopped.
        sampled: Whether the draws were given by a sampler.
        restarts: Seed, loss, epochs and convergence of every restart.
        seed: The seed that reproduces this fit.
        columns: Column names of the training data, if it had any.
        missing: Parts of the inference that a file could not hold.
        guide_log_density: Log-density of each draw of the guide, nats; there once `draws` has been read.
    """

    def __init__(
        self,
        model: Callable,
        guide: Callable | None,
        inference: Any,
        scope: Scope,
        *,
        shapes: dict[str, Any],
        columns: tuple[str, ...] | None,
        plate: str,
        seed: int,
        rng_state: Tensor,
    ) -> None:
        self.model = model
        self.guide = guide
        self.inference = inference
        self.scope = scope
        self.shapes = shapes
        self.columns = columns
        self.plate = plate
        self.seed = seed
        self.rng_state = rng_state
        self.history: dict[str, list[float]] = {"loss": []}
        self.converged = False
        self.stopped = ""
        self.restarts: list[dict[str, Any]] = []
        self.seen = torch.empty(0, dtype=torch.long)
        self.trained_on: list[int] = []
        self.guide_log_density = torch.empty(0)
        self._draws: dict[str, Tensor] | None = None
        self.sampled = False
        self.missing: list[str] = []

    # What was learned

    @property
    def params(self) -> dict[str, Tensor]:
        """The model's parameters by their names in the model, whatever found them, in the model's space.

        These are its `param` sites and, where it has priors, its continuous sample sites outside of the plate of the
        rows. Under EM and MAP they are point estimates; under coordinate ascent exact posterior means; under SVI and
        NUTS means of `draws`, components as they were drawn: if chains may number them differently, use
        `summary(x)`, which aligns them. What a guide learned inside is in `parameters()`.
        """
        points = {name: p.value.detach().clone() for name, p in self.parameters(guide=False).items()}
        return {**points, **posterior_means(self, GUIDE_DRAWS)} if self.latent else points

    def parameters(self, guide: bool = True) -> dict[str, Parameter]:
        """The `param` sites of the model, and of the guide if asked for: what training moves."""
        arguments = self.prototype()
        with self.scope(), Parameters() as found, _pyro.validation(False):
            for program in (self.model, self.guide if guide else None):
                if program is not None:
                    structure(program, arguments.args, arguments.kwargs, fresh=False)
        return found.found

    @property
    def latent(self) -> bool:
        """Whether the fit is a law over latent sites (a guide or draws) rather than a point."""
        return self.sampled or self.guide is not None

    @property
    def draws(self) -> dict[str, Tensor]:
        """Draws of the continuous latent sites, shape (chains, draws, ...); of a point fit, its one point."""
        if self._draws is None:
            if self.guide is None:
                self._draws = {name: value[None, None] for name, value in self.params.items()}
            else:
                self._draws, self.guide_log_density = draw_guide(self, GUIDE_DRAWS)
        return self._draws

    @draws.setter
    def draws(self, values: dict[str, Tensor]) -> None:
        self._draws = values
        self.sampled = True

    def forget_draws(self) -> None:
        """Draw from the guide anew when `draws` are next read: it has moved."""
        self._draws = None

    # Using it

    def log_likelihood(self, x: Any) -> Tensor:
        """Log-likelihood of each row, nats, shape (n,): exact at a point, the log predictive density of a posterior."""
        return self.evidence(x).values

    def evidence(self, x: Any) -> Evidence:
        """Log-likelihood of each row with its standard error and the estimator's name; of all rows of a stream."""
        stream = as_stream(x)
        batches = [x] if stream is None else stream.through(self.arguments).batches()
        return concatenate([log_likelihood(self, self.arguments(batch)) for batch in batches])

    def score(self, x: Any) -> float:
        """Mean log-likelihood of the rows, nats; with `sample_weights`, their weighted mean."""
        evidence = self.evidence(x)
        return evidence.total / evidence.num_rows

    def predict_proba(self, x: Any) -> Any:
        """Posterior of the discrete latent sites of each row, shape (n, states); a dict if there are several sites.

        Of sequences: that of every step given the whole sequence, (n, T, states), 0 in padding; a list for a list, and
        without the first axis for one series.
        """
        from pyro_lvm.diagnostics.latents import responsibilities

        return _only(responsibilities(self, self.arguments(x)))

    def predict(self, x: Any) -> Any:
        """Most probable state of the discrete latent sites of each row, shape (n,); a dict if there are several.

        Of sequences: the most probable path (Viterbi's), (n, T), -1 in padding; a list for a list, and without the
        first axis for one series.
        """
        from pyro_lvm.diagnostics.latents import most_probable

        return _only(most_probable(self, self.arguments(x)))

    def transform(self, x: Any) -> Tensor:
        """Posterior mean of the continuous latent sites of each row.

        Raises:
            ValueError: The model has none.
        """
        raise ValueError(
            f"transform: {_name(self.model)} has no continuous latent site of each row. "
            "Use predict_proba for the posterior of its discrete ones."
        )

    def impute(self, x: Any) -> Any:
        """Rows with every missing entry (NaN) at its posterior mean, or at its most probable answer if categorical."""
        from pyro_lvm.diagnostics.impute import impute

        return impute(self, self.arguments(x))

    def forecast(self, x: Any, steps: int, num_samples: int = 100, **covariates: Any) -> Forecast:
        """The law of the steps that follow given sequences: states, means, and draws.

        Args:
            x: Sequences, as in `lvm.fit`.
            steps: How many steps to look ahead.
            num_samples: Draws of what is to come.
            covariates: Arguments of the model that go along the steps, in the steps to come: (n, steps, ...).

        Raises:
            ValueError: The model has no hidden Markov site, or covariates are missing.
        """
        from pyro_lvm.diagnostics.forecast import forecast

        steps, count = whole_number("forecast", "steps", steps), whole_number("forecast", "num_samples", num_samples)
        return forecast(self, self.arguments(x), steps, count, covariates)

    def posterior(self, x: Any, num_samples: int = 100) -> dict[str, Tensor]:
        """Joint draws of all latent sites given rows, shape (num_samples, ...) each; paths are -1 in padding."""
        from pyro_lvm.diagnostics.latents import posterior_draws

        count = whole_number("posterior", "num_samples", num_samples)
        return posterior_draws(self, self.arguments(x), count)

    def sample(self, n: int, *, num_steps: Any = None, **covariates: Any) -> Any:
        """Generate rows; of a posterior, each row from its own draw.

        Args:
            n: Number of rows.
            num_steps: Steps of each row, >= 1, of a model of sequences; by default those of the training data.
            covariates: Arguments of the model that are not generated, with n rows.

        Returns:
            Shape (n, ...); a dict if the model observes several sites.
        """
        from pyro_lvm.diagnostics.latents import generate

        n = whole_number("sample", "n", n)
        if not isinstance(self.model, LatentVariableModel):
            check_plate(self, self.prototype(n))
        num_steps = None if num_steps is None else whole_number("sample", "num_steps", num_steps)
        return _only(generate(self, n, covariates, num_steps))

    def aic(self, x: Any) -> float:
        """Akaike's criterion, lower is better: twice the number of parameters minus twice the log-likelihood.

        A row of weight w counts as w equal rows, so criteria compare only if weights are counts, or sum to the number
        of independent observations.
        """
        from pyro_lvm.evidence.criteria import aic

        return aic(self, x)

    def bic(self, x: Any) -> float:
        """Schwarz's criterion, lower is better; its penalty grows with the logarithm of the number of rows.

        That number is the sum of the `sample_weights` if there are any, as in `aic`. Of sequences it is the number of
        steps that were observed.
        """
        from pyro_lvm.evidence.criteria import bic

        return bic(self, x)

    def plan(self, x: Any) -> Any:
        """How the inference would update each parameter on rows `x`, and why; print it.

        Raises:
            ValueError: The inference does not plan its updates.
        """
        plan = getattr(self.inference, "plan", None)
        if plan is None:
            raise ValueError(
                f"plan: expected an inference that plans its updates; got {type(self.inference).__name__}. "
                "Fit with inference='em'."
            )
        arguments = self.arguments(x)
        with self.scope():
            return plan(*arguments.args, **arguments.kwargs)

    def summary(self, x: Any = None, probability: float = 0.94) -> Any:
        """A table of the parameters, one line a number: estimates, and of a posterior also its spread.

        Args:
            x: Rows by which the components of a sampler's draws are aligned; without them they are taken as drawn.
            probability: What the interval of a posterior holds, in (0, 1), as much being left out on either side.

        Returns:
            A DataFrame with the column `estimate` for a point, else `mean`, `sd` and the interval's ends.
        """
        from pyro_lvm.diagnostics.summary import summary

        return summary(self, None if x is None else self.arguments(x), probability)

    def to_arviz(self, x: Any = None) -> Any:
        """The fit as ArviZ data: posterior, pointwise log-likelihood and observed data for rows `x`, sample stats.

        Returns:
            `arviz.InferenceData` before ArviZ 1.0, `xarray.DataTree` after.
        """
        from pyro_lvm.diagnostics.arviz import to_arviz

        return to_arviz(self, None if x is None else self.arguments(x))

    # Keeping it

    def save(self, folder: str | Path) -> None:
        """Write the fit to a folder, all or nothing; `lvm.load(folder)` reads it back."""
        from pyro_lvm.training.checkpoint import save

        save(self, Path(folder))

    def resume(
        self,
        data: Any,
        *,
        max_epochs: int | None = None,
        batch_size: int | None = None,
        num_rows: int | None = None,
        validation: Any = None,
        tol: float | None = None,
        patience: int | None = None,
        callbacks: Any = (),
        progress: bool = True,
    ) -> Fit:
        """Train on from where the fit stopped, as if it had not; arguments as in `lvm.fit`.

        Returns:
            This fit.
        """
        from pyro_lvm.training.resume import resume

        resume(
            self,
            data,
            max_epochs=max_epochs,
            batch_size=batch_size,
            num_rows=num_rows,
            validation=validation,
            tol=tol,
            patience=patience,
            callbacks=callbacks,
            progress=progress,
        )
        return self

    # Parts for those verbs

    @property
    def program(self) -> Callable:
        """The model, taking known values of its sites by name besides its own arguments."""
        return Labelled(self.model)

    def arguments(self, x: Any) -> Arguments:
        """Rows, checked and converted for this fit's model; a table's columns are found by name."""
        if self.columns:
            x = in_order(x, self.columns)
        arguments = as_labelled(x, self.model, self.device)
        if isinstance(self.model, LatentVariableModel):
            self.model.check(arguments.main)
            self.model.check_covariates(len(arguments.main), **{k: v for k, v in arguments.kwargs.items() if k != "x"})
            mine = next(iter(self.tensors().values()), arguments.main)
            if mine.is_floating_point() and mine.dtype != arguments.main.dtype:
                arguments = arguments.map(lambda t: t.to(mine.dtype) if t.is_floating_point() else t)
        else:
            check_plate(self, arguments)
        return arguments

    def observed(self, arguments: Arguments) -> dict[str, Tensor]:
        """The values that the model observes in the rows, by site."""
        with self.scope(), torch.random.fork_rng(), torch.no_grad(), _pyro.validation(False):
            trace = _pyro.plain_trace(self.program, arguments.args, arguments.kwargs)
        return {name: trace.nodes[name]["value"] for name in trace.observation_nodes}

    @property
    def device(self) -> torch.device | None:
        """Where the parameters are."""
        tensors = self.tensors()
        return next(iter(tensors.values())).device if tensors else None

    def prototype(self, num_rows: int | None = None) -> Arguments:
        """Zeros in the shape of the training data, to run the programs on when only their structure matters."""
        return Arguments.zeros(self.shapes, num_rows).map(lambda t: t.to(self.device) if self.device else t)

    def tensors(self) -> dict[str, Tensor]:
        """Every tensor that training writes to, by a name unique across store, model and guide."""
        found = {f"store:{name}": tensor for name, tensor in self.scope.state["params"].items()}
        for owner, program in (("model", self.model), ("guide", self.guide)):
            if isinstance(program, torch.nn.Module):
                found.update({f"{owner}:{n}": t for n, t in program.named_parameters()})
                found.update({f"{owner}:{n}": t for n, t in program.named_buffers()})
        return found

    def __repr__(self) -> str:
        how = type(self.inference).__name__
        guide = f", guide={_name(self.guide)}" if self.guide is not None else ""
        loss = f", loss={self.history['loss'][-1]:.6g}" if self.history["loss"] else ""
        return f"Fit({_name(self.model)}, {how}{guide}{loss}, {self.stopped})"


def _name(program: Any) -> str:
    return getattr(program, "__name__", type(program).__name__)


def _only(values: dict[str, Any]) -> Any:
    return next(iter(values.values())) if len(values) == 1 else values
