"""Contrastive divergence as an objective: under stock Pyro, with state, and with what goes wrong."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import SVI, TraceGraph_ELBO

import pyro_lvm as lvm
from pyro_lvm.distributions import RBM
from pyro_lvm.infer import ContrastiveDivergence, NonFiniteLoss


def rows(n=200, d=6):
    torch.manual_seed(3)
    source = torch.rand(n, 1) < 0.5
    return torch.bernoulli(torch.where(source, 0.9, 0.1).expand(n, d)).double()


def program(x):
    d = x.shape[-1]
    weight = pyro.param("weight", lambda: 0.01 * torch.randn(d, 2).double())
    biases = [pyro.param(name, torch.zeros(size).double()) for name, size in (("b", d), ("c", 2))]
    with pyro.plate("data", len(x)):
        pyro.sample("v", RBM(weight, *biases, hidden_offset=0.5, visible_offset=0.5), obs=x)


def no_guide(x):
    pass


def test_stock_pyro_trains_by_it():
    x = rows()
    svi = SVI(program, no_guide, pyro.optim.Adam({"lr": 0.02}), loss=ContrastiveDivergence(persistent=True))
    for _ in range(400):
        svi.step(x)
    law = RBM(*(pyro.param(n).detach() for n in ("weight", "b", "c")), hidden_offset=0.5, visible_offset=0.5)
    independent = dist.Bernoulli(x.mean(0)).to_event(1).log_prob(x).mean()
    best = lvm.fit(lvm.models.BernoulliMixture(2), x, seed=0, progress=False).score(x)
    assert law.log_prob(x).mean() > independent + 0.9 * (best - independent)


def test_loss_moves_no_chain():
    x, objective = rows(), ContrastiveDivergence(persistent=True)
    objective.loss_and_grads(program, no_guide, x)
    before = objective.chains["v"].clone()
    objective.loss(program, no_guide, x)
    assert torch.equal(objective.chains["v"], before)
    objective.loss_and_grads(program, no_guide, x)
    assert not torch.equal(objective.chains["v"], before)


def test_differentiable_loss_has_the_same_gradient():
    x, objective = rows(), ContrastiveDivergence()
    program(x)  # draws its start
    torch.manual_seed(0)
    objective.loss_and_grads(program, no_guide, x)
    parameter = pyro.param("weight").unconstrained()
    gradient, parameter.grad = parameter.grad, None
    torch.manual_seed(0)
    objective.differentiable_loss(program, no_guide, x).backward()
    torch.testing.assert_close(parameter.grad, gradient)


def test_any_base():
    objective = ContrastiveDivergence(base=TraceGraph_ELBO())
    assert abs(objective.loss_and_grads(program, no_guide, rows())) < 1e3


def test_resumes_exactly_with_chains(tmp_path):
    options = {"batch_size": 50, "seed": 0, "progress": False}
    inference = lvm.infer.SVI(loss=ContrastiveDivergence(num_steps=2, persistent=True, num_chains=30))
    whole = lvm.fit(lvm.models.RBM(3), rows(), inference=inference, max_epochs=6, **options)
    half = lvm.fit(lvm.models.RBM(3), rows(), inference=inference, max_epochs=3, **options)
    half.save(tmp_path / "fit")
    loaded = lvm.load(tmp_path / "fit")
    assert len(loaded.inference.objective.chains["v"]) == 30
    loaded.resume(rows(), max_epochs=3, batch_size=50, progress=False)
    assert loaded.history == whole.history
    assert all(torch.equal(loaded.params[name], value) for name, value in whole.params.items())


@pytest.mark.filterwarnings("ignore:Encountered NaN:UserWarning")
def test_runaway_is_caught_with_its_remedy_and_the_last_good_chains_kept():
    x = rows()
    objective = ContrastiveDivergence(persistent=True)
    objective.loss_and_grads(program, no_guide, x)
    before = objective.chains["v"].clone()
    with torch.no_grad():
        pyro.param("weight").unconstrained().fill_(torch.nan)
    with (
        pyro.settings.context(validate_distributions_pyro=False, validate_distributions_torch=False),
        pytest.raises(NonFiniteLoss, match=r"have run away. Lower the learning rate"),
    ):
        objective.loss_and_grads(program, no_guide, x)
    assert torch.equal(objective.chains["v"], before)


@pytest.mark.filterwarnings("ignore:Encountered NaN:UserWarning")
def test_diverging_gaussian_machine_is_caught_with_its_remedy():
    x = torch.randn(100, 3)
    inference = lvm.infer.SVI(loss=ContrastiveDivergence(persistent=True), learning_rate=100.0)
    with pytest.warns(RuntimeWarning, match="stopped at epoch .* Lower the learning rate"):
        fit = lvm.fit(lvm.models.GaussianRBM(2), x, inference=inference, max_epochs=500, seed=0, progress=False)
    assert not fit.converged
    assert all(bool(torch.isfinite(value).all()) for value in fit.params.values())
    assert all(bool(torch.isfinite(chain).all()) for chain in fit.inference.objective.chains.values())
    assert torch.isfinite(fit.log_likelihood(x)).all()


@pytest.mark.filterwarnings("ignore:Encountered NaN:UserWarning")
def test_a_last_step_that_overflows_is_undone():
    def far(x):
        scale = pyro.param("scale", torch.ones(()), constraint=dist.constraints.positive)
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(0.0, scale), obs=x)

    x = 3 * torch.randn(100, generator=torch.Generator().manual_seed(0))
    inference = lvm.infer.SVI(learning_rate=1000.0)
    with pytest.warns(RuntimeWarning, match="after epoch 1: parameters became infinite"):
        fit = lvm.fit(far, x, inference=inference, max_epochs=1, seed=0, progress=False)
    assert fit.params["scale"] == 1.0


def test_nothing_stops_early_by_the_gap():
    fit = lvm.fit(lvm.models.RBM(2), rows(), max_epochs=300, tol=1.0, patience=1, seed=0, progress=False)
    assert len(fit.history["loss"]) == 300


def test_a_loss_that_ranks_nothing_chooses_no_restart_and_no_epoch() -> None:
    x = torch.bernoulli(torch.full((40, 4), 0.4), generator=torch.Generator().manual_seed(0))
    options = {"inference": "pcd", "max_epochs": 3, "seed": 0, "progress": False}
    with pytest.raises(ValueError, match="expected restarts=1"):
        lvm.fit(lvm.models.RBM(3), x, restarts=2, **options)
    weights = []

    def note(run) -> None:
        weights.append(run.result().params["weight"].clone())

    fit = lvm.fit(lvm.models.RBM(3), x, validation=x[:10], callbacks=note, **options)
    assert torch.equal(fit.params["weight"], weights[-1])


def test_a_program_without_an_undirected_site_is_refused() -> None:
    with pytest.raises(ValueError, match="undirected site"):
        lvm.fit(lvm.models.VAE(2, hidden=[4]), torch.zeros(9, 3), inference="cd", max_epochs=1, progress=False)


def test_a_fit_of_a_machine_alone_asks_its_law_for_gradients(monkeypatch) -> None:
    """Running the program at every step takes twice as long; `fit` has contexts of its own around each step."""
    asked = []
    contrast = lvm.distributions.RBM.contrast
    monkeypatch.setattr(lvm.distributions.RBM, "contrast", lambda *a: asked.append(1) or contrast(*a))
    x = (torch.rand(40, 6) < 0.4).float()
    lvm.fit(lvm.models.RBM(3), x, inference="pcd", batch_size=10, max_epochs=5, seed=0, progress=False)
    assert len(asked) == 19  # all but the first, which starts the chains
