"""EM of hidden Markov models against hmmlearn and against Baum-Welch written by hand, from the same starts."""

import warnings

import numpy as np
import pytest
import torch
from hmmlearn import hmm

import pyro_lvm as lvm

pytestmark = pytest.mark.usefixtures("local")
STEPS = 5


def ragged(x, lengths):
    """A series cut into sequences, padded on the right by what must not matter."""
    parts = x.split(lengths)
    padded = torch.nn.utils.rnn.pad_sequence(parts, batch_first=True, padding_value=1.0)
    return padded, torch.tensor(lengths)


@pytest.fixture
def geyser():
    return ragged(lvm.datasets.load("geyser").x, [100, 120, 79])


def trained(model, x, lengths):
    em = lvm.infer.EM(model)
    for _ in range(STEPS):
        em.step(x, lengths)
    return -em.loss(x, lengths)


def started(peer, model, **emission):
    """hmmlearn's object at the model's start; `init_params=""` keeps it there, `tol=0` runs all iterations."""
    peer.init_params, peer.n_iter, peer.tol = "", STEPS, 0
    peer.startprob_ = model.initial_probs.detach().numpy().copy()
    peer.transmat_ = model.transition_probs.detach().numpy().copy()
    for name, value in emission.items():
        setattr(peer, name, value.detach().numpy().copy())
    return peer


def fit_peer(peer, x, lengths):
    rows = torch.cat([row[:length] for row, length in zip(x, lengths.tolist(), strict=True)])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of its own deprecated calls
        peer.fit(rows.numpy(), lengths.tolist())
        return peer.score(rows.numpy(), lengths.tolist())


def agree(model, peer, **emission):
    pairs = {"initial_probs": peer.startprob_, "transition_probs": peer.transmat_, **emission}
    for name, theirs in pairs.items():
        np.testing.assert_allclose(getattr(model, name).detach().numpy(), theirs, rtol=1e-6, atol=1e-6, err_msg=name)


@pytest.mark.parametrize("covariance", ["full", "diag", "tied", "spherical"])
@pytest.mark.parametrize("num_states", [2, 3])
def test_gaussian_equals_hmmlearn(geyser, covariance, num_states):
    """Its prior of covariances is on by default (`covars_prior=1e-2`); 0 turns it off."""
    x, lengths = geyser
    model = lvm.models.GaussianHMM(num_states, covariance=covariance)
    model.initialize(x, lengths)
    peer = hmm.GaussianHMM(num_states, covariance_type=covariance, covars_prior=0, covars_weight=1, means_weight=0)
    peer.n_features = 2
    started(peer, model, means_=model.loc, covars_=model.covariance)
    theirs = fit_peer(peer, x, lengths)
    ours = trained(model, x, lengths)
    stored = peer._covars_[:, 0] if covariance == "spherical" else peer._covars_  # `covars_` makes matrices of them
    agree(model, peer, loc=peer.means_, covariance=stored)
    assert ours == pytest.approx(theirs, rel=1e-10)


def test_categorical_equals_hmmlearn():
    x, lengths = ragged(lvm.datasets.load("eruptions").x, [100, 120, 79])
    x[0, 50:60] = 2.0
    model = lvm.models.CategoricalHMM(3)
    model.initialize(x, lengths)
    peer = started(hmm.CategoricalHMM(3), model)
    peer.n_features, peer.emissionprob_ = 3, model.probs[:, 0].detach().numpy().copy()
    theirs = fit_peer(peer, x.long(), lengths)
    ours = trained(model, x, lengths)
    agree(model, peer, probs=peer.emissionprob_[:, None])
    assert ours == pytest.approx(theirs, rel=1e-10)


def test_poisson_equals_hmmlearn():
    x, lengths = ragged(lvm.datasets.load("earthquakes").x, [40, 40, 27])
    model = lvm.models.PoissonHMM(3)
    model.initialize(x, lengths)
    peer = started(hmm.PoissonHMM(3), model, lambdas_=model.rate)
    theirs = fit_peer(peer, x.long(), lengths)
    ours = trained(model, x, lengths)
    agree(model, peer, rate=peer.lambdas_)
    assert ours == pytest.approx(theirs, rel=1e-10)


def test_multinomial_equals_hmmlearn():
    """hmmlearn wants one total for all steps: ten draws from the casualties of each month."""
    counts = lvm.datasets.load("seatbelts").x
    shares = counts / counts.sum(-1, keepdim=True)
    generator = torch.Generator().manual_seed(0)
    draws = torch.multinomial(shares, 10, replacement=True, generator=generator)
    x, lengths = ragged(torch.nn.functional.one_hot(draws, 3).sum(1).double(), [100, 60, 32])
    model = lvm.models.MultinomialHMM(2)
    model.initialize(x, lengths)
    peer = started(hmm.MultinomialHMM(2, n_trials=10), model, emissionprob_=model.probs)
    peer.n_features = 3
    theirs = fit_peer(peer, x.long(), lengths)
    ours = trained(model, x, lengths)
    agree(model, peer, probs=peer.emissionprob_)
    assert ours == pytest.approx(theirs, rel=1e-10)


def baum_welch(sequences, initial, transition, density, update):
    """One iteration of Rabiner (1989), equations 18 to 40, in probabilities scaled at every step."""
    first, moves, posteriors, total = 0.0, 0.0, [], 0.0
    for sequence in sequences:
        b = density(sequence)
        length, k = b.shape
        alpha, scale, beta = np.empty((length, k)), np.empty(length), np.ones((length, k))
        for t in range(length):
            forward = (initial if t == 0 else alpha[t - 1] @ transition) * b[t]
            scale[t] = forward.sum()
            alpha[t] = forward / scale[t]
        for t in range(length - 2, -1, -1):
            beta[t] = transition @ (b[t + 1] * beta[t + 1]) / scale[t + 1]
        gamma = alpha * beta
        first = first + gamma[0]
        for t in range(length - 1):
            moves = moves + alpha[t][:, None] * transition * (b[t + 1] * beta[t + 1])[None] / scale[t + 1]
        posteriors.append(gamma)
        total += np.log(scale).sum()
    update(np.concatenate(sequences), np.concatenate(posteriors))
    return first / first.sum(), moves / moves.sum(-1, keepdims=True), total


def test_bernoulli_equals_baum_welch_by_hand():
    generator = torch.Generator().manual_seed(1)
    x = torch.bernoulli(torch.full((6, 12, 5), 0.4, dtype=torch.float64), generator=generator)
    lengths = torch.tensor([12, 1, 7, 12, 2, 9])
    model = lvm.models.BernoulliHMM(3)
    model.initialize(x, lengths)
    initial, transition, probs = (
        getattr(model, name).detach().numpy().copy() for name in ("initial_probs", "transition_probs", "probs")
    )
    sequences = [row[:length].numpy() for row, length in zip(x, lengths.tolist(), strict=True)]

    def density(sequence):
        return np.prod(np.where(sequence[:, None] == 1, probs, 1 - probs), axis=-1)

    def update(rows, gamma):
        nonlocal probs
        probs = gamma.T @ rows / gamma.sum(0)[:, None]

    em = lvm.infer.EM(model)
    for _ in range(20):
        initial, transition, total = baum_welch(sequences, initial, transition, density, update)
        assert -em.step(x, lengths) == pytest.approx(total, rel=1e-12)
        for name, theirs in (("initial_probs", initial), ("transition_probs", transition), ("probs", probs)):
            np.testing.assert_allclose(getattr(model, name).detach().numpy(), theirs, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(
    ("num_states", "log_likelihood", "rates"),
    [(1, -391.9189, [19.36]), (2, -341.8787, [15.42, 26.02]), (3, -328.5275, [13.13, 19.71, 29.71])],
)
def test_earthquakes_are_those_of_the_book(num_states, log_likelihood, rates):
    """Zucchini and MacDonald (2009), Hidden Markov Models for Time Series, section 4.3: maximum likelihood by EM."""
    x = lvm.datasets.load("earthquakes").x.unsqueeze(0)
    fit = lvm.fit(lvm.models.PoissonHMM(num_states), x, inference="em", restarts=3, seed=0, progress=False)
    assert fit.score(x) == pytest.approx(log_likelihood, abs=1e-3)
    assert sorted(fit.params["rate"].flatten().tolist()) == pytest.approx(rates, abs=0.01)
