"""A run whose loss breaks down goes back to a state whose loss was finite."""

import math
import warnings

import pyro
import pyro.distributions as dist
import pytest
import torch

import pyro_lvm as lvm

EDGE = 2.0


def over_the_edge(x):
    """A location that climbs to the data, past an edge where the density is not a number."""
    location = pyro.param("location", torch.tensor(0.0))
    pyro.factor("edge", torch.where(location > EDGE, math.nan, 0.0) * torch.ones(()))
    with pyro.plate("data", len(x)):
        pyro.sample("x", dist.Normal(location, 1.0), obs=x)


def climb(**options):
    svi = lvm.infer.SVI(learning_rate=0.15)
    return lvm.fit(over_the_edge, torch.full((8,), 5.0), inference=svi, seed=0, tol=0.0, progress=False, **options)


def test_a_loss_that_breaks_down_at_finite_parameters_is_undone():
    with pytest.warns(RuntimeWarning, match=r"stopped at epoch \d+.*The last good state is kept"):
        fit = climb(max_epochs=100)
    assert EDGE / 3 < float(fit.params["location"]) <= EDGE
    assert all(math.isfinite(value) for value in fit.history["loss"])
    assert math.isfinite(fit.inference.loss(torch.full((8,), 5.0)))


BITS = torch.bernoulli(torch.full((20, 5), 0.4), generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("inference", ["wake-sleep", "nvil", "vimco", "relax", "leave-one-out", "graph"])
@pytest.mark.parametrize("learning_rate", [1e20, 1e38])
def test_draws_from_what_is_not_a_probability_are_a_loss_that_breaks_down(inference, learning_rate):
    """Torch refuses to draw, with parameters that are not finite, or with sums of them that are not."""
    objectives = {"vimco": lvm.infer.VIMCO, "leave-one-out": lvm.infer.LeaveOneOut, "graph": lambda: None}
    objectives |= {"wake-sleep": lvm.infer.WakeSleep, "nvil": lvm.infer.NVIL, "relax": lvm.infer.RELAX}
    svi = lvm.infer.SVI(loss=objectives[inference](), learning_rate=learning_rate)
    message = ""
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "fit: stopped", RuntimeWarning)
            fit = lvm.fit(
                lvm.models.SigmoidBeliefNet(3), BITS, inference=svi, batch_size=5, max_epochs=9, seed=0, progress=False
            )
        assert all(bool(p.isfinite().all()) for p in fit.params.values())
    except lvm.infer.NonFiniteLoss as error:
        message = str(error)
    assert "Trace Shapes" not in message


def test_a_fit_whose_parameters_are_lost_stops_at_once():
    fit = lvm.fit(lvm.models.SigmoidBeliefNet(3), BITS, max_epochs=1, seed=0, progress=False)
    with torch.no_grad():
        fit.guide.recognition[0].weight.fill_(torch.nan)
    with pytest.warns(RuntimeWarning, match=r"parameter 'recognition.0.weight' became infinite or NaN"):
        fit.resume(BITS, max_epochs=1, progress=False)
    assert all(p.grad is None for p in fit.guide.parameters())


def test_errors_of_a_program_stay_its_own():
    def wrong(x):
        pyro.param("location", torch.tensor(0.0))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(x[:3], 1.0), obs=x)

    with pytest.raises(ValueError, match="Shape mismatch"):
        lvm.infer.SVI(wrong).step(torch.zeros(8))


def test_a_run_that_diverges_is_kept_where_rows_are_held_out():
    x = lvm.datasets.load("faithful").x.float()
    svi, model = lvm.infer.SVI(learning_rate=200.0), lvm.models.GaussianMixture(2, covariance="diag")
    with pytest.warns(RuntimeWarning, match="The last good state is kept"):
        fit = lvm.fit(model, x[:200], inference=svi, validation=x[200:], max_epochs=20, seed=0, progress=False)
    assert all(bool(torch.isfinite(value).all()) for value in fit.params.values())
