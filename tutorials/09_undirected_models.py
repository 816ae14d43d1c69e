# %% [markdown]
# # Undirected models
#
# A restricted Boltzmann machine says how well the parts of a row go together, not how the row came about: its density
# is known up to a factor. That is enough to draw from it by Gibbs sampling, and to learn it.
# (`PYRO_LVM_SHORT=1`: few steps, no picture.)

# %%
import os
from pathlib import Path

import pyro
import pyro.distributions as dist
import torch
from matplotlib.figure import Figure
from pyro.infer import TraceGraph_ELBO

import pyro_lvm as lvm
from pyro_lvm.evidence.ais import annealed_importance_sampling, reverse_annealed_importance_sampling

SHORT = os.environ.get("PYRO_LVM_SHORT") == "1"
digits = lvm.datasets.load("digits234").x.float()
train, test = digits[::2], digits[1::2]
print(len(train), "images of a 2, a 3 or a 4 to learn from; each of", train.shape[1], "pixels, zeros and ones")

# %% [markdown]
# ## Contrastive divergence and its persistent form
#
# The gradient of the log-likelihood has two phases: the free energy of the data goes down, that of draws from the model
# goes up. Draws come from Gibbs chains. Those of "cd" start at the data and make one step, so that they never get far;
# those of "pcd" go on from batch to batch. With 16 hidden units the normalizer can be summed up, and likelihoods are
# exact.

# %%
EPOCHS = 40 if SHORT else 300
machines = {
    name: lvm.fit(lvm.models.RBM(16), train, inference=name, batch_size=50, max_epochs=EPOCHS, seed=0, progress=False)
    for name in ("cd", "pcd")
}
coins = lvm.fit(lvm.models.BernoulliMixture(1), train, progress=False)
print(f"independent pixels {coins.score(test):.1f} nats per image")
for name, fit in machines.items():
    print(f"{name:18} {fit.score(test):.1f}")
assert machines["pcd"].score(test) > coins.score(test) + 3
assert SHORT or machines["pcd"].score(test) > machines["cd"].score(test)

# %% [markdown]
# ## Free energy
#
# It ranks images without any normalizer: low means likely. The pixels of a digit in a random order are no digit.

# %%
law = machines["pcd"].model.law()
shuffled = test[:, torch.randperm(64, generator=torch.Generator().manual_seed(0))]
with torch.no_grad():
    energies = {"digits": law.free_energy(test).mean(), "shuffled": law.free_energy(shuffled).mean()}
print({name: round(float(energy), 1) for name, energy in energies.items()})
assert energies["digits"] + 10 < energies["shuffled"]

# %% [markdown]
# What the hidden units look for, and images that the machine draws.
#
# ![Weights of hidden units, and drawn digits](pictures/machine.png)

# %%
drawn = machines["pcd"].sample(8)
figure = Figure(figsize=(7.2, 2.0), layout="constrained")
for axes, images in zip(figure.subplots(2, 8), (law.weight.detach().T[:8], drawn), strict=True):
    for ax, image in zip(axes, images, strict=True):
        ax.set(xticks=[], yticks=[])
        ax.imshow(image.reshape(8, 8).numpy(), cmap="gray_r")
if not SHORT:
    figure.savefig(Path(__file__).parent / "pictures" / "machine.png", dpi=75)

# %% [markdown]
# ## Annealed importance sampling
#
# Of a larger machine nobody can sum up the normalizer. Chains that go from independent pixels to the machine estimate
# it; on average too low, and chains that go back, from draws of the machine, on average too high. Here it is known,
# which shows that the two bracket it. `fit.log_likelihood` does the first by itself where it must.

# %%
path = torch.linspace(0, 1, 300 if SHORT else 2000)
with torch.no_grad():
    exact = float(law.exact_log_normalizer())
    forward = annealed_importance_sampling(law, 100, path)
    reverse = reverse_annealed_importance_sampling(law, law.sample([100]), path)
print(f"log Z: exact {exact:.2f}, forward {forward.value:.2f}, reverse {reverse.value:.2f}")
for estimate in (forward, reverse):
    assert abs(estimate.value - exact) < 4 * estimate.standard_error + 0.1

# %% [markdown]
# ## A machine inside of your own program
#
# To Pyro a machine is a distribution like any other: here it is the prior of eight binary causes, which need not be
# independent. The program is plain Pyro; so is the guide, which guesses causes from pixels. `ContrastiveDivergence`
# takes care of the prior's normalizer, and leaves the rest to any ELBO that you give it. Afterwards the evidence is
# estimated by draws of the guide; it warns of images that a guide as simple as this one guesses badly, whose values
# come out too low.


# %%
def program(x):
    weight = pyro.param("weight", lambda: 0.01 * torch.randn(8, 4))
    visible, hidden = pyro.param("visible", torch.zeros(8)), pyro.param("hidden", torch.zeros(4))
    loading = pyro.param("loading", lambda: 0.1 * torch.randn(8, 64))
    bias = pyro.param("bias", lambda: x.mean(0).clamp(0.02, 0.98).logit())
    with pyro.plate("data", len(x)):
        causes = pyro.sample("causes", lvm.distributions.RBM(weight, visible, hidden))
        pyro.sample("x", dist.Bernoulli(logits=bias + causes @ loading).to_event(1), obs=x)


def guide(x):
    slope, offset = pyro.param("slope", lambda: 0.01 * torch.randn(64, 8)), pyro.param("offset", torch.zeros(8))
    with pyro.plate("data", len(x)):
        pyro.sample("causes", dist.Bernoulli(logits=x @ slope + offset).to_event(1))


objective = lvm.infer.ContrastiveDivergence(persistent=True, base=TraceGraph_ELBO())
fit = lvm.fit(
    program,
    train,
    guide=lvm.handlers.baseline(guide, kind="moving-average"),
    inference=lvm.infer.SVI(loss=objective, learning_rate=0.01, schedule="linear"),
    batch_size=50,
    max_epochs=40 if SHORT else 300,
    seed=0,
    progress=False,
)
evidence = fit.evidence(test, num_samples=100)
print(f"{evidence.estimator}: {evidence.total / evidence.num_rows:.1f} nats per image")
assert evidence.total / evidence.num_rows > coins.score(test) + (0 if SHORT else 3)
