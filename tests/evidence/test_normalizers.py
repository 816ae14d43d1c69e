"""Evidence of undirected models: summed up, estimated once, and remembered until parameters move."""

from __future__ import annotations

import math

import pyro
import pytest
import torch

import pyro_lvm as lvm
from pyro_lvm.distributions import RBM
from pyro_lvm.evidence import normalizers

GENERATOR = torch.Generator().manual_seed(0)
ROWS = torch.bernoulli(torch.full((25, 24), 0.3), generator=GENERATOR)
WEIGHT = 0.5 * torch.randn(24, 21, generator=GENERATOR)
BIAS = torch.randn(24, generator=GENERATOR)


def machine(x):
    """21 hidden units, one more than are summed over; the last is on its own."""
    weight = pyro.param("weight", lambda: torch.cat([WEIGHT[:, :-1], torch.zeros(24, 1)], 1))
    with pyro.plate("data", len(x)):
        pyro.sample("v", RBM(weight, BIAS, torch.zeros(21)), obs=x)


def fitted():
    svi = lvm.infer.SVI(learning_rate=1e-9, loss=lvm.infer.ContrastiveDivergence())
    return lvm.fit(machine, ROWS, inference=svi, max_epochs=1, seed=0, progress=False)


def exact():
    """The lonely unit takes part in the normalizer and in the free energy alike, and so drops out."""
    return RBM(WEIGHT[:, :-1], BIAS, torch.zeros(20)).log_prob(ROWS)


def test_a_large_normalizer_is_estimated_and_named():
    fit, state = fitted(), torch.get_rng_state()
    found = fit.evidence(ROWS)
    assert "normalizer of 'v' by AIS, 100 chains, 1000 temperatures" in found.estimator
    error = found.standard_error
    assert 0 < float(error[0]) < 0.1
    assert bool((error == error[0]).all())
    assert float(((found.values - exact()).abs() / error).max()) < 4
    assert torch.equal(state, torch.get_rng_state())


def test_estimated_once_until_parameters_move(monkeypatch):
    monkeypatch.setattr(normalizers, "TEMPERATURES", 20)
    fit, before = fitted(), fitted().normalizers
    assert fit.normalizers is fit.normalizers
    first = fit.log_likelihood(ROWS)
    assert fit.normalizers["v"].value == before["v"].value
    fit.resume(ROWS, max_epochs=1, progress=False)
    assert fit._normalizers is None
    assert first.shape == (25,)


def test_a_small_normalizer_is_summed_up():
    def small(x):
        bias = pyro.param("bias", lambda: BIAS.clone())
        with pyro.plate("data", len(x)):
            pyro.sample("v", RBM(WEIGHT[:, :3], bias, torch.zeros(3)), obs=x)

    svi = lvm.infer.SVI(learning_rate=1e-9, loss=lvm.infer.ContrastiveDivergence())
    fit = lvm.fit(small, ROWS, inference=svi, max_epochs=1, seed=0, progress=False)
    found = fit.evidence(ROWS)
    assert found.estimator == "exact log-likelihood at a point"
    assert float(found.standard_error.max()) == 0
    assert fit.score(ROWS) == pytest.approx(float(RBM(WEIGHT[:, :3], BIAS, torch.zeros(3)).log_prob(ROWS).mean()), 1e-5)
    assert math.isfinite(fit.aic(ROWS))


def test_the_error_of_a_normalizer_is_shared_by_all_rows():
    found = fitted().evidence(ROWS)
    shared = found.shared_error
    assert shared > 0
    assert found.simulation_error_of_total == pytest.approx(len(ROWS) * shared)
    over_rows = math.sqrt(len(ROWS)) * float(found.values.double().std(correction=0))
    assert found.error_of_total == pytest.approx(math.hypot(over_rows, len(ROWS) * shared))
    assert found.minus(found).error_of_total == 0
    known = lvm.evidence.Evidence(exact(), torch.zeros(25), "exact", torch.ones(25))
    assert known.simulation_error_of_total == 0
    assert repr(known).count("\n") == 1
    assert f"Evidence({known.total:.4f} nats over 25 rows, {known.total / 25:.4f} a row" in repr(known)
    assert found.minus(known).simulation_error_of_total == pytest.approx(found.simulation_error_of_total)
    # the estimate is off by one number, so the total is off by as many times that as there are rows
    assert abs(found.total - known.total) < 4 * found.simulation_error_of_total
    parts = [fitted().evidence(ROWS[:10]), fitted().evidence(ROWS[10:])]
    assert lvm.evidence.concatenate(parts).simulation_error_of_total == pytest.approx(len(ROWS) * shared)


def test_independent_errors_add_up_to_the_root_of_their_squares():
    found = lvm.evidence.Evidence(
        torch.arange(4.0), torch.full((4,), 0.5), "sampled", torch.tensor([1.0, 1.0, 1.0, 3.0])
    )
    assert found.simulation_error_of_total == pytest.approx(0.5 * math.sqrt(12))
    both = lvm.evidence.Evidence(torch.arange(4.0), torch.full((4,), 0.5), "both", torch.ones(4), shared_error=0.3)
    assert both.simulation_error_of_total == pytest.approx(math.sqrt(4 * (0.25 - 0.09) + (4 * 0.3) ** 2))
