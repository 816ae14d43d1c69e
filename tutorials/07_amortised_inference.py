# %% [markdown]
# # One model, four posteriors
#
# A variational autoencoder is a model, a law of rows given a hidden vector, and a guide, a law of the hidden vector
# given the row. Usually both are written as one thing. Here they meet only at a sample site, so that the guide, and
# the objective, are one argument each. We keep the model, change the rest, and ask which learned the better model.
#
# Set `PYRO_LVM_SHORT=1` to run it with few steps, as the tests do; without it, it draws its pictures anew.

# %%
import os
import warnings
from pathlib import Path

import numpy as np
import pyro
import pyro.distributions as dist
import torch
from matplotlib.figure import Figure
from torch.distributions import constraints

import pyro_lvm as lvm

SHORT = os.environ.get("PYRO_LVM_SHORT") == "1"
digits = lvm.datasets.load("digits234")
train, held_out = digits.x[::2], digits.x[1 :: 8 if SHORT else 2]

# %% [markdown]
# ## The model
#
# Handwritten 2, 3 and 4 in black and white, 8 by 8 pixels. Two hidden numbers make an image through a network.
#
# ## Four guides
#
# * `"amortized"`: a network makes mean and scale of every image's two numbers.
# * `"inverse-autoregressive"`: it also bends that normal law by flows.
# * `"local"`: no network. Every image has a mean and a scale of its own, which ten steps improve whenever it comes by.
# * `"semi-amortized"`: a network begins, five steps go on from there.


# %%
def svi(**options):
    return lvm.infer.SVI(learning_rate=0.005, schedule="linear", **options)


def learn(guide, inference):
    model, epochs = lvm.models.VAE(2, hidden=[64]), 4 if SHORT else 150
    return lvm.fit(model, train, guide, inference, batch_size=64, max_epochs=epochs, tol=0.0, seed=0)


guides = ("amortized", "inverse-autoregressive", "semi-amortized", "local")
fits = {guide: learn(guide, svi()) for guide in guides}

# %% [markdown]
# ## Another objective
#
# The importance-weighted bound draws several vectors for every image and weighs them. It is a loss, thus the same
# argument of `SVI` that takes Pyro's own objectives.

# %%
fits["amortized, 5 draws"] = learn("amortized", svi(loss=lvm.infer.ImportanceWeighted(5)))

# %% [markdown]
# ## Which model is the best?
#
# Their losses are bounds, each with a gap of its own, and do not compare. The log-likelihood does: it is the model's,
# whatever trained it. `fit.evidence` estimates it by importance sampling with the guide as proposal, and names what it
# did. Where the proposal is poor it warns that the value is too low. For images it has not seen, the local guide
# searches; nothing else moves.

# %%
with warnings.catch_warnings():
    warnings.simplefilter("ignore", UserWarning)  # poor proposals: the exact values below tell how poor
    found = {name: fit.evidence(held_out, 20 if SHORT else 300) for name, fit in fits.items()}
    bounds = {name: fit.evidence(held_out, 1) for name, fit in fits.items()}  # with one draw, a bound on average
print("by", found["local"].estimator)


# %% [markdown]
# Two hidden numbers can also be integrated on a grid. So we see what the estimate is worth, and by how many nats a row
# each guide's bound falls short: that is how far the guide is from the exact posterior.


# %%
def on_a_grid(fit, rows):
    line = torch.linspace(-5, 5, 51 if SHORT else 81).double()
    grid = torch.cartesian_prod(line, line)
    prior = dist.Normal(0.0, 1.0).log_prob(grid).sum(-1) + 2 * (line[1] - line[0]).log()
    with torch.no_grad():
        return torch.stack([(fit.model.decode(grid).log_prob(row) + prior).logsumexp(0) for row in rows])


exact = {name: on_a_grid(fit, held_out) for name, fit in fits.items()}
gap = {name: float((exact[name] - bounds[name].values).mean()) for name in fits}
mean = {name: float(values.mean()) for name, values in exact.items()}
for name in sorted(fits, key=lambda name: -mean[name]):
    print(f"{name:24s} exact {mean[name]:7.2f}  estimate {found[name].values.mean():7.2f}  gap {gap[name]:5.2f}")

# %% [markdown]
# The hidden plane of one model: what the network makes of a lattice of points, and where images that it has not seen
# lie by the posterior of the guide, 2, 3 and 4 in a colour each.
#
# ![The hidden plane](pictures/hidden_plane.png)

# %%
chosen = fits["local"]
figure = Figure(figsize=(7.2, 3.6), layout="constrained")
left, right = figure.subplots(1, 2)
line = torch.linspace(-2, 2, 12).double()
lattice = torch.cartesian_prod(line.flip(0), line).flip(1)
with torch.no_grad():
    images = chosen.model.decode(lattice).base_dist.probs.reshape(12, 12, 8, 8)
left.imshow(images.permute(0, 2, 1, 3).reshape(96, 96).numpy(), cmap="gray_r", extent=(-2.2, 2.2, -2.2, 2.2))
where = chosen.transform(held_out)
for digit in (2, 3, 4):
    mine = where[digits.labels[1 :: 8 if SHORT else 2] == digit].numpy()
    right.scatter(*mine.T, s=8, label=str(digit))
right.set(xlim=(-3, 3), ylim=(-3, 3), aspect="equal")
right.legend(frameon=False)
if not SHORT:
    figure.savefig(Path(__file__).parent / "pictures" / "hidden_plane.png", dpi=75)

# %% [markdown]
# ## A program of your own
#
# The local guide takes any program whose rows have continuous hidden sites. How often do people see a physician? Every
# person has a rate, log-normal over persons. In `04_beyond_exact_em.py` we wrote the guide of that program by hand.
# There is nothing to write. (Posteriors of small counts are skewed, normal laws are not: the evidence warns that single
# rows may be off. Quadrature tells that their sum is right.)


# %%
visits = lvm.datasets.load("visits").x[:, 0].double()


def own_rates(x):
    loc = pyro.param("loc", torch.tensor(0.0).double())
    scale = pyro.param("scale", torch.tensor(1.0).double(), constraint=constraints.positive)
    with pyro.plate("data", len(x)):
        rate = pyro.sample("rate", dist.LogNormal(loc, scale))
        pyro.sample("x", dist.Poisson(rate), obs=x)


inference = lvm.infer.SVI(learning_rate=0.05, schedule="linear")
rates = lvm.fit(own_rates, visits, "local", inference, batch_size=202, max_epochs=4 if SHORT else 30, tol=0.0, seed=0)
evidence = rates.evidence(visits, 100)
nodes, weights = (torch.from_numpy(a) for a in np.polynomial.hermite_e.hermegauss(60))
law = dist.Poisson((rates.params["loc"] + rates.params["scale"] * nodes).exp())
quadrature = (law.log_prob(visits[:, None]) + (weights / weights.sum()).log()).logsumexp(-1)
print(f"log-likelihood {evidence.total:.1f} nats, by quadrature {float(quadrature.sum()):.1f}")
often = rates.transform(torch.tensor([0.0, 3.0, 20.0]).double())  # three new persons
print("expected visits after 0, 3 and 20 of them:", [round(float(rate), 1) for rate in often])

# %% [markdown]
# ## What we claimed

# %%
for name in fits:
    assert float((found[name].values - exact[name]).mean()) < 0.02  # an estimate is too low on average, if anything
    assert gap[name] > -0.1
assert SHORT or gap["semi-amortized"] < gap["amortized"]
assert SHORT or gap["local"] < gap["amortized"]
assert abs(evidence.total - float(quadrature.sum())) < 2
assert SHORT or mean["amortized, 5 draws"] > mean["amortized"]
