"""A guide of other sizes than the model's is told so in one sentence, whatever torch says."""

import pyro
import pyro.distributions as dist
import pytest
import torch

import pyro_lvm as lvm

X = torch.bernoulli(torch.full((20, 6), 0.4), generator=torch.Generator().manual_seed(0))


def net(hidden, data_dim=None):
    return lvm.models.SigmoidBeliefNet(hidden, data_dim)


def autoencoder(latent_dim, data_dim=None):
    return lvm.models.VAE(latent_dim, data_dim, hidden=[4])


def user(x):
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(x.new_zeros(len(x), 3), 1.0).to_event(1))
        pyro.sample("x", dist.Normal(z.sum(-1), 1.0), obs=x[:, 0])


def users_guide(x):
    loc = pyro.param("loc", torch.zeros(2))
    with pyro.plate("data", len(x)):
        pyro.sample("z", dist.Normal(loc.expand(len(x), 2), 1.0).to_event(1))


guides = lvm.guides
DRAWS = r"expected a guide that draws site '{}' in the model's shape \(20, 3\); got \(20, {}\)\. Make it from the model"
RUNS = r"expected a guide that runs on rows of shape \(20, 6\); torch says of this one: [^\n]+\. Make it from the model"
ANOTHER = r"expected a guide made from the model that is fitted.*Pass guide={}, the class"
PAIRS = {
    "vector": (autoencoder(3), guides.AmortizedGaussian(autoencoder(5, 6)), None, DRAWS.format("z", 5)),
    "flows": (autoencoder(3), guides.InverseAutoregressive(autoencoder(5, 6)), None, DRAWS.format("z", 5)),
    "columns": (autoencoder(3), guides.AmortizedGaussian(autoencoder(3, 9)), None, RUNS),
    "several": (
        autoencoder(3),
        guides.AmortizedGaussian(autoencoder(5, 6)),
        "importance-weighted",
        DRAWS.format("z", 5),
    ),
    "units": (net((3, 2)), guides.RecognitionNet(net((4, 2), 6)), None, DRAWS.format("h1", 4)),
    "units by vimco": (net((3, 2)), guides.RecognitionNet(net((4, 2), 6)), "vimco", DRAWS.format("h1", 4)),
    "columns of units": (net((3, 2)), guides.RecognitionNet(net((3, 2), 9)), None, RUNS),
    "functions": (user, users_guide, None, DRAWS.format("z", 2)),
    "search": (autoencoder(3), guides.LocalGaussian(autoencoder(5, 6)), None, ANOTHER.format("LocalGaussian")),
    "autoguide": (autoencoder(3), guides.AutoNormal(autoencoder(3, 6)), None, ANOTHER.format("AutoNormal")),
    "start": (autoencoder(3), guides.SemiAmortized(autoencoder(3, 6)), None, ANOTHER.format("SemiAmortized")),
}


@pytest.mark.parametrize("name", PAIRS)
def test_sizes_that_differ(name):
    model, guide, inference, message = PAIRS[name]
    with pytest.raises(ValueError, match=message) as raised:
        lvm.fit(model, X, guide, inference, max_epochs=1, progress=False)
    assert "Trace Shapes" not in str(raised.value)


def sites(*names):
    """A guide that draws these sites."""

    def guide(x):
        loc = pyro.param("guess", torch.zeros(()))
        with pyro.plate("data", len(x)):
            for name in names:
                pyro.sample(name, dist.Normal(loc.expand(len(x)), 1.0))

    return guide


def two(x):
    with pyro.plate("data", len(x)):
        k = pyro.sample("k", dist.Categorical(torch.ones(2)), infer={"enumerate": "parallel"})
        y = pyro.sample("y", dist.Normal(torch.zeros(len(x)), 1.0))
        z = pyro.sample("z", dist.Normal(y, 1.0))
        pyro.sample("x", dist.Normal(y + z + k, 1.0), obs=x[:, 0])


SITES = r"SVI: expected a guide of the model's latent sites \({}\); it {}, or make it from the model that is trained\.$"
OTHERS = {
    "lacks": (
        two,
        sites("z"),
        None,
        SITES.format("k, y, z", r"lacks 'y'\. Add pyro.sample\('y', \.\.\.\) to it"),
    ),
    "nothing": (two, sites(), "importance-weighted", SITES.format("k, y, z", "lacks 'y'.*")),
    "more": (two, sites("y", "z", "w"), None, SITES.format("k, y, z", r"draws 'w'\. Rename its sites")),
    "others": (autoencoder(3), sites("w"), None, SITES.format("z", r"draws 'w', and not 'z'\. Rename its sites")),
    "layers": (autoencoder(3), guides.RecognitionNet(net((3,), 6)), None, "draws 'h1', and not 'z'"),
    "fewer layers": (net((3, 2)), guides.RecognitionNet(net((3,), 6)), None, SITES.format("h2, h1", "lacks 'h2'.*")),
    "recognition": (autoencoder(3), guides.RecognitionNet, None, r"layers of units, as SigmoidBeliefNet; got VAE\."),
    "amortized": (
        net((3,)),
        "amortized",
        None,
        r"one latent vector for each row, .* tells its latent_dim; got SigmoidBeliefNet\.",
    ),
    "a function": (two, guides.AmortizedGaussian, None, r"tells its latent_dim; got two\. Use another guide"),
}


@pytest.mark.parametrize("name", OTHERS)
def test_sites_that_differ(name):
    model, guide, inference, message = OTHERS[name]
    with pytest.raises(ValueError, match=message):
        lvm.fit(model, X, guide, inference, max_epochs=1, progress=False)


def test_discrete_sites_may_be_left_out():
    assert len(lvm.fit(two, X, sites("y", "z"), max_epochs=1, progress=False).history["loss"]) == 1


@pytest.mark.filterwarnings("ignore:Found vars in model but not guide:UserWarning")
def test_what_a_guide_draws_besides_and_points_that_it_leaves_out():
    def model(x):
        pyro.sample("point", dist.Delta(torch.zeros(())))
        two(x)

    def guide(x):
        pyro.sample("besides", dist.Normal(0.0, 1.0), infer={"is_auxiliary": True})
        sites("y", "z")(x)

    assert len(lvm.fit(model, X, guide, max_epochs=1, progress=False).history["loss"]) == 1


def test_a_network_that_is_fixed_or_not_told_of():
    layer = torch.nn.Linear(6, 1)

    def model(x):
        loc = pyro.param("loc", torch.zeros(()))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(loc + layer(x)[:, 0], 1.0), obs=x[:, 0])

    with pytest.warns(UserWarning, match=r"Linear\.weight, Linear\.bias will not be trained"):
        lvm.fit(model, X, inference="svi", max_epochs=1, progress=False)
    layer.requires_grad_(False)
    layer.zero_grad()
    assert len(lvm.fit(model, X, inference="svi", max_epochs=1, progress=False).history["loss"]) == 1


def test_a_guide_that_searches_with_the_model_that_is_fitted():
    model = autoencoder(3)
    fit = lvm.fit(model, X, guides.LocalGaussian(model), max_epochs=1, seed=0, progress=False)
    assert fit.transform(X).shape == (20, 3)


def test_sentences_of_others_are_left_alone():
    def broken(x):
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(x[:, 0] @ torch.zeros(7), 1.0), obs=x[:, 0])

    with pytest.raises(RuntimeError, match="inconsistent tensor size"):
        lvm.infer.SVI(broken, users_guide).step(X)


def test_columns_that_differ_where_values_are_known():
    known = torch.zeros(20, 3)
    with pytest.raises(ValueError, match="fit: expected a guide that runs on rows"):
        lvm.fit(autoencoder(3), {"x": X, "z": known}, guides.AmortizedGaussian(autoencoder(3, 9)), max_epochs=1)


def two_sites(x):
    loc = pyro.sample("loc", dist.Normal(0.0, 1.0))
    scale = pyro.sample("scale", dist.LogNormal(0.0, 1.0))
    with pyro.plate("data", len(x)):
        pyro.sample("x", dist.Normal(loc, scale), obs=x)


def other_site(x):
    mean = pyro.sample("mean", dist.Normal(0.0, 1.0))
    with pyro.plate("data", len(x)):
        pyro.sample("x", dist.Normal(mean, 1.0), obs=x)


def in_part():
    guide = pyro.infer.autoguide.AutoGuideList(two_sites)
    guide.append(pyro.infer.autoguide.AutoNormal(pyro.poutine.block(two_sites, expose=["loc"])))
    return guide


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: pyro.infer.autoguide.AutoNormal(other_site), "draws 'mean', and not 'loc'"),
        (in_part, "lacks 'scale'"),
    ],
)
def test_autoguides_of_other_programs_or_of_parts_only(make, message):
    with pytest.raises(ValueError, match=message):
        lvm.fit(two_sites, torch.randn(20), make(), "svi", max_epochs=2, progress=False)


def test_autoguides_in_parts_are_whole_together():
    guide = in_part()
    guide.append(pyro.infer.autoguide.AutoNormal(pyro.poutine.block(two_sites, expose=["scale"])))
    assert lvm.fit(two_sites, torch.randn(20), guide, "svi", max_epochs=2, seed=0, progress=False).history["loss"]
