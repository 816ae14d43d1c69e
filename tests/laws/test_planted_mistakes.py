"""Each law fails on a mistake planted for it: a law that nothing breaks checks nothing."""

from __future__ import annotations

import random
from contextlib import contextmanager

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import TraceEnum_ELBO
from pyro.nn import PyroModule, PyroParam
from torch.distributions import constraints

import pyro_lvm as lvm
from pyro_lvm.infer import enumeration
from pyro_lvm.infer.m_step import closed_form
from pyro_lvm.protocols import LatentVariableModel
from pyro_lvm.testing import laws, oracles


@pytest.fixture(scope="module")
def rows():
    with torch.random.fork_rng():
        torch.manual_seed(3)
        z = torch.rand(100, 1) < 0.4
        return torch.where(z, torch.randn(100, 1) - 2, 0.7 * torch.randn(100, 1) + 2).double()


def normal_mixture(x, family=dist.Normal, mix=lambda z: 0.0, plate="data", start=(-1.0, 1.0)):
    """Two normal components, with places to plant mistakes in."""
    weights = pyro.param("weights", lambda: x.new_tensor([0.4, 0.6]), constraint=constraints.simplex)
    loc = pyro.param("loc", lambda: x.new_tensor(start))
    scale = pyro.param("scale", lambda: x.new_ones(2), constraint=constraints.positive)
    with pyro.plate(plate, len(x)):
        z = pyro.sample("z", dist.Categorical(weights), infer={"enumerate": "parallel"})
        law = family((loc[z] + mix(z)).unsqueeze(-1), scale[z].unsqueeze(-1))
        return pyro.sample("x", law.to_event(1), obs=x)


def planted(**options):
    def model(x):
        return normal_mixture(x, **options)

    return model


def fit(model, x, **options):
    return lvm.fit(model, x, **{"max_epochs": 10, "seed": 0, "progress": False, **options})


def breaks(law, *args, match, **kwargs):
    with pytest.raises(AssertionError, match=match):
        getattr(laws, law)(*args, **kwargs)


class Unnormalised(dist.Normal):
    """Its density forgets a constant."""

    def log_prob(self, value):
        return super().log_prob(value) + 0.2


class Shifted(dist.Normal):
    """Its sampler is off."""

    def rsample(self, sample_shape=()):
        return super().rsample(sample_shape) + 0.3


class WrongForm(dist.Poisson):
    """A family whose registered closed form is wrong."""


class _TooLarge(type(closed_form(dist.Poisson(1.0)))):
    def collect(self, *args):
        statistics = super().collect(*args)
        statistics["sum_0"] = 1.5 * statistics["sum_0"]
        return statistics


@pytest.fixture
def wrong_form():
    """A program that the wrong closed form is used for."""
    closed_form.register(WrongForm)(lambda fn: _TooLarge())

    def model(x):
        rate = pyro.param("rate", lambda: x.new_tensor([1.0, 8.0]), constraint=constraints.positive)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Categorical(x.new_ones(2)), infer={"enumerate": "parallel"})
            pyro.sample("x", WrongForm(rate[z]), obs=x)

    return model


COUNTS = torch.tensor([0.0, 1, 1, 2, 0, 9, 7, 8, 11, 6]).double()


def test_a_good_program_breaks_no_law(rows, tmp_path):
    model = planted()
    good = fit(model, rows)
    laws.density_integrates_to_one(good, rows)
    laws.sampler_agrees_with_density(good, rows)
    laws.enumeration_agrees_with_conditioning(model, rows)
    laws.em_never_falls(model, rows)
    laws.em_gradient_is_exact(model, rows)
    laws.closed_form_is_stationary(model, rows)
    laws.parameters_are_recovered(planted, good, 500)
    laws.save_load_is_exact(good, rows, tmp_path / "kept", model=model)
    laws.resume_is_exact(planted, rows, tmp_path / "resumed")
    laws.seeds_reproduce(planted, rows)
    laws.fits_do_not_touch(planted, rows)
    laws.minibatches_are_unbiased(model, rows)
    laws.dtype_is_kept(planted, rows)


def test_require():
    laws.require(True, "fine")
    with pytest.raises(AssertionError, match="not fine"):
        laws.require(False, "not fine")


def test_density_that_forgets_a_constant(rows):
    bad = fit(planted(family=Unnormalised), rows)
    breaks("density_integrates_to_one", bad, rows, match=r"integrates to 1\.2")


def test_density_from_too_few_draws(rows):
    breaks("density_integrates_to_one", fit(planted(), rows), rows, num_draws=50, match="raise num_draws")


def test_sampler_that_is_off(rows):
    bad = fit(planted(family=Shifted), rows)
    laws.density_integrates_to_one(bad, rows)
    breaks("sampler_agrees_with_density", bad, rows, match="moment 1 of standardised column 0")


def test_program_that_mixes_states_when_enumerated(rows):
    model = planted(mix=lambda z: z.double().mean())
    breaks("enumeration_agrees_with_conditioning", model, rows, match="log-likelihoods of rows differ")


def test_e_step_with_wrong_posterior(rows, monkeypatch):
    expect = enumeration.expect

    def tempered(*args):
        expectation = expect(*args)
        for factor in expectation.factors.values():
            factor.weights = factor.weights**0.9
        return expectation

    monkeypatch.setattr("pyro_lvm.testing.em_laws.expect", tempered)
    breaks("enumeration_agrees_with_conditioning", planted(), rows, match="the posterior of 'z' is off")
    breaks("em_gradient_is_exact", planted(), rows, match="the gradient for '")


def test_em_with_a_wrong_closed_form(wrong_form):
    breaks("em_never_falls", wrong_form, COUNTS, match="had to be undone.* rate")


def test_em_without_its_guard(wrong_form, monkeypatch):
    monkeypatch.setattr("pyro_lvm.infer.em.Step.fell", lambda self, expectation: False)
    breaks("em_never_falls", wrong_form, COUNTS, match="the loss rose")


def test_gradient_that_is_cut(rows):
    """The state's influence on the location is detached where conditioning sees it, not where enumeration does."""

    def cut(x):
        loc = pyro.param("loc", lambda: x.new_tensor([-1.0, 1.0]))
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Categorical(x.new_ones(2)), infer={"enumerate": "parallel"})
            chosen = loc[z].detach() if z.dim() > 1 else loc[z]
            pyro.sample("x", dist.Normal(chosen, 1.0), obs=x[:, 0])

    breaks("em_gradient_is_exact", cut, rows, match="the gradient for 'loc'")


def test_closed_form_that_does_not_maximise(wrong_form):
    breaks("closed_form_is_stationary", wrong_form, COUNTS, match="'rate' has slope")


def test_no_closed_form_to_look_at(rows):
    def model(x):
        loc = pyro.param("loc", lambda: x.new_tensor(3.0))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Cauchy(loc, 1.0), obs=x[:, 0])

    breaks("closed_form_is_stationary", model, rows, match="no parameter of this program has a closed form")


def test_refit_by_another_family(rows):
    good = fit(planted(), rows)
    breaks("parameters_are_recovered", lambda: lvm.models.GaussianMixture(1), good, match="worse than the truth")


class NoEntropy(TraceEnum_ELBO):
    """An objective that leaves out the guide's log-density, which for a narrow guide is large."""

    def loss(self, model, guide, *args, **kwargs):
        trace = pyro.poutine.trace(guide).get_trace(*args, **kwargs)
        return super().loss(model, guide, *args, **kwargs) - float(trace.log_prob_sum())


def test_bound_that_is_none(rows):
    bayes = lvm.models.GaussianMixture(2, covariance="diag", priors=True)
    options = {"inference": lvm.infer.SVI(learning_rate=0.02), "guide": "normal", "max_epochs": 30}
    good = fit(bayes, rows, **options)
    laws.bound_is_below_evidence(good, rows, num_bounds=30, num_draws=50)
    good.inference.objective = NoEntropy(max_plate_nesting=1)
    breaks("bound_is_below_evidence", good, rows, num_bounds=30, num_draws=50, match="is above the log evidence")


def test_bound_of_a_point(rows):
    breaks("bound_is_below_evidence", fit(planted(), rows), rows, match="expected a fit with a guide")


class Forgetful(PyroModule):
    """A model with state that no file holds: a Python number learned in `initialize`, and a count of its calls."""

    def __init__(self, cooling=0.0):
        super().__init__()
        self.cooling = cooling
        self.calls = 0
        self.centre = 0.0
        self.loc = PyroParam(torch.tensor([-1.0, 1.0]).double())

    def initialize(self, x):
        self.centre = float(x.mean())

    def forward(self, x):
        self.calls += 1
        temperature = 1 + self.cooling / self.calls
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Categorical(x.new_ones(2)), infer={"enumerate": "parallel"})
            law = dist.Normal((self.loc[z] + self.centre).unsqueeze(-1), temperature)
            return pyro.sample("x", law.to_event(1), obs=x)


def test_model_with_state_outside_its_parameters(rows, tmp_path):
    bad = fit(Forgetful(), rows)
    breaks("save_load_is_exact", bad, rows, tmp_path / "fit", model=Forgetful(), match="scores are not bit-identical")


def test_model_that_counts_its_calls(rows, tmp_path):
    options = {"inference": "svi", "match": "resume_is_exact"}
    breaks("resume_is_exact", lambda: Forgetful(cooling=1.0), rows, tmp_path / "fit", **options)


def test_start_from_another_generator(rows):
    def model(x):
        loc = pyro.param("loc", lambda: x.new_tensor([random.random(), 1.0]))
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Categorical(x.new_ones(2)), infer={"enumerate": "parallel"})
            pyro.sample("x", dist.Normal(loc[z], 1.0), obs=x[:, 0])

    breaks("seeds_reproduce", lambda: model, rows, match="'loc' differs by")


def test_fit_that_uses_up_the_callers_generator(rows, monkeypatch):
    from pyro_lvm import training

    real = training.fit

    def greedy(*args, **kwargs):
        torch.rand(1)
        return real(*args, **kwargs)

    monkeypatch.setattr(training, "fit", greedy)
    breaks("seeds_reproduce", planted, rows, match="changed the caller's random state")


def test_program_with_state_of_its_own(rows):
    seen = set()

    def model(x):
        seen.add(len(x))
        return normal_mixture(x, mix=lambda z: float(len(seen) > 2))

    breaks("fits_do_not_touch", lambda: model, rows[:80], match="scores of the first fit")


def test_fits_in_the_global_store(rows, monkeypatch):
    @contextmanager
    def no_store_of_its_own(state):
        with pyro.settings.context(module_local_params=True):
            yield

    monkeypatch.setattr("pyro_lvm._pyro.module_local_store", no_store_of_its_own)
    breaks("fits_do_not_touch", planted, rows, match="parameters of the first fit")


def test_plate_by_another_name(rows):
    breaks("minibatches_are_unbiased", planted(plate="rows"), rows, match="batches give a mean loss")


def test_parameters_of_a_fixed_type(rows):
    def model(x):
        loc = pyro.param("loc", lambda: torch.tensor([-1.0, 1.0]))
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Categorical(x.new_ones(2)), infer={"enumerate": "parallel"})
            pyro.sample("x", dist.Normal(loc[z], 1.0), obs=x[:, 0])

    breaks("dtype_is_kept", lambda: model, rows, match=r"'loc' is torch\.float32")


class Credulous(LatentVariableModel):
    """A model that takes anything."""

    def __init__(self, message=None):
        super().__init__()
        self.message = message
        self.declare("loc", torch.zeros(()).double(), constraints.real)

    def initialize(self, x):
        if self.message and (x == x[0]).all(0).any():
            raise ValueError(self.message)

    def check(self, x):
        pass

    def forward(self, x=None, *, size=None):
        n = size if x is None else len(x)
        with pyro.plate("data", n):
            value = None if x is None else x.reshape(n, -1)[:, 0]
            return pyro.sample("x", dist.Normal(self.loc, 1.0), obs=value)


SHAPES = ("a scalar", "1-d", "3-d", "too many columns")


def test_model_that_takes_anything(rows):
    breaks("rejects_bad_rows", Credulous, rows, match="fit of .* was accepted")
    breaks("rejects_bad_rows", Credulous, rows, skip=(*SHAPES, "one row"), match="constant column was accepted")


@pytest.mark.parametrize(
    ("message", "complaint"),
    [("constant", "not a sentence"), ("Two\nconstant lines.", "not a sentence"), ("Bad data.", "does not mention")],
)
def test_message_that_does_not_help(rows, message, complaint):
    skip = (*SHAPES, "one row")
    breaks("rejects_bad_rows", lambda: Credulous(message), rows, skip=skip, match=complaint)


def test_model_that_crashes(rows):
    class Crashing(Credulous):
        def initialize(self, x):
            x[0, 0]

    breaks("rejects_bad_rows", Crashing, rows, match="raised IndexError")


def test_oracle_refuses_what_it_cannot_do(rows):
    def two(x):
        with pyro.plate("data", len(x)):
            a = pyro.sample("a", dist.Bernoulli(0.5))
            b = pyro.sample("b", dist.Bernoulli(0.5))
            pyro.sample("x", dist.Normal(a + b, 1.0), obs=x[:, 0])

    with pytest.raises(ValueError, match="at most one latent site; got a, b"):
        oracles.condition_on_states(two, rows)
    with pytest.raises(ValueError, match="expected a plate of rows"):
        oracles.condition_on_states(
            lambda x: pyro.sample("x", dist.Normal(0.0, 1.0).expand(x.shape).to_event(2), obs=x), rows
        )


class WithGaps(LatentVariableModel):
    """One normal column, with places to plant mistakes in the treatment of gaps."""

    handles_missing = True

    def __init__(self, filler=0.0, ignore=True):
        super().__init__()
        self.filler, self.ignore = filler, ignore

    def forward(self, x=None, *, size=None):
        known = ~x.isnan()
        law = dist.Normal(self.loc, 1.0).expand([1])
        with pyro.plate("data", len(x)):
            law = law.mask(known) if self.ignore else law
            return pyro.sample("x", law.to_event(1), obs=torch.where(known, x, self.filler))

    def initialize(self, x):
        self.declare("loc", x.nanmean(0), constraints.real)

    def check(self, x):
        pass


def test_gaps_that_are_filled_before_scoring(rows):
    laws.missing_entries_are_marginalised(fit(WithGaps(), rows), rows)
    breaks("missing_entries_are_marginalised", fit(WithGaps(ignore=False), rows), rows, match="log-density is off")


def test_gaps_that_are_filled_with_something_else(rows, monkeypatch):
    good = fit(WithGaps(), rows)
    monkeypatch.setattr(type(good), "impute", lambda self, x: torch.where(x.isnan(), 0.1, x))
    breaks("missing_entries_are_marginalised", good, rows, match="off the mean")
