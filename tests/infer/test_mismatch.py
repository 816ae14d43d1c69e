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


def test_a_guide_that_searches_with_the_model_that_is_fitted():
    model = autoencoder(3)
    fit = lvm.fit(model, X, guides.LocalGaussian(model), max_epochs=1, seed=0, progress=False)
    assert fit.transform(X).shape == (20, 3)


def test_sentences_of_others_are_left_alone():
    with pytest.raises(ValueError, match="WakeSleep: expected the guide to draw every latent site"):
        lvm.fit(net((3, 2)), X, guides.RecognitionNet(net((3,), 6)), max_epochs=1, progress=False)

    def broken(x):
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(x[:, 0] @ torch.zeros(7), 1.0), obs=x[:, 0])

    with pytest.raises(RuntimeError, match="inconsistent tensor size"):
        lvm.infer.SVI(broken, users_guide).step(X)


def test_columns_that_differ_where_values_are_known():
    known = torch.zeros(20, 3)
    with pytest.raises(ValueError, match="fit: expected a guide that runs on rows"):
        lvm.fit(autoencoder(3), {"x": X, "z": known}, guides.AmortizedGaussian(autoencoder(3, 9)), max_epochs=1)
