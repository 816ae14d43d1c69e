"""Known states of hidden Markov sites: against brute force, under every inference, and what is refused."""

from itertools import pairwise

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from torch.distributions import constraints

import pyro_lvm as lvm
from pyro_lvm.distributions import HMM
from pyro_lvm.handlers import clamp
from pyro_lvm.testing.chain_oracles import all_paths

INITIAL = torch.tensor([0.6, 0.4]).double()
SWITCH = torch.tensor([[0.7, 0.3], [0.2, 0.8]]).double()
LOC = torch.tensor([-1.0, 1.5]).double()


def levels(x, lengths=None):
    initial = pyro.param("initial", INITIAL.clone(), constraint=constraints.simplex)
    switch = pyro.param("switch", SWITCH.clone(), constraint=constraints.simplex)
    loc = pyro.param("loc", LOC.clone())
    with pyro.plate("data", len(x)):
        pyro.sample("x", HMM(initial, switch, dist.Normal(loc, 1.0), lengths=lengths), obs=x, infer={"states": "z"})


PRIOR = {
    "initial": dist.Dirichlet(torch.ones(2).double()),
    "switch": dist.Dirichlet(torch.ones(2, 2).double()).to_event(1),
    "loc": dist.Normal(torch.zeros(2).double(), 5.0).to_event(1),
}


@pytest.fixture(scope="module")
def chain():
    torch.manual_seed(0)
    law = HMM(INITIAL, SWITCH, dist.Normal(LOC, 1.0), num_steps=5)
    return law.expand([6]).sample_with_states()


def log_joint(model, *args):
    with pyro.get_param_store().scope():
        trace = poutine.trace(model).get_trace(*args)
        return trace.log_prob_sum()


def known_total(x, states):
    """Log p(x, known states) by summing over the paths that agree with them."""
    total = 0.0
    for row, given in zip(x, states, strict=True):
        paths = all_paths(INITIAL.log(), SWITCH.log(), dist.Normal(LOC, 1.0).log_prob(row.unsqueeze(-1)))
        agrees = ((given < 0) | (paths.states == given)).all(-1)
        total = total + paths.log_joint[agrees].logsumexp(0)
    return total


MASKS = {
    "everything": None,
    "steps": torch.arange(30).reshape(6, 5) % 3 == 0,
    "sequences": torch.arange(6) < 2,
    "the same steps of all": (torch.arange(5) < 2).expand(1, 5),
    "nothing": torch.zeros(6, dtype=torch.bool),
}


@pytest.mark.parametrize("name", MASKS)
def test_known_states_against_all_paths(chain, name):
    x, z = chain
    mask = MASKS[name]
    known = torch.ones(6, 5, dtype=torch.bool) if mask is None else mask
    known = known.unsqueeze(-1).expand(6, 5) if known.dim() == 1 else known.expand(6, 5)
    states = torch.where(known, z, -1)
    for values, given in (({"z": z}, mask), ({"z": states}, None), ({"z": states.double()}, None)):
        torch.testing.assert_close(log_joint(clamp(levels, values, mask=given), x), known_total(x, states))
    gaps = torch.where(known, z.double(), torch.nan)
    torch.testing.assert_close(log_joint(clamp(levels, {"z": gaps}), x), known_total(x, states))


def test_sites_without_a_name_of_their_states(chain):
    x, z = chain

    def unnamed(x):
        with pyro.plate("data", len(x)):
            pyro.sample("y", HMM(INITIAL, SWITCH, dist.Normal(LOC, 1.0)), obs=x)

    torch.testing.assert_close(log_joint(clamp(unnamed, {"y_states": z}), x), known_total(x, z))


def test_known_states_while_generating():
    states = torch.tensor([[0, 0, -1, 1, 1]])

    def generate():
        with pyro.plate("data", 500):
            return pyro.sample("x", HMM(INITIAL, SWITCH, dist.Normal(100 * LOC, 1.0)), infer={"states": "z"})

    x = clamp(generate, {"z": states})()
    assert x.shape == (500, 5)
    assert (x[:, :2] < 0).all()
    assert (x[:, 3:] > 0).all()
    assert 0 < (x[:, 2] < 0).double().mean() < 1


def test_all_states_known_are_counted(chain):
    """With nothing hidden EM gives relative frequencies and means in one step."""
    x, z = chain
    fit = lvm.fit(levels, {"x": x, "z": z}, max_epochs=3, seed=0, progress=False)
    pairs = torch.zeros(2, 2).double()
    for row in z:
        for before, after in pairwise(row):
            pairs[before, after] += 1
    torch.testing.assert_close(fit.params["switch"], pairs / pairs.sum(-1, keepdim=True))
    torch.testing.assert_close(fit.params["loc"], torch.stack([x[z == k].mean() for k in range(2)]))
    same = lvm.fit(clamp(levels, {"z": z}), x, max_epochs=3, seed=0, progress=False)
    torch.testing.assert_close(same.params["loc"], fit.params["loc"])


@pytest.mark.parametrize("inference", ["em", "svi", "coordinate-ascent", "mcmc"])
def test_every_inference_keeps_to_known_states(chain, inference):
    """The first step of every sequence is said to be in the other state than it seems: only clamping can do that."""
    x, _ = chain
    x = x + 4 * x.sign()
    states = torch.full((6, 5), -1)
    states[:, 0] = (x[:, 0] < 0).long()
    sampler = lvm.infer.MCMC(num_samples=15, warmup_steps=15, num_chains=1)
    model = levels if inference == "em" else poutine.lift(levels, prior=PRIOR)
    options = {"seed": 0, "progress": False}
    if inference == "mcmc":
        options["inference"] = sampler
    else:
        options.update(inference=inference, max_epochs=20)
    fit = lvm.fit(model, {"x": x, "z": states}, **options)
    assert torch.equal(fit.predict({"x": x, "z": states})[:, 0], states[:, 0])
    table = fit.predict_proba({"x": x, "z": states})[:, 0].gather(1, states[:, :1])
    torch.testing.assert_close(table, torch.ones_like(table))


def test_ragged_labels_and_minibatches(chain):
    x, z = chain
    data = {"x": [row[: 2 + i % 4] for i, row in enumerate(x)], "z": [row[: 2 + i % 4] for i, row in enumerate(z)]}
    fit = lvm.fit(levels, data, inference=lvm.infer.EM(decay=0.7), batch_size=2, max_epochs=3, seed=0, progress=False)
    assert all(torch.equal(a, b) for a, b in zip(fit.predict(data), data["z"], strict=True))
    arrays = {"x": data["x"], "z": [row.numpy() for row in data["z"]]}
    torch.testing.assert_close(fit.log_likelihood(arrays), fit.log_likelihood(data))


def test_labels_name_the_states_of_a_model(chain):
    """An unsupervised start numbers its states as it likes; labels of a few steps say what the numbers mean."""
    x, z = chain
    x = (10 * z + x).unsqueeze(-1)
    for flip in (False, True):
        labels = torch.full((6, 5), -1)
        labels[:, 2] = 1 - z[:, 2] if flip else z[:, 2]
        fit = lvm.fit(lvm.models.GaussianHMM(2), {"x": x, "z": labels}, seed=0, progress=False)
        assert torch.equal(fit.predict(x), 1 - z if flip else z)


BAD = {
    "range": ({"z": torch.full((6, 5), 2)}, None, r"whole numbers from 0 to 1; got 2 at \(0, 0\)"),
    "negative": ({"z": torch.full((6, 5), -2)}, None, r"whole numbers from 0 to 1; got -2 at \(0, 0\)"),
    "halves": ({"z": torch.full((6, 5), 0.5)}, None, r"whole numbers from 0 to 1; got 0.5"),
    "steps": ({"z": torch.zeros(6, 4).long()}, None, r"of shape \(6, 5\), one a step; got \(6, 4\)"),
    "sequences": ({"z": torch.zeros(5, 5).long()}, None, r"of shape \(6, 5\), one a step; got \(5, 5\)"),
    "mask": ({"z": torch.zeros(6, 5).long()}, torch.ones(4, dtype=torch.bool), r"\(6, 5\) or \(6,\); got \(4,\)"),
    "name": ({"w": torch.zeros(6, 5).long()}, None, "it has no site 'w'"),
}


@pytest.mark.parametrize("kind", BAD)
def test_what_is_refused(chain, kind):
    values, mask, message = BAD[kind]
    with pytest.raises(ValueError, match=message):
        log_joint(clamp(levels, values, mask=mask), chain[0])


def test_labels_of_other_shapes_are_refused_at_the_front_door(chain):
    x, z = chain
    model = lvm.models.GaussianHMM(2)
    for labels, message in (
        (z[:, :4], r"one a step; got \(6, 4\)"),
        (z[:4], "one value of 'z' for each of the 6 rows"),
    ):
        with pytest.raises(ValueError, match=message):
            lvm.fit(model, {"x": x.unsqueeze(-1), "z": labels}, progress=False)
