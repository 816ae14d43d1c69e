"""Mistakes that users of other packages make, each with one sentence that says what to do."""

from __future__ import annotations

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine

import pyro_lvm as lvm

SERIES = torch.randn(6, 8, generator=torch.Generator().manual_seed(0))


def mixture(x):
    loc = pyro.param("loc", torch.tensor([-1.0, 1.0]))
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Categorical(torch.ones(2)), infer={"enumerate": "parallel"})
        pyro.sample("x", dist.Normal(loc[z], 1.0), obs=x)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (
            torch.full((6,), 7),
            r"got 7 at \(0,\)\. Correct it, or mark it as unknown: by .* -1 in whole numbers\.$",
        ),
        (torch.zeros(3), r"got \(3,\)\. Give one value per row, anything where it is unknown\.$"),
    ],
)
def test_errors_of_clamp_are_one_sentence(values, message):
    clamped, x = lvm.handlers.clamp(mixture, {"z": values}), SERIES[:, 0]
    calls = (
        lambda: poutine.trace(poutine.trace(clamped)).get_trace(x),
        lambda: lvm.infer.EM(clamped).step(x),
        lambda: lvm.fit(clamped, x, inference="em", progress=False),
    )
    for call in calls:
        with pytest.raises(ValueError, match=message):
            call()


def test_states_known_to_be_wrong_are_one_sentence():
    clamped = lvm.handlers.clamp(lvm.models.PoissonHMM(2), {"z": torch.full((6, 8), 5)})
    with pytest.raises(ValueError, match=r"write -1 where it is unknown\.$"):
        lvm.fit(clamped, SERIES.abs().round().unsqueeze(-1), max_epochs=1, progress=False)


def marginal(x):
    """Pyro's own law of a chain."""
    loc = pyro.param("loc", torch.tensor([-1.0, 1.0]))
    chain = dist.DiscreteHMM(torch.zeros(2), torch.eye(2), dist.Normal(loc, 1.0))
    with pyro.plate("data", len(x)):
        pyro.sample("x", chain, obs=x)


def test_laws_that_keep_their_states_to_themselves_are_pointed_out():
    fit = lvm.fit(marginal, SERIES, inference="em", max_epochs=1, seed=0, progress=False)
    hint = r"Site 'x' keeps its states to itself; give it lvm\.distributions\.HMM\.from_discrete_hmm\(law\)\.$"
    for call in (lambda: fit.predict(SERIES), lambda: fit.forecast(SERIES, 2), lambda: fit.plot(SERIES, "states")):
        with pytest.raises(ValueError, match=hint):
            call()


def test_sequences_one_after_the_other_are_told_how_to_be_parted():
    x = np.random.default_rng(0).normal(size=(30, 2))
    model = lvm.models.GaussianHMM(2)
    for data in ((x, [10, 20]), [x, np.array([10, 20])], {"x": x, "lengths": torch.tensor([10, 20])}):
        with pytest.raises(ValueError, match=r"Pass numpy\.split\(x, numpy\.cumsum\(lengths\)\[:-1\]\)\.$"):
            lvm.fit(model, data, max_epochs=1, progress=False)
    parted = np.split(x, np.cumsum([10, 20])[:-1])
    assert len(lvm.fit(model, parted, max_epochs=1, seed=0, progress=False).log_likelihood(parted)) == 2


def test_two_series_of_counts_are_two_series():
    """The second sums to the number of steps of the first."""
    fit = lvm.fit(lvm.models.PoissonHMM(2), [np.ones(10), np.array([4.0, 6.0])], max_epochs=1, seed=0, progress=False)
    assert fit.predict([np.ones(10)])[0].shape == (10,)


def test_a_series_without_a_plate_is_one_observation():
    def chain(x):
        transition = pyro.param("transition", torch.full((2, 2), 0.5), constraint=dist.constraints.simplex)
        z = torch.tensor(0)
        for t in pyro.markov(range(len(x))):
            z = pyro.sample(f"z{t}", dist.Categorical(transition[z]), infer={"enumerate": "parallel"})
            pyro.sample(f"x{t}", dist.Normal(2.0 * z - 1.0, 1.0), obs=x[t])

    fit = lvm.fit(chain, SERIES[0], inference="em", max_epochs=1, seed=0, progress=False)
    for call in (fit.log_likelihood, fit.plot):
        with pytest.raises(ValueError, match="expected a plate of rows; the program has none, so that all of its data"):
            call(SERIES[0])
    with pytest.raises(ValueError, match=r"^reconstruct: expected rows in a plate; chain makes one observation"):
        fit.reconstruct(SERIES[0])


def test_a_forecast_prints_shapes():
    fit = lvm.fit(lvm.models.GaussianHMM(2), SERIES.unsqueeze(-1), max_epochs=1, seed=0, progress=False)
    text = "Forecast(states=(6, 3, 2), mean=(6, 3, 1), samples=(100, 6, 3, 1), paths=(100, 6, 3))"
    assert repr(fit.forecast(SERIES.unsqueeze(-1), 3)) == text


RANGE = (
    r"{}: expected a program whose distributions have their arguments in range from the start; got {}\. Check the.*$"
)
STARTS = {
    "NaN": (
        lambda w: dist.Normal((w - 2).log().expand(6), 1.0),
        RANGE.format("fit", "'loc' of a Normal site that is NaN"),
    ),
    "range": (
        lambda w: dist.Poisson(-w.expand(6)),
        RANGE.format("fit", r"'rate' of a Poisson site outside of Greater.*"),
    ),
    "support": (
        lambda w: dist.Poisson(w.exp().expand(6)),
        r"SVI: expected values of site 'x' in the support Integer.* of its Poisson law; got others\. Correct the data",
    ),
}


@pytest.mark.parametrize("start", STARTS)
def test_numbers_that_are_wrong_from_the_start(start):
    law, message = STARTS[start]

    def model(x):
        w = pyro.param("w", torch.tensor(1.0))
        with pyro.plate("data", len(x)):
            pyro.sample("x", law(w), obs=x)

    with pytest.raises(ValueError, match=message) as raised:
        lvm.fit(model, SERIES[:, 0], inference="svi", progress=False)
    assert "Trace Shapes" not in str(raised.value)


def test_rows_beyond_what_a_guide_can_read():
    x = 1e38 * torch.randn(6, 4, generator=torch.Generator().manual_seed(0))
    message = RANGE.format("SVI", "'loc' of a Normal site that is NaN")
    with pytest.raises(ValueError, match=message):
        lvm.fit(lvm.models.VAE(2, likelihood="gaussian", hidden=[4]), x, progress=False)
