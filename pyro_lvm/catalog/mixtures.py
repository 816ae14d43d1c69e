"""The mixtures."""

from __future__ import annotations

from pyro_lvm import models
from pyro_lvm.catalog.entry import Entry

__all__ = ["ENTRIES"]

ENTRIES = (
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
)
