"""Fits in several threads take turns: they equal fits one after another."""

from concurrent.futures import ThreadPoolExecutor

import torch

import pyro_lvm as lvm

X = lvm.datasets.load("faithful").x.double()
JOBS = [
    (lambda: lvm.models.GaussianMixture(2), {"inference": "em", "max_epochs": 5}),
    (lambda: lvm.models.GaussianMixture(2, priors=True), {"inference": "svi", "max_epochs": 10}),
    (lambda: lvm.models.GaussianMixture(3, priors=True), {"inference": "coordinate-ascent", "max_epochs": 5}),
    (lambda: lvm.models.GaussianMixture(3, covariance="diag"), {"inference": "em", "max_epochs": 5}),
]


def work(job):
    make, options = job
    fit = lvm.fit(make(), X, seed=1, progress=False, **options)
    fit.resume(X, max_epochs=3, progress=False)
    return {**fit.params, "score": fit.log_likelihood(X[:5]), "states": fit.predict_proba(X[:5])}


def test_fits_in_threads_equal_fits_in_turn():
    expected = [work(job) for job in JOBS]
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(work, JOBS))
    for one, other in zip(expected, found, strict=True):
        assert one.keys() == other.keys()
        for name, value in one.items():
            torch.testing.assert_close(other[name], value, rtol=0.0, atol=0.0)


def test_a_callback_may_ask_the_fit():
    scores = []
    lvm.fit(
        lvm.models.GaussianMixture(2),
        X,
        max_epochs=2,
        progress=False,
        callbacks=lambda run: scores.append(run.result().score(X)),
    )
    assert len(scores) == 2
