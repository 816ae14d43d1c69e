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
        guides: Names of its guides, the default first.
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
            inferences=("em", "svi", "mcmc"),
            guides=("normal", "multivariate-normal", "map"),
            data="faithful",
            reference="Bishop (2006), Pattern Recognition and Machine Learning, chapters 9 and 10",
            example=lambda **kwargs: models.GaussianMixture(**{"num_components": 2, **kwargs}),
            variants=tuple({"covariance": kind} for kind in ("full", "diag", "tied", "spherical")),
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
}
choices.MODELS.update({name: entry.model for name, entry in CATALOG.items()})
