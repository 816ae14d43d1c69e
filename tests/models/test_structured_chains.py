"""Semi-Markov, factorial, input-driven and neural hidden Markov models: what is special to each."""

import itertools

import pyro
import pyro.distributions as dist
import pytest
import torch

import pyro_lvm as lvm
from pyro_lvm.distributions import HMM, FactorialHMM, HiddenSemiMarkov

pytestmark = pytest.mark.usefixtures("local")
LOC = torch.tensor([[-2.0], [0.0], [2.0]])
SERIES = torch.arange(18.0).reshape(2, 9, 1)
FOLLOW = torch.tensor([[0.0, 0.5, 0.5], [0.5, 0.0, 0.5], [0.5, 0.5, 0.0]])


def lasting():
    """States that last for five or six, for two, and for eight or ten steps: nothing like geometric laws."""
    durations = torch.zeros(3, 12)
    durations[0, [4, 5]] = durations[2, [7, 9]] = 0.5
    durations[1, 1] = 1.0
    return HiddenSemiMarkov(torch.ones(3) / 3, FOLLOW, durations, dist.Normal(LOC, 1.0).to_event(1), num_steps=100)


def fitted(model, data, **options):
    return lvm.fit(model, data, **{"inference": "em", "seed": 0, "progress": False, **options})


@pytest.fixture(scope="module")
def series():
    torch.manual_seed(0)
    law = lasting()
    return law.sample((20,)), *law.sample_with_states((20,))


def test_durations_are_recovered_and_score_better_than_a_plain_chain(series):
    x, held_out, states = series
    fit = fitted(lvm.models.HiddenSemiMarkov(3, 15), x)
    plain = fitted(lvm.models.GaussianHMM(3, covariance="diag"), x)
    truth = lasting()
    assert fit.score(held_out) > plain.score(held_out) + 15  # nats a sequence
    assert fit.score(held_out) == pytest.approx(truth.log_prob(held_out).mean().item(), abs=2.0)
    order = fit.params["loc"].flatten().argsort()
    expected = torch.nn.functional.pad(truth.small["duration"].fn.probs, (0, 3))
    torch.testing.assert_close(fit.params["duration_probs"][order], expected, atol=0.1, rtol=0)
    assert bool((fit.params["transition_probs"].diagonal() == 0).all())
    assert (order.argsort()[fit.predict(held_out)] == states).double().mean() > 0.95
    assert fit.predict_proba(held_out).shape == (20, 100, 3)
    assert fit.posterior(held_out[:2], 3)["z"].amax() < 3
    assert fit.forecast(held_out[:2], 4).states.shape == (2, 4, 3)


@pytest.mark.parametrize("durations", ["poisson", "negative-binomial"])
def test_parametric_durations_climb(durations):
    torch.manual_seed(1)
    model = lvm.models.HiddenSemiMarkov(2, 20, durations=durations, data_dim=1)
    with torch.no_grad():
        model.loc.copy_(torch.tensor([[-2.0], [2.0]]))
    model.duration_rate = torch.tensor([2.0, 7.0])
    x = model(size=30, num_steps=80)
    fit = fitted(lvm.models.HiddenSemiMarkov(2, 20, durations=durations), x)
    order = fit.params["loc"].flatten().argsort()
    torch.testing.assert_close(fit.params["duration_rate"][order], torch.tensor([2.0, 7.0]), atol=0.5, rtol=0)
    assert not fit.plan(x).parameters["duration_rate"].closed
    em = lvm.infer.EM(lvm.models.HiddenSemiMarkov(2, 6, durations=durations))
    em.model.initialize(x)
    losses = [em.step(x) for _ in range(10)]
    assert all(b <= a + 1e-3 for a, b in itertools.pairwise(losses))


def test_the_last_duration_is_cut():
    """A sequence that ends amid a state says of its duration only that it is as long as what was seen."""
    durations = torch.tensor([[0.2, 0.3, 0.5]])
    law = HiddenSemiMarkov(torch.ones(1), torch.ones(1, 1), durations, dist.Normal(torch.zeros(1), 1.0))
    x = torch.zeros(2)
    torch.testing.assert_close(law.log_prob(x), dist.Normal(0.0, 1.0).log_prob(x).sum())
    model = lvm.models.HiddenSemiMarkov(1, 3, data_dim=1)
    assert model.transition_probs.tolist() == [[1.0]]


def test_topologies_of_states_that_last():
    model = lvm.models.HiddenSemiMarkov(3, 4, topology="left-to-right", data_dim=1)
    assert model.allowed.tolist() == [[0, 1, 0], [0, 0, 1], [0, 0, 1]]
    assert model.fixed_entries("transition_probs") == 6
    again = lvm.models.HiddenSemiMarkov(2, 4, topology=[[1, 1], [1, 1]], data_dim=1)
    assert bool((again.transition_probs > 0).all())
    bayes = lvm.models.HiddenSemiMarkov(3, 4, priors=True, data_dim=1)
    trace = pyro.poutine.trace(bayes).get_trace(size=2, num_steps=5)
    law = trace.nodes["x"]["fn"]
    assert bool((law.small["transition"].fn.probs.squeeze(0).diagonal() == 0).all())
    assert {"duration_probs", "transition_probs", "initial_probs"} <= set(trace.stochastic_nodes)


def test_closed_form_variational_bayes_of_durations():
    """Coordinate ascent wants priors on what the laws take as it is: here on all but the transitions."""
    torch.manual_seed(0)
    durations = torch.tensor([[0.0, 0.0, 1.0], [0.5, 0.5, 0.0]])
    first, follow, rate = torch.ones(2) / 2, 1 - torch.eye(2), torch.tensor([1.0, 8.0])
    x = HiddenSemiMarkov(first, follow, durations, dist.Poisson(rate), num_steps=60).sample((15,))

    def program(x):
        begin = pyro.sample("begin", dist.Dirichlet(torch.ones(2)))
        last = pyro.sample("last", dist.Dirichlet(torch.ones(2, 5)).to_event(1))
        mean = pyro.sample("mean", dist.Gamma(torch.ones(2), 0.2).to_event(1))
        with pyro.plate("data", len(x)):
            pyro.sample("x", HiddenSemiMarkov(begin, follow, last, dist.Poisson(mean)), obs=x)

    program.initial_values = {"begin": first, "last": torch.ones(2, 5) / 5, "mean": torch.tensor([2.0, 6.0])}
    guide = lvm.guides.Conjugate(program)
    ascent = lvm.infer.CoordinateAscent(program, guide)
    losses = [ascent.step(x) for _ in range(15)]
    assert all(b <= a + 1e-5 * abs(a) for a, b in itertools.pairwise(losses))
    torch.testing.assert_close(guide.means()["last"][:, :3], durations, atol=0.1, rtol=0)


def additive():
    loc = torch.tensor([[[0.0, 0.0], [4.0, 1.0]], [[0.0, 0.0], [1.5, -5.0]]])
    joint = (loc[0].unsqueeze(1) + loc[1]).flatten(0, 1)
    first, moves = torch.ones(2) / 2, torch.tensor([[0.95, 0.05], [0.1, 0.9]])
    return FactorialHMM([first] * 2, [moves] * 2, dist.Normal(joint, 0.7).to_event(1), num_steps=60), loc


def test_chains_are_told_apart():
    torch.manual_seed(0)
    law, loc = additive()
    x, (held_out, states) = law.sample((30,)), law.sample_with_states((10,))
    fit = fitted(lvm.models.FactorialHMM(2, 2), x, restarts=3)
    assert fit.score(held_out) == pytest.approx(law.log_prob(held_out).mean().item(), abs=2.0)
    steps = fit.params["loc"].diff(dim=1).squeeze(1)
    expected = loc.diff(dim=1).squeeze(1)
    swap = bool(steps[0, 1].abs() > steps[1, 1].abs())
    steps = steps.flip(0) if swap else steps
    torch.testing.assert_close(steps * steps[:, 1:].sign() * torch.tensor([[1.0], [-1.0]]), expected, atol=0.15, rtol=0)
    found, truth = fit.model.split(fit.predict(held_out)), law.split(states)
    found = found.flip(-1) if swap else found
    agreement = (found == truth).double().mean((0, 1))
    assert torch.minimum(agreement, 1 - agreement).max() < 0.02
    assert all(entry.closed for entry in fit.plan(x))


def test_covariates_drive_transitions():
    torch.manual_seed(0)
    truth = lvm.models.InputDrivenHMM(2, data_dim=1, covariate_dim=2)
    with torch.no_grad():
        truth.loc.copy_(torch.tensor([[-1.5], [1.5]]))
        truth.transition_logits.copy_(torch.tensor([[1.0, -1.0], [-1.0, 1.0]]))
        truth.transition_coefficients[:, 1, 0] = 3.0
    u = 5.0 + 2.0 * torch.randn(40, 100, 2)
    scaled = (u - 5.0) / 2.0
    x = truth(covariates=scaled).detach()
    train, test = ({"x": x[rows], "covariates": u[rows]} for rows in (slice(0, 25), slice(25, 40)))
    fit = fitted(lvm.models.InputDrivenHMM(2), train)
    plain = fitted(lvm.models.GaussianHMM(2), train["x"])
    assert fit.score(test) > plain.score(test["x"]) + 15
    order = fit.params["loc"].flatten().argsort()
    slopes = fit.params["transition_coefficients"][order][:, order].diff(dim=1).squeeze(1)
    torch.testing.assert_close(slopes, torch.tensor([[3.0, 0.0], [3.0, 0.0]]), atol=0.6, rtol=0)
    assert fit.model.transition_probs(u[0]).shape == (100, 2, 2)
    # of 2 x 2 logits and 2 x 2 x 2 slopes, half say nothing
    assert sum(fit.model.fixed_entries(name) for name in fit.params) == 6


def test_impossible_transitions_stay_so_whatever_drives_them():
    model = lvm.models.InputDrivenHMM(3, data_dim=1, covariate_dim=1, topology="left-to-right")
    u = torch.randn(4, 12, 1)
    x = model(covariates=u).detach() + torch.linspace(0, 3, 12).unsqueeze(-1)
    em = lvm.infer.EM(model)
    model.initialize(x, covariates=u)
    losses = [em.step(x, covariates=u) for _ in range(5)]
    assert all(b <= a + 1e-3 for a, b in itertools.pairwise(losses))
    assert bool((model.transition_probs(u[0])[:, 1, 0] == 0).all())
    one = model(x[:, :1], covariates=u[:, :1])
    assert one.shape == (4, 1, 1)


@pytest.fixture(scope="module")
def symbols():
    torch.manual_seed(0)
    probs = torch.tensor([[0.8, 0.1, 0.05, 0.05], [0.05, 0.05, 0.8, 0.1], [0.1, 0.1, 0.1, 0.7]]).unsqueeze(1)
    law = HMM(torch.ones(3) / 3, torch.eye(3) * 0.85 + 0.05, dist.Categorical(probs).to_event(1), num_steps=60)
    return law, law.sample((30,)).float(), law.sample((30,)).float()


def adam(tensors):
    return torch.optim.Adam(tensors, lr=0.02)


@pytest.mark.parametrize("name", ["em", "em with Adam", "svi"])
def test_networks_learn_the_table(symbols, name):
    law, x, held_out = symbols
    options = {
        "em": {"inference": "em", "max_epochs": 30, "restarts": 2},
        "em with Adam": {"inference": lvm.infer.EM(optimizer=adam, gradient_steps=5), "max_epochs": 120, "restarts": 3},
        "svi": {"inference": lvm.infer.SVI(learning_rate=0.02), "max_epochs": 200},
    }[name]
    fit = fitted(lvm.models.NeuralHMM(3), x, **options)
    truth = law.log_prob(held_out).mean().item()
    alone = torch.bincount(x.long().flatten()).double()
    independent = (alone / alone.sum()).log()[held_out.long()].sum((1, 2)).mean().item()
    if name == "svi":  # one start, which may end in a local optimum
        assert independent + 3 < fit.score(held_out) < truth + 1
    else:
        assert fit.score(held_out) == pytest.approx(truth, abs=1.0)
    assert fit.predict(held_out).shape == (30, 60)
    assert fit.model.emission_logits().shape == (3, 1, 4)
    assert fit.model.transition_logits().shape == (3, 3)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: lvm.models.HiddenSemiMarkov(2, 0), "max_duration"),
        (lambda: lvm.models.HiddenSemiMarkov(2, 3, durations="gamma"), "expected durations to be one of free, poisson"),
        (lambda: lvm.models.HiddenSemiMarkov(2, 3, emission="no such thing"), "expected emission"),
        (lambda: lvm.models.HiddenSemiMarkov(2, 3, priors={"durations": None}), "expected priors for"),
        (lambda: lvm.models.FactorialHMM(0, 2), "num_chains"),
        (lambda: lvm.models.FactorialHMM(13, 2), "at most 4096 joint states"),
        (lambda: lvm.models.InputDrivenHMM(2, covariate_dim=0), "covariate_dim"),
        (
            lambda: lvm.models.InputDrivenHMM(2, data_dim=1, covariate_dim=1)(torch.zeros(2, 3, 1)),
            "expected covariates",
        ),
        (
            lambda: fitted(
                lvm.models.InputDrivenHMM(2), {"x": torch.randn(2, 9, 1), "covariates": torch.randn(2, 8, 1)}
            ),
            "covariates",
        ),
        (lambda: lvm.models.NeuralHMM(2, embedding_dim=0), "embedding_dim"),
        (
            lambda: fitted(lvm.models.NeuralHMM(2, num_categories=3), torch.full((2, 9, 1), 5.0)),
            "expected answers 0 to 2",
        ),
    ],
)
def test_errors(make, message):
    with pytest.raises(ValueError, match=message):
        make()
