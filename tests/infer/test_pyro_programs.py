"""Two programs in Pyro's own style, with priors on their parameters, against SVI and hmmlearn.

Beta(0.1, 0.9) has no mode, so the joint density of the chain has no maximum: only what EM and SVI reach is compared.
The sites, plates, masks and priors are those of Pyro's Gaussian mixture tutorial and of `model_1` in its hidden Markov
example. A `pyro.markov` chain starts from row zero of the transition matrix, as it does there.

References:
    F. Obermeyer et al. (2019), Tensor variable elimination for plated factor graphs, ICML, section 6.2.
"""

import warnings

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import SVI, TraceEnum_ELBO, config_enumerate
from pyro.infer.autoguide import AutoDelta, init_to_value
from pyro.optim import Adam

import pyro_lvm as lvm

pytestmark = pytest.mark.usefixtures("local")

POINTS = torch.tensor([0.0, 1.0, 10.0, 11.0, 12.0], dtype=torch.float64)
LENGTHS = torch.tensor([7, 3, 5, 1, 6, 7])
ONE, TEN = (torch.tensor(value, dtype=torch.float64) for value in (1.0, 10.0))


@config_enumerate
def mixture(data):
    weights = pyro.sample("weights", dist.Dirichlet(ONE.new_full((2,), 0.5)))
    scale = pyro.sample("scale", dist.LogNormal(0 * ONE, 2 * ONE))
    with pyro.plate("components", 2):
        locs = pyro.sample("locs", dist.Normal(0 * TEN, TEN))
    with pyro.plate("data", len(data)):
        assignment = pyro.sample("assignment", dist.Categorical(weights))
        pyro.sample("obs", dist.Normal(locs[assignment], scale), obs=data)


def chain(sequences, lengths, num_states):
    data_dim = sequences.shape[-1]
    stay = 0.9 * torch.eye(num_states, dtype=torch.float64) + 0.1
    rare, common = 0.1 * ONE, 0.9 * ONE
    probs_x = pyro.sample("probs_x", dist.Dirichlet(stay).to_event(1))
    probs_y = pyro.sample("probs_y", dist.Beta(rare, common).expand([num_states, data_dim]).to_event(2))
    tones = pyro.plate("tones", data_dim, dim=-1)
    with pyro.plate("sequences", len(sequences), dim=-2) as batch:
        known, x = lengths[batch].unsqueeze(-1), 0
        for t in pyro.markov(range(int(lengths.max()))):
            with poutine.mask(mask=t < known):
                x = pyro.sample(f"x_{t}", dist.Categorical(probs_x[x]), infer={"enumerate": "parallel"})
                with tones:
                    pyro.sample(f"y_{t}", dist.Bernoulli(probs_y[x.squeeze(-1)]), obs=sequences[batch, t])


def notes(data_dim):
    """Sequences that stay for some steps in one of two moods, ones and zeros."""
    mood = (torch.rand(len(LENGTHS), 7, 1) < 0.3).cumsum(1) % 2
    return torch.bernoulli(0.15 + 0.6 * mood.expand(-1, -1, data_dim)).double()


def case(name):
    """A program, its arguments and the start of its parameters."""
    if name == "mixture":
        return mixture, (POINTS,), {"weights": ONE.new_full((2,), 0.5), "scale": 4 * ONE, "locs": POINTS[[1, 2]]}
    probs_x = torch.tensor([[0.6, 0.4], [0.3, 0.7]], dtype=torch.float64)
    probs_y = torch.tensor([[0.2, 0.3, 0.4], [0.7, 0.6, 0.5]], dtype=torch.float64)
    return chain, (notes(3), LENGTHS, 2), {"probs_x": probs_x, "probs_y": probs_y}


def with_parameters(program, args, start):
    """The program with its priors' sites set to parameters; each counts with its prior."""
    priors = poutine.trace(program).get_trace(*args).nodes

    def conditioned(*args):
        values = {n: pyro.param(f"{n}_point", v, constraint=priors[n]["fn"].support) for n, v in start.items()}
        return poutine.condition(program, values)(*args)

    return conditioned


def without_priors(program, args, start):
    """The program with parameters instead of the sites with priors: maximum likelihood."""
    return poutine.block(with_parameters(program, args, start), hide=list(start))


def adam(program, guide, args, nesting, steps=200):
    """The best loss of SVI, and the last."""
    svi = SVI(program, guide, Adam({"lr": 0.05}), TraceEnum_ELBO(max_plate_nesting=nesting))
    return min(svi.step(*args) for _ in range(steps))


@pytest.mark.parametrize("name", ["mixture", "chain"])
def test_maximum_likelihood_is_closed_form_and_beats_svi(name):
    program, args, start = case(name)
    program = without_priors(program, args, start)
    em = lvm.infer.EM(program)
    plan = em.plan(*args)
    assert {entry.name for entry in plan.closed} == {f"{n}_point" for n in start}
    assert not plan.gradient
    losses = np.array([em.step(*args) for _ in range(100)])
    assert (np.diff(losses) <= 1e-9 * np.abs(losses[:-1])).all()
    pyro.clear_param_store()
    theirs = adam(program, lambda *args: None, args, em.max_plate_nesting)
    assert losses[-1] <= theirs + 1e-6


@pytest.mark.parametrize("name", ["mixture", "chain"])
def test_map_beats_svi_with_a_delta_guide(name):
    """The chain's Beta(0.1, 0.9) has its mode on the boundary, where its density is infinite: EM stops just before."""
    program, args, start = case(name)

    def delta():
        return AutoDelta(poutine.block(program, expose=list(start)), init_loc_fn=init_to_value(values=start))

    em = lvm.infer.EM(program, delta())
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        losses = [em.step(*args) for _ in range(100)]
    gradient = [entry.name for entry in em.plan(*args).gradient]  # the scale's prior is log-normal
    assert gradient == (["AutoDelta.scale"] if name == "mixture" else [])
    assert not [w for w in caught if "fell" in str(w.message)]
    assert (np.diff(losses) <= 1e-9 * np.abs(losses[:-1])).all()
    assert any("boundary of the support" in str(w.message) for w in caught) == (name == "chain")
    pyro.clear_param_store()
    assert losses[-1] <= adam(program, delta(), args, 2 if name == "chain" else 1) + 1e-6


@pytest.mark.filterwarnings("ignore:EM. the prior of .MAP.weights:RuntimeWarning")
def test_through_the_front_door():
    """`lvm.fit` takes the tutorial's program as it is, and finds the same mode."""
    program, args, start = case("mixture")
    fit = lvm.fit(program, args[0], inference="em", restarts=3, seed=0, progress=False)
    em = lvm.infer.EM(
        program, AutoDelta(poutine.block(program, expose=list(start)), init_loc_fn=init_to_value(values=start))
    )
    for _ in range(100):
        em.step(*args)
    assert fit.history["loss"][-1] <= em.loss(*args) + 1e-9
    assert fit.predict(args[0]).shape == (len(args[0]),)


@pytest.mark.parametrize("name", ["mixture"])
def test_a_prior_on_a_parameter_is_not_forgotten(name):
    program, args, start = case(name)
    program = with_parameters(program, args, start)
    em = lvm.infer.EM(program)
    for _ in range(100):
        em.step(*args)
    ours = em.loss(*args)
    pyro.clear_param_store()
    assert ours <= adam(program, lambda *args: None, args, em.max_plate_nesting) + 1e-6


def test_the_chain_equals_hmmlearn_where_that_is_the_same_model():
    hmm = pytest.importorskip("hmmlearn.hmm")
    x = notes(1)
    _, _, start = case("chain")
    start["probs_y"] = start["probs_y"][:, :1]
    program = without_priors(chain, (x, LENGTHS, 2), start)
    peer = hmm.CategoricalHMM(2, init_params="", params="te", n_iter=1, n_features=2)
    peer.startprob_, peer.transmat_ = start["probs_x"][0].numpy(), start["probs_x"].numpy()
    peer.emissionprob_ = torch.cat([1 - start["probs_y"], start["probs_y"]], 1).numpy()
    rows = np.concatenate([row[:n].long().numpy() for row, n in zip(x, LENGTHS, strict=True)])
    em = lvm.infer.EM(program)
    assert -em.step(x, LENGTHS, 2) == pytest.approx(peer.score(rows, LENGTHS.numpy()), rel=1e-10)
    peer.fit(rows, LENGTHS.numpy())
    np.testing.assert_allclose(pyro.param("probs_y_point")[:, 0].detach(), peer.emissionprob_[:, 1], rtol=1e-8)
    # row zero also holds the law of the first state, which hmmlearn keeps apart
    np.testing.assert_allclose(pyro.param("probs_x_point")[1].detach(), peer.transmat_[1], rtol=1e-8)
