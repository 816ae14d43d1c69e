"""A fitted model: parameters, history, and one verb for each thing people do with it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor

from pyro_lvm.evidence import Evidence, concatenate, log_likelihood
from pyro_lvm.ops.whole_number import whole_number
from pyro_lvm.training.guide_draws import draws_rows
from pyro_lvm.training.learned import Learned
from pyro_lvm.training.stream import as_stream

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from pyro_lvm.diagnostics.forecast import Forecast

__all__ = ["Fit"]


class Fit(Learned):
    """What `lvm.fit` returns.

    Verbs mean what they mean in scikit-learn; all densities are in nats. Of a posterior, log-likelihoods are averaged
    over all of its draws, what verbs say of rows besides over 200 of them at most, evenly spaced. Its state, with
    `params`, `draws`, `history` and `converged`, is described in `Learned`.
    """

    def log_likelihood(self, x: Any) -> Tensor:
        """Log-likelihood of each row, nats, shape (n,): exact at a point, the log predictive density of a posterior."""
        return self.evidence(x).values

    def evidence(self, x: Any, num_samples: int | None = None) -> Evidence:
        """Log-likelihood of each row with its standard error and the estimator's name; of all rows of a stream.

        Exact where latent sites can be summed out; importance weighted where the guide draws sites of rows; normalizers
        of undirected sites too large to be summed up by annealed importance sampling.

        Args:
            x: Rows, or a stream of batches.
            num_samples: Samples of each row where latent sites of rows are importance weighted; 1000 by default. Of
                fewer than 25 no Pareto k-hat tells whether they can be trusted.
        """
        from pyro_lvm.evidence.importance import NUM_SAMPLES, warn_of_tails

        stream = as_stream(x)
        batches = [x] if stream is None else stream.through(self.arguments).batches()
        found = concatenate([log_likelihood(self, self.arguments(batch), num_samples) for batch in batches])
        warn_of_tails(self, found, NUM_SAMPLES if num_samples is None else num_samples)
        return found

    def score(self, x: Any) -> float:
        """Mean log-likelihood of the rows, nats; with `sample_weights`, their weighted mean."""
        evidence = self.evidence(x)
        return evidence.total / evidence.num_rows

    def predict_proba(self, x: Any) -> Any:
        """Posterior of the discrete latent sites of each row, shape (n, states); a dict if there are several sites.

        Of sequences: that of every step given the whole sequence, (n, T, states), 0 in padding; a list for a list, and
        without the first axis for one series. Of sentence pairs: that of the source position of every target word,
        the empty word first, (n, J, 1 + I). Of units that are 0 or 1: (n, units, 2), by the guide if that draws them.
        """
        from pyro_lvm.diagnostics.latents import responsibilities

        return _only(responsibilities(self, self.arguments(x)))

    def predict(self, x: Any) -> Any:
        """Most probable state of the discrete latent sites of each row, shape (n,); a dict if there are several.

        Of sequences: the most probable path (Viterbi's), (n, T), -1 in padding; a list for a list, and without the
        first axis for one series. Of sentence pairs: the source position of every target word in the most probable
        alignment, (n, J), from 1, 0 for the empty word and -1 in padding; `model.align` gives links. Of units that are
        0 or 1: (n, units).
        """
        from pyro_lvm.diagnostics.latents import most_probable

        return _only(most_probable(self, self.arguments(x)))

    def transform(self, x: Any) -> Any:
        """Posterior mean of the latent sites of each row, shape (n, k); a dict if several.

        Of sequences with normal states: of every step given the whole sequence, (n, T, k), 0 in padding; a list for a
        list, and without the first axis for one series. Of sites that the guide draws the means are the guide's, not
        those of the exact posterior. Of units that are 0 or 1 they are probabilities; so are those of hidden units that
        an undirected law sums out, which are exact. Sources
        without noise are what they are: rows determine them.

        Raises:
            ValueError: Rows have no latent sites but discrete ones that are summed out.
        """
        from pyro_lvm.diagnostics.inner_latents import inner_means, inner_units
        from pyro_lvm.diagnostics.latents import AVERAGED_DRAWS, thinned
        from pyro_lvm.diagnostics.row_latents import row_means

        arguments = self.arguments(x)
        if draws_rows(self):
            return _only(row_means(self, arguments))
        draws = thinned(self, AVERAGED_DRAWS)
        if found := inner_units(self, arguments, draws) or inner_means(self, arguments, draws):
            return _only(found)
        raise ValueError(
            f"transform: {self.name} has no continuous latent site of each row. "
            "Use predict_proba for the posterior of its discrete ones."
        )

    def impute(self, x: Any) -> Any:
        """Rows with every missing entry (NaN) at its posterior mean, or at its most probable answer if categorical.

        Raises:
            ValueError: The model does not take missing values.
        """
        from pyro_lvm.diagnostics.impute import check_imputes, impute

        check_imputes(self)
        return impute(self, self.arguments(x))

    def reconstruct(self, x: Any) -> Any:
        """Rows as expected given their own latent sites, in the form of the rows.

        Latent sites are averaged over their posterior, those that a guide draws over draws of it. Of undirected laws:
        the means of the visible units given the hidden ones at their means.
        """
        from pyro_lvm.diagnostics.impute import reconstruct

        return reconstruct(self, self.arguments(x))

    def forecast(self, x: Any, steps: int, num_samples: int = 100, **covariates: Any) -> Forecast:
        """The law of the steps that follow given sequences: states, means, and draws; of normal states covariances too.

        Args:
            x: Sequences, as in `lvm.fit`.
            steps: How many steps to look ahead.
            num_samples: Draws of what is to come.
            covariates: Arguments of the model that go along the steps, in the steps to come: (n, steps, ...).

        Raises:
            ValueError: The model has neither a hidden Markov site nor sequences of normal states, or covariates are
                missing.
        """
        from pyro_lvm.diagnostics.forecast import forecast

        steps, count = whole_number("forecast", "steps", steps), whole_number("forecast", "num_samples", num_samples)
        return forecast(self, self.arguments(x), steps, count, covariates)

    def posterior(self, x: Any, num_samples: int = 100) -> dict[str, Tensor]:
        """Joint draws of all latent sites given rows, shape (num_samples, ...) each; paths are -1 in padding.

        Latent variables that laws of observed sites sum out are drawn too: alignments as "z", hidden units as "h".

        Raises:
            ValueError: Nothing is latent.
        """
        from pyro_lvm.diagnostics.latents import posterior_draws

        count = whole_number("posterior", "num_samples", num_samples)
        return posterior_draws(self, self.arguments(x), count)

    def sample(self, n: int, *, num_steps: Any = None, **covariates: Any) -> Any:
        """Generate rows; of a posterior, each row from its own draw.

        Args:
            n: Number of rows.
            num_steps: Steps of each row, >= 1, of a model of sequences; by default those of the covariates, or else of
                the training data.
            covariates: Arguments of the model that are not generated, arrays with n rows.

        Returns:
            Shape (n, ...); a dict if the model observes several sites.

        Raises:
            ValueError: Covariates are missing, do not fit, or are no arguments of the model.
        """
        from pyro_lvm.diagnostics.latents import generate

        n = whole_number("sample", "n", n)
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

    def summary(self, x: Any = None, probability: float = 0.94, networks: bool = False) -> Any:
        """A table of the parameters, one line a number: estimates, and of a posterior also its spread.

        Args:
            x: Rows by which the components of a sampler's draws are aligned; without them they are taken as drawn.
            probability: What the interval of a posterior holds, in (0, 1), as much being left out on either side.
            networks: Whether to list every number of networks too, else a network is one line.

        Returns:
            A DataFrame with the column `estimate` for a point, else `mean`, `sd` and the interval's ends.
        """
        from pyro_lvm.diagnostics.summary import summary

        return summary(self, None if x is None else self.arguments(x), probability, networks)

    def to_arviz(self, x: Any = None) -> Any:
        """The fit as ArviZ data: posterior, pointwise log-likelihood and observed data for rows `x`, sample stats.

        Where a guide draws latent sites of rows, the posterior are its draws given each row, and the log-likelihood
        has them averaged out. ArviZ's own comparisons, `loo`, `waic` and `compare`, weigh draws of what all rows
        share: for fits that have one point of it the group `log_likelihood` is left out, and its values are
        `sample_stats["row_log_likelihood"]`. Rank those by `lvm.compare` on rows that were held out.

        Returns:
            `arviz.InferenceData` before ArviZ 1.0, `xarray.DataTree` after.
        """
        from pyro_lvm.diagnostics.arviz import to_arviz

        return to_arviz(self, None if x is None else self.arguments(x))

    def plot(self, x: Any = None, kind: str | None = None, **options: Any) -> Figure:
        """A picture of the fit: the one that the structure of its model calls for, or one by name.

        Without a name: the states of a series where a chain is hidden (normal ones above all else); the density where
        rows are continuous and have a discrete site; else panels of whatever there is of reconstructions, latent space,
        filters, samples and loss.

        Args:
            x: Rows to look at, as in `lvm.fit`; without them, 400 that the fit generates, or one sequence.
            kind: "samples", "reconstructions", "filters", "latent", "history", "density", "responsibilities",
                "states", "transitions", "durations", "alignment", "loadings" or "scree"; `diagnostics.plots`
                describes each.
            options: Of the picture: `image_shape` (height and width of rows that are images, and 3 if in colour; found
                for square ones whose columns are but numbered, () for rows that are none), `columns` (their names),
                `labels` (colours of the latent space), `site` (the parameter that is drawn as filters), `sequence`
                (which of several), `steps` (how many to forecast), `rotation` (of loadings, "varimax" or "promax").

        Returns:
            A figure of its own; no backend is chosen. Keep it by `figure.savefig("picture.png")`.

        Raises:
            ValueError: The picture is not one of this model, or has no such option.

        Example:
            >>> import pyro_lvm as lvm
            >>> x = lvm.datasets.load("digits234").x
            >>> fit = lvm.fit(lvm.models.VAE(2, hidden=[16]), x, max_epochs=2, seed=0, progress=False)
            >>> fit.plot(x, kind="reconstructions").axes[0].get_title()
            'Rows (upper lines) and their reconstructions (lower)'
        """
        from pyro_lvm.diagnostics.overview import plot

        return plot(self, x, kind, **options)

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

        An epoch that Ctrl-C interrupted is finished first, and is one of `max_epochs`: the run then equals one that was
        never interrupted, to the bit. A greedy pretraining that was interrupted is finished first, as it was begun; its
        epochs are not among `max_epochs`.

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


def _only(values: dict[str, Any]) -> Any:
    return next(iter(values.values())) if len(values) == 1 else values
