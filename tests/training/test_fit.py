"""The front door: programs of users, isolation, stopping, interruption, bad input."""

import numpy as np
import pandas as pd
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.nn import PyroModule, PyroParam
from torch.distributions import constraints
from torch.utils.data import TensorDataset

import pyro_lvm as lvm


def two_coins(x):
    weights = pyro.param("weights", torch.tensor([0.4, 0.6]).double(), constraint=constraints.simplex)
    probs = pyro.param("loc", torch.tensor([0.3, 0.6]).double(), constraint=constraints.unit_interval)
    with pyro.plate("tosses", len(x)):
        z = pyro.sample("z", dist.Categorical(weights))
        pyro.sample("x", dist.Bernoulli(probs[z].unsqueeze(-1).expand(*z.shape, x.shape[-1])).to_event(1), obs=x)


@pytest.fixture
def coins():
    probs = torch.tensor([0.2, 0.8])[torch.randint(2, (200,))]
    return torch.bernoulli(probs.unsqueeze(-1).expand(200, 8)).double()


@pytest.mark.parametrize("inference", ["em", "svi"])
def test_a_plain_function_with_a_plate_of_any_name(coins, inference):
    fit = lvm.fit(two_coins, coins, inference=inference, seed=0, progress=False)
    assert sorted(fit.params["loc"].tolist()) == pytest.approx([0.2, 0.8], abs=0.06)
    assert fit.log_likelihood(coins).shape == (200,)
    assert fit.predict(coins).shape == (200,)
    assert fit.sample(7).shape == (7, 8)
    assert fit.posterior(coins, 3)["z"].shape == (3, 200)
    assert fit.posterior(coins[:1], 3)["z"].shape == (3, 1)
    assert fit.aic(coins) == pytest.approx(2 * 3 - 2 * fit.score(coins) * 200)


def test_two_fits_never_touch(coins, faithful):
    pyro.param("loc", torch.tensor(123.0))
    before = dict(pyro.get_param_store().items())
    model = lvm.models.GaussianMixture(2)
    one = lvm.fit(two_coins, coins, seed=0, progress=False)
    two = lvm.fit(model, faithful, seed=0, progress=False)
    three = lvm.fit(model, faithful * 2, seed=0, progress=False)
    assert dict(pyro.get_param_store().items()).keys() == before.keys()
    assert pyro.param("loc").item() == 123.0
    assert one.params["loc"].shape == (2,)
    torch.testing.assert_close(2 * two.params["loc"], three.params["loc"], rtol=1e-4, atol=1e-4)
    pyro.get_param_store().clear()


def test_a_network_that_a_function_closes_over_belongs_to_the_fit(coins):
    network = torch.nn.Linear(1, 1).double()
    initial = network.weight.detach().clone()

    def program(x):
        pyro.module("network", network)
        logit = network(torch.ones(1, 1).double()).squeeze()
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Bernoulli(logits=logit.expand(len(x), 8)).to_event(1), obs=x)

    inference = lvm.infer.SVI(learning_rate=0.05)
    one = lvm.fit(program, coins, inference=inference, seed=0, progress=False, max_epochs=300)
    two = lvm.fit(program, 1 - coins, inference=inference, seed=0, progress=False, max_epochs=300)
    torch.testing.assert_close(network.weight.detach(), initial)
    mean = coins.mean().item()
    entropy = -8 * (mean * np.log(mean) + (1 - mean) * np.log(1 - mean))
    assert one.score(coins) == pytest.approx(-entropy, abs=1e-3)
    assert two.score(1 - coins) == pytest.approx(-entropy, abs=1e-3)
    assert one.score(coins) == pytest.approx(-entropy, abs=1e-3)


def test_restarts_keep_the_best_and_report_all(faithful):
    fit = lvm.fit(lvm.models.GaussianMixture(3), faithful, restarts=4, seed=3, progress=False)
    losses = [r["loss"] for r in fit.restarts]
    assert len(losses) == 4
    assert fit.history["loss"][-1] == min(losses)


@pytest.mark.parametrize(
    ("covariance", "components", "expected"),
    [
        ("full", 2, -1130.2640),
        ("diag", 2, -1147.8064),
        ("tied", 2, -1140.1868),
        ("spherical", 2, -1709.5293),
        ("tied", 3, -1126.316),
    ],
)
def test_old_faithful(faithful, covariance, components, expected):
    model = lvm.models.GaussianMixture(components, covariance=covariance)
    fit = lvm.fit(model, faithful, inference="em", restarts=10, seed=0, progress=False)
    assert fit.score(faithful) * 272 == pytest.approx(expected, abs=5e-4)


def test_minibatches_count_for_all_rows(faithful):
    model = lvm.models.GaussianMixture(2)
    svi = lvm.infer.SVI(learning_rate=0.02)
    fit = lvm.fit(model, faithful, inference=svi, batch_size=64, max_epochs=60, seed=0, progress=False)
    assert fit.history["loss"][-1] == pytest.approx(1130, rel=0.02)


def test_validation_keeps_the_best_state(faithful):
    fit = lvm.fit(
        lvm.models.GaussianMixture(8),
        faithful[::4],
        validation=faithful[1::4],
        max_epochs=60,
        patience=5,
        seed=0,
        progress=False,
    )
    held_out = fit.history["validation_loss"]
    assert -fit.score(faithful[1::4]) * len(faithful[1::4]) == pytest.approx(min(held_out), rel=1e-9)


def test_kinds_of_data(faithful):
    wanted = lvm.fit(lvm.models.GaussianMixture(2), faithful, seed=0, progress=False).score(faithful)
    frame = pd.DataFrame(faithful.numpy(), columns=["duration", "waiting"])
    for data in (faithful.numpy(), frame, {"x": faithful}, TensorDataset(faithful), faithful.tolist(), faithful.T.T):
        fit = lvm.fit(lvm.models.GaussianMixture(2), data, seed=0, progress=False)
        assert fit.score(data) == pytest.approx(wanted, rel=1e-9)
    assert lvm.fit(lvm.models.GaussianMixture(2), frame, seed=0, progress=False).columns == ("duration", "waiting")
    noncontiguous = torch.stack([faithful, faithful], -1)[..., 0]
    assert lvm.fit(lvm.models.GaussianMixture(2), noncontiguous, seed=0, progress=False).score(faithful) == wanted
    integers = (faithful * 100).round().long()
    assert lvm.fit(lvm.models.GaussianMixture(2), integers, seed=0, progress=False).converged


def test_interruption_returns_the_fit_so_far(faithful):
    def interrupt(run):
        if run.epochs_done == 3:
            raise KeyboardInterrupt

    fit = lvm.fit(lvm.models.GaussianMixture(2), faithful, callbacks=[interrupt], seed=0, progress=False)
    assert fit.stopped == "interrupted"
    assert len(fit.history["loss"]) == 3
    assert np.isfinite(fit.score(faithful))


def test_a_callback_may_stop_the_run(faithful):
    fit = lvm.fit(
        lvm.models.GaussianMixture(2), faithful, callbacks=[lambda run: run.epochs_done == 2], seed=0, progress=False
    )
    assert len(fit.history["loss"]) == 2


@pytest.mark.filterwarnings("default:Encountered NaN")  # Pyro says so too
def test_a_loss_that_explodes_keeps_the_last_good_state(coins):
    steps = 0

    def program(x):
        nonlocal steps
        steps += 1
        p = pyro.param("p", torch.tensor(0.3).double(), constraint=constraints.unit_interval)
        bad = torch.nan if steps > 12 else 0.0
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Bernoulli(p + bad, validate_args=False).expand([len(x), 8]).to_event(1), obs=x)

    with pytest.warns(RuntimeWarning, match="site 'x'"):
        fit = lvm.fit(program, coins, inference="svi", seed=0, progress=False)
    assert "stopped at epoch" in fit.stopped
    assert 0 < fit.scope.state["params"]["p"].sigmoid().item() < 1


def test_a_pyro_module_of_the_user(coins):
    class Coins(PyroModule):
        def __init__(self):
            super().__init__()
            self.probs = PyroParam(torch.tensor([0.3, 0.6]), constraint=constraints.unit_interval)

        def forward(self, x):
            probs = self.probs
            with pyro.plate("data", len(x)):
                z = pyro.sample("z", dist.Categorical(torch.tensor([0.5, 0.5])))
                pyro.sample("x", dist.Bernoulli(probs[z].unsqueeze(-1).expand(*z.shape, 8)).to_event(1), obs=x)

    mine = Coins()
    fit = lvm.fit(mine, coins.numpy(), seed=0, progress=False)
    assert sorted(fit.params["probs"].tolist()) == pytest.approx([0.2, 0.8], abs=0.06)
    assert mine.probs.tolist() == pytest.approx([0.3, 0.6])


def test_a_guide_made_by_the_user_is_a_template_too(faithful):
    from pyro.infer.autoguide import AutoNormal

    model = lvm.models.GaussianMixture(2, priors=True)
    for guide in (lvm.guides.AutoNormal(model), lvm.guides.MAP, AutoNormal(lvm.handlers.hide_enumerated(model))):
        fit = lvm.fit(model, faithful, guide=guide, max_epochs=3, seed=0, progress=False)
        assert fit.guide is not guide
        assert np.isfinite(fit.score(faithful))


BAD_OPTIONS = [
    (
        {"inference": "gibbs"},
        "expected inference to be one of em, squarem, svi, .*; got 'gibbs'",
    ),
    ({"inference": "svi", "guide": "nope"}, "expected guide to be one of conjugate, map, .*; got 'nope'"),
    ({"inference": "em", "guide": "nope"}, "expected guide to be one of conjugate, map, .*; got 'nope'"),
    (
        {"inference": "svi", "guide": "normal"},
        "SVI sums out every latent site of this model.*got 'normal'. Leave it out",
    ),
    ({"inference": "svi", "guide": lvm.guides.MAP}, "expected a guide only where there is something to draw"),
    (
        {"inference": "svi", "guide": lvm.guides.AutoNormal(lvm.models.GaussianMixture(2))},
        "expected a guide only where there is something to draw",
    ),
    ({"guide": "normal", "inference": "em"}, "EM of a model without priors takes no guide"),
    ({"restarts": 0}, "expected restarts to be a whole number >= 1"),
    ({"batch_size": 10}, "EM uses all rows"),
    ({"tol": -1.0}, "expected tol >= 0"),
    ({"device": "abacus"}, "expected device"),
    ({"inference": "mcmc"}, "parameters are latent sites; they are points"),
]


@pytest.mark.parametrize(("options", "message"), BAD_OPTIONS)
def test_bad_options_say_what_to_do(faithful, options, message):
    with pytest.raises(ValueError, match=message):
        lvm.fit(lvm.models.GaussianMixture(2), faithful, progress=False, **options)


def test_an_unknown_guide_name(faithful):
    with pytest.raises(ValueError, match=r"expected guide to be one of conjugate, map, .*; got 'nope'"):
        lvm.fit(lvm.models.GaussianMixture(2, priors=True), faithful, guide="nope", progress=False)


def test_a_guide_that_another_inference_trains_says_which(faithful):
    x = (faithful > faithful.mean(0)).float()
    for model, other in (
        (lvm.models.VAE(2, hidden=[4]), "amortized"),
        (lvm.models.SigmoidBeliefNet(2), "recognition-net"),
    ):
        with pytest.raises(ValueError, match=rf"only inference='coordinate-ascent' does.*another guide, as '{other}'"):
            lvm.fit(model, x, guide="conjugate", progress=False)
    with pytest.raises(ValueError, match="can train; got Conjugate, which only inference='coordinate-ascent' does"):
        lvm.fit(lvm.models.GaussianMixture(2, priors=True), faithful, "conjugate", "svi", progress=False)


def test_a_guide_of_ones_own_draws_discrete_sites_of_a_model_without_others():
    class Guide(torch.nn.Module):
        def __init__(self, model):
            super().__init__()
            self.slope = torch.nn.Parameter(torch.tensor(0.0))

        def forward(self, x):
            pyro.module("guide", self)
            with pyro.plate("data", len(x)):
                pyro.sample("z", dist.Bernoulli(logits=self.slope * x))

    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Bernoulli(0.5))
            pyro.sample("x", dist.Normal(2 * z - 1, 1.0), obs=x)

    fit = lvm.fit(model, torch.tensor([-2.0, 2.0]), Guide, "svi", max_epochs=3, seed=0, progress=False)
    assert type(fit.guide).__name__ == "Guide"


def test_a_number_is_not_a_guide(faithful):
    for priors in (None, True):
        with pytest.raises(TypeError, match="expected guide to be a name or a Pyro program; got 3"):
            lvm.fit(lvm.models.GaussianMixture(2, priors=priors), faithful, 3, "svi", progress=False)


def test_a_class_or_a_number_is_not_a_model(faithful):
    with pytest.raises(TypeError, match="got the class GaussianMixture"):
        lvm.fit(lvm.models.GaussianMixture, faithful)
    with pytest.raises(TypeError, match="a callable"):
        lvm.fit(3, faithful)


@pytest.mark.parametrize("covariance", ["full", "diag", "tied", "spherical"])
def test_em_of_a_bayesian_model_finds_the_mode(faithful, covariance):
    """By pseudo-counts, in closed form; the gradient of the same density agrees that it is flat there."""
    model = lvm.models.GaussianMixture(2, covariance=covariance, priors=True)
    fit = lvm.fit(model, faithful.double(), inference="em", seed=0, progress=False)
    assert fit.converged
    assert not fit.inference._plan.gradient
    guided = lvm.fit(model, faithful.double(), guide="map", seed=0, max_epochs=1500, progress=False)
    assert fit.history["loss"][-1] <= guided.history["loss"][-1] + 1e-6
    assert fit.history["loss"][-1] == pytest.approx(guided.history["loss"][-1], rel=1e-4)


@pytest.mark.parametrize(("inference", "law"), [("em", dist.Cauchy), ("coordinate-ascent", dist.Normal)])
def test_local_continuous_sites_point_to_svi(faithful, inference, law):
    def model(x):
        with pyro.plate("data", len(x)):
            h = pyro.sample("h", law(x.new_zeros(()), 1.0))
            pyro.sample("x", dist.Normal(h, 1.0), obs=x)

    why = rf"latent sites of every row to be discrete.*site 'h' \({law.__name__}\)"
    with pytest.raises(ValueError, match=why):
        lvm.fit(model, faithful[:, 0], inference=inference, progress=False)


def test_em_of_normal_sites_that_rows_are_curved_in_points_to_svi(faithful):
    def model(x):
        with pyro.plate("data", len(x)):
            h = pyro.sample("h", dist.Normal(x.new_zeros(()), 1.0))
            pyro.sample("x", dist.Normal(h.exp(), 1.0), obs=x)

    with pytest.raises(ValueError, match=r"one affine map of its latent sites.*inference='svi'"):
        lvm.fit(model, faithful[:, 0], inference="em", progress=False)


BAD_DATA = [
    (lambda x: x.clone().index_fill_(1, torch.tensor([0]), torch.nan), "all of column 0 is missing"),
    (lambda x: x / 0, "infinite value"),
    (lambda x: x[:0], "at least one row"),
    (lambda x: np.array([["a", "b"], ["c", "d"]]), "got text"),
    (lambda x: x[:, 0], r"expected x of shape \(n, d\)"),
    (lambda x: x.reshape(2, -1, 2), r"expected x of shape \(n, d\)"),
    (lambda x: x[:1], "at least as many rows as components"),
    (lambda x: torch.cat([x, torch.ones(len(x), 1)], 1), "constant column 2"),
    (lambda x: [], "at least one row"),
    (lambda x: {"x": None}, "at least one array"),
    (lambda x: x.to(torch.complex64), "real"),
    (lambda x: pd.DataFrame({"a": ["u", "v"], "b": [1.0, 2.0]}), "objects|text"),
]


@pytest.mark.parametrize(("spoil", "message"), BAD_DATA)
def test_bad_data_get_one_clear_sentence(faithful, spoil, message):
    with pytest.raises(ValueError, match=message) as error:
        lvm.fit(lvm.models.GaussianMixture(2), spoil(faithful), progress=False)
    assert "\n" not in str(error.value)


def test_one_row_and_wrong_columns(faithful):
    with pytest.raises(ValueError, match="at least 2 rows"):
        lvm.fit(lvm.models.GaussianMixture(1), faithful[:1], progress=False)
    with pytest.raises(ValueError, match=r"expected x of shape \(n, 3\); got \(272, 2\)\. Pass data_dim=2"):
        lvm.fit(lvm.models.GaussianMixture(2, data_dim=3), faithful, progress=False)
    fit = lvm.fit(lvm.models.GaussianMixture(2), faithful, seed=0, progress=False)
    for verb in (fit.score, fit.predict, fit.log_likelihood):
        with pytest.raises(ValueError, match=r"expected x of shape \(n, 2\); got \(272, 3\)"):
            verb(torch.zeros(272, 3))
    with pytest.raises(ValueError, match="at least as many rows as components"):
        fit.resume(faithful[:1])
    with pytest.raises(ValueError, match=r"expected x of shape \(n, 2\)"):
        lvm.fit(lvm.models.GaussianMixture(2), faithful, validation=faithful[:, :1], progress=False)
    with pytest.raises(ValueError, match="missing value"):
        lvm.fit(lvm.models.StudentTMixture(2), np.ma.masked_greater(faithful.numpy(), 90.0), progress=False)
    with pytest.raises(ValueError, match="no continuous latent"):
        fit.transform(faithful)


def test_progress_is_silent_when_nobody_watches(faithful, capsys):
    lvm.fit(lvm.models.GaussianMixture(2), faithful, seed=0)
    captured = capsys.readouterr()
    assert captured.out == captured.err == ""


def test_the_plan_of_a_fit_leaves_the_global_store_alone():
    def counts(x):
        rate = pyro.param("rate", torch.tensor([1.0, 5.0]), constraint=dist.constraints.positive)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Categorical(torch.tensor([0.5, 0.5])), infer={"enumerate": "parallel"})
            pyro.sample("x", dist.Poisson(rate[z]), obs=x)

    x = torch.tensor([1.0, 2.0, 8.0, 9.0])
    fit = lvm.fit(counts, x, inference="em", progress=False)
    before, learned = dict(pyro.get_param_store()), fit.params["rate"]
    assert "rate       (2,)   closed form  it is x.rate" in str(fit.plan(x))
    assert dict(pyro.get_param_store()) == before
    assert torch.equal(fit.params["rate"], learned)


def test_an_inference_without_a_plan_says_so():
    x = lvm.datasets.load("faithful").x
    fit = lvm.fit(lvm.models.GaussianMixture(2), x, inference="svi", max_epochs=1, progress=False)
    with pytest.raises(ValueError, match="expected an inference that plans its updates; got SVI"):
        fit.plan(x)
