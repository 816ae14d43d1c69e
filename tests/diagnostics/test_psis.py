"""Pareto shapes against ArviZ and against the truth."""

import numpy as np
import pytest

from pyro_lvm.diagnostics import pareto_k


@pytest.mark.parametrize("shape", [0.2, 0.5, 0.9])
def test_recovers_the_shape_of_pareto_ratios(shape):
    rng = np.random.default_rng(0)
    estimates = [pareto_k(shape * -np.log(rng.random(4000))) for _ in range(30)]
    error = np.std(estimates) / 30**0.5
    assert abs(np.mean(estimates) - shape) < 5 * error + 0.03  # the prior pulls by about 0.03


def test_degenerate_ratios():
    assert np.isnan(pareto_k(np.zeros(10)))
    assert pareto_k(np.zeros(100)) == float("-inf")
    assert np.isnan(pareto_k(np.full(100, np.inf)))
