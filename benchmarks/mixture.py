"""Milliseconds per EM iteration of a Gaussian mixture: pyro_lvm, scikit-learn and pomegranate in one run.

`python benchmarks/mixture.py` prints the table; `--quick` takes under a minute, `--race 2` runs one race only, and
`--profile` says in place of the races what our iterations are made of.

How it is measured:

* The data are float64 rows of overlapping Gaussian clusters whose covariances have eigenvalues in [0.5, 2], so that
  rows are shared between components and nothing underflows. The mean posterior of the most probable component at
  the start is printed above each table: 1 would mean that the clusters are apart.
* Everyone starts from the same weights, means and covariances, those of `GaussianMixture.initialize` (k-means), and
  computes in two threads or as many as the machine has cores. Contestants take turns (A B C A B C ...), each from
  the start again; reported is the median over the repeats, with the smallest and largest.
* Only iterations count, set-up does not. scikit-learn and `lvm.fit`: (time of 1 + k iterations - time of 1) / k.
  pomegranate (`summarize` and `from_summaries`, the body of its `fit`) and `lvm.infer.EM.step`: one iteration untimed,
  then k timed. `lvm.fit` adds history, stopping rule and parameter scope to `EM.step`; its set-up (k-means, checks
  with one validated step, row hashes) is printed apart.
* scikit-learn computes in float64, pomegranate in its own float32. Ratios compare like with like: our float64 with
  scikit-learn, our float32 with pomegranate. The EM by hand is for this one model, in the same arithmetic as ours:
  what deriving everything from a program costs. scikit-learn runs with `reg_covar=0`, which is our algorithm.

At the end, log-likelihoods after the same number of iterations are compared. Timings are never assertions.
"""

from __future__ import annotations

import argparse
import importlib.util
import sys
import time
import warnings
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from statistics import median

import numpy as np
import pyro
import torch
from torch import Tensor

import pyro_lvm as lvm
from pyro_lvm.infer.natural import rows_of_a_block

TIMED_ITERATIONS = 3
FEWER = 5  # the part of the rows that tells what an iteration takes anyway
RELATIVE_AGREEMENT = 1e-6
SKLEARN, POMEGRANATE = "scikit-learn", "pomegranate"
OURS, OURS32, FIT = "lvm.infer.EM.step", "lvm.infer.EM.step, float32", "lvm.fit"
HAND, HAND32 = "EM by hand in torch", "EM by hand in torch, float32"


@dataclass(frozen=True)
class Size:
    """One race: n rows of d columns, K components."""

    rows: int
    columns: int
    components: int
    covariance: str

    @property
    def features(self) -> int:
        """Numbers of a row whose sums are all that EM needs."""
        d = self.columns
        return 2 * d if self.covariance == "diag" else d + d * (d + 1) // 2

    def __str__(self) -> str:
        return f"{self.rows:,} x {self.columns}, {self.components} {self.covariance}"


SIZES = (Size(100_000, 16, 16, "full"), Size(100_000, 16, 16, "diag"), Size(20_000, 64, 32, "full"))


@dataclass
class Start:
    """Where everyone starts, in float64."""

    weights: Tensor
    loc: Tensor
    covariance: Tensor
    confidence: float


@dataclass
class Result:
    """Seconds per iteration of every repeat, and the log-likelihood before each iteration of the last one."""

    seconds: list[float] = field(default_factory=list)
    setup: list[float] = field(default_factory=list)
    log_likelihoods: list[float] = field(default_factory=list)


def overlapping_clusters(size: Size, seed: int) -> Tensor:
    """Rows of K Gaussians, float64, shape (n, d)."""
    generator = np.random.default_rng(seed)
    k, d = size.components, size.columns
    # means about three standard deviations apart whatever d, since two of them differ by spread * sqrt(2 d)
    spread = 3 / np.sqrt(2 * d)
    rows = np.empty((size.rows, d))
    component = generator.choice(k, size.rows, p=generator.dirichlet(np.full(k, 10.0)))
    for j in range(k):
        rotation, _ = np.linalg.qr(generator.standard_normal((d, d)))
        scale = np.exp(generator.uniform(-0.5 * np.log(2), 0.5 * np.log(2), d))
        members = component == j
        noise = generator.standard_normal((members.sum(), d))
        rows[members] = spread * generator.standard_normal(d) + (noise * scale) @ rotation.T
    return torch.from_numpy(rows)


def k_means_start(size: Size, x: Tensor, seed: int) -> Start:
    """The start of `lvm.fit(..., seed=seed)`."""
    with local_parameters():
        torch.manual_seed(seed)
        model = lvm.models.GaussianMixture(size.components, covariance=size.covariance)
        model.initialize(x)
        posterior = lvm.infer.EM(model).posterior(x)["z"]
        values = [getattr(model, name).detach().clone() for name in ("weights", "loc", "covariance")]
    return Start(*values, confidence=float(posterior.max(-1).values.mean()))


def local_parameters() -> AbstractContextManager[None]:
    """Keep parameters in their module, and out of Pyro's global store."""
    return pyro.settings.context(module_local_params=True)


def race_sklearn(size: Size, x: Tensor, start: Start, result: Result) -> None:
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.mixture import GaussianMixture

    rows = x.numpy()
    precision = start.covariance.reciprocal() if size.covariance == "diag" else torch.linalg.inv(start.covariance)

    def run(iterations: int) -> float:
        model = GaussianMixture(
            size.components,
            covariance_type=size.covariance,
            max_iter=iterations,
            tol=0.0,
            reg_covar=0.0,
            n_init=1,
            init_params="random_from_data",
            weights_init=start.weights.numpy(),
            means_init=start.loc.numpy(),
            precisions_init=precision.numpy(),
        )
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)
            seconds = clock(lambda: model.fit(rows))
        result.log_likelihoods = [mean * len(rows) for mean in model.lower_bounds_]
        return seconds

    by_difference(run, result)


def race_fit(size: Size, x: Tensor, start: Start, result: Result) -> None:
    def run(iterations: int) -> float:
        def fit() -> None:
            model = lvm.models.GaussianMixture(size.components, covariance=size.covariance)
            fitted = lvm.fit(
                model, x, inference="em", max_epochs=iterations, tol=0.0, seed=0, device="cpu", progress=False
            )
            result.log_likelihoods = [-loss for loss in fitted.history["loss"]]

        return clock(fit)

    by_difference(run, result)


def race_step(size: Size, x: Tensor, start: Start, result: Result) -> None:
    with local_parameters():
        model = lvm.models.GaussianMixture(size.components, size.columns, size.covariance).to(x.dtype)
        for name in ("weights", "loc", "covariance"):
            setattr(model, name, getattr(start, name).to(x.dtype, copy=True))  # EM writes in place
        em = lvm.infer.EM(model)
        one_by_one(lambda: -em.step(x), result)


def race_by_hand(size: Size, x: Tensor, start: Start, result: Result) -> None:
    """EM for this one model, written out: what a program-derived EM is to be measured against."""
    weights, loc, covariance = (t.double() for t in (start.weights, start.loc, start.covariance))
    n, d = x.shape
    centre = x.double().mean(0).to(x.dtype)
    upper = torch.triu_indices(d, d)
    diagonal = size.covariance == "diag"
    width = 2 * d if diagonal else d + upper.shape[1]
    block = max(256, min(16384, (1 << 20) // width))
    buffer = torch.empty(width * block, dtype=x.dtype)

    def iterate() -> float:
        nonlocal weights, loc, covariance
        mean = loc - centre
        if diagonal:
            precision = covariance.reciprocal()
            first, second = precision * mean, -0.5 * precision
            log_det = covariance.log().sum(-1)
        else:
            factor = torch.linalg.cholesky(covariance)
            precision = torch.cholesky_inverse(factor)
            first = (precision @ mean.unsqueeze(-1)).squeeze(-1)
            second = precision[:, upper[0], upper[1]] * torch.where(upper[0] == upper[1], -0.5, -1.0)
            log_det = 2 * factor.diagonal(dim1=-2, dim2=-1).log().sum(-1)
        constant = weights.log() - 0.5 * ((first * mean).sum(-1) + log_det + d * np.log(2 * np.pi))
        coefficients, constant = torch.cat([first, second], 1).to(x.dtype), constant.unsqueeze(-1).to(x.dtype)
        sums = torch.zeros(len(loc), width, dtype=torch.float64)
        total = torch.zeros(len(loc), dtype=torch.float64)
        log_likelihood = torch.zeros((), dtype=torch.float64)
        for begin in range(0, n, block):
            columns = (x[begin : begin + block] - centre).T.contiguous()
            features = buffer[: width * columns.shape[1]].view(width, -1)
            features[:d] = columns
            if diagonal:
                torch.mul(columns, columns, out=features[d:])
            else:
                row = d
                for i in range(d):
                    torch.mul(columns[i:], columns[i], out=features[row : row + d - i])
                    row += d - i
            joint = torch.addmm(constant, coefficients, features)
            largest = joint.amax(0)
            evidence = joint.sub_(largest).exp_().sum(0)
            joint.div_(evidence)
            log_likelihood += evidence.log_().add_(largest).sum(dtype=torch.float64)
            total += joint.sum(1, dtype=torch.float64)
            sums += joint @ features.T
        mean = sums[:, :d] / total.unsqueeze(-1)
        moments = sums[:, d:] / total.unsqueeze(-1)
        if diagonal:
            covariance = moments - mean.square()
        else:
            covariance = torch.empty(len(loc), d, d, dtype=torch.float64)
            covariance[:, upper[0], upper[1]] = moments
            covariance[:, upper[1], upper[0]] = moments
            covariance -= mean.unsqueeze(-1) * mean.unsqueeze(-2)
        weights, loc = total / n, mean + centre
        return float(log_likelihood)

    one_by_one(iterate, result)


def race_pomegranate(size: Size, x: Tensor, start: Start, result: Result) -> None:
    from pomegranate.distributions import Normal
    from pomegranate.gmm import GeneralMixtureModel

    components = [
        Normal(loc.float(), covariance.float(), covariance_type=size.covariance)
        for loc, covariance in zip(start.loc, start.covariance, strict=True)
    ]
    model = GeneralMixtureModel(components, priors=start.weights.float())

    def iterate() -> float:
        log_likelihood = float(model.summarize(x))
        model.from_summaries()
        return log_likelihood

    one_by_one(iterate, result)


def clock(function: Callable[[], object]) -> float:
    """Seconds that a call takes."""
    begin = time.perf_counter()
    function()
    return time.perf_counter() - begin


def by_difference(run: Callable[[int], float], result: Result) -> None:
    """Time of an iteration from two whole runs; what the shorter takes beyond one iteration is set-up."""
    short, long = run(1), run(1 + TIMED_ITERATIONS)
    result.seconds.append((long - short) / TIMED_ITERATIONS)
    result.setup.append(short - result.seconds[-1])


def one_by_one(iterate: Callable[[], float], result: Result) -> None:
    """Time of iterations that can be called one at a time."""
    result.log_likelihoods = [iterate()]
    seconds = clock(lambda: result.log_likelihoods.extend(iterate() for _ in range(TIMED_ITERATIONS)))
    result.seconds.append(seconds / TIMED_ITERATIONS)


def race(size: Size, repeats: int) -> tuple[Start, dict[str, Result]]:
    """Let everyone take turns."""
    x = overlapping_clusters(size, seed=1)
    single = x.float()
    start = k_means_start(size, x, seed=0)
    contestants = {
        SKLEARN: (race_sklearn, x),
        POMEGRANATE: (race_pomegranate, single),
        OURS: (race_step, x),
        OURS32: (race_step, single),
        FIT: (race_fit, x),
        HAND: (race_by_hand, x),
        HAND32: (race_by_hand, single),
    }
    results = {name: Result() for name in contestants}
    for _ in range(repeats):
        for name, (function, rows) in contestants.items():
            function(size, rows, start, results[name])
    return start, results


def goals(size: Size, results: dict[str, Result]) -> list[tuple[str, str, float, float]]:
    """Rows of (ours, peer, how many times faster, goal)."""
    milliseconds = {name: median(result.seconds) for name, result in results.items()}

    def row(ours: str, peer: str, goal: float) -> tuple[str, str, float, float]:
        return ours, peer, milliseconds[peer] / milliseconds[ours], goal

    generic = [row(OURS, HAND, 1 / 1.15), row(OURS32, HAND32, 1 / 1.15)]
    if size.covariance == "diag":
        better = min((SKLEARN, POMEGRANATE), key=lambda name: milliseconds[name])
        return [row(OURS, better, 3.0), row(OURS32, better, 3.0), *generic]
    return [row(OURS, SKLEARN, 5.0), row(OURS32, POMEGRANATE, 2.0), row(OURS, POMEGRANATE, 2.0), *generic]


def report(size: Size, start: Start, results: dict[str, Result]) -> None:
    """Print one race."""
    print(f"\n{size}   (most probable component at the start: posterior {start.confidence:.2f} on average)")
    print(f"  {'':28}{'dtype':>8}{'ms/iteration':>14}{'min':>9}{'max':>9}{'set-up ms':>11}")
    for name, result in results.items():
        dtype = "float32" if name in (POMEGRANATE, OURS32, HAND32) else "float64"
        ms = [1000 * s for s in (median(result.seconds), min(result.seconds), max(result.seconds))]
        setup = f"{1000 * median(result.setup):11.0f}" if result.setup else f"{'':11}"
        print(f"  {name:28}{dtype:>8}{ms[0]:14.1f}{ms[1]:9.1f}{ms[2]:9.1f}{setup}")
    print(f"  {'times faster':28}{'than':>30}{'measured':>10}{'goal':>9}")
    for ours, peer, ratio, goal in goals(size, results):
        print(f"  {ours:28}{peer:>30}{ratio:9.2f}x{f'>= {goal:.3g}x':>9}  {'met' if ratio >= goal else 'not met'}")


def profile(size: Size, repeats: int) -> None:
    """Print what an iteration of `lvm.infer.EM.step` is made of: where a goal is missed, this is why."""
    x = overlapping_clusters(size, seed=1)
    start = k_means_start(size, x, seed=0)
    print(f"\n{size}: ms of an iteration of {OURS}")
    print(f"  {'':10}{'all':>9}{'products':>10}{'machinery':>11}{'the rest':>10}{'GFLOPS in products':>21}")
    for dtype in (torch.float64, torch.float32):
        rows, every, few, products = x.to(dtype), Result(), Result(), []
        for _ in range(repeats):
            race_step(size, rows, start, every)
            race_step(size, rows[: size.rows // FEWER].clone(), start, few)
            products.append(two_products(size, dtype))
        whole, short, both = (1000 * min(seconds) for seconds in (every.seconds, few.seconds, products))
        fixed = max(0.0, (FEWER * short - whole) / (FEWER - 1))
        operations = 4 * size.rows * size.components * size.features / (1e6 * both)
        name = str(dtype).removeprefix("torch.")
        print(f"  {name:10}{whole:9.1f}{both:10.1f}{fixed:11.1f}{whole - both - fixed:10.1f}{operations:21.0f}")
    print(
        f"  products: coefficients by features, and posteriors by features, alone, {size.features} features a row;\n"
        "  machinery: what does not grow with the rows, so tracing the program, deriving its updates and making them;\n"
        "  the rest: features, softmax and sums; all from the fastest of their repeats"
    )


def two_products(size: Size, dtype: torch.dtype) -> float:
    """Seconds of the two matrix products of an iteration, on blocks that are in the cache as they are in ours."""
    block = min(size.rows, rows_of_a_block(size.features))
    features, coefficients = torch.ones(size.features, block, dtype=dtype), torch.ones(size.components, size.features)
    joint, coefficients = torch.ones(size.components, block, dtype=dtype), coefficients.to(dtype)

    def blocks() -> None:
        for _ in range(0, size.rows, block):
            torch.mm(coefficients, features, out=joint)
            joint @ features.T

    blocks()
    return clock(blocks) * size.rows / (-(-size.rows // block) * block)


def agreement(size: Size, results: dict[str, Result]) -> str:
    """Compare log-likelihoods iteration by iteration."""
    theirs = np.array(results[SKLEARN].log_likelihoods)

    def distance(name: str) -> float:
        return float(np.abs(np.array(results[name].log_likelihoods) / theirs - 1).max())

    worst = max(distance(OURS), distance(FIT), distance(HAND))
    verdict = "agree" if worst <= RELATIVE_AGREEMENT else "DIFFER: the race is not fair"
    return (
        f"  {size!s:28} {theirs[0] / size.rows:.6f} -> {theirs[-1] / size.rows:.6f} nats per row in {len(theirs) - 1} "
        f"iterations; ours and scikit-learn {verdict} (relative {worst:.0e});\n  {'':28} to scikit-learn from our "
        f"float32 {distance(OURS32):.0e}, from pomegranate {distance(POMEGRANATE):.0e}"
    )


def main() -> int:
    """Run all races and print them."""
    parser = argparse.ArgumentParser(description="Milliseconds per EM iteration of a Gaussian mixture.")
    parser.add_argument("--quick", action="store_true", help="three repeats, under a minute")
    parser.add_argument("--repeats", type=int, help="turns of every contestant; by default 9, or 3 with --quick")
    races = "; ".join(f"{i} = {size}" for i, size in enumerate(SIZES, 1))
    parser.add_argument("--race", type=int, choices=range(1, len(SIZES) + 1), help=f"only one of the races: {races}")
    parser.add_argument("--profile", action="store_true", help="what our iterations are made of, in place of the races")
    options = parser.parse_args()
    repeats = options.repeats if options.repeats is not None else 3 if options.quick else 9
    if repeats < 1:
        parser.error(f"expected --repeats >= 1; got {repeats}")
    missing = [name for name in ("sklearn", "pomegranate") if importlib.util.find_spec(name) is None]
    if missing:
        print(f"{' and '.join(missing)} not found. Run: pip install -e .[bench]", file=sys.stderr)
        return 2

    from importlib.metadata import version

    versions = ", ".join(f"{name} {version(name)}" for name in ("scikit-learn", "pomegranate", "pyro-ppl", "torch"))
    print(f"{versions}, pyro_lvm {lvm.__version__}; {torch.get_num_threads()} threads")
    print(f"median of {repeats} turns of {TIMED_ITERATIONS} timed iterations each")
    pyro.enable_validation(False)
    if options.profile:
        for size in SIZES if options.race is None else [SIZES[options.race - 1]]:
            profile(size, repeats)
        return 0
    done = []
    for size in SIZES if options.race is None else [SIZES[options.race - 1]]:
        start, results = race(size, repeats)
        report(size, start, results)
        done.append((size, results))
    print("\nlog-likelihoods from the same start, compared at every iteration")
    for size, results in done:
        print(agreement(size, results))
    return 0


if __name__ == "__main__":
    sys.exit(main())
