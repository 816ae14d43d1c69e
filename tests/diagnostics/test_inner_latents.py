"""Latent variables that laws sum out themselves, against sums over all of their states."""

from __future__ import annotations

import itertools

import pyro
import pyro.distributions as dist
import pytest
import torch

import pyro_lvm as lvm

ROWS = torch.bernoulli(torch.full((6, 4), 0.4), generator=torch.Generator().manual_seed(0))
STATES = torch.tensor(list(itertools.product([0.0, 1.0], repeat=3)))
OPTIONS = {"max_epochs": 3, "seed": 0, "progress": False}


def boltzmann(x):
    """Without offsets, so that the energy is plain: -E = v b + h c + v W h."""
    generator = torch.Generator().manual_seed(1)
    weight = pyro.param("weight", lambda: torch.randn(4, 3, generator=generator))
    visible, hidden = (pyro.param(n, lambda k=k: torch.linspace(-1, 1, k)) for n, k in (("b", 4), ("c", 3)))
    with pyro.plate("data", len(x)):
        pyro.sample("v", lvm.distributions.RBM(weight, visible, hidden), obs=x)


def fitted():
    svi = lvm.infer.SVI(learning_rate=1e-9, loss=lvm.infer.ContrastiveDivergence())
    return lvm.fit(boltzmann, ROWS, inference=svi, **OPTIONS)


def table_of(fit):
    """Posterior of all hidden states of every row, (n, 8)."""
    p = fit.params
    energy = STATES @ p["c"] + ROWS @ p["weight"] @ STATES.T
    return energy.softmax(-1)


def test_hidden_units_against_enumeration():
    fit = fitted()
    table = table_of(fit)
    probs = table @ STATES
    torch.testing.assert_close(fit.transform(ROWS), probs)
    torch.testing.assert_close(fit.predict_proba(ROWS), torch.stack([1 - probs, probs], -1))
    assert torch.equal(fit.predict(ROWS).float(), STATES[table.argmax(-1)])
    draws, state = fit.posterior(ROWS, 4000), torch.get_rng_state()
    assert draws["h"].shape == (4000, 6, 3)
    index = (draws["h"] @ torch.tensor([4.0, 2.0, 1.0])).long()
    counts = torch.stack([(index == i).sum(0) for i in range(8)], -1)
    chi = ((counts - 4000 * table) ** 2 / (4000 * table)).sum()
    assert float(chi) < 78.2  # 42 degrees of freedom: a failure rate of 0.0006
    assert torch.equal(fit.posterior(ROWS, 4000)["h"], draws["h"])
    assert torch.equal(torch.get_rng_state(), state)


def test_reconstruction_is_the_mean_field_of_one_step():
    fit = fitted()
    p = fit.params
    expected = (p["b"] + (table_of(fit) @ STATES) @ p["weight"].T).sigmoid()
    torch.testing.assert_close(fit.reconstruct(ROWS), expected)


def test_reconstruction_of_a_mixture_is_the_average_of_its_components():
    fit = lvm.fit(lvm.models.BernoulliMixture(2), ROWS, **OPTIONS)
    torch.testing.assert_close(fit.reconstruct(ROWS), (fit.predict_proba(ROWS) @ fit.params["probs"]).to(ROWS))


def test_reconstruction_averages_draws_of_a_guide():
    fit = lvm.fit(lvm.models.SigmoidBeliefNet((3,)), ROWS, **OPTIONS)
    with torch.no_grad():
        (first,) = fit.guide.recognition
        probs = first(ROWS).sigmoid()
        weights = dist.Bernoulli(probs.unsqueeze(1)).to_event(1).log_prob(STATES).exp()
        means = fit.model.decoder[0](STATES).sigmoid()
    expected = weights @ means
    error = ((weights @ means**2 - expected**2) / 20).sqrt()
    assert float(((fit.reconstruct(ROWS) - expected).abs() / error).max()) < 4.5


def test_states_of_units_that_a_guide_draws():
    fit = lvm.fit(lvm.models.SigmoidBeliefNet((3,)), ROWS, **OPTIONS)
    probs = fit.transform(ROWS)
    torch.testing.assert_close(fit.predict_proba(ROWS), torch.stack([1 - probs, probs], -1))
    assert torch.equal(fit.predict(ROWS), (probs > 0.5).long())


def mixed(x):
    """A continuous site that a guide draws, and a discrete one that it leaves."""
    loc = pyro.param("loc", torch.tensor([-1.0, 1.0]))
    with pyro.plate("data", len(x)):
        u = pyro.sample("u", dist.Normal(0.0, 1.0))
        k = pyro.sample("k", dist.Bernoulli(logits=u), infer={"enumerate": "parallel"})
        pyro.sample("x", dist.Normal(loc[k.long()] + u, 1.0), obs=x[:, 0])


def narrow(x):
    at = pyro.param("at", lambda: torch.linspace(-1, 1, 6))
    with pyro.plate("data", len(x)):
        pyro.sample("u", dist.Normal(at, 1e-4))


def test_sites_that_the_guide_leaves_are_summed_out_given_what_it_draws():
    svi = lvm.infer.SVI(learning_rate=1e-9)
    fit = lvm.fit(mixed, ROWS, guide=narrow, inference=svi, **OPTIONS)
    at = fit.parameters()["at"].value.detach()
    log_joint = [
        dist.Bernoulli(logits=at).log_prob(torch.tensor(float(k))) + dist.Normal(m + at, 1.0).log_prob(ROWS[:, 0])
        for k, m in enumerate((-1.0, 1.0))
    ]
    torch.testing.assert_close(fit.predict_proba(ROWS), torch.stack(log_joint, -1).softmax(-1), atol=1e-3, rtol=0)
    assert fit.predict(ROWS).shape == (6,)


def test_a_fit_without_discrete_or_without_any_latent_sites_says_so():
    vae = lvm.fit(lvm.models.VAE(2, hidden=[4]), ROWS, **OPTIONS)
    with pytest.raises(ValueError, match=r"^predict: expected a model with discrete latent sites; VAE has only 'z'"):
        vae.predict(ROWS)

    def coins(x):
        p = pyro.param("p", torch.tensor(0.5), constraint=dist.constraints.unit_interval)
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Bernoulli(p), obs=x[:, 0])

    fit = lvm.fit(coins, ROWS, inference="em", **OPTIONS)
    with pytest.raises(ValueError, match=r"^posterior: expected a model with latent sites; coins has none"):
        fit.posterior(ROWS)


@pytest.mark.parametrize("model", [lvm.models.IBMModel1, lvm.models.HMMAlignment])
def test_alignments_are_drawn_from_their_posterior(model):
    pairs = [(["das", "haus"], ["the", "house", "is"]), (["das", "buch", "ist"], ["the", "book"])]
    corpus = lvm.datasets.parallel_corpus(pairs)
    fit = lvm.fit(model(), corpus, max_epochs=2, seed=0, progress=False)
    draws, table = fit.posterior(corpus, 3000)["z"], fit.predict_proba(corpus)
    assert draws.shape == (3000, 2, 3)
    assert draws[:, 1, 2].unique().tolist() == [-1]  # padding
    shares = torch.stack([(draws == i).double().mean(0) for i in range(table.shape[-1])], -1)
    error = (table * (1 - table) / 3000).sqrt().clamp_min(1e-9)
    real = table.sum(-1) > 0
    assert float(((shares - table).abs() / error)[real].max()) < 4.5
