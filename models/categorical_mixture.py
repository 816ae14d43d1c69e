r"""Latent class analysis: every row of answers comes from one of K classes, questions independent given the class.

.. math::

    z_n &\sim \mathrm{Categorical}(w) \\
    x_{nj} \mid z_n = k &\sim \mathrm{Categorical}(p_{kj})
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor

from pyro_lvm.distributions.columns import Categorical, count_answers
from pyro_lvm.models.factorised_mixture import FactorisedMixture, Group
from pyro_lvm.models.mixture import Priors

__all__ = ["CategoricalMixture"]


class CategoricalMixture(FactorisedMixture):
    r"""Mixture of K products of categorical distributions, questions with different numbers of answers.

    ==============  =====================================================  ============  =============
    symbol          meaning                                                shape         code
    ==============  =====================================================  ============  =============
    :math:`w`       mixture weights                                        (K,)          `weights`
    :math:`p`       probabilities of the answers, if all questions         (K, d, C)     `probs`
                    have C of them
    :math:`p`       likewise for the :math:`d_C` questions with C          (K, d_C, C)   `probs_C`
                    answers, else; one site `x_C` each
    ==============  =====================================================  ============  =============

    Questions with equally many answers share one parameter, so that every row of it is a distribution and nothing is
    padded: `groups` tells which columns those are. Answers of question j are coded 0 to :math:`C_j - 1`; NaN or -1
    means missing and is marginalised. With priors, by default all Dirichlet(1), the parameters are sample sites.

    Args:
        num_components: K >= 1.
        num_categories: Number of answers, one for each question, or one number for all; found from the data by
            `initialize` if None (give it if an answer may occur that the training rows lack).
        priors: None for maximum likelihood; True for the default priors; or a dict that replaces some of them, each a
            distribution or a function of the model that returns one.

    Raises:
        ValueError: An argument is out of range.

    References:
        P. Lazarsfeld, N. Henry (1968), Latent Structure Analysis.
        L. Goodman (1974), Exploratory latent structure analysis, Biometrika 61(2), equations 8 to 12.

    Example:
        >>> import pyro_lvm as lvm
        >>> x = lvm.datasets.load("opinions").x
        >>> fit = lvm.fit(lvm.models.CategoricalMixture(3), x, seed=0, progress=False)
        >>> {name: tuple(value.shape) for name, value in fit.params.items()}
        {'weights': (3,), 'probs_2': (3, 1, 2), 'probs_7': (3, 4, 7)}
    """

    dims: ClassVar[dict[str, list[str]]] = {"weights": ["component"], "probs": ["component", "question", "answer"]}

    def __init__(
        self,
        num_components: int,
        num_categories: int | Sequence[int] | None = None,
        priors: bool | Priors | None = None,
    ) -> None:
        super().__init__(num_components, priors)
        counts = [num_categories] if isinstance(num_categories, int) else list(num_categories or [1])
        if any(int(count) != count or count < 1 for count in counts):
            raise ValueError(
                f"CategoricalMixture: expected num_categories >= 1 for every question; got {num_categories}."
            )
        self.num_categories = num_categories if num_categories is None or isinstance(num_categories, int) else counts
        if isinstance(self.num_categories, list):
            self._declare_unseen()

    def _learn_columns(self, x: Tensor) -> None:
        if self.num_categories is None:
            self.num_categories = count_answers(x, self._name)
        elif isinstance(self.num_categories, int):
            self.num_categories = [self.num_categories] * x.shape[1]

    def _grouped(self) -> tuple[Group, ...]:
        counts = self.num_categories if isinstance(self.num_categories, list) else []
        groups = []
        for count in sorted(set(counts)):
            end = f"_{count}" if len(set(counts)) > 1 else ""
            columns = tuple(j for j, c in enumerate(counts) if c == count)
            axes = (f"question{end}", f"answer{end}")
            groups.append(Group(f"x{end}", Categorical(count), columns, {"probs": f"probs{end}"}, axes))
        return tuple(groups)

    def _coded(self, x: Tensor) -> Tensor:
        return x if bool(x.min() >= 0) else torch.where(x == -1, torch.nan, x)

    def _other_columns(self, given: int) -> str:
        return f"Pass num_categories with {given} entries, or give {self._num_columns} columns."

    def _other_support(self, group: Group) -> str:
        return "Recode the answers, give num_categories, or mark missing ones by NaN or -1."
