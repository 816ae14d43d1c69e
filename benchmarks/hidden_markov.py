"""Milliseconds per EM iteration of a Gaussian hidden Markov model: pyro_lvm and hmmlearn in one run.

`python benchmarks/hidden_markov.py` prints the tables and draws `results/chain_kernel.png` (`--out` names another
folder); `--quick` takes a few minutes, `--race 2` runs one race only.

How it is measured:

* The data are drawn from a hidden Markov model whose states overlap: steps stay in their state with probability 0.8,
  means are about three standard deviations apart.
* Everyone starts from the same parameters, those of `GaussianHMM.initialize` (k-means). hmmlearn runs with its priors
  off (`covars_prior=0`) in both of its implementations, log and scaling; ratios are to the faster one. It computes in
  one thread, which is the best for it: two make full covariances ten times slower. We compute in two, or as many as the
  machine has cores, unless OMP_NUM_THREADS says otherwise.
* Contestants take turns, each from the start again; reported is the median over the repeats, with the smallest and
  largest. Goals are for full covariances, for which they were set; hmmlearn is far faster with diagonal ones.
* Only iterations count, set-up does not. hmmlearn: (time of 1 + k iterations - time of 1) / k. `lvm.infer.EM.step`:
  one iteration untimed, then k timed.
* Parameters after 1 + k iterations are compared in the same run: the largest difference of any probability, and of any
  mean or variance relative to the largest one.
* The long chain runs in a process of its own; memory is how far the iterations raise its peak, the data left out.
  Timings are never assertions.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import resource
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import pyro
import torch
from torch import Tensor

import pyro_lvm as lvm
from pyro_lvm.ops import chains

TIMED_ITERATIONS = 3
AGREEMENT = 1e-6
LOG, SCALING = "hmmlearn, log", "hmmlearn, scaling"
OURS, OURS32 = "lvm.infer.EM.step", "lvm.infer.EM.step, float32"
PARAMETERS = ("initial_probs", "transition_probs", "loc", "covariance")
LONG_CHAIN, LONG_STATES, SINGLE_AGREEMENT = 1_000_000, 4, 1e-4


@dataclass(frozen=True)
class Size:
    """One race, and how many times faster than hmmlearn we mean to be."""

    sequences: int
    steps: int
    states: int
    columns: int
    goal: float
    covariance: str = "full"

    def __str__(self) -> str:
        return f"{self.sequences:,} x {self.steps:,} steps, {self.states} states, {self.columns}-d {self.covariance}"


FULL = (Size(1000, 100, 16, 4, 10.0), Size(1, 100_000, 8, 4, 3.0), Size(200, 200, 64, 8, 10.0))
SIZES = tuple(replace(size, covariance=kind) for kind in ("full", "diag") for size in FULL)


@dataclass
class Result:
    """Seconds per iteration of every repeat, and the parameters at the end of the last one."""

    seconds: list[float] = field(default_factory=list)
    parameters: dict[str, Tensor] = field(default_factory=dict)


def overlapping_states(size: Size, seed: int) -> Tensor:
    """Sequences of K Gaussian states, float64, shape (n, T, d)."""
    generator = np.random.default_rng(seed)
    n, k, d = size.sequences, size.states, size.columns
    moves = 0.8 * np.eye(k) + 0.2 * generator.dirichlet(np.ones(k), k)
    edges = moves.cumsum(1)
    edges[:, -1] = 1.0
    states = np.empty((n, size.steps), dtype=np.int64)
    states[:, 0] = generator.integers(k, size=n)
    for t in range(1, size.steps):
        states[:, t] = (generator.random((n, 1)) > edges[states[:, t - 1]]).sum(1)
    loc = 3 / np.sqrt(2 * d) * generator.standard_normal((k, d))
    scale = np.exp(generator.uniform(-0.35, 0.35, (k, d)))
    return torch.from_numpy(loc[states] + scale[states] * generator.standard_normal((*states.shape, d)))


def start_of(size: Size, x: Tensor, seed: int) -> dict[str, Tensor]:
    """The start of `lvm.fit(..., seed=seed)`."""
    with pyro.settings.context(module_local_params=True):
        torch.manual_seed(seed)
        model = lvm.models.GaussianHMM(size.states, covariance=size.covariance)
        model.initialize(x)
        return {name: getattr(model, name).detach().clone() for name in PARAMETERS}


def at_start(size: Size, start: dict[str, Tensor], dtype: torch.dtype) -> Any:
    """A model at the start."""
    model = lvm.models.GaussianHMM(size.states, size.columns, size.covariance).to(dtype)
    for name, value in start.items():
        setattr(model, name, value.to(dtype, copy=True))  # EM writes in place
    return model


def race_hmmlearn(implementation: str, size: Size, x: Tensor, start: dict[str, Tensor], result: Result) -> None:
    from hmmlearn.hmm import GaussianHMM
    from threadpoolctl import threadpool_limits

    rows = x.reshape(-1, size.columns).numpy()
    lengths = [size.steps] * size.sequences

    def run(iterations: int) -> float:
        model = GaussianHMM(
            size.states,
            size.covariance,
            min_covar=0.0,
            covars_prior=0.0,
            n_iter=iterations,
            tol=-np.inf,
            init_params="",
            implementation=implementation,
        )
        model.startprob_, model.transmat_, model.means_, model.covars_ = (start[name].numpy() for name in PARAMETERS)
        with warnings.catch_warnings(), threadpool_limits(1):
            warnings.simplefilter("ignore")
            seconds = clock(lambda: model.fit(rows, lengths))
        found = (model.startprob_, model.transmat_, model.means_, model._covars_)
        result.parameters = {name: torch.from_numpy(value) for name, value in zip(PARAMETERS, found, strict=True)}
        return seconds

    by_difference(run, result)


def race_step(size: Size, x: Tensor, start: dict[str, Tensor], result: Result) -> None:
    with pyro.settings.context(module_local_params=True):
        model = at_start(size, start, x.dtype)
        em = lvm.infer.EM(model)
        em.step(x)
        result.seconds.append(clock(lambda: [em.step(x) for _ in range(TIMED_ITERATIONS)]) / TIMED_ITERATIONS)
        result.parameters = {name: getattr(model, name).detach().double() for name in PARAMETERS}


def clock(function: Callable[[], object]) -> float:
    """Seconds that a call takes."""
    begin = time.perf_counter()
    function()
    return time.perf_counter() - begin


def by_difference(run: Callable[[int], float], result: Result) -> None:
    """Time of an iteration from two whole runs."""
    short, long = run(1), run(1 + TIMED_ITERATIONS)
    result.seconds.append((long - short) / TIMED_ITERATIONS)


def race(size: Size, repeats: int) -> dict[str, Result]:
    """Let everyone take turns."""
    x = overlapping_states(size, seed=1)
    start = start_of(size, x, seed=0)
    results = {name: Result() for name in (LOG, SCALING, OURS, OURS32)}
    for _ in range(repeats):
        race_hmmlearn("log", size, x, start, results[LOG])
        race_hmmlearn("scaling", size, x, start, results[SCALING])
        race_step(size, x, start, results[OURS])
        race_step(size, x.float(), start, results[OURS32])
    return results


def difference(one: Result, other: Result) -> float:
    """The largest difference of two fits' parameters: of probabilities absolute, of others relative to the largest."""
    worst = 0.0
    for name in PARAMETERS:
        unit = 1.0 if name.endswith("probs") else float(other.parameters[name].abs().max())
        worst = max(worst, float((one.parameters[name] - other.parameters[name]).abs().max()) / unit)
    return worst


def report(size: Size, results: dict[str, Result]) -> bool:
    """Print one race; whether its goal was met."""
    print(f"\n{size}")
    print(f"  {'':28}{'dtype':>8}{'ms/iteration':>14}{'min':>9}{'max':>9}")
    for name, result in results.items():
        ms = [1000 * s for s in (median(result.seconds), min(result.seconds), max(result.seconds))]
        print(f"  {name:28}{'float32' if name == OURS32 else 'float64':>8}{ms[0]:14.1f}{ms[1]:9.1f}{ms[2]:9.1f}")
    seconds = {name: median(result.seconds) for name, result in results.items()}
    peer = min((LOG, SCALING), key=lambda name: seconds[name])
    for name in (OURS, OURS32):
        ratio = seconds[peer] / seconds[name]
        met = "met" if ratio >= size.goal else "not met"
        print(f"  {name:28}{ratio:8.1f}x as fast as {peer} (goal {size.goal:g}x: {met})")
    distance, single = (difference(results[name], results[peer]) for name in (OURS, OURS32))
    verdict = "agree" if distance <= AGREEMENT else "DIFFER: the race is not fair"
    print(f"  parameters after {1 + TIMED_ITERATIONS} iterations {verdict} ({distance:.0e}; our float32 {single:.0e})")
    return seconds[peer] / seconds[OURS] >= size.goal and distance <= AGREEMENT


def long_chain(steps: int, dtype: torch.dtype) -> dict[str, float]:
    """Seconds, megabytes and log-likelihood of EM on one chain, in this process."""
    size = Size(1, steps, LONG_STATES, 1, 0.0)
    x = overlapping_states(size, seed=2)
    start = start_of(size, x[:, :10_000], seed=0)
    x = x.to(dtype)
    before = peak()
    with pyro.settings.context(module_local_params=True):
        em = lvm.infer.EM(at_start(size, start, dtype))
        loss = em.step(x)
        seconds = clock(lambda: [em.step(x) for _ in range(TIMED_ITERATIONS)]) / TIMED_ITERATIONS
    return {"seconds": seconds, "megabytes": peak() - before, "log_likelihood": -loss}


def peak() -> float:
    """The largest resident set so far, megabytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)


def report_long_chain(steps: int) -> bool:
    """Print both precisions; whether they agree."""
    print(f"\none chain of {steps:,} steps, {LONG_STATES} states, 1-d")
    found = {}
    for dtype in ("float64", "float32"):
        command = [sys.executable, __file__, "--long-chain", str(steps), dtype]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise RuntimeError(f"{' '.join(command)} failed:\n{done.stderr}")
        found[dtype] = json.loads(done.stdout)
        print("  {0}: {seconds:.2f} s an iteration, {megabytes:.0f} MB, {log_likelihood:.3f} nats".format(
            dtype, **found[dtype]
        ))  # fmt: skip
    distance = abs(found["float32"]["log_likelihood"] / found["float64"]["log_likelihood"] - 1)
    agree = distance <= SINGLE_AGREEMENT
    print(f"  relative difference {distance:.0e} (to be at most {SINGLE_AGREEMENT:g}: {'met' if agree else 'not met'})")
    return agree


def crossover(folder: Path, quick: bool) -> Path:
    """Draw how much faster each algorithm of the kernel is than the sequential one, for one chain and for a hundred."""
    from matplotlib.figure import Figure

    lengths = [2**i for i in range(4, 11 if quick else 15, 2)]
    figure = Figure(figsize=(8.4, 3.4), layout="constrained")
    axes = figure.subplots(1, 2, sharey=True)
    for ax, batch in zip(axes, (1, 100), strict=True):
        for colour, states in enumerate((2, 8, 32)):
            seconds: dict[str, list[float]] = {"sequential": [], "blocked": [], "scan": []}
            used = [steps for steps in lengths if batch * steps * states <= 2**22]
            for steps in used:
                torch.manual_seed(0)
                initial, transition = torch.randn(states).log_softmax(-1), torch.randn(1, states, states)
                tables = (initial, transition.log_softmax(-1), torch.randn(batch, steps, states))
                for name, found in seconds.items():
                    call = lambda name=name, tables=tables: chains.smooth(*tables, algorithm=name)  # noqa: E731
                    call()
                    found.append(min(clock(call) for _ in range(2)))
            for name, line in (("blocked", "-"), ("scan", ":")):
                ratios = [one / other for one, other in zip(seconds["sequential"], seconds[name], strict=True)]
                ax.plot(used, ratios, line, color=f"C{colour}", label=f"{name}, {states} states")
        ax.axhline(1, color="grey", linewidth=0.8)
        ax.set(xscale="log", yscale="log", xlabel="steps", title="one chain" if batch == 1 else f"{batch} chains")
    axes[0].set(ylabel="times faster than step by step")
    axes[0].legend(fontsize="small")
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "chain_kernel.png"
    figure.savefig(path, dpi=110)
    return path


def main(arguments: Sequence[str] | None = None) -> int:
    """Run all races and print them."""
    parser = argparse.ArgumentParser(description="Milliseconds per EM iteration of a Gaussian hidden Markov model.")
    parser.add_argument("--quick", action="store_true", help="one repeat, a shorter chain, a few minutes")
    parser.add_argument("--repeats", type=int, help="turns of every contestant; by default 5, or 1 with --quick")
    races = "; ".join(f"{i} = {size}" for i, size in enumerate(SIZES, 1))
    parser.add_argument("--race", type=int, choices=range(1, len(SIZES) + 1), help=f"only one of the races: {races}")
    parser.add_argument("--out", type=Path, default=Path("results"), help="folder for the picture")
    parser.add_argument("--long-chain", nargs=2, metavar=("STEPS", "DTYPE"), help="one fit, printed as JSON")
    options = parser.parse_args(arguments)
    pyro.enable_validation(False)
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", min(2, os.cpu_count() or 1))))
    if options.long_chain:
        steps, dtype = options.long_chain
        print(json.dumps(long_chain(int(steps), getattr(torch, dtype))))
        return 0
    repeats = options.repeats if options.repeats is not None else 1 if options.quick else 5
    if repeats < 1:
        parser.error(f"expected --repeats >= 1; got {repeats}")
    if importlib.util.find_spec("hmmlearn") is None:
        print("hmmlearn not found. Run: pip install -e .[bench]", file=sys.stderr)
        return 2

    from importlib.metadata import version

    versions = ", ".join(f"{name} {version(name)}" for name in ("hmmlearn", "pyro-ppl", "torch"))
    print(f"{versions}, pyro_lvm {lvm.__version__}; {torch.get_num_threads()} threads")
    print(f"median of {repeats} turns of {TIMED_ITERATIONS} timed iterations each")
    met = [report(size, race(size, repeats)) for i, size in enumerate(SIZES, 1) if options.race in (None, i)]
    if options.race is None:
        met.append(report_long_chain(LONG_CHAIN // 10 if options.quick else LONG_CHAIN))
        print(f"\nwhere which algorithm of the kernel is faster: {crossover(options.out, options.quick)}")
    print("all goals met" if all(met) else "not all goals met")
    return 0


if __name__ == "__main__":
    sys.exit(main())
