"""Options of fits and models: what is right by another name is taken, the rest gets one sentence."""

import re

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch

import pyro_lvm as lvm
from pyro_lvm.ops.real_number import real_number
from pyro_lvm.ops.whole_number import whole_number


@pytest.fixture(scope="module")
def fitted():
    x = lvm.datasets.load("faithful").x
    return lvm.fit(lvm.models.GaussianMixture(2), x, seed=0, max_epochs=3, progress=False)


NOT_COUNTS = [0, -1, 1.5, True, np.True_, "3", None, float("nan"), float("inf"), [2], torch.tensor([1, 2])]


@pytest.mark.parametrize("value", NOT_COUNTS, ids=repr)
def test_what_is_no_count(fitted, faithful, value):
    for name, ask in (
        ("posterior: expected num_samples", lambda: fitted.posterior(faithful, value)),
        ("sample: expected n", lambda: fitted.sample(value)),
        ("fit: expected restarts", lambda: lvm.fit(fitted.model, faithful, restarts=value)),
        ("Model: expected size", lambda: whole_number("Model", "size", value)),
    ):
        with pytest.raises(ValueError, match=rf"{name} to be a whole number >= 1; got .*\."):
            ask()
    if value is not None:
        for name in ("max_epochs", "batch_size", "patience"):
            with pytest.raises(ValueError, match=rf"fit: expected {name} to be a whole number >= 1"):
                lvm.fit(fitted.model, faithful, **{name: value})
            with pytest.raises(ValueError, match=rf"expected {name} to be a whole number >= 1"):
                fitted.resume(faithful, **{name: value})


@pytest.mark.parametrize("two", [2, 2.0, np.int32(2), np.float64(2), torch.tensor(2)], ids=repr)
def test_what_is_a_count(fitted, faithful, two):
    assert fitted.posterior(faithful[:5], two)["z"].shape == (2, 5)
    assert fitted.sample(two).shape == (2, 2)
    assert type(whole_number("Model", "size", two)) is int


def test_sizes_of_a_model():
    for wrong in (0, -1, True):  # the hook that checks types in tests turns away what is no int
        with pytest.raises(ValueError, match="GaussianMixture: expected num_components to be a whole number >= 1"):
            lvm.models.GaussianMixture(wrong)
        with pytest.raises(ValueError, match="GaussianMixture: expected data_dim to be a whole number >= 1"):
            lvm.models.GaussianMixture(2, data_dim=wrong)


@pytest.mark.parametrize("seed", [2**63, 2**64, 1.5, -1, True, "1"], ids=repr)
def test_what_is_no_seed(faithful, seed):
    with pytest.raises(ValueError, match=r"fit: expected seed to be a whole number >= 0 and < 9223372036854775808"):
        lvm.fit(lvm.models.GaussianMixture(2), faithful, seed=seed, progress=False)


def test_the_largest_seed(faithful):
    last = 2**63 - 1
    fit = lvm.fit(lvm.models.GaussianMixture(2), faithful, seed=last, restarts=2, max_epochs=2, progress=False)
    assert [r["seed"] for r in fit.restarts] == [last, 0]


OTHERS = [
    ({"tol": "1e-3"}, ValueError, r"expected tol >= 0; got '1e-3'\."),
    ({"tol": float("nan")}, ValueError, r"expected tol >= 0; got nan\."),
    ({"checkpoint": 3}, TypeError, r"expected checkpoint to be a folder's path; got int\."),
    ({"callbacks": [3]}, TypeError, r"expected callbacks to be functions of the run; got int\."),
    ({"device": "meta"}, ValueError, r"one that this machine has; got 'meta', which cannot be used here"),
    ({"device": None}, ValueError, r"got None, which cannot be used here"),
    ({"num_rows": 10}, ValueError, r"expected num_rows only with a stream of batches; got Tensor\."),
]


@pytest.mark.parametrize(("options", "error", "message"), OTHERS)
def test_other_options(faithful, options, error, message):
    with pytest.raises(error, match=message):
        lvm.fit(lvm.models.GaussianMixture(2), faithful, progress=False, **options)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_gpu_that_is_not_there(faithful):
    with pytest.raises(ValueError, match=r"got 'cuda', which cannot be used here\. Leave it out"):
        lvm.fit(lvm.models.GaussianMixture(2), faithful, device="cuda", progress=False)


def test_one_callback_needs_no_list(faithful):
    def stop(run):
        return run.epochs_done == 2

    for callbacks in (stop, [stop], (stop,)):
        fit = lvm.fit(lvm.models.GaussianMixture(2), faithful, callbacks=callbacks, seed=0, progress=False)
        assert len(fit.history["loss"]) == 2
    assert len(fit.resume(faithful, callbacks=stop, progress=False).history["loss"]) == 4


def test_compare_wants_fits_with_names(fitted, faithful):
    for fits, message in (
        ([fitted], r'expected a dict of fits, {"name": fit, \.\.\.}; got list\.'),
        (fitted, "got Fit"),
        ({"a": 3}, r"expected 'a' to be a fit, from lvm\.fit or lvm\.load; got int\."),
    ):
        with pytest.raises(TypeError, match=message):
            lvm.compare(fits, faithful)
    with pytest.warns(UserWarning, match="1, 2 were trained on these rows"):
        assert list(lvm.compare({1: fitted, 2: fitted}, faithful).index) == [1, 2]


def test_restarts_of_a_program_with_constant_starts_are_seeded(faithful):
    calls = []

    class Seeded(lvm.infer.EM):
        def seed(self, *args, **kwargs):
            calls.append(torch.initial_seed())
            pyro.param("loc").unconstrained().data.add_(torch.randn(2))

    def program(x):
        loc = pyro.param("loc", torch.tensor([2.0, 4.0]))
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Categorical(torch.tensor([0.5, 0.5])))
            pyro.sample("x", dist.Normal(loc[z], 1.0), obs=x)

    options = {"restarts": 3, "seed": 5, "max_epochs": 1, "progress": False}
    # the program has no parameter before it is run, so the inference makes them: here the E-step of a loss
    Seeded.seed, seed = lambda self, *args, **kwargs: (self.loss(*args, **kwargs), seed(self))[0], Seeded.seed
    fit = lvm.fit(program, faithful[:, 0].float(), inference=Seeded(), **options)
    assert calls == [6, 7]
    assert len({r["loss"] for r in fit.restarts}) == 3
    lvm.fit(lvm.models.GaussianMixture(2), faithful, inference=Seeded(), **options)
    assert len(calls) == 2


NOT_NUMBERS = [0, -1, True, "3", None, float("nan"), [2], torch.tensor([1.0, 2.0])]


@pytest.mark.parametrize("value", NOT_NUMBERS, ids=repr)
def test_what_is_no_positive_number(value):
    for caller, name, ask in (
        ("SVI", "learning_rate", lambda: lvm.infer.SVI(learning_rate=value)),
        ("NVIL", "learning_rate", lambda: lvm.infer.NVIL(learning_rate=value)),
        ("RELAX", "learning_rate", lambda: lvm.infer.RELAX(learning_rate=value)),
        ("VAE", "min_scale", lambda: real_number("VAE", "min_scale", value)),  # behind the hook that checks types
    ):
        with pytest.raises(ValueError, match=rf"{caller}: expected {name} > 0; got .*\."):
            ask()


def test_numbers_out_of_range():
    for limits, wrong in (("in [0, 1)", 1.0), ("in (0, 1]", 0.0), ("in (0, 1)", 1.0), (">= 0", -1e-9), ("> 0", 0.0)):
        with pytest.raises(ValueError, match=rf"A: expected b {re.escape(limits)}; got {wrong}"):
            real_number("A", "b", wrong, limits)
    with pytest.raises(ValueError, match="VAE: expected min_scale > 0 and finite; got inf"):
        lvm.models.VAE(2, min_scale=float("inf"))
    for right in (0.5, np.float32(0.5), torch.tensor(0.5)):
        assert real_number("A", "b", right, "in (0, 1)") == 0.5


CALLS = {
    "steps": (lambda: lvm.infer.ContrastiveDivergence(num_steps=1.5), "negative_phase: expected num_steps to be a who"),
    "chains": (lambda: lvm.infer.ContrastiveDivergence(1, True, 2.5), "expected num_chains to be a whole number >= 1"),
    "lone chains": (lambda: lvm.infer.ContrastiveDivergence(1, False, 2), "expected num_chains with persistent=True"),
    "base": (lambda: lvm.infer.ContrastiveDivergence(base="ws"), "expected base to be an objective .* got 'ws'"),
    "base class": (lambda: lvm.infer.ContrastiveDivergence(base=lvm.infer.WakeSleep), r"Make one: WakeSleep\(\.\.\.\)"),
    "loss": (lambda: lvm.infer.SVI(loss="wake-sleep"), "SVI: expected loss to be an objective .* got 'wake-sleep'"),
    "units": (lambda: lvm.infer.NVIL(-1), "NVIL: expected hidden to be a whole number >= 1; got -1"),
    "particles": (lambda: lvm.infer.SVI(num_particles=1.5), "SVI: expected num_particles to be a whole number"),
    "warm-up": (lambda: lvm.infer.MCMC(warmup_steps=-1), "MCMC: expected warmup_steps to be a whole number >= 0"),
    "floor": (lambda: lvm.infer.EM(variance_floor="a"), "EM: expected variance_floor >= 0; got 'a'"),
    "guide": (lambda: lvm.handlers.baseline("recognition-net"), "expected guide to be a Pyro program, made already"),
    "guide class": (lambda: lvm.handlers.baseline(lvm.guides.RecognitionNet), "got the class RecognitionNet"),
}


@pytest.mark.parametrize("name", CALLS)
def test_options_of_objectives_and_handlers(name):
    call, message = CALLS[name]
    with pytest.raises((ValueError, TypeError), match=message) as raised:
        call()
    assert "\n" not in str(raised.value)
