"""Linear factor models: rows are a linear map of a few independent factors, with noise."""

from __future__ import annotations

from pyro_lvm import models
from pyro_lvm.catalog.entry import Entry

__all__ = ["ENTRIES"]

ENTRIES: tuple[Entry, ...] = (
    Entry(
        name="FactorAnalysis",
        model=models.FactorAnalysis,
        summary="real vectors from a few normal factors; noise of a variance of its own in every column",
        inferences=("squarem", "em", "svi"),
        guides=("exact-gaussian", "local"),
        data="wine",
        reference="Rubin, Thayer (1982), EM algorithms for ML factor analysis",
        example=lambda **kwargs: models.FactorAnalysis(**{"num_factors": 2, **kwargs}),
        variants=({},),
    ),
    Entry(
        name="ProbabilisticPCA",
        model=models.ProbabilisticPCA,
        summary="real vectors from a few normal components; noise of the same variance in all columns",
        inferences=("squarem", "em", "svi"),
        guides=("exact-gaussian", "local"),
        data="iris",
        reference="Tipping, Bishop (1999), Probabilistic principal component analysis",
        example=lambda **kwargs: models.ProbabilisticPCA(**{"num_factors": 2, **kwargs}),
        variants=({},),
    ),
    Entry(
        name="SparseCoding",
        model=models.SparseCoding,
        summary="real vectors from a dictionary, of which every row uses few columns; point estimates of the codes",
        inferences=("em", "svi"),
        guides=("sparse-codes", "local"),
        data="iris",
        reference="Olshausen, Field (1996), Emergence of simple-cell receptive field properties",
        example=lambda **kwargs: models.SparseCoding(
            **{"num_factors": 3, "sparsity": 2.0, "noise_scale": 0.5, **kwargs}
        ),
        variants=({},),
    ),
)
