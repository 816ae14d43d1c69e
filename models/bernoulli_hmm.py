r"""Hidden Markov model with Bernoulli emissions.

.. math::

    z_{n1} \sim \mathrm{Categorical}(\pi), \quad z_{nt} \sim \mathrm{Categorical}(A_{z_{n,t-1}}), \quad
    x_{ntj} \mid z_{nt} = k \sim \mathrm{Bernoulli}(p_{kj})
"""

from __future__ import annotations

from pyro_lvm.distributions.columns import Bernoulli
from pyro_lvm.models.independent_columns_hmm import IndependentColumnsHMM

__all__ = ["BernoulliHMM"]


class BernoulliHMM(IndependentColumnsHMM):
    r"""Hidden Markov model whose steps are vectors of zeros and ones, independent given the state.

    ====================  ===========================================  ============  ====================
    symbol                meaning                                      shape         code
    ====================  ===========================================  ============  ====================
    :math:`\pi`           law of the first state                       (K,)          `initial_probs`
    :math:`A`             law of the next state, row by previous one   (K, K)        `transition_probs`
    :math:`p`             probability of a one                         (K, d)        `probs`
    ====================  ===========================================  ============  ====================

    With priors the parameters are sample sites; the default ones are uniform. Missing entries are NaN and are
    marginalised.

    Args:
        num_states: K >= 1.
        data_dim: Number of columns d; taken from the data by `initialize` if None.
        topology: As `HiddenMarkov` takes it.
        priors: As `HiddenMarkov` takes them.

    Raises:
        ValueError: An argument is out of range.

    References:
        L. Rabiner (1989), A tutorial on hidden Markov models, Proceedings of the IEEE 77.

    Example:
        >>> import pyro_lvm as lvm
        >>> x = lvm.datasets.load("eruptions").x
        >>> fit = lvm.fit(lvm.models.BernoulliHMM(2), x, seed=0, progress=False)
        >>> round(float(fit.log_likelihood(x)), 2)
        -126.71
    """

    column = Bernoulli
    other_support = "Threshold the column, e.g. (x > 0)."
