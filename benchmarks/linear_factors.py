"""Linear factor models beside their peers: log-likelihood, accuracy, time.

`PYRO_LVM_DATA=folder python benchmarks/linear_factors.py` prints all tables of the family, those of the files
`independent_components.py`, `slow_features.py`, `sparse_coding.py` and `factor_mixtures.py` among them; `--only
factors` (or `components`, `slow`, `sparse`, `mixture`) prints some. Factors need no folder. `--quick` takes fewer rows
and judges nothing.

How it is measured:

* Real data: digits (without its constant columns), wine and breast cancer, float64. Both are run until they improve no
  more: scikit-learn with `tol=1e-8`, at most 5,000 iterations and exact singular vectors, ours with `tol=1e-10`. The
  columns are standardised, which shifts the log-likelihood of either by the same number: on columns of very different
  sizes scikit-learn stops far from its maximum, ours does not depend on units (the last line shows it, on wine as it
  is). `least noise` is the smallest share of a column's variance that is noise: near zero is a Heywood case, where the
  likelihood has no maximum and the floor of the inference holds.
* Speed: 20,000 rows of 100 columns from 10 factors. scikit-learn with its defaults; ours until its log-likelihood is
  within 1e-6, relative, of what scikit-learn reached, its set-up included (start, checks, hashes of rows, plan). They
  take turns; the median of their ratios is reported. Also how long our default stopping rule takes.
* Relevance: 300 rows of 15 columns that three factors made; ten are allowed, with priors, under SVI. A factor is kept
  if it explains at least 1 % of the variance of standardised columns. Beside it, how many factors AIC, BIC and the
  log-likelihood of 300 other rows take.
* Bounds: factor analysis of wine by SVI under the exact posterior, an affine encoder, and a mean field of a law for
  every row; `gap` is what their bound (100 draws) lacks of the log-likelihood at the same parameters. SVI turns the
  factors until they are nearly independent given a row; `turned` are gaps of the best mean field if all three are
  turned by varimax instead, as people read them.
* Probabilistic PCA against scikit-learn's `PCA.score`, corrected for its variance by n - 1.
"""

from __future__ import annotations

import argparse
import math
import statistics
import sys
import time
import warnings
from typing import Any

import factor_mixtures
import independent_components
import numpy as np
import pyro
import slow_features
import sparse_coding
import torch
from sklearn import datasets, decomposition
from torch import Tensor

import pyro_lvm as lvm
from pyro_lvm.ops.rotation import varimax

GOAL, CLOSE = 5.0, 1e-6
ROWS, WIDTH, SEEDS, KEPT = 300, 15, 10, 0.01
FACTORS = {"digits": 10, "wine": 3, "breast cancer": 5}


def standardised(x: np.ndarray) -> Tensor:
    """Columns of mean 0 and variance 1, without constant ones."""
    x = x[:, x.std(0) > 0]
    return torch.from_numpy((x - x.mean(0)) / x.std(0))


def simulated(rows: int) -> Tensor:
    """Rows of 100 columns from 10 factors, with noise of standard deviations between 0.5 and 2.5."""
    torch.manual_seed(0)
    weight = torch.randn(100, 10, dtype=torch.float64)
    noise = 0.5 + 2 * torch.rand(100, dtype=torch.float64)
    factors = torch.randn(rows, 10, dtype=torch.float64)
    return 3 + factors @ weight.mT + torch.randn(rows, 100, dtype=torch.float64) * noise


def peer(x: Tensor, factors: int, **options: Any) -> decomposition.FactorAnalysis:
    """scikit-learn's factor analysis, fitted."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # says that it did not converge; its log-likelihood is printed
        return decomposition.FactorAnalysis(factors, **options).fit(x.numpy())


def ours(x: Tensor, factors: int, **options: Any) -> lvm.Fit:
    """Our factor analysis, fitted."""
    return lvm.fit(lvm.models.FactorAnalysis(factors), x, seed=0, device="cpu", progress=False, **options)


def likelihoods() -> list[bool]:
    """Print log-likelihoods on real data."""
    tables = {
        "digits": datasets.load_digits().data,
        "wine": datasets.load_wine().data,
        "breast cancer": datasets.load_breast_cancer().data,
    }
    verdicts = []
    print(f"{'factor analysis, nats a row':32}{'lvm':>11}{'scikit-learn':>14}{'least noise':>13}")
    for name, table in tables.items():
        x, factors = standardised(table), FACTORS[name]
        fit = ours(x, factors, max_epochs=5000, tol=1e-10)
        theirs = peer(x, factors, tol=1e-8, max_iter=5000, svd_method="lapack").score(x.numpy())
        verdicts.append(fit.score(x) >= theirs - 1e-6 * abs(theirs))
        least = float(fit.params["noise_scale"].square().min())
        shape = f"{name}, {len(x)} x {x.shape[1]}, {factors}"
        word = "reached" if verdicts[-1] else "NOT reached"
        print(f"{shape:32}{fit.score(x):11.4f}{theirs:14.4f}{least:13.1e}  {word}")
    raw = torch.from_numpy(tables["wine"])
    fit, theirs = ours(raw, 3, max_epochs=5000, tol=1e-10), peer(raw, 3, tol=1e-8, max_iter=5000, svd_method="lapack")
    shift = float(raw.std(0, correction=0).log().sum())
    print(f"{'wine as it is, same units':32}{fit.score(raw) + shift:11.4f}{theirs.score(raw.numpy()) + shift:14.4f}")
    return verdicts


def components() -> list[bool]:
    """Print log-likelihoods of probabilistic PCA."""
    x = torch.from_numpy(datasets.load_digits().data)
    x = x[:, x.std(0) > 0]
    fit = lvm.fit(lvm.models.ProbabilisticPCA(10), x, seed=0, device="cpu", progress=False)
    unbiased = (len(x) / (len(x) - 1)) ** 0.5  # of rows as much closer together, its variance is ours
    nearer = (x / unbiased).numpy()
    theirs = decomposition.PCA(10).fit(nearer).score(nearer) - x.shape[1] * math.log(unbiased)
    print(f"{'probabilistic PCA, digits, 10':32}{fit.score(x):11.4f}{theirs:14.4f}")
    return [abs(fit.score(x) - theirs) <= CLOSE * abs(theirs)]


def bounds(quick: bool) -> list[bool]:
    """Print how far the bounds of three guides are from the log-likelihood at the same parameters."""
    x = standardised(datasets.load_wine().data)
    print(f"\n{'SVI on wine, 3 factors':26}{'log-likelihood':>15}{'gap':>10}{'turned':>10}")
    gaps = {}
    for guide in ("exact-gaussian", "amortized", "local"):
        svi = lvm.infer.SVI(learning_rate=0.03, schedule="linear")
        fit = ours(x, 3, inference=svi, guide=guide, max_epochs=20 if quick else 200 if guide == "local" else 1000)
        with fit.scope(), torch.no_grad():
            bound = -pyro.infer.Trace_ELBO(num_particles=100).loss(fit.model, fit.guide, x) / len(x)
            exact = float(lvm.guides.ExactGaussian(fit.model).row_log_likelihood(x).mean())
        gaps[guide] = exact - bound
        scaled = fit.params["weight"] / fit.params["noise_scale"].unsqueeze(-1)
        scaled = scaled @ varimax(fit.params["weight"])
        precision = torch.eye(3).to(x) + scaled.mT @ scaled
        turned = 0.5 * float(precision.diagonal().log().sum() - torch.logdet(precision))
        shown = "" if guide == "exact-gaussian" else f"{turned:10.4f}"
        print(f"{guide:26}{exact:15.4f}{gaps[guide]:10.4f}{shown}")
    return [abs(gaps["exact-gaussian"]) < CLOSE and min(gaps.values()) > -CLOSE]


def relevance(quick: bool) -> list[bool]:
    """Print how many of ten factors are kept where three made the rows, and what other criteria say."""
    print(f"\n{ROWS} rows of {WIDTH} columns from 3 factors: which of 10 have {100 * KEPT:g} % of the variance")
    counts = []
    for seed in range(1 if quick else SEEDS):
        x = from_three(seed)
        model = lvm.models.FactorAnalysis(10, priors=True)
        epochs = 50 if quick else 8000
        fit = lvm.fit(model, x, inference="svi", max_epochs=epochs, seed=seed, device="cpu", progress=False)
        counts.append(int((lvm.diagnostics.explained_variance(fit).share[:-1] >= KEPT).sum()))
    reached = counts.count(3) >= 0.9 * SEEDS
    word = "" if quick else "reached" if reached else "NOT reached"
    print(f"kept, by seed: {' '.join(map(str, counts))} (goal: 3 in nine of ten)  {word}")
    print(f"{'seed 0, factors':18}{'log-likelihood':>15}{'AIC':>10}{'BIC':>10}{'held out':>10}")
    x, other = from_three(0), from_three(0, ROWS)
    table = {}
    for factors in range(1, 7):
        fit = ours(x, factors)
        table[factors] = (fit.score(x), -fit.aic(x), -fit.bic(x), fit.score(other))
        print(f"{factors:<18}{fit.score(x):15.4f}{fit.aic(x):10.1f}{fit.bic(x):10.1f}{fit.score(other):10.4f}")
    for place, name in ((1, "AIC"), (2, "BIC"), (3, "held out")):
        print(f"best by {name}: {max(table, key=lambda k: table[k][place])}")
    return [reached]


def from_three(seed: int, skip: int = 0) -> Tensor:
    """Rows of which three factors explain about 70 % of the variance."""
    torch.manual_seed(seed)
    weight, noise = torch.randn(WIDTH, 3).double(), 0.5 + torch.rand(WIDTH).double()
    torch.manual_seed(seed + 1000 + skip)
    return torch.randn(ROWS, 3).double() @ weight.mT + noise * torch.randn(ROWS, WIDTH).double()


def speed(quick: bool) -> list[bool]:
    """Print seconds at the same log-likelihood."""
    x = simulated(2_000 if quick else 20_000)
    ours(x[:500], 10, max_epochs=2)  # what is loaded once
    times: dict[str, list[float]] = {"scikit-learn": [], "lvm, as likely": [], "lvm, default": []}
    reached = 0.0
    for _ in range(2 if quick else 5):
        begin = time.perf_counter()
        machine = peer(x, 10)
        times["scikit-learn"].append(time.perf_counter() - begin)
        goal = -len(x) * machine.score(x.numpy()) * (1 + CLOSE)

        def near(run: Any, goal: float = goal) -> bool:
            return run.history["loss"][-1] <= goal

        begin = time.perf_counter()
        fit = ours(x, 10, callbacks=near)
        times["lvm, as likely"].append(time.perf_counter() - begin)
        reached = fit.score(x)
        begin = time.perf_counter()
        ours(x, 10)
        times["lvm, default"].append(time.perf_counter() - begin)
    ratio = statistics.median(a / b for a, b in zip(times["scikit-learn"], times["lvm, as likely"], strict=True))
    print(f"\nfactor analysis, {len(x):,} x 100, 10 factors: seconds, set-up included")
    for name, seconds in times.items():
        print(f"{name:32}{statistics.median(seconds):11.2f}")
    print(f"nats a row: lvm {reached:.5f}, scikit-learn {-goal / (1 + CLOSE) / len(x):.5f}")
    word = "" if quick else "reached" if ratio >= GOAL else "NOT reached"
    print(f"scikit-learn / lvm {ratio:.1f} (goal: at least {GOAL:g})  {word}")
    return [ratio >= GOAL]


def report(quick: bool) -> list[bool]:
    """Print the tables of factor analysis and probabilistic PCA; which goals were reached."""
    warnings.filterwarnings("ignore", ".*Heywood case")  # `least noise` shows it
    return likelihoods() + components() + bounds(quick) + relevance(quick) + speed(quick)


def main() -> int:
    """Print the tables."""
    parts = {
        "factors": report,
        "components": independent_components.report,
        "slow": slow_features.report,
        "sparse": sparse_coding.report,
        "mixture": factor_mixtures.report,
    }
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=parts, action="append", help="these tables; all by default")
    parser.add_argument("--quick", action="store_true", help="fewer rows and rounds")
    options = parser.parse_args()
    verdicts: list[bool] = []
    for name in options.only or parts:
        with pyro.get_param_store().scope():  # parts step models in plain Pyro, too
            verdicts += parts[name](options.quick)
    return 0 if options.quick or all(verdicts) else 1


if __name__ == "__main__":
    sys.exit(main())
