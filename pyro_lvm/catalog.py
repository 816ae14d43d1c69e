"""The table of model/guide pairs: what ships, how it may be trained, on what data to see it, and where it comes from.

The command line, the laws in `pyro_lvm.testing` and the README's table all read it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from pyro_lvm import datasets, guides, models
from pyro_lvm.training import choices

__all__ = ["CATALOG", "Entry"]

choices.GUIDES.update(
    {
        "conjugate": guides.Conjugate,
        "map": guides.MAP,
        "normal": guides.AutoNormal,
        "multivariate-normal": guides.AutoMultivariateNormal,
    }
)


@dataclass(frozen=True)
class Entry:
    """One model of the package.

    Attributes:
        name: Class name.
        model: The class.
        summary: One line.
        inferences: Names that `lvm.fit` takes for it, the default first.
        guides: Names of its guides for SVI, the default first.
        data: Name of an embedded data set that shows it.
        reference: Where it comes from.
        example: Makes a small instance for the laws and the command line.
        variants: Keyword arguments that together exercise all of its code.
        covariates: How many leading columns of the data set are covariates.
    """

    name: str
    model: type
    summary: str
    inferences: tuple[str, ...]
    guides: tuple[str, ...]
    data: str
    reference: str
    example: Callable[..., Any]
    variants: tuple[dict[str, Any], ...]
    covariates: int = 0

    def rows(self) -> Tensor:
        """The example data."""
        return datasets.load(self.data).x


CATALOG: dict[str, Entry] = {
    entry.name: entry
    for entry in (
        Entry(
            name="GaussianMixture",
            model=models.GaussianMixture,
            summary="rows from K multivariate normals; full, diag, tied or spherical covariance; Bayesian with priors",
            inferences=("em", "coordinate-ascent", "svi", "mcmc"),
            guides=("normal", "multivariate-normal", "map"),
            data="faithful",
            reference="Bishop (2006), Pattern Recognition and Machine Learning, chapters 9 and 10",
            example=lambda **kwargs: models.GaussianMixture(**{"num_components": 2, **kwargs}),
            variants=tuple({"covariance": kind} for kind in ("full", "diag", "tied", "spherical")),
        ),
        Entry(
            name="DirichletProcessMixture",
            model=models.DirichletProcessMixture,
            summary="rows from as many normals as they ask for, by stick-breaking; always Bayesian",
            inferences=("coordinate-ascent", "svi", "mcmc"),
            guides=("normal", "multivariate-normal", "map"),
            data="faithful",
            reference="Blei and Jordan (2006), Variational inference for Dirichlet process mixtures",
            example=lambda **kwargs: models.DirichletProcessMixture(**{"num_components": 4, "priors": True, **kwargs}),
            variants=tuple({"covariance": kind} for kind in ("full", "diag")),
        ),
        Entry(
            name="StudentTMixture",
            model=models.StudentTMixture,
            summary="rows from K Student's t laws, robust to outliers; full or diag scale, tails learned or given",
            inferences=("em", "svi"),
            guides=(),
            data="faithful",
            reference="Peel and McLachlan (2000), Robust mixture modelling using the t distribution",
            example=lambda **kwargs: models.StudentTMixture(**{"num_components": 2, **kwargs}),
            variants=tuple(
                {"covariance": kind, "degrees_of_freedom": df} for kind in ("full", "diag") for df in (None, 5.0)
            ),
        ),
        Entry(
            name="BernoulliMixture",
            model=models.BernoulliMixture,
            summary="rows of zeros and ones from K sets of independent coins; Bayesian with priors",
            inferences=("em", "coordinate-ascent", "svi", "mcmc"),
            guides=("normal", "multivariate-normal", "map"),
            data="digits234",
            reference="Bishop (2006), Pattern Recognition and Machine Learning, section 9.3.3",
            example=lambda **kwargs: models.BernoulliMixture(**{"num_components": 2, **kwargs}),
            variants=({},),
        ),
        Entry(
            name="PoissonMixture",
            model=models.PoissonMixture,
            summary="rows of counts from K sets of independent rates; Bayesian with priors",
            inferences=("em", "coordinate-ascent", "svi", "mcmc"),
            guides=("normal", "multivariate-normal", "map"),
            data="visits",
            reference="McLachlan, Peel (2000), Finite Mixture Models, chapter 5",
            example=lambda **kwargs: models.PoissonMixture(**{"num_components": 2, **kwargs}),
            variants=({},),
        ),
        Entry(
            name="CategoricalMixture",
            model=models.CategoricalMixture,
            summary="latent class analysis: rows of answers to questions; Bayesian with priors",
            inferences=("em", "coordinate-ascent", "svi", "mcmc"),
            guides=("normal", "multivariate-normal", "map"),
            data="opinions",
            reference="Goodman (1974), Exploratory latent structure analysis, Biometrika 61",
            example=lambda **kwargs: models.CategoricalMixture(**{"num_components": 2, **kwargs}),
            variants=({},),
        ),
        Entry(
            name="HeterogeneousMixture",
            model=models.HeterogeneousMixture,
            summary="tables of numbers, counts, answers and yes-or-nos from K components; Bayesian with priors",
            inferences=("em", "svi", "mcmc"),
            guides=("normal", "multivariate-normal", "map"),
            data="voters",
            reference="Vermunt, Magidson (2002), Latent class cluster analysis",
            example=lambda **kwargs: models.HeterogeneousMixture(**{"num_components": 2, **kwargs}),
            variants=tuple({"columns": [age, "poisson", "categorical", "bernoulli"]} for age in ("normal", "gamma")),
        ),
        Entry(
            name="MixtureOfExperts",
            model=models.MixtureOfExperts,
            summary="rows explained by covariates: K linear regressions under a gate, linear or a network",
            inferences=("em", "svi"),
            guides=(),
            data="faithful",
            reference="Jordan, Jacobs (1994), Hierarchical mixtures of experts and the EM algorithm",
            example=lambda **kwargs: models.MixtureOfExperts(**{"num_components": 2, **kwargs}),
            variants=({},),
            covariates=1,
        ),
        Entry(
            name="GaussianHMM",
            model=models.GaussianHMM,
            summary="series of real vectors, normal given a hidden state; full, diag, tied or spherical covariance",
            inferences=("em", "coordinate-ascent", "svi", "mcmc"),
            guides=("normal", "map"),
            data="geyser",
            reference="Rabiner (1989), A tutorial on hidden Markov models",
            example=lambda **kwargs: models.GaussianHMM(**{"num_states": 2, **kwargs}),
            variants=tuple({"covariance": kind} for kind in ("full", "diag")),
        ),
        Entry(
            name="CategoricalHMM",
            model=models.CategoricalHMM,
            summary="series of symbols given a hidden state",
            inferences=("em", "coordinate-ascent", "svi", "mcmc"),
            guides=("normal", "map"),
            data="eruptions",
            reference="Baum, Petrie, Soules, Weiss (1970), A maximization technique",
            example=lambda **kwargs: models.CategoricalHMM(**{"num_states": 2, **kwargs}),
            variants=({},),
        ),
        Entry(
            name="BernoulliHMM",
            model=models.BernoulliHMM,
            summary="series of zeros and ones given a hidden state",
            inferences=("em", "coordinate-ascent", "svi", "mcmc"),
            guides=("normal", "map"),
            data="eruptions",
            reference="Rabiner (1989), A tutorial on hidden Markov models",
            example=lambda **kwargs: models.BernoulliHMM(**{"num_states": 2, **kwargs}),
            variants=({},),
        ),
        Entry(
            name="PoissonHMM",
            model=models.PoissonHMM,
            summary="series of counts given a hidden state",
            inferences=("em", "coordinate-ascent", "svi", "mcmc"),
            guides=("normal", "map"),
            data="earthquakes",
            reference="Zucchini, MacDonald, Langrock (2016), Hidden Markov Models for Time Series, chapter 1",
            example=lambda **kwargs: models.PoissonHMM(**{"num_states": 2, **kwargs}),
            variants=({},),
        ),
        Entry(
            name="MultinomialHMM",
            model=models.MultinomialHMM,
            summary="series of counts that sum to a total, given a hidden state",
            inferences=("em", "svi", "mcmc"),
            guides=("normal", "map"),
            data="seatbelts",
            reference="Zucchini, MacDonald, Langrock (2016), section 9.2",
            example=lambda **kwargs: models.MultinomialHMM(**{"num_states": 2, **kwargs}),
            variants=({},),
        ),
        Entry(
            name="GaussianMixtureHMM",
            model=models.GaussianMixtureHMM,
            summary="series of real vectors from M normals for every hidden state",
            inferences=("em", "coordinate-ascent", "svi", "mcmc"),
            guides=("normal", "map"),
            data="geyser",
            reference="Rabiner (1989), equations 49 to 54",
            example=lambda **kwargs: models.GaussianMixtureHMM(**{"num_states": 2, "num_components": 2, **kwargs}),
            variants=({"covariance": "diag"},),
        ),
        Entry(
            name="StudentTHMM",
            model=models.StudentTHMM,
            summary="series of real vectors with outliers, Student's t given a hidden state",
            inferences=("em", "svi", "mcmc"),
            guides=("normal", "map"),
            data="geyser",
            reference="Chatzis, Kosmopoulos, Varvarigou (2009), Robust sequential data modeling",
            example=lambda **kwargs: models.StudentTHMM(**{"num_states": 2, **kwargs}),
            variants=tuple({"covariance": kind} for kind in ("full", "diag")),
        ),
        Entry(
            name="RegressionHMM",
            model=models.RegressionHMM,
            summary="series explained by covariates: a regression for every hidden state",
            inferences=("em", "svi", "mcmc"),
            guides=("normal", "map"),
            data="geyser",
            reference="Fridman (1994), Hidden Markov model regression",
            example=lambda **kwargs: models.RegressionHMM(**{"num_states": 2, **kwargs}),
            variants=({},),
            covariates=1,
        ),
        Entry(
            name="AutoregressiveHMM",
            model=models.AutoregressiveHMM,
            summary="series explained by their past: an autoregression for every hidden state",
            inferences=("em", "svi", "mcmc"),
            guides=("normal", "map"),
            data="geyser",
            reference="Hamilton (1989), A new approach to the analysis of nonstationary time series",
            example=lambda **kwargs: models.AutoregressiveHMM(**{"num_states": 2, **kwargs}),
            variants=({},),
        ),
        Entry(
            name="HiddenMarkov",
            model=models.HiddenMarkov,
            summary="series with any emission: a kind of columns, a distribution, or a function of your own",
            inferences=("em", "svi", "mcmc"),
            guides=("normal", "map"),
            data="geyser",
            reference="Rabiner (1989), A tutorial on hidden Markov models",
            example=lambda **kwargs: models.HiddenMarkov(**{"num_states": 2, "emission": "normal", **kwargs}),
            variants=({}, {"topology": "left-to-right"}),
        ),
        Entry(
            name="HiddenSemiMarkov",
            model=models.HiddenSemiMarkov,
            summary="series whose hidden states last as long as laws of their own say",
            inferences=("em", "svi", "mcmc"),
            guides=("normal", "map"),
            data="geyser",
            reference="Yu (2010), Hidden semi-Markov models",
            example=lambda **kwargs: models.HiddenSemiMarkov(**{"num_states": 2, "max_duration": 3, **kwargs}),
            variants=tuple({"durations": kind} for kind in ("free", "negative-binomial")),
        ),
        Entry(
            name="FactorialHMM",
            model=models.FactorialHMM,
            summary="series of real vectors to which several hidden chains add",
            inferences=("em", "svi", "mcmc"),
            guides=("normal", "map"),
            data="geyser",
            reference="Ghahramani, Jordan (1997), Factorial hidden Markov models",
            example=lambda **kwargs: models.FactorialHMM(**{"num_chains": 2, "num_states": 2, **kwargs}),
            variants=({},),
        ),
        Entry(
            name="InputDrivenHMM",
            model=models.InputDrivenHMM,
            summary="series with any emission whose transitions depend on covariates",
            inferences=("em", "svi", "mcmc"),
            guides=("normal", "map"),
            data="geyser",
            reference="Bengio, Frasconi (1996), Input-output HMMs for sequence processing",
            example=lambda **kwargs: models.InputDrivenHMM(**{"num_states": 2, **kwargs}),
            variants=({},),
            covariates=1,
        ),
        Entry(
            name="NeuralHMM",
            model=models.NeuralHMM,
            summary="series of symbols; networks make the tables of a hidden Markov model",
            inferences=("em", "svi"),
            guides=(),
            data="eruptions",
            reference="Tran, Bisk, Vaswani, Marcu, Knight (2016), Unsupervised neural hidden Markov models",
            example=lambda **kwargs: models.NeuralHMM(**{"num_states": 2, "hidden_dim": 4, **kwargs}),
            variants=({},),
        ),
    )
}
choices.MODELS.update({name: entry.model for name, entry in CATALOG.items()})
# their data are pairs of sentences, not rows of a table: no entry, but files name them
choices.MODELS.update(
    {
        "HMMAlignment": models.HMMAlignment,
        "IBMModel1": models.IBMModel1,
        "IBMModel2": models.IBMModel2,
        "NeuralHMMAlignment": models.NeuralHMMAlignment,
    }
)
