# %% [markdown]
# # Declare a model, swap the inference, compare the posteriors
#
# Old Faithful erupts in two ways: short after a short wait, long after a long one. We declare that as a program,
# learn it by EM, by variational inference and by NUTS, and ask which predicts eruptions it has not seen.
#
# Set `PYRO_LVM_SHORT=1` to run it with few steps, as the tests do.

# %%
import os

import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from torch.distributions import constraints

import pyro_lvm as lvm

SHORT = os.environ.get("PYRO_LVM_SHORT") == "1"
x = lvm.datasets.load("faithful").x
train, held_out = x[:200], x[200:]


# %% [markdown]
# ## Declare
#
# A Pyro program, nothing else. `z` says which kind an eruption is; it is never observed.


# %%
def eruptions(x):
    weights = pyro.param("weights", torch.tensor([0.5, 0.5]).double(), constraint=constraints.simplex)
    loc = pyro.param("loc", torch.tensor([[2.0, 55.0], [4.0, 80.0]]).double())
    scale = pyro.param("scale", torch.tensor([[1.0, 10.0], [1.0, 10.0]]).double(), constraint=constraints.positive)
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Categorical(weights), infer={"enumerate": "parallel"})
        pyro.sample("x", dist.Normal(loc[z], scale[z]).to_event(1), obs=x)


# %% [markdown]
# ## Learn it by EM
#
# The plan says how: `loc[z]` merely selects entries of `loc`, so its M-step has a closed form, derived from the
# program. No gradient, no learning rate.

# %%
with pyro.get_param_store().scope():
    plan = lvm.infer.EM(eruptions).plan(train)
print(plan)
em = lvm.fit(eruptions, train, inference="em", seed=0)
print(em, em.params["loc"])

# %% [markdown]
# ## Make it Bayesian
#
# `poutine.lift` is Pyro's own: it turns parameters into unknowns with priors. The program stays as it is.

# %%
priors = {
    "weights": dist.Dirichlet(torch.ones(2).double()),
    "loc": dist.Normal(x.mean(0), 5 * x.std(0)).expand([2, 2]).to_event(2),
    "scale": dist.LogNormal((x.std(0) / 2).log(), 1.0).expand([2, 2]).to_event(2),
}
bayesian = poutine.lift(eruptions, prior=priors)

# %% [markdown]
# ## Swap the inference

# %%
start = em.params
guide = lvm.guides.AutoNormal(bayesian, initial_values=start)
svi = lvm.fit(bayesian, train, guide=guide, inference="svi", max_epochs=200 if SHORT else 1500, seed=0)
sampler = lvm.infer.MCMC(
    num_samples=40 if SHORT else 200,
    warmup_steps=60 if SHORT else 150,
    num_chains=1 if SHORT else 2,
    initial_values=start,
)
nuts = lvm.fit(bayesian, train, inference=sampler, seed=0)

# %% [markdown]
# ## Look at the posteriors with ArviZ
#
# Labels are aligned across draws and fits: component 0 is the short kind everywhere.

# %%
import arviz as az

data = nuts.to_arviz(train)
print(az.summary(data, var_names=["loc"], kind="stats"))

# %% [markdown]
# ## Compare
#
# On rows that no fit has seen, in nats; higher is better.

# %%
table = lvm.compare({"EM": em, "SVI": svi, "NUTS": nuts}, held_out)
print(table.to_string())

# %% [markdown]
# ## What we claimed
#
# All three find the same two kinds, and predict equally well within the noise of 72 rows.

# %%
for fit in (svi, nuts):
    posterior = fit.to_arviz(train).posterior["loc"]
    mean, spread = posterior.mean(("chain", "draw")).values, posterior.std(("chain", "draw")).values
    point = em.to_arviz(train).posterior["loc"].values[0, 0]
    assert (abs(mean - point) < 3 * spread).all()
assert (table["elpd_diff"].abs() < 4 * table["dse"] + 1).all()
assert (table["rows_seen"] < 0.5).all()
