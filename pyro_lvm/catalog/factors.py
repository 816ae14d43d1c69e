"""Linear factor models: rows are a linear map of a few independent factors, with noise."""

from __future__ import annotations

from pyro_lvm import models
from pyro_lvm.catalog.entry import Entry

__all__ = ["ENTRIES"]

ENTRIES: tuple[Entry, ...] = (
    Entry(
        name="FactorAnalysis",
        model=models.FactorAnalysis,
        summary="real vectors from a few normal factors; noise of its own in every column; Bayesian with priors",
        inferences=("squarem", "em", "svi", "mcmc"),
        guides=("exact-gaussian", "amortized", "local"),
        prior_guides=("normal", "multivariate-normal", "map"),
        data="wine",
        reference="Rubin, Thayer (1982), EM algorithms for ML factor analysis",
        example=lambda **kwargs: models.FactorAnalysis(**{"num_factors": 2, **kwargs}),
        variants=({},),
    ),
    Entry(
        name="ProbabilisticPCA",
        model=models.ProbabilisticPCA,
        summary="real vectors from a few normal components; the same noise in all columns; Bayesian with priors",
        inferences=("squarem", "em", "svi", "mcmc"),
        guides=("exact-gaussian", "amortized", "local"),
        prior_guides=("normal", "multivariate-normal", "map"),
        data="iris",
        reference="Tipping, Bishop (1999), Probabilistic principal component analysis",
        example=lambda **kwargs: models.ProbabilisticPCA(**{"num_factors": 2, **kwargs}),
        variants=({},),
    ),
    Entry(
        name="MixtureOfFactorAnalyzers",
        model=models.MixtureOfFactorAnalyzers,
        summary="rows of many columns from K factor analyses; noise by component and column, tied or spherical",
        inferences=("squarem", "em", "svi"),
        guides=(),
        data="iris",
        reference="Ghahramani, Hinton (1996), The EM algorithm for mixtures of factor analyzers",
        example=lambda **kwargs: models.MixtureOfFactorAnalyzers(**{"num_components": 2, "num_factors": 1, **kwargs}),
        variants=tuple({"noise": kind} for kind in ("diag", "tied")),
    ),
    Entry(
        name="LinearDynamicalSystem",
        model=models.LinearDynamicalSystem,
        summary="series of real vectors seen from normal states that move linearly: Kalman filter, smoother, EM",
        inferences=("squarem", "em", "svi"),
        guides=(),
        data="geyser",
        reference="Ghahramani, Hinton (1996), Parameter estimation for linear dynamical systems",
        example=lambda **kwargs: models.LinearDynamicalSystem(**{"latent_dim": 2, **kwargs}),
        variants=({},),
    ),
    Entry(
        name="SlowFeatureAnalysis",
        model=models.SlowFeatureAnalysis,
        summary="features of series of real vectors that vary as slowly as possible; closed form, or with noise",
        inferences=("squarem", "em", "svi"),
        guides=(),
        data="geyser",
        reference="Wiskott, Sejnowski (2002), Slow feature analysis",
        example=lambda **kwargs: models.SlowFeatureAnalysis(**{"num_features": 1, **kwargs}),
        variants=({}, {"noise": True}),
    ),
    Entry(
        name="IndependentComponentAnalysis",
        model=models.IndependentComponentAnalysis,
        summary="real vectors that mix independent sources of a density of choice; square without noise, or noisy",
        inferences=("em", "svi"),
        guides=("local",),
        data="iris",
        reference="Comon (1994), Independent component analysis, a new concept?",
        example=models.IndependentComponentAnalysis,
        variants=(
            {"source": "laplace"},
            {"source": "student-t"},
            {"source": "adaptive"},
            {"source": "sech", "noise": True},
        ),
    ),
    Entry(
        name="SparseCoding",
        model=models.SparseCoding,
        summary="real vectors from a dictionary, of which rows use few columns; priors Laplace, t, spike and slab",
        inferences=("em", "svi"),
        guides=("sparse-codes", "local"),
        data="iris",
        reference="Olshausen, Field (1996), Emergence of simple-cell receptive field properties",
        example=lambda **kwargs: models.SparseCoding(**{"num_factors": 3, "noise_scale": 0.5, **kwargs}),
        variants=({}, {"prior": "student-t"}, {"prior": "spike-and-slab", "inclusion_probability": 0.5}),
    ),
)
