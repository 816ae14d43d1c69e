# %% [markdown]
# # Wake and sleep: a machine that learns bars, in three ways
#
# A Helmholtz machine is two nets of coins: one makes images from causes, the other guesses the causes of an image.
# Nothing can be summed out and no gradient passes through a coin. Three ways around that, on the same model and guide:
# wake-sleep, reweighted wake-sleep, and the score function with a learned baseline. They are one argument of `fit`.
#
# Set `PYRO_LVM_SHORT=1` to run it with few steps, as the tests do; without it, it draws its pictures anew.

# %%
import os
from pathlib import Path

import pyro
import torch
from matplotlib.figure import Figure

import pyro_lvm as lvm
from pyro_lvm.infer import NVIL, SVI, WakeSleep

SHORT = os.environ.get("PYRO_LVM_SHORT") == "1"
EPOCHS = 15 if SHORT else 120

# %% [markdown]
# ## Images with causes
#
# An image holds rows or columns, never both, and each is there by a coin of its own. There are 30 images, so their law
# can be listed. No model can have a smaller mean negative log-likelihood than its entropy.

# %%
law = lvm.datasets.bars(size=4)
x = law.sample(1000, torch.Generator().manual_seed(0))
share = x.mean(0)
pixels = -float(law.probabilities @ (torch.xlogy(law.x, share) + torch.xlogy(1 - law.x, 1 - share)).sum(-1))
print(f"{len(law.x)} images; entropy {law.entropy:.2f} nats; independent pixels need {pixels:.2f}")

# %% [markdown]
# ## One model, one guide, three inferences
#
# `SigmoidBeliefNet((8, 4))` has layers `h1` of 8 units and `h2` of 4. `RecognitionNet` mirrors it. The wake phase lets
# the guide guess the causes of images, and the model learn to make the images from them. The sleep phase lets the
# model dream, and the guide learn to tell the causes of dreams, which are known.
#
# With several guesses for each image, weighted by how well the model likes them, wake-sleep climbs the likelihood
# itself, the more closely the more guesses there are. NVIL climbs the evidence lower bound: the guide is told how good
# its guesses were, less what a small network expected.

# %%
options = {"learning_rate": 0.1, "schedule": "linear"}
inferences = {
    "wake-sleep": SVI(loss=WakeSleep(), **options),
    "reweighted": SVI(loss=WakeSleep(num_samples=5, wake_guide=1.0), **options),
    "NVIL": SVI(loss=NVIL(), **options),
}
fits = {
    name: lvm.fit(
        lvm.models.SigmoidBeliefNet((8, 4)),
        x,
        guide="recognition-net",
        inference=inference,
        batch_size=100,
        max_epochs=EPOCHS,
        seed=0,
    )
    for name, inference in inferences.items()
}

# %% [markdown]
# ## How good are they?
#
# The states of both layers are few enough to be listed, so that the likelihood is exact. `fit.evidence` needs no list:
# it weighs draws of the guide, says how far it may be off, and warns where the guide hardly ever finds the causes.


# %%
def states(units):
    return torch.cartesian_prod(*[torch.tensor([0.0, 1.0])] * units)


def log_likelihood(model, rows):
    """Every state of both hidden layers, added up."""
    coins = torch.distributions.Bernoulli
    h1, h2 = (states(units) for units in model.hidden)
    with torch.no_grad():
        top = coins(logits=model.top_bias).log_prob(h2).sum(-1)
        middle = coins(logits=model.decoder[1](h2)[:, None]).log_prob(h1).sum(-1)
        bottom = coins(logits=model.decoder[0](h1)[:, None]).log_prob(rows).sum(-1)
        return ((top[:, None] + middle).logsumexp(0)[:, None] + bottom).logsumexp(0)


gaps = {}
for name, fit in fits.items():
    exact = log_likelihood(fit.model, law.x)
    gaps[name] = -float(law.probabilities @ exact) - law.entropy
    weighted = fit.evidence(law.x, num_samples=2000)
    off = (weighted.values - exact).abs() / weighted.standard_error
    print(f"{name:12} {gaps[name]:6.3f} nats above the entropy; weighting is off by {float(off.median()):.1f} errors")

# %% [markdown]
# ## Filters and dreams
#
# What each unit of `h1` adds to the log-odds of the pixels, and what the reweighted machine makes up.

# %%
best = fits["reweighted"]
dreams = best.sample(16)
if not SHORT:
    figure = Figure(figsize=(8, 3.2))
    rows = [("filters", best.model.decoder[0].weight.detach().T, "RdBu"), ("dreams", dreams[:8], "gray")]
    for i, (name, images, colours) in enumerate(rows):
        for j, image in enumerate(images):
            axes = figure.add_subplot(2, 8, 8 * i + j + 1, xticks=[], yticks=[])
            limit = float(image.abs().max().clamp_min(1))
            axes.imshow(image.reshape(4, 4), cmap=colours, vmin=-limit if i == 0 else 0, vmax=limit)
            if j == 0:
                axes.set_ylabel(name)
    figure.savefig(Path(__file__).parent / "pictures" / "bars.png", dpi=80)

# %% [markdown]
# ## The same objective under stock Pyro
#
# `WakeSleep` is an `ELBO` like Pyro's own. Any model and guide will do whose sites have the same names, if the image
# comes in as an argument of both: dreams take its place.


# %%
def model(x):
    weight, bias = pyro.param("weight", lambda: torch.randn(4, 16)), pyro.param("bias", lambda: torch.zeros(16))
    with pyro.plate("data", len(x)):
        h = pyro.sample("h", pyro.distributions.Bernoulli(0.5 * torch.ones(4)).to_event(1))
        pyro.sample("x", pyro.distributions.Bernoulli(logits=h @ weight + bias).to_event(1), obs=x)


def guide(x):
    weight, bias = pyro.param("back", lambda: torch.zeros(16, 4)), pyro.param("lift", lambda: torch.zeros(4))
    with pyro.plate("data", len(x)):
        pyro.sample("h", pyro.distributions.Bernoulli(logits=x @ weight + bias).to_event(1))


with pyro.get_param_store().scope():
    pyro.set_rng_seed(0)
    svi = pyro.infer.SVI(model, guide, pyro.optim.Adam({"lr": 0.02}), loss=WakeSleep())
    losses = [svi.step(x) / len(x) for _ in range(200)]
print(f"stock Pyro: a bound of {-losses[0]:.1f} nats at first, {-losses[-1]:.1f} after 200 steps")

# %% [markdown]
# ## What was claimed

# %%
assert losses[-1] < losses[0]
assert gaps["reweighted"] < pixels - law.entropy
assert SHORT or gaps["reweighted"] < min(0.5, gaps["wake-sleep"])
