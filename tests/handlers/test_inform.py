"""Known values of sites that a guide draws: losses, gradients, and every verb of a fit, against sums done by hand."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import Trace_ELBO, TraceEnum_ELBO, TraceGraph_ELBO, TraceMeanField_ELBO, config_enumerate
from pyro.infer.autoguide import AutoNormal
from torch import nn
from torch.distributions import kl_divergence
from torch.utils.data import DataLoader, Dataset

import pyro_lvm as lvm
from pyro_lvm.distributions.partly_known import PartlyKnown
from pyro_lvm.training.labels import Labelled, LabelledGuide

ROWS = 12
X = torch.bernoulli(torch.full((ROWS, 5), 0.4), generator=torch.Generator().manual_seed(0))
Z = torch.randn(ROWS, 2, generator=torch.Generator().manual_seed(1))
H = torch.bernoulli(torch.full((ROWS, 3), 0.5), generator=torch.Generator().manual_seed(2))
KNOWN = torch.arange(ROWS) % 3 == 0
SOME = {"x": X, "z": torch.where(KNOWN[:, None], Z, torch.nan)}
LATENT = {"h1": H.long(), "h2": H[:, :2].long()}
REPARAMETERISED = {
    "bound": lambda: lvm.infer.EvidenceBound(),
    "open": lambda: lvm.infer.EvidenceBound(closed_divergence=False),
    "several": lambda: lvm.infer.EvidenceBound(num_particles=3, vectorize=True),
    "weighted": lambda: lvm.infer.ImportanceWeighted(4),
    "wake-sleep": lambda: lvm.infer.WakeSleep(),
    "trace": Trace_ELBO,
    "graph": TraceGraph_ELBO,
    "mean-field": TraceMeanField_ELBO,
}
DISCRETE = {
    "nvil": lambda: lvm.infer.NVIL(normalize=False),
    "vimco": lambda: lvm.infer.VIMCO(3),
    "relax": lambda: lvm.infer.RELAX(),
    "leave-one-out": lambda: lvm.infer.LeaveOneOut(3),
    "wake": lambda: lvm.infer.WakeSleep(2, num_dreams=0, wake_guide=1.0),
    "graph": TraceGraph_ELBO,
    "trace": Trace_ELBO,
}


def log_joint(model, x, z):
    """Log p(x, z) of every row of an autoencoder, nats."""
    return dist.Normal(0.0, 1.0).log_prob(z).sum(-1) + model.decode(z).log_prob(x)


@pytest.fixture
def linear(local):
    """A linear normal autoencoder of one latent variable, and a guide that is its exact posterior."""
    torch.manual_seed(3)
    decoder = nn.Linear(1, 6)  # means and raw scales
    decoder.weight.data[3:] = 0
    model = lvm.models.VAE(1, 3, likelihood="gaussian", decoder=decoder).double()
    x = torch.randn(ROWS, 3, dtype=torch.float64)
    law = model.decode(torch.zeros(1, 1).double()).base_dist
    weight, noise, bias = decoder.weight[:3, 0].detach().double(), law.scale[0].detach(), law.loc[0].detach()
    precision = 1 + (weight / noise).square().sum()
    mean = ((x - bias) * weight / noise**2).sum(1, keepdim=True) / precision

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(mean, precision.rsqrt()).to_event(1))

    covariance = torch.outer(weight, weight) + noise.square().diag()
    marginal = torch.distributions.MultivariateNormal(bias, covariance).log_prob(x)
    return model, guide, x, marginal


@pytest.mark.parametrize("name", REPARAMETERISED)
def test_known_rows_count_their_joint_density_and_no_entropy(name, linear):
    model, guide, x, marginal = linear
    z = torch.where(KNOWN[:, None], Z[:, :1].double() + 1, torch.nan)
    expected = -torch.where(KNOWN, log_joint(model, x, z.nan_to_num()), marginal).sum().detach()
    objective = REPARAMETERISED[name]()
    informed = lvm.handlers.inform(guide, {"z": z}, mask=KNOWN)
    losses = torch.tensor([objective.loss(model, informed, x) for _ in range(100)]).double()
    # at the exact posterior a ratio of densities does not vary; with a divergence in closed form it does
    assert float((losses.mean() - expected).abs()) < 4 * float(losses.std()) / 10 + 1e-4 * abs(float(expected))
    if name not in ("bound", "several", "mean-field"):
        assert float((losses - expected).abs().max()) < 1e-4 * abs(float(expected))


@pytest.mark.parametrize("name", DISCRETE)
def test_model_learns_from_known_layers_and_guide_does_not(name, local):
    torch.manual_seed(0)
    model = lvm.models.SigmoidBeliefNet((3, 2), data_dim=5)
    guide = lvm.guides.RecognitionNet(model)
    values = {"h1": H, "h2": H[:, :2]}
    loss = DISCRETE[name]().loss_and_grads(model, lvm.handlers.inform(guide, values), X)
    with pyro.poutine.trace() as traced:
        pyro.poutine.condition(model, values)(X)
    joint = traced.trace.log_prob_sum()
    assert loss == pytest.approx(-float(joint.detach()), rel=1e-5)
    for parameter, gradient in zip(
        model.parameters(), torch.autograd.grad(-joint, list(model.parameters())), strict=True
    ):
        torch.testing.assert_close(parameter.grad, gradient, rtol=1e-4, atol=1e-5)
    assert all(p.grad is None or not bool(p.grad.any()) for p in guide.parameters())


def test_layers_are_drawn_given_what_is_known_below(local):
    torch.manual_seed(0)
    guide = lvm.guides.RecognitionNet(lvm.models.SigmoidBeliefNet((3, 2), data_dim=5))
    with pyro.poutine.trace() as traced:
        lvm.handlers.inform(guide, {"h1": H})(X)
    law = traced.trace.nodes["h2"]["fn"].base_dist
    torch.testing.assert_close(law.logits, guide.recognition[1](H))


def test_dreams_know_nothing(local):
    """With all layers known the guide learns from dreams alone, and as if nothing were known."""
    gradients = []
    for labels in ({}, LATENT):
        torch.manual_seed(0)
        model = lvm.models.SigmoidBeliefNet((3, 2), data_dim=5)
        guide = lvm.guides.RecognitionNet(model)
        programs = Labelled(model, LATENT), LabelledGuide(guide, model)
        lvm.infer.WakeSleep(wake_every=2, num_dreams=3).loss_and_grads(*programs, X, **labels)
        gradients.append([p.grad for p in guide.parameters()])
    for plain, labelled in zip(*gradients, strict=True):
        torch.testing.assert_close(plain, labelled)


def test_enumerated_site_of_the_guide(local):
    """A class that the guide weighs exactly where it is unknown, with a latent vector under it."""
    torch.manual_seed(0)
    y, known = torch.arange(ROWS) % 3, torch.arange(ROWS) % 2 == 0
    loc, logits = torch.randn(3, 5), torch.randn(ROWS, 3)

    def model(x):
        with pyro.plate("data", len(x)):
            k = pyro.sample("y", dist.Categorical(torch.tensor([0.2, 0.3, 0.5])))
            pyro.sample("x", dist.Bernoulli(logits=loc[k]).to_event(1), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("y", dist.Categorical(logits=logits), infer={"enumerate": "parallel"})

    joint = torch.tensor([0.2, 0.3, 0.5]).log() + dist.Bernoulli(logits=loc).to_event(1).log_prob(X[:, None])
    share = logits.log_softmax(-1)
    unknown = (share.exp() * (joint - share)).sum(-1)
    expected = -torch.where(known, joint[torch.arange(ROWS), y], unknown).sum()
    for informed in (
        lvm.handlers.inform(guide, {"y": y}, mask=known),
        config_enumerate(lvm.handlers.inform(guide, {"y": y}, mask=known)),
    ):
        loss = TraceEnum_ELBO(max_plate_nesting=1).loss(model, informed, X)
        assert loss == pytest.approx(float(expected), rel=1e-5)
    fit = lvm.fit(model, {"x": X, "y": torch.where(known, y, -1)}, guide, "svi", max_epochs=1, seed=0, progress=False)
    assert fit.history["loss"][0] == pytest.approx(float(expected), rel=1e-5)


@pytest.mark.parametrize("guide", ["amortized", "inverse-autoregressive", "local", "semi-amortized", "normal"])
def test_every_verb_knows_the_values(guide):
    model = lvm.models.VAE(2, hidden=[4])
    fit = lvm.fit(model, SOME, guide=guide, max_epochs=2, seed=0, progress=False)
    means, draws = fit.transform(SOME), fit.posterior(SOME, 3)["z"]
    torch.testing.assert_close(means[KNOWN], Z[KNOWN])
    assert torch.equal(draws[:, KNOWN], Z[KNOWN].expand(3, -1, -1))
    assert not bool(torch.isclose(means[~KNOWN], Z[~KNOWN]).any())
    if guide == "normal":
        return  # holds a law for every row of the data, and has none for copies of rows
    with torch.no_grad():
        joint = log_joint(fit.model, X, Z)
    evidence = fit.evidence({"x": X, "z": Z}, 20)
    torch.testing.assert_close(evidence.values, joint.double(), rtol=1e-5, atol=1e-5)
    assert float(evidence.standard_error.max()) < 1e-5


@pytest.mark.parametrize("guide", ["amortized", "inverse-autoregressive", "local", "semi-amortized", "normal"])
def test_loss_of_a_fit_whose_values_are_all_known(guide):
    model = lvm.models.VAE(2, hidden=[4])
    slow = lvm.infer.SVI(learning_rate=1e-9)
    size = None if guide == "normal" else 6  # that guide holds laws of the rows of a step
    fit = lvm.fit(model, {"x": X, "z": Z}, guide, slow, batch_size=size, max_epochs=1, seed=0, progress=False)
    with torch.no_grad():
        assert fit.history["loss"][0] == pytest.approx(-float(log_joint(fit.model, X, Z).sum()), rel=1e-4)


@pytest.mark.parametrize("inference", ["wake-sleep", "nvil", "vimco", "relax", "leave-one-out", "svi"])
def test_predictions_of_units_know_the_values(inference):
    some = {"x": X, "h1": torch.where(KNOWN[:, None], H, -1).long()}
    fit = lvm.fit(lvm.models.SigmoidBeliefNet((3, 2)), some, inference=inference, max_epochs=2, seed=0, progress=False)
    assert torch.equal(fit.predict(some)["h1"][KNOWN], H[KNOWN].long())
    assert torch.equal(fit.transform(some)["h1"][KNOWN], H[KNOWN])
    table, plain = fit.predict_proba(some)["h1"], fit.predict_proba(X)["h1"]
    assert torch.equal(table[KNOWN], nn.functional.one_hot(H[KNOWN].long(), 2).float())
    assert torch.equal(table[~KNOWN], plain[~KNOWN])


def test_known_values_guide_the_search_for_others(local):
    """Of two latent variables that explain a row together, the second is found given the first."""

    def model(x):
        with pyro.plate("data", len(x)):
            first = pyro.sample("a", dist.Normal(torch.zeros(len(x)), 1.0))
            second = pyro.sample("b", dist.Normal(torch.zeros(len(x)), 1.0))
            pyro.sample("x", dist.Normal(first + second, 0.5), obs=x)

    x, a = torch.linspace(-2, 2, ROWS), torch.linspace(1, -1, ROWS)
    data = {"x": x, "a": torch.where(KNOWN, a, torch.nan)}
    fit = lvm.fit(model, data, "local", max_epochs=3, seed=0, progress=False)
    found = fit.transform(data)
    torch.testing.assert_close(found["b"][KNOWN], ((x - a) / (1 + 0.25))[KNOWN], rtol=0, atol=0.02)
    torch.testing.assert_close(found["b"][~KNOWN], (x / 2.25)[~KNOWN], rtol=0, atol=0.05)


def test_guides_that_draw_sites_together_are_refused():
    with pytest.raises(ValueError, match=r"draws it together with others .*Use guide 'normal', 'local'"):
        lvm.fit(lvm.models.VAE(2, hidden=[4]), SOME, "multivariate-normal", max_epochs=1, progress=False)
    with pytest.raises(ValueError, match="no site 'w'"):
        lvm.handlers.inform(lambda x: pyro.sample("z", dist.Normal(0.0, 1.0)), {"w": torch.zeros(())})(X)


@pytest.mark.parametrize(
    ("values", "mask", "message"),
    [
        ([], None, "expected values by site name"),
        ({"w": torch.zeros(3)}, None, "expected values of sites that the program has"),
        ({"z": torch.zeros(2)}, None, "expected values of 'z' of shape"),
        ({"z": torch.zeros(3)}, torch.ones(2) > 0, "expected the mask of 'z' of shape"),
        ({"z": torch.zeros(3)}, torch.ones(3), "expected the mask of 'z' to be True or False"),
        ({"z": torch.full((3,), torch.nan)}, None, "expected known values of 'z' in its support"),
    ],
)
def test_errors_name_the_handler_that_was_called(values, mask, message):
    def program():
        with pyro.plate("data", 3):
            pyro.sample("z", dist.Normal(0.0, 1.0))

    for handler in (lvm.handlers.clamp, lvm.handlers.inform):
        with pytest.raises(ValueError, match=f"^{handler.__name__}: {message}"):
            handler(program, values, mask)()


def test_the_law_itself():
    base = dist.Normal(torch.zeros(4, 2), 1.0).to_event(1)
    given, known = torch.tensor([[1.0, 2.0]]), torch.tensor([True, False, True, False])
    law = PartlyKnown(base, given, known)
    draw = law.rsample()
    assert torch.equal(draw[known], given.expand(2, 2))
    assert law.log_prob(draw)[known].tolist() == [0.0, 0.0]
    torch.testing.assert_close(law.log_prob(draw)[~known], base.log_prob(draw)[~known])
    assert torch.equal(law.mean[known], given.expand(2, 2))
    assert law.expand((3, 4)).sample().shape == (3, 4, 2)
    prior = dist.Normal(torch.ones(4, 2), 2.0).to_event(1)
    expected = torch.where(known, -prior.log_prob(given.expand(4, 2)), kl_divergence(base, prior))
    torch.testing.assert_close(kl_divergence(law, prior), expected)


def test_names_that_no_site_has_are_refused():
    fit = lvm.fit(lvm.models.VAE(2, hidden=[4]), X, max_epochs=1, seed=0, progress=False)
    for ask in (fit.transform, fit.score, fit.posterior, fit.predict_proba):
        with pytest.raises(ValueError, match=r"latent sites \(z\); got 'w'. Rename it, or leave it out"):
            ask({"x": X, "w": Z})


def test_means_of_points_carry_no_graph():
    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(len(x)), 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    data = {"x": X[:, 0], "z": torch.where(KNOWN, Z[:, 0], torch.nan)}
    found = lvm.fit(model, data, "map", max_epochs=2, seed=0, progress=False).transform(data)
    assert not found.requires_grad
    assert torch.equal(found[KNOWN], Z[KNOWN, 0])


def level(x):
    """A latent number for each row."""
    slope = pyro.param("slope", torch.tensor(1.0))
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(torch.zeros(len(x)), 1.0))
        pyro.sample("x", dist.Normal(slope * z, 0.5), obs=x)


def level_guide(x):
    loc = pyro.param("guess", torch.tensor(0.1))
    with pyro.plate("data", len(x)):
        pyro.sample("z", dist.Normal(loc * x, 0.25))


LEVELS = torch.randn(60, generator=torch.Generator().manual_seed(4))
ANSWERS = 2 * LEVELS + 0.5 * torch.randn(60, generator=torch.Generator().manual_seed(5))


@pytest.mark.parametrize("known", [60, 55])
def test_labels_of_a_continuous_site_leave_the_defaults_as_they_are(known):
    """The first 50 rows alone, at which structure is looked, are known throughout."""
    labels = torch.where(torch.arange(60) < known, LEVELS, torch.nan)
    for data, model in (({"x": ANSWERS, "z": labels}, level), (ANSWERS, lvm.handlers.clamp(level, {"z": LEVELS}))):
        fit = lvm.fit(model, data, max_epochs=2, seed=0, progress=False)
        assert isinstance(fit.inference, lvm.infer.SVI)
        assert isinstance(fit.guide, lvm.guides.AutoNormal)
    assert lvm.fit(level, {"x": ANSWERS, "z": LEVELS}, inference="em", seed=0, progress=False).guide is None


class Labelled60(Dataset):
    def __len__(self):
        return 60

    def __getitem__(self, i):
        return {"x": ANSWERS[i], "z": LEVELS[i] if i % 3 == 0 else torch.tensor(torch.nan)}


class Parts:
    """Batches, of which only those after the first have labels."""

    def __iter__(self):
        yield {"x": ANSWERS[:20]}
        for rows in (slice(20, 40), slice(40, 60)):
            yield {"x": ANSWERS[rows], "z": LEVELS[rows]}


@pytest.mark.parametrize("data", [Labelled60(), DataLoader(Labelled60(), batch_size=20), Parts()])
def test_labels_come_in_datasets_and_in_any_batch_of_a_stream(data):
    svi = lvm.infer.SVI(learning_rate=0.05)
    fit = lvm.fit(level, data, level_guide, svi, max_epochs=120, seed=0, progress=False)
    assert fit.params["slope"].item() == pytest.approx(2.0, abs=0.3)
    known = {"x": ANSWERS, "z": LEVELS}
    joint = dist.Normal(0.0, 1.0).log_prob(LEVELS)
    joint = joint + dist.Normal(fit.params["slope"] * LEVELS, 0.5).log_prob(ANSWERS)
    torch.testing.assert_close(fit.evidence(known, 10).values.float(), joint)


def test_labels_out_of_range_are_found_in_rows_of_any_batch():
    labels = (LEVELS > 0).long()
    labels[57] = 2
    with pytest.raises(ValueError, match=r"known values of 'z' in its support .*; got 2 at \(57,\)\. Correct it"):
        lvm.fit(
            lvm.models.GaussianMixture(2),
            {"x": ANSWERS[:, None], "z": labels},
            inference="svi",
            batch_size=20,
            progress=False,
        )


class Walks(Dataset):
    """Sequences of unequal lengths, each with its states."""

    def __len__(self):
        return 4

    def __getitem__(self, i):
        rows = slice(10 * i, 10 * i + 5 + i)
        return {"x": ANSWERS[rows, None], "z": (LEVELS[rows] > 0).long()}


def test_datasets_of_ragged_sequences_with_labels_are_lists():
    items = [Walks()[i] for i in range(4)]
    lists = {name: [item[name] for item in items] for name in ("x", "z")}
    fits = [lvm.fit(lvm.models.GaussianHMM(2), d, max_epochs=2, seed=0, progress=False) for d in (Walks(), lists)]
    assert fits[0].history == fits[1].history


def test_values_that_a_guide_was_informed_of_are_labels_of_the_rows():
    model = lvm.models.VAE(2, hidden=[4])
    options = {"max_epochs": 3, "batch_size": 4, "seed": 0, "progress": False}
    for guide in (lvm.guides.AmortizedGaussian(initialized(model)), row_guide):
        informed = lvm.handlers.inform(guide, {"z": Z}, mask=KNOWN)
        fits = [lvm.fit(model, *given, **options) for given in ((X, informed), (SOME, guide))]
        assert fits[0].history == fits[1].history
        assert torch.equal(fits[0].evidence(X[:5], 20).values, fits[1].evidence(X[:5], 20).values)


def test_handlers_around_guides_that_run_their_model():
    def program(x):
        loc = pyro.sample("loc", dist.Normal(0.0, 10.0))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(loc, 1.0), obs=x)

    def made():
        return lvm.guides.AutoNormal(program)

    informed = lvm.handlers.inform(made(), {"loc": torch.tensor(3.0)})
    guides = (made(), poutine.block(made(), hide=["nothing"]), informed)
    fits = [lvm.fit(program, ANSWERS, guide, max_epochs=3, seed=0, progress=False) for guide in guides]
    assert fits[0].history == fits[1].history
    assert torch.equal(fits[0].log_likelihood(ANSWERS), fits[1].log_likelihood(ANSWERS))
    assert fits[0].tensors().keys() == fits[1].tensors().keys()
    exact = dist.Normal(3.0, 1.0).log_prob(ANSWERS)
    torch.testing.assert_close(fits[2].log_likelihood(ANSWERS).float(), exact)


def initialized(model):
    model.initialize(X)
    return model


def row_guide(x):
    loc = pyro.param("loc", torch.zeros(2))
    with pyro.plate("data", len(x)):
        pyro.sample("z", dist.Normal(loc.expand(len(x), 2), 1.0).to_event(1))


@pytest.mark.parametrize("infinite", [torch.inf, -torch.inf])
def test_infinite_labels_are_refused(infinite):
    labels = LEVELS.clone()
    labels[57] = infinite
    with pytest.raises(ValueError, match=rf"'z' to be finite; got {infinite:g} at row 57\. Write NaN"):
        lvm.fit(level, {"x": ANSWERS, "z": labels}, progress=False)
    with pytest.raises(ValueError, match=rf"known values of 'z' in its support .* got {infinite:g} at \(57,\)"):
        lvm.handlers.clamp(level, {"z": labels})(ANSWERS)


@pytest.mark.parametrize("guide", ["local", "own"])
def test_labels_of_a_class_and_of_a_vector_together(guide):
    """The class is summed out where it is unknown, the other site drawn; each may be known in rows of its own."""

    def model(x):
        loc = pyro.param("loc", torch.tensor([0.0, 4.0, 8.0]))
        with pyro.plate("data", len(x)):
            k = pyro.sample("y", dist.Categorical(torch.ones(3) / 3), infer={"enumerate": "parallel"})
            u = pyro.sample("u", dist.Normal(torch.zeros(len(x)), 0.5))
            pyro.sample("x", dist.Normal(loc[k] + u, 1.0), obs=x)

    def own(x):
        slope = pyro.param("slope", torch.tensor(0.0))
        with pyro.plate("data", len(x)):
            pyro.sample("u", dist.Normal(slope * x, 0.5))

    y, u = torch.arange(ROWS) % 3, Z[:, 0]
    x = 4.0 * y + torch.randn(ROWS)
    few = torch.arange(ROWS) < 6
    data = {"x": x, "y": torch.where(KNOWN, (y + 1) % 3, -1), "u": torch.where(few, u, torch.nan)}
    fit = lvm.fit(model, data, own if guide == "own" else guide, max_epochs=3, seed=0, progress=False)
    assert torch.equal(fit.predict(data)[KNOWN], data["y"][KNOWN])
    draws = fit.posterior(data, 4)
    assert torch.equal(draws["y"][:, KNOWN], data["y"][KNOWN].expand(4, -1))
    assert torch.equal(draws["u"][:, few], u[few].expand(4, -1))
    both, loc = KNOWN & few, fit.params["loc"]
    joint = dist.Normal(0.0, 0.5).log_prob(u) - torch.tensor(3.0).log()
    joint = joint + dist.Normal(loc[(y + 1) % 3] + u, 1.0).log_prob(x)
    torch.testing.assert_close(fit.evidence(data, 20).values[both], joint[both].double(), rtol=1e-5, atol=1e-5)


def test_what_is_masked_already_stays_so():
    def model():
        with pyro.plate("data", 3):
            pyro.sample("z", dist.Normal(0.0, 1.0))

    present, known = torch.tensor([True, True, False]), torch.tensor([True, False, False])
    guide = poutine.mask(AutoNormal(model), mask=present)
    informed = lvm.handlers.inform(guide, {"z": torch.zeros(3)}, mask=known)
    drawn = poutine.trace(informed).get_trace().nodes["z_unconstrained"]
    assert drawn["mask"].tolist() == [False, True, False]
