"""What the catalog says of one model."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from pyro_lvm import datasets

__all__ = ["Entry"]


@dataclass(frozen=True)
class Entry:
    """One model of the package.

    Attributes:
        name: Class name.
        model: The class.
        summary: One line.
        inferences: Names that `lvm.fit` takes for it, the default first.
        guides: Names of its guides for SVI, the default first; those of latent sites of rows in the order of how close
            they come to the posterior.
        data: Name of an embedded data set that shows it.
        reference: Where it comes from.
        example: Makes a small instance for the laws and the command line.
        variants: Keyword arguments that together exercise all of its code.
        covariates: How many leading columns of the data set are covariates.
        prior_guides: Names of guides for parameters with priors, where `guides` are of latent sites of rows.
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
    prior_guides: tuple[str, ...] = ()

    def rows(self) -> Tensor:
        """The example data."""
        return datasets.load(self.data).x

    @property
    def takes_priors(self) -> bool:
        """Whether the model may be made Bayesian with `priors=True`."""
        return "priors" in inspect.signature(self.model).parameters
