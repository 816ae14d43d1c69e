"""SVI with an inner loop over local parameters: exact posteriors by row, other rows left alone, exact resumption."""

import copy
import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import Trace_ELBO, TraceEnum_ELBO

import pyro_lvm as lvm
from pyro_lvm.infer.row_adam import RowAdam

ROWS = 40
X = torch.randn(ROWS, generator=torch.Generator().manual_seed(3), dtype=torch.float64) * 1.5 + 1


def level(x, index=None):
    """A normal latent per row: x given loc is normal with variance 1.25."""
    loc = pyro.param("loc", torch.tensor(0.0).double())
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(loc, 1.0))
        pyro.sample("x", dist.Normal(z, 0.5), obs=x)


def level_alone(x):
    level(x)


def two_levels(x):
    level(x)
    with pyro.plate("others", 3):
        pyro.sample("w", dist.Normal(x.new_tensor(0.0), 1.0))


def svi_names(fit):
    return fit.inference.state_dict()["local"]["names"]


def level_guide(x, index):
    loc = pyro.param("q_loc", torch.zeros(ROWS).double())
    scale = pyro.param("q_scale", torch.ones(ROWS).double(), constraint=dist.constraints.positive)
    with pyro.plate("data", len(x)):
        pyro.sample("z", dist.Normal(loc[index], scale[index]))


def mixture(index):
    """Two sources, by Pyro's own subsampling."""
    weights = pyro.param("weights", torch.tensor([0.5, 0.5]).double(), constraint=dist.constraints.simplex)
    loc = pyro.param("loc", torch.tensor([0.0, 1.5]).double())
    with pyro.plate("data", ROWS, subsample=index):
        z = pyro.sample("z", dist.Categorical(weights))
        pyro.sample("x", dist.Normal(loc[z], 1.0), obs=X[index])


def mixture_guide(index):
    with pyro.plate("data", ROWS, subsample=index):
        logits = pyro.param("z_logits", torch.zeros(ROWS, 2).double(), event_dim=1)
        pyro.sample("z", dist.Categorical(logits=logits), infer={"enumerate": "parallel"})


def test_discrete_local_posteriors_become_exact_by_minibatches():
    everything = torch.arange(ROWS)
    with pyro.get_param_store().scope():
        loss = TraceEnum_ELBO(max_plate_nesting=1)
        svi = lvm.infer.SVI(
            mixture, mixture_guide, loss=loss, inner_steps=40, local="z", learning_rate=1e-12, local_learning_rate=0.3
        )
        for epoch in range(30):
            order = torch.randperm(ROWS, generator=torch.Generator().manual_seed(epoch))
            for batch in order.split(20):
                svi.step(batch)
        weights, loc = (pyro.param(name).detach() for name in ("weights", "loc"))
        joint = weights.log() + dist.Normal(loc, 1.0).log_prob(X[:, None])
        found = pyro.param("z_logits").detach().softmax(-1)
        torch.testing.assert_close(found, joint.softmax(-1), atol=1e-6, rtol=0)
        assert -svi.loss(everything) == pytest.approx(float(joint.logsumexp(-1).sum()), abs=1e-8)


def test_it_learns_what_em_learns():
    everything = torch.arange(ROWS)
    with pyro.get_param_store().scope():
        loss = TraceEnum_ELBO(max_plate_nesting=1)
        svi = lvm.infer.SVI(
            mixture, mixture_guide, loss=loss, inner_steps=6, local="z", learning_rate=0.03, local_learning_rate=0.1
        )
        for _ in range(400):
            svi.step(everything)
        reached = -svi.loss(everything)
    with pyro.get_param_store().scope():
        em = lvm.infer.EM(lambda: mixture(everything))
        for _ in range(500):
            em.step()
        assert reached == pytest.approx(-em.loss(), abs=1e-3)


def test_normal_local_posteriors_through_the_front_door():
    inference = lvm.infer.SVI(inner_steps=5, local="z", learning_rate=0.02, num_particles=4)
    data = {"x": X, "index": torch.arange(ROWS)}
    fit = lvm.fit(level, data, level_guide, inference, batch_size=20, max_epochs=200, seed=0, progress=False)
    found = {name: parameter.value.detach() for name, parameter in fit.parameters().items()}
    assert float(found["loc"]) == pytest.approx(float(X.mean()), abs=0.15)
    expected = (found["loc"] + 4 * X) / 5
    error = (found["q_loc"] - expected).abs()
    assert float(error.mean()) < 0.05
    assert float((found["q_scale"] - 0.2**0.5).abs().mean()) < 0.04
    with fit.scope():
        elbo = Trace_ELBO(num_particles=400, vectorize_particles=True, max_plate_nesting=1)
        bound = -elbo.loss(level, level_guide, **data)
    evidence = float(dist.Normal(found["loc"], 1.25**0.5).log_prob(X).sum())
    gap = 5 * float(error.square().sum()) + 10 * float((found["q_scale"] - 0.2**0.5).square().sum())
    assert evidence - bound < gap + 0.3


@pytest.mark.parametrize("local", ["z_logits", ["z_", "z"], "z, loc"])
def test_local_by_site_or_by_the_beginning_of_a_name(local):
    with pyro.get_param_store().scope():
        loss = TraceEnum_ELBO(max_plate_nesting=1)
        svi = lvm.infer.SVI(mixture, mixture_guide, loss=loss, inner_steps=1, local=local)
        svi.step(torch.arange(ROWS))
        assert svi.state_dict()["local"]["names"] == ["z_logits"] + ["loc"] * ("loc" in local)
        assert svi.state_dict()["names"] == ["weights"] + ["loc"] * ("loc" not in local)


def test_several_particles_have_a_graph_each():
    with pyro.get_param_store().scope():
        lvm.infer.SVI(level, level_guide, num_particles=3).step(X, torch.arange(ROWS))


def test_rows_outside_the_batch_and_shared_parameters_rest_in_the_inner_loop():
    with pyro.get_param_store().scope():
        svi = lvm.infer.SVI(level, level_guide, inner_steps=3, local="z", learning_rate=0.1)
        seen = []

        def watched(x, index):
            seen.append(pyro.param("loc", torch.tensor(0.0).double()).item())
            level(x)

        svi.model = watched
        svi.step(X[:5], torch.arange(5))
        first = pyro.param("q_loc").detach().clone()
        assert bool((first[:5] != 0).all())
        assert bool((first[5:] == 0).all())
        assert len(set(seen[-4:])) == 1  # three inner steps and the outer one, before its update
        svi.step(X[5:9], torch.arange(5, 9))
        assert torch.equal(pyro.param("q_loc").detach()[:5], first[:5])


def test_resuming_equals_not_stopping():
    def run(steps, svi, offset=0):
        for i in range(offset, offset + steps):
            torch.manual_seed(i)
            index = torch.randperm(ROWS)[:10]
            svi.step(X[index], index)

    def make():
        return lvm.infer.SVI(level, level_guide, inner_steps=3, local="z", learning_rate=0.05)

    def values():
        return {name: value.detach().clone() for name, value in pyro.get_param_store().items()}

    with pyro.get_param_store().scope():
        run(8, make())
        straight = values()
    with pyro.get_param_store().scope():
        first = make()
        run(4, first)
        again = make()
        again.load_state_dict(copy.deepcopy(first.state_dict()))
        run(4, again, 4)
        resumed = values()
    for name, value in straight.items():
        assert torch.equal(value, resumed[name]), name


def test_each_row_takes_the_steps_of_an_adam_of_its_own():
    table = torch.zeros(3, 2, dtype=torch.float64, requires_grad=True)
    rows = [torch.zeros(2, dtype=torch.float64, requires_grad=True) for _ in range(3)]
    mine = RowAdam([table], lr=0.1)
    theirs = [torch.optim.Adam([row], lr=0.1) for row in rows]
    for i in range(30):
        batch = [0, i % 3]
        target = torch.tensor([math.sin(i), math.cos(i) + 2]).double()
        loss = sum(((table[j] - target) ** 2).sum() for j in set(batch))
        mine.zero_grad()
        loss.backward()
        mine.step()
        for j in set(batch):
            theirs[j].zero_grad()
            ((rows[j] - target) ** 2).sum().backward()
            theirs[j].step()
    torch.testing.assert_close(table.detach(), torch.stack(rows).detach())


@pytest.mark.parametrize("options", [{"inner_steps": 3}, {"local": "z"}, {"inner_steps": -1, "local": "z"}])
def test_inner_steps_and_local_go_together(options):
    with pytest.raises(ValueError, match=r"inner_steps >= 1 together with local|inner_steps to be a whole number >= 0"):
        lvm.infer.SVI(level, level_guide, **options)


def test_an_unknown_local_name():
    with pyro.get_param_store().scope():
        svi = lvm.infer.SVI(level, level_guide, inner_steps=1, local="w")
        with pytest.raises(ValueError, match=r"\(z of this guide\).*\(q_loc, q_scale, loc\); got 'w'"):
            svi.step(X, torch.arange(ROWS))


def test_the_local_parameters_of_an_autoguide():
    """Its sites are points computed from others; with all rows in every step its parameters are the rows' own."""
    svi = lvm.infer.SVI(inner_steps=20, local="z", learning_rate=0.02, local_learning_rate=0.1, num_particles=4)
    fit = lvm.fit(level_alone, X, "normal", svi, max_epochs=60, tol=0.0, seed=0, progress=False)
    assert set(svi_names(fit)) == {"AutoNormal.locs.z", "AutoNormal.scales.z"}
    exact = fit.params["loc"] + (X - fit.params["loc"]) / 1.25
    torch.testing.assert_close(fit.transform(X), exact, rtol=0, atol=0.4)  # 6 standard deviations of the draws' mean


def test_sites_that_share_all_of_their_parameters_cannot_be_local():
    svi = lvm.infer.SVI(inner_steps=1, local="z")
    with pytest.raises(
        ValueError, match=r"\(none of this guide\).*got 'z'. Name all sites that share parameters together"
    ):
        lvm.fit(two_levels, X, "multivariate-normal", svi, max_epochs=1, progress=False)
