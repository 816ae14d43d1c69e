# %% [markdown]
# # EM for a program of your own
#
# `lvm.infer.EM` reads its M-step off a Pyro program with discrete latent sites: no derivation, no learning rate. Here:
# what it says when it cannot, how to help it, and how to go faster. `PYRO_LVM_SHORT=1`: few steps, no picture.

# %%
import math
import os
from pathlib import Path

import pyro
import pyro.distributions as dist
import torch
from matplotlib.figure import Figure
from pyro import poutine
from torch.distributions import constraints
from torch.utils.data import DataLoader

import pyro_lvm as lvm
from pyro_lvm.infer.m_step import Argument, ClosedForm, Statistics, View, closed_form_of

SHORT = os.environ.get("PYRO_LVM_SHORT") == "1"
torch.set_default_dtype(torch.float64)
faithful = lvm.datasets.load("faithful").x

# %% [markdown]
# ## A hidden Markov chain over sequences of unequal length
#
# Old Faithful, in order: after a short eruption hardly ever comes another. We cut the record into 13 stretches (the
# cuts are ours) and hold five out. A list of ragged sequences arrives as `x`, padded, and `lengths`; the mask leaves
# the padding out. `transition`, `loc` and `scale` are shared by all steps, and their statistics add up.
#
# `poutine.lift`, Pyro's own, gives a parameter a prior, and guide "map" asks for the mode: MAP-EM. Conjugate priors
# enter closed forms as pseudo-counts.


# %%
def chain(x, lengths):
    initial = pyro.param("initial", torch.tensor([0.5, 0.5]), constraint=constraints.simplex)
    transition = pyro.param("transition", torch.tensor([[0.4, 0.6], [0.6, 0.4]]), constraint=constraints.simplex)
    loc = pyro.param("loc", torch.tensor([2.0, 4.0]))
    scale = pyro.param("scale", torch.ones(2), constraint=constraints.positive)
    with pyro.plate("data", len(x)):
        z = None
        for t in pyro.markov(range(x.shape[1])):
            with poutine.mask(mask=t < lengths):
                probs = initial if z is None else transition[z]
                z = pyro.sample(f"z_{t}", dist.Categorical(probs), infer={"enumerate": "parallel"})
                pyro.sample(f"x_{t}", dist.Normal(loc[z], scale[z]), obs=x[:, t])


stretches = faithful[:, 0].split([9, 21, 14, 30, 11, 24, 18, 27, 12, 33, 16, 22, 35])
train, held_out = stretches[:8], stretches[8:]
hidden = lvm.fit(chain, train, inference="em", seed=0)
print("from short and from long, to short and to long:", hidden.params["transition"].numpy().round(2).tolist())
careful = poutine.lift(chain, prior={"transition": dist.Dirichlet(torch.full((2, 2), 2.0)).to_event(1)})
mode = lvm.fit(careful, train, guide="map", inference="em", seed=0)
alike = {"transition": torch.tensor([[0.36, 0.64]]).expand(2, 2)}  # no memory: the shares of short and long
mixture = lvm.fit(poutine.substitute(chain, data=alike), train, inference="em", seed=0)
ranking = lvm.compare({"chain": hidden, "chain, MAP": mode, "no memory": mixture}, held_out)
print(ranking[["elpd", "elpd_diff", "dse"]].to_string())

# %% [markdown]
# ## A distribution of your own
#
# Waits for an eruption as first passages of a drift: $p(x) = \sqrt{s / 2 \pi x^3} \exp(-s (x - m)^2 / 2 m^2 x)$, the
# inverse Gaussian law, which Pyro lacks. Two kinds of waits, one shape `s` tied for both. The plan says that there is
# no closed form: those parameters get gradient steps within EM.


# %%
class InverseGaussian(dist.TorchDistribution):
    arg_constraints, support = {"m": constraints.positive, "s": constraints.positive}, constraints.positive

    def __init__(self, m, s):
        self.m, self.s = torch.broadcast_tensors(m, s)
        super().__init__(self.m.shape, validate_args=False)

    def expand(self, batch_shape, _instance=None):
        return InverseGaussian(self.m.expand(batch_shape), self.s.expand(batch_shape))

    def log_prob(self, x):
        return (self.s / (2 * math.pi * x**3)).log() / 2 - self.s * (x - self.m) ** 2 / (2 * self.m**2 * x)


def waits(x, m_step=None):
    weights = pyro.param("weights", torch.tensor([0.5, 0.5]), constraint=constraints.simplex)
    mean = pyro.param("mean", torch.tensor([55.0, 80.0]), constraint=constraints.positive)
    shape = pyro.param("shape", torch.tensor(1000.0), constraint=constraints.positive)
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Categorical(weights), infer={"enumerate": "parallel"})
        pyro.sample("x", InverseGaussian(mean[z], shape), obs=x, infer={"m_step": m_step} if m_step else {})


by_gradient = lvm.fit(waits, faithful[:, 1], inference="em", max_epochs=2 if SHORT else 20)
with by_gradient.scope():
    print(by_gradient.inference.plan(faithful[:, 1]))

# %% [markdown]
# A site may bring its M-step: a function of its distribution, its value, and the posterior weights (states, rows).


# %%
def solve(fn, x, weights):
    mean = (weights * x).sum(1) / weights.sum(1)
    return {"mean": mean, "shape": weights.sum() / (weights * (1 / x - 1 / mean[:, None])).sum()}


by_hand = lvm.fit(lambda x: waits(x, solve), faithful[:, 1], inference="em")

# %% [markdown]
# That function knows this program's parameters. Register the *family* instead, and every program that uses it has its
# closed form, whatever is tied: statistics of every cell, and per argument what to add up and how to solve the sums.


# %%
@closed_form_of(InverseGaussian)
class _InverseGaussian(ClosedForm):
    arguments = (
        Argument("m", lambda fn: fn.m, lambda s, now: (s["x"], s["total"]), torch.div, (View("m"),)),
        Argument(
            "s",
            lambda fn: fn.s,
            lambda s, now: (s["total"], s["inverse"] - 2 * s["total"] / now["m"] + s["x"] / now["m"] ** 2),
            torch.div,
            (View("s"),),
        ),
    )

    def statistics(self, fn, value, weights, variance_floor):
        total = weights.expand(fn.batch_shape)
        return Statistics(total.shape, total=total, x=total * value, inverse=total / value)


by_family = lvm.fit(waits, faithful[:, 1], inference="em")
with by_family.scope():
    print(by_family.inference.plan(faithful[:, 1]))
final = [fit.history["loss"][-1] for fit in (by_gradient, by_hand, by_family)]
print("losses by gradient, by hand, by family (nats):", final)

# %% [markdown]
# ## Faster
#
# Where sources overlap, EM crawls. Deaths of women over 80 in London on 1096 days (Hasselblad 1969, the test case of
# Varadhan and Roland 2008): plain EM needs 2055 evaluations, squared extrapolation fewer than 80. On a stream of
# batches, `decay` averages their statistics and moves after each: on the right, visits in ten batches a pass. It
# starts faster, but batches are noise: the exact end is full EM's.
#
# ![Convergence of EM](pictures/convergence.png)


# %%
def counts(x, times=1.0):
    weights = pyro.param("weights", torch.tensor([0.3, 0.7]), constraint=constraints.simplex)
    rates = pyro.param("rates", torch.tensor([1.0, 2.5]), constraint=constraints.positive)
    with pyro.plate("data", len(x)), poutine.scale(scale=times):
        z = pyro.sample("z", dist.Categorical(weights), infer={"enumerate": "parallel"})
        pyro.sample("x", dist.Poisson(rates[z]), obs=x)


deaths = torch.arange(10.0), torch.tensor([162, 267, 271, 185, 111, 61, 27, 8, 3, 1])
torch.manual_seed(0)
visits = lvm.datasets.load("visits").x[:, 0]
races = ({"plain EM": {}, "squarem": {"acceleration": "squarem"}}, {"full EM": {}, "stepwise EM": {"decay": 0.6}})
curves = {}
for name, options in {**races[0], **races[1]}.items():
    with pyro.get_param_store().scope():
        em = lvm.infer.EM(counts, **options)
        curve = curves[name] = []
        while name in races[0] and em.evaluations < (80 if options else 400 if SHORT else 2055):
            curve.append((em.evaluations + 1, em.step(*deaths)))
        for step in range(8 if name in races[1] else 0):
            curve.append((step, em.loss(visits)))
            for batch in DataLoader(visits, batch_size=101, shuffle=True) if options else [visits]:
                em.step(batch)

figure = Figure(figsize=(9.0, 3.2), layout="constrained")
left, right = figure.subplots(1, 2)
least = min(loss for name in races[0] for _, loss in curves[name])
for name, curve in curves.items():
    at, losses = (torch.tensor(values).double().numpy() for values in zip(*curve, strict=True))
    ax, above = (left, (losses - least).clip(1e-9)) if name in races[0] else (right, losses)
    ax.plot(at, above, ".-", markersize=4, label=name)
    ax.legend(frameon=False)
left.set(title="deaths: loss above the least (nats)", xlabel="evaluations", xscale="log", yscale="log")
right.set(title="visits: loss (nats)", xlabel="passes over the data")
if not SHORT:
    figure.savefig(Path(__file__).parent / "pictures" / "convergence.png", dpi=75)

# %% [markdown]
# ## What we claimed

# %%
assert hidden.params["transition"][0, 0] < mode.params["transition"][0, 0] < 0.1
assert ranking.index[-1] == "no memory"
assert max(final[1:] if SHORT else final) - min(final) < 1e-3
assert curves["squarem"][-1][1] <= curves["plain EM"][-1][1] + 1e-6
assert all(stepwise[1] <= full[1] for stepwise, full in zip(curves["stepwise EM"], curves["full EM"], strict=True))
