# %% [markdown]
# # Linear factors
#
# Rows are a linear map of a few hidden numbers, and noise: x = W h + b + noise. What is assumed of h and of the noise
# makes it factor analysis, principal components, independent components, slow features or a sparse code.
# (`PYRO_LVM_SHORT=1`: few steps, no picture.)

# %%
import os
import warnings
from pathlib import Path

import pandas as pd
import torch
from matplotlib.figure import Figure

import pyro_lvm as lvm

SHORT = os.environ.get("PYRO_LVM_SHORT") == "1"
PICTURES = Path(__file__).parent / "pictures"


def keep(figure, name):
    if not SHORT:
        figure.savefig(PICTURES / name, dpi=75)


# %% [markdown]
# ## Factor analysis: what columns have in common
#
# Thirteen measurements of 178 wines. Every column has noise of its own, so units do not matter. How many factors are
# there? Eigenvalues above those of shuffled columns, held-out likelihood and BIC are three answers.

# %%
data = lvm.datasets.load("wine")
wine = pd.DataFrame(data.x.double().numpy(), columns=data.columns)
order = torch.randperm(len(wine), generator=torch.Generator().manual_seed(0)).tolist()
train, test = wine.iloc[order[:120]], wine.iloc[order[120:]]
warnings.filterwarnings("ignore", ".*Heywood case")  # with many factors a column has no noise left; a warning says so
fits = {k: lvm.fit(lvm.models.FactorAnalysis(k), train, progress=False) for k in range(1, 6)}
for k, fit in fits.items():
    print(f"{k} factor{'s' if k > 1 else ''}: BIC {fit.bic(train):.0f}, held out {fit.score(test):.2f} nats a wine")
best = max(fits, key=lambda k: fits[k].score(test))
assert best >= 3

# %% [markdown]
# Loadings are correlations of columns and factors. A rotation changes no likelihood; varimax takes the one that is read
# most easily.
#
# ![Loadings of three factors](pictures/loadings.png) ![Eigenvalues](pictures/scree.png)

# %%
fit = lvm.fit(lvm.models.FactorAnalysis(3), wine, progress=False)
print(lvm.diagnostics.loadings(fit, "varimax").round(2))
print(lvm.diagnostics.explained_variance(fit, "varimax").round(2))
keep(fit.plot(kind="loadings", rotation="varimax"), "loadings.png")
keep(fit.plot(wine, kind="scree"), "scree.png")

# %% [markdown]
# ## Gaps
#
# Missing entries are summed out exactly, in learning and in likelihoods; `impute` fills them by what the others say.

# %%
x = torch.as_tensor(wine.to_numpy().copy())
x = (x - x.mean(0)) / x.std(0)
lost = torch.rand(x.shape, generator=torch.Generator().manual_seed(1)) < 0.2
gaps = torch.where(lost, torch.nan, x)
filled = lvm.fit(lvm.models.FactorAnalysis(3), gaps, progress=False).impute(gaps)
errors = {"column means": x[lost], "factor analysis": (filled - x)[lost]}
print("error of the missing entries, in standard deviations:")
print({name: round(float(error.square().mean().sqrt()), 2) for name, error in errors.items()})
assert errors["factor analysis"].square().mean() < 0.7 * errors["column means"].square().mean()

# %% [markdown]
# ## Letting the model choose: relevance
#
# With priors, parameters have a posterior, and each factor a relevance: those that the rows do not ask for are switched
# off. Here ten are allowed, and three made the rows.

# %%
torch.manual_seed(0)
made = torch.randn(300, 3).double() @ torch.randn(3, 15).double() + torch.randn(300, 15).double()
bayes = lvm.models.FactorAnalysis(10, priors=True)
bayes = lvm.fit(bayes, made, inference="svi", max_epochs=20 if SHORT else 6000, seed=0, progress=False)
shares = lvm.diagnostics.explained_variance(bayes).share
print(shares.round(3).to_string())
assert SHORT or (shares.iloc[:-1] > 0.01).sum() == 3

# %% [markdown]
# ## Clusters that each have factors
#
# Three kinds of wine, thirteen columns: full covariances have 314 numbers to learn from 120 rows, too many. A factor
# for each cluster has 119, and rows that were held out are more probable under it.

# %%
kinds = {
    "full covariances": lvm.models.GaussianMixture(3),
    "variances only": lvm.models.GaussianMixture(3, covariance="diag"),
    "a factor each": lvm.models.MixtureOfFactorAnalyzers(3, 1),
}
fits = {
    name: lvm.fit(model, train, max_epochs=10 if SHORT else None, progress=False, seed=0)
    for name, model in kinds.items()
}
table = lvm.compare(fits, test)
print(table[["per_row", "dse"]])
assert table.index[0] == "a factor each"
found = fits["a factor each"].predict(wine)
print(pd.crosstab(found.numpy(), data.labels.numpy(), rownames=["cluster"], colnames=["kind of wine"]))

# %% [markdown]
# ## Independent components: unmixing
#
# Where sources are not normal, the rows tell the mixing itself, not only its span. Two recordings of two sources:

# %%
torch.manual_seed(0)
t = torch.linspace(0, 40, 2000).double()
sources = torch.stack([torch.sin(2 * t) ** 15, (3 * t % 2 - 1) ** 3], 1)
sources = (sources - sources.mean(0)) / sources.std(0)
recordings = sources @ torch.tensor([[1.0, 0.6], [0.7, -1.0]]).double()
ica = lvm.fit(lvm.models.IndependentComponentAnalysis("sech"), recordings, progress=False, seed=0)
found = ica.transform(recordings)
match = torch.corrcoef(torch.cat([sources, found], 1).mT)[:2, 2:].abs()
print("correlation of sources (lines) and components:\n", match)
assert bool((match.max(1).values > 0.97).all())

# %% [markdown]
# ## Slow features: what changes least
#
# The two signals of Wiskott and Sejnowski are fast; hidden in their products is sin t, which is slow.
#
# ![Two signals and their slowest feature](pictures/slow.png)

# %%
t = torch.linspace(0, 2 * torch.pi, 1000).double()
signals = torch.stack([t.sin() + (11 * t).cos() ** 2, (11 * t).cos()], 1)
slow = lvm.fit(lvm.models.SlowFeatureAnalysis(1, "quadratic"), signals, progress=False, seed=0)
feature = slow.transform(signals)[:, 0]
assert abs(float(torch.corrcoef(torch.stack([feature, t.sin()]))[0, 1])) > 1 - 1e-9
figure = Figure(figsize=(7.2, 1.8), layout="constrained")
for ax, values, name in zip(figure.subplots(1, 3), (*signals.mT, feature), ("first", "second", "slowest"), strict=True):
    ax.plot(t, values)
    ax.set(title=name, xlabel="t")
keep(figure, "slow.png")

# %% [markdown]
# ## Linear dynamics: a series, its gaps, and what comes next
#
# Drivers, front and rear passengers killed or hurt on British roads, month by month. A year is taken out; the Kalman
# smoother fills it in, says how sure it is, and goes on for two years.
#
# ![Smoothed series, gap and forecast](pictures/dynamics.png)

# %%
roads = lvm.datasets.load("seatbelts").x.double()
gap = roads.clone()
gap[60:72] = torch.nan
kalman = lvm.fit(lvm.models.LinearDynamicalSystem(4), gap, max_epochs=5 if SHORT else 200, progress=False, seed=0)
filled = kalman.impute(gap)[60:72]
error = (filled - roads[60:72]).square().mean(0).sqrt()
print("error in the gap, in standard deviations of the series:", error / roads.std(0))
print(kalman.forecast(gap, steps=24).mean[-1])
keep(kalman.plot(gap, kind="states", columns=["drivers", "front", "rear"], steps=24), "dynamics.png")

# %% [markdown]
# ## Sparse codes: few of many
#
# More factors than columns, nearly all of them zero in each row. Of patches of natural images they become edges; of
# small digits, strokes.
#
# ![A dictionary of strokes](pictures/dictionary.png)

# %%
digits = lvm.datasets.load("digits234").x.double()
digits = digits - digits.mean(0)
model = lvm.models.SparseCoding(40, sparsity=3.0, noise_scale=0.3)
code = lvm.fit(model, digits, max_epochs=5 if SHORT else 100, progress=False, seed=0)
codes = code.transform(digits)
used = float((codes != 0).double().mean())
error = (code.reconstruct(digits) - digits).square().mean() / digits.square().mean()
print(f"{100 * used:.0f} % of the codes' entries are not zero; they leave {100 * error:.0f} % of the variance")
assert used < 0.6
assert SHORT or error < 0.5
figure = Figure(figsize=(7.2, 3.0), layout="constrained")
busiest = (codes != 0).sum(0).argsort(descending=True)
for ax, atom in zip(figure.subplots(4, 10).flat, code.params["weight"].mT[busiest], strict=True):
    ax.set(xticks=[], yticks=[])
    ax.imshow(atom.reshape(8, 8).numpy(), cmap="RdBu_r", vmin=-0.5, vmax=0.5)
keep(figure, "dictionary.png")
