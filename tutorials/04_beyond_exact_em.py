# %% [markdown]
# # Where exact EM ends
#
# Exact EM wants directed programs whose latent sites are discrete. Two programs that are not: counts with a continuous
# rate for every person, and a conditional random field. Both stay plain Pyro programs.
#
# Set `PYRO_LVM_SHORT=1` to run it with few steps, as the tests do; without it, it draws its picture anew.

# %%
import os
from pathlib import Path

import numpy as np
import pyro
import pyro.distributions as dist
import torch
from matplotlib.figure import Figure
from pyro.infer import TraceMeanField_ELBO
from torch.distributions import constraints

import pyro_lvm as lvm

SHORT = os.environ.get("PYRO_LVM_SHORT") == "1"
torch.set_default_dtype(torch.float64)
visits = lvm.datasets.load("visits").x[:, 0]

# %% [markdown]
# ## Continuous latent sites: variational EM
#
# How often people see a physician: a log-normal rate of one's own for each of 1010 persons. Two parameters, 1010
# latent sites, no exact E-step.
#
# The guide has two numbers per person. Plain SVI moves a person's two numbers once each time that person is in the
# batch, and shared parameters follow posteriors that lag behind. With `inner_steps` and `local` (sites of the guide),
# every step first improves the posteriors of the batch's rows, then moves the rest: six times the work a pass here, far
# fewer passes. `index` says which rows these are.


# %%
def own_rates(x, index):
    loc = pyro.param("loc", torch.tensor(0.0))
    scale = pyro.param("scale", torch.tensor(1.0), constraint=constraints.positive)
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(loc, scale))
        pyro.sample("x", dist.Poisson(z.exp()), obs=x)


def persons(x, index):
    loc = pyro.param("z_loc", torch.zeros(len(visits)))
    scale = pyro.param("z_scale", torch.full((len(visits),), 0.5), constraint=constraints.positive)
    with pyro.plate("data", len(x)):
        pyro.sample("z", dist.Normal(loc[index], scale[index]))


rows = {"x": visits, "index": torch.arange(len(visits))}
options = {"loss": TraceMeanField_ELBO(), "learning_rate": 0.02}
inferences = {
    "plain SVI": lvm.infer.SVI(**options),
    "variational EM": lvm.infer.SVI(**options, inner_steps=5, local="z", local_learning_rate=0.05),
}
fits = {
    name: lvm.fit(own_rates, rows, persons, inference, batch_size=101, max_epochs=5 if SHORT else 40, seed=0)
    for name, inference in inferences.items()
}

# %% [markdown]
# The loss is a noisy bound, and such a fit has no `score` yet. With one number per person we can check by quadrature,
# and set it beside three sources with a rate each (five parameters).


# %%
def log_likelihood(loc, scale):
    nodes, weights = (torch.from_numpy(a) for a in np.polynomial.hermite_e.hermegauss(60))
    law = dist.Poisson((loc + scale * nodes).exp())
    return float((law.log_prob(visits[:, None]) + (weights / weights.sum()).log()).logsumexp(-1).sum())


exact = {name: log_likelihood(fit.params["loc"], fit.params["scale"]) for name, fit in fits.items()}
sources = lvm.fit(lvm.models.PoissonMixture(3), visits[:, None], seed=0, tol=1e-7)
exact["three sources, EM"] = sources.score(visits[:, None]) * len(visits)
print("log-likelihood (nats):", {name: round(value, 1) for name, value in exact.items()})

# %% [markdown]
# ## Undirected factors: a hidden-state conditional random field
#
# `pyro.factor` scores; `handlers.normalized` divides by the sum of the scores over labels and hidden states, exactly.
# An image is a sequence of eight rows of pixels, its label is 2, 3 or 4, and a hidden state says what stroke a row
# shows. The plan of EM would say "gradient" throughout; SVI, with nothing to sample, is gradient ascent on the exact
# conditional likelihood. As with any such model, the start decides (`seed`), and priors are yours to add.


# %%
def field(x, y=None):
    stroke = pyro.param("stroke", lambda: 0.1 * torch.randn(6, 8))
    place = pyro.param("place", lambda: 0.1 * torch.randn(3, 8, 6))
    pair = pyro.param("pair", torch.zeros(3, 6, 6))
    with pyro.plate("data", len(x)):
        y = pyro.sample("y", dist.Categorical(logits=torch.zeros(3)).mask(False), obs=y)
        z = None
        for t in pyro.markov(range(8)):
            last, z = z, pyro.sample(f"z_{t}", dist.Categorical(logits=torch.zeros(6)).mask(False))
            pyro.factor(f"row_{t}", (stroke[z] * x[:, t]).sum(-1) + place[y, t, z])
            if t:
                pyro.factor(f"pair_{t}", pair[y, last, z])


digits = lvm.datasets.load("digits234")
images, labels = digits.x.reshape(-1, 8, 8), digits.labels - 2
conditional = lvm.handlers.normalized(field, sites="y")
data = {"x": images[::2], "y": labels[::2]}
steps = 15 if SHORT else 80
crf = lvm.fit(conditional, data, inference=lvm.infer.SVI(learning_rate=0.1), max_epochs=steps, seed=0)
found = crf.predict(images[1::2])
right = float((found["y"] == labels[1::2]).double().mean())
print(f"digits recognised: {right:.1%}")

# %% [markdown]
# What the states mean: colours are the most probable state of every row of pixels. Labels are predicted, not given.
#
# ![Digits, rows coloured by hidden state](pictures/strokes.png)

# %%
figure = Figure(figsize=(7.2, 1.6), layout="constrained")
states = torch.stack([found[f"z_{t}"] for t in range(8)], 1)
for i, ax in enumerate(figure.subplots(1, 9).flat):
    ax.imshow(states[i, :, None].expand(8, 8).numpy(), cmap="Set3", vmin=0, vmax=11, aspect="equal")
    ax.imshow(np.where(images[1::2][i].numpy() > 0, 0.0, np.nan), cmap="gray", vmin=0, vmax=1)
    ax.set(xticks=[], yticks=[], title=f"{int(found['y'][i]) + 2}")
if not SHORT:
    figure.savefig(Path(__file__).parent / "pictures" / "strokes.png", dpi=75)

# %% [markdown]
# ## What we claimed

# %%
assert exact["variational EM"] > exact["plain SVI"]
assert SHORT or exact["variational EM"] > exact["three sources, EM"]
assert right > (0.5 if SHORT else 0.9)
