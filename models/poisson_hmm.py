r"""Hidden Markov model with Poisson emissions.

.. math::

    z_{n1} \sim \mathrm{Categorical}(\pi), \quad z_{nt} \sim \mathrm{Categorical}(A_{z_{n,t-1}}), \quad
    x_{ntj} \mid z_{nt} = k \sim \mathrm{Poisson}(\lambda_{kj})
"""

from __future__ import annotations

from pyro_lvm.distributions.columns import Poisson
from pyro_lvm.models.independent_columns_hmm import IndependentColumnsHMM

__all__ = ["PoissonHMM"]


class PoissonHMM(IndependentColumnsHMM):
    r"""Hidden Markov model whose steps are counts, independent given the state.

    ====================  ===========================================  ============  ====================
    symbol                meaning                                      shape         code
    ====================  ===========================================  ============  ====================
    :math:`\pi`           law of the first state                       (K,)          `initial_probs`
    :math:`A`             law of the next state, row by previous one   (K, K)        `transition_probs`
    :math:`\lambda`       expected counts                              (K, d)        `rate`
    ====================  ===========================================  ============  ====================

    With priors the parameters are sample sites; the default ones are weak, as in `PoissonMixture`. Missing entries
    are NaN and are marginalised.

    Args:
        num_states: K >= 1.
        data_dim: Number of columns d; taken from the data by `initialize` if None.
        topology: As `HiddenMarkov` takes it.
        priors: As `HiddenMarkov` takes them.

    Raises:
        ValueError: An argument is out of range.

    References:
        W. Zucchini, I. MacDonald, R. Langrock (2016), Hidden Markov Models for Time Series, second edition, chapter 1.

    Example:
        >>> import pyro_lvm as lvm
        >>> x = lvm.datasets.load("earthquakes").x
        >>> fit = lvm.fit(lvm.models.PoissonHMM(2), x, seed=0, progress=False)
        >>> [round(rate, 1) for rate in sorted(fit.params["rate"].flatten().tolist())]
        [15.4, 26.0]
    """

    column = Poisson
    other_support = "Pass whole numbers >= 0."
