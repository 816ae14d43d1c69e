"""The main job on real data: declare Old Faithful's eruptions, swap the inference, compare the posteriors."""

from __future__ import annotations

import inspect
import time
import warnings
from pathlib import Path
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from torch import Tensor
from torch.distributions import constraints

import pyro_lvm as lvm
from pyro_lvm.diagnostics import plots
from pyro_lvm.diagnostics.report import Section, write_report

__all__ = ["eruptions", "run"]


def eruptions(x: Tensor) -> None:
    """Two kinds of eruption, in plain Pyro: each row is (duration, waiting time) in minutes."""
    weights = pyro.param("weights", torch.tensor([0.5, 0.5]).to(x), constraint=constraints.simplex)
    loc = pyro.param("loc", lambda: x[[0, 1]].clone())
    covariance = pyro.param("covariance", lambda: x.T.cov().repeat(2, 1, 1), constraint=constraints.positive_definite)
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Categorical(weights), infer={"enumerate": "parallel"})
        pyro.sample("x", dist.MultivariateNormal(loc[z], covariance_matrix=covariance[z]), obs=x)


def priors(x: Tensor) -> dict[str, Any]:
    """Weak priors that turn the three parameters into unknowns with a posterior."""
    return {
        "weights": dist.Dirichlet(torch.ones(2).to(x)),
        "loc": dist.MultivariateNormal(x.mean(0), covariance_matrix=100 * x.T.cov()).expand([2]).to_event(1),
        "covariance": lvm.distributions.InverseWishart(4.0, x.T.cov() / 2).expand([2]).to_event(1),
    }


def run(out: Path, *, quick: bool = False) -> dict[str, lvm.Fit]:
    """Fit, compare, and write everything to a folder.

    Args:
        out: Folder for fits, netCDF files, pictures and `report.html`.
        quick: Few steps.

    Returns:
        The fits by name.
    """
    started = time.perf_counter()
    data = lvm.datasets.load("faithful")
    order = torch.randperm(len(data.x), generator=torch.Generator().manual_seed(0))
    held_out, train = data.x[order[:54]], data.x[order[54:]]
    out.mkdir(parents=True, exist_ok=True)
    print(f"Old Faithful: {len(data.x)} eruptions, {len(train)} to learn from, {len(held_out)} held out.\n")

    every = lvm.fit(lvm.models.GaussianMixture(2), data.x, restarts=10, seed=0)
    total = every.score(data.x) * len(data.x)
    print(f"The model of this package, EM from 10 starts, all rows: log-likelihood {total:.4f} nats.\n")

    fits, plan = _fit_all(train, quick)
    print("How EM will learn the program declared in plain Pyro (pyro_lvm/demo.py):")
    print(plan, "\n")
    summaries = _summaries(fits, train, data.columns, out)
    for name, table in summaries.items():
        print(f"Posterior by {name}:")
        print(table.to_string(), "\n")
    ranking = lvm.compare(fits, held_out)
    print("Which predicts best? Expected log predictive density of the held-out rows, nats:")
    print(ranking.to_string(float_format=lambda v: f"{v:.3f}"), "\n")
    for name, fit in fits.items():
        fit.columns = data.columns
        fit.save(out / "fits" / name)
    _report(out, fits, train, plan, summaries, ranking, total)
    print(f"Written to {out}: report.html, fits/, pictures/, posteriors/  ({time.perf_counter() - started:.0f} s)")
    return fits


def _fit_all(train: Tensor, quick: bool) -> tuple[dict[str, lvm.Fit], Any]:
    """One program, four inferences."""
    with pyro.get_param_store().scope():
        plan = lvm.infer.EM(eruptions).plan(train)
    fits = {"EM": lvm.fit(eruptions, train, inference="em", seed=0)}
    bayesian = poutine.lift(eruptions, prior=priors(train))
    start = fits["EM"].params
    epochs = 200 if quick else 1500
    for name, guide in (
        ("SVI normal", lvm.guides.AutoNormal),
        ("SVI multivariate", lvm.guides.AutoMultivariateNormal),
    ):
        fits[name] = lvm.fit(
            bayesian,
            train,
            guide=guide(bayesian, initial_values=start),
            inference="svi",
            max_epochs=epochs,
            seed=0,
        )
    draws = 20 if quick else 150
    sampler = lvm.infer.MCMC(num_samples=draws, warmup_steps=draws, num_chains=2, initial_values=start)
    fits["NUTS"] = lvm.fit(bayesian, train, inference=sampler, seed=0)
    return fits, plan


def _summaries(fits: dict[str, lvm.Fit], train: Tensor, columns: tuple[str, ...], out: Path) -> dict[str, Any]:
    """ArviZ's summary of every posterior; each is written as a netCDF file on the way."""
    folder = out / "posteriors"
    folder.mkdir(exist_ok=True)
    tables = {}
    for name, fit in fits.items():
        fit.columns = columns
        data = fit.to_arviz(train)
        data.to_netcdf(str(folder / f"{name}.nc"))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # a point has no spread, a guide no chains
            import arviz

            arviz.rcParams["stats.ci_prob" if "stats.ci_prob" in arviz.rcParams else "stats.hdi_prob"] = 0.94
            tables[name] = arviz.summary(data, kind="stats")
    return tables


def _report(
    out: Path,
    fits: dict[str, lvm.Fit],
    train: Tensor,
    plan: Any,
    summaries: dict[str, Any],
    ranking: Any,
    total: float,
) -> None:
    pictures = {
        "density": plots.density(fits["NUTS"], train),
        "responsibilities": plots.responsibilities(fits["EM"], train),
        "posteriors": plots.posteriors(fits, train, site="loc"),
        "losses": plots.losses(fits),
        "comparison": plots.comparison(ranking),
    }
    (out / "pictures").mkdir(exist_ok=True)
    for name, figure in pictures.items():
        figure.savefig(out / "pictures" / f"{name}.png")
    declared = inspect.getsource(eruptions)
    sections = [
        Section("The program", "A mixture of two normals, declared with Pyro's own primitives.", code=declared),
        Section(
            "The plan",
            "EM reads off the program how each parameter is to be learned.",
            code=str(plan),
        ),
        Section(
            "The density",
            f"Posterior predictive density by NUTS. On all 272 rows, EM from ten starts reaches {total:.4f} nats.",
            figure=pictures["density"],
        ),
        Section("Which kind?", "Posterior probability of each kind, by EM.", figure=pictures["responsibilities"]),
        Section("The posteriors", "One program, four inferences.", figure=pictures["posteriors"]),
        *(Section(f"Summary: {name}", table=table) for name, table in summaries.items()),
        Section(
            "The comparison",
            "On eruptions that no fit has seen.",
            table=ranking,
            figure=pictures["comparison"],
        ),
        Section("Learning", "Loss by epoch.", figure=pictures["losses"]),
    ]
    write_report(out / "report.html", "Old Faithful: one program, four inferences", sections)
