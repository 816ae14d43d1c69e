"""Stepwise EM over a stream against EM on all rows: log-likelihood after two passes, seconds, memory.

`python benchmarks/stepwise.py` takes five minutes; `--quick` takes a tenth of the rows and one start, under a
minute, and misses the goal: two passes over 100,000 rows come within 0.15 %.

How it is measured:

* Rows come from 16 Gaussians in 16 columns with full covariances, about three standard deviations apart (`Clusters`).
  The stream makes its batches when they are asked for, the same in every pass; all rows together never exist.
* Stepwise EM is `lvm.fit(model, stream, inference=lvm.infer.EM(decay=...), max_epochs=2)`, which starts from k-means on
  the first batch. EM has all rows as one tensor, starts from the very same parameters, and runs until the relative
  gain of an iteration is below 1e-7. Several starts are run; every one has to come within the gap.
* Both are scored on all rows. The gap is relative to the log-likelihood that EM reaches.
* Every method, number of rows and start runs in a process of its own, in float32 and one thread: batches are too small
  for more, and two threads on a busy machine wait for each other. Memory is the largest resident set of that process
  until the end of the fit, less that after the imports: libraries do not count. Stepwise EM needs the same for any
  number of rows; the hashes of rows that `lvm.fit` notes are a sample of 131,072 (1 MB) from there on.
* Seconds are those of `lvm.fit`, which for the stream include making its rows twice. Timings are never assertions.

References:
    O. Cappé, E. Moulines (2009), On-line expectation-maximization for latent data models, JRSS B 71(3).
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass

import numpy as np
import pyro
import torch
from torch import Tensor

import pyro_lvm as lvm

COLUMNS, COMPONENTS = 16, 16
BATCH = 2_500
DECAY = 0.6
PASSES = 2
GOAL = 1e-3  # relative gap in log-likelihood
TOLERANCE = 1e-7
ROWS = (100_000, 1_000_000)
STARTS = 3


class Clusters:
    """Batches of rows from K Gaussians about three standard deviations apart, float32, shape (batch, d)."""

    def __init__(self, num_rows: int, seed: int = 1) -> None:
        self.num_rows, self.seed = num_rows, seed
        generator = np.random.default_rng(seed)
        k, d = COMPONENTS, COLUMNS
        self.share = generator.dirichlet(np.full(k, 10.0))
        self.loc = 3 / np.sqrt(2 * d) * generator.standard_normal((k, d))
        rotation, _ = np.linalg.qr(generator.standard_normal((k, d, d)))
        # eigenvalues of the covariances are in [0.5, 2]
        scale = np.exp(generator.uniform(-0.5 * np.log(2), 0.5 * np.log(2), (k, 1, d)))
        self.factor = rotation * scale

    def __iter__(self) -> Iterator[Tensor]:
        """One pass."""
        for start in range(0, self.num_rows, BATCH):
            generator = np.random.default_rng((self.seed, start))
            size = min(BATCH, self.num_rows - start)
            counts = generator.multinomial(size, self.share)
            noise = generator.standard_normal((size, COLUMNS), dtype=np.float32)
            parts = np.split(noise, counts.cumsum()[:-1])
            rows = [loc + part @ factor.T for loc, factor, part in zip(self.loc, self.factor, parts, strict=True)]
            yield torch.from_numpy(generator.permutation(np.concatenate(rows)).astype(np.float32))


class Mixture(lvm.models.GaussianMixture):
    """Starts from the first rows only, as a stream does: both methods have the same start."""

    def initialize(self, x: Tensor, sample_weights: Tensor | None = None) -> None:
        """k-means on one batch."""
        super().initialize(x[:BATCH])


@dataclass(frozen=True)
class Result:
    """Mean log-likelihood of a row in nats; seconds of the fit; passes; megabytes beyond the imports."""

    score: float
    seconds: float
    passes: int
    megabytes: float


def fit(data: Clusters | Tensor, inference: lvm.infer.EM, tol: float, seed: int, max_epochs: int | None) -> lvm.Fit:
    """One fit of 16 components."""
    model = Mixture(COMPONENTS, COLUMNS)
    return lvm.fit(
        model, data, inference=inference, tol=tol, seed=seed, max_epochs=max_epochs, device="cpu", progress=False
    )


def stepwise(stream: Clusters, seed: int) -> lvm.Fit:
    """Two passes over the stream."""
    return fit(stream, lvm.infer.EM(decay=DECAY), tol=0.0, seed=seed, max_epochs=PASSES)


def full(stream: Clusters, seed: int) -> lvm.Fit:
    """EM to convergence on all rows at once."""
    x = torch.empty(stream.num_rows, COLUMNS)
    for rows, batch in zip(x.split(BATCH), stream, strict=True):
        rows.copy_(batch)
    return fit(x, lvm.infer.EM(), tol=TOLERANCE, seed=seed, max_epochs=None)


METHODS = {"stepwise EM": stepwise, "EM": full}


def peak() -> float:
    """The largest resident set so far, megabytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)


def measure(method: str, num_rows: int, seed: int) -> Result:
    """One fit, in this process."""
    pyro.enable_validation(False)
    torch.set_num_threads(1)
    stream = Clusters(num_rows)
    before, begin = peak(), time.perf_counter()
    fitted = METHODS[method](stream, seed)
    seconds, megabytes = time.perf_counter() - begin, peak() - before
    return Result(fitted.score(stream), seconds, len(fitted.history["loss"]), megabytes)


def in_a_process_of_its_own(method: str, num_rows: int, seed: int) -> Result:
    """The same, in a fresh process."""
    command = [sys.executable, __file__, "--one", method, str(num_rows), str(seed)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)} failed:\n{done.stderr}")
    return Result(**json.loads(done.stdout))


def report(num_rows: int, seed: int) -> tuple[dict[str, Result], float]:
    """Run and print both methods from one start; returns them and the relative gap."""
    results = {method: in_a_process_of_its_own(method, num_rows, seed) for method in METHODS}
    best = results["EM"].score
    gap = (best - results["stepwise EM"].score) / abs(best)
    for method, result in results.items():
        print(
            f"{method:13}{num_rows:>10,}{seed:7}{result.passes:8}{result.score:12.4f}{result.seconds:10.1f}"
            f"{result.megabytes:10.0f}" + (f"{gap:11.3%}" if method != "EM" else ""),
            flush=True,
        )
    return results, gap


def main(arguments: Sequence[str] | None = None) -> int:
    """Run both methods and print them."""
    parser = argparse.ArgumentParser(description="Stepwise EM over a stream against EM on all rows.")
    parser.add_argument("--quick", action="store_true", help="a tenth of the rows, one start, under a minute")
    parser.add_argument("--one", nargs=3, metavar=("METHOD", "ROWS", "SEED"), help="one fit, printed as JSON")
    options = parser.parse_args(arguments)
    if options.one:
        method, rows, seed = options.one
        print(json.dumps(asdict(measure(method, int(rows), int(seed)))))
        return 0
    few, many = (rows // 10 for rows in ROWS) if options.quick else ROWS
    print(f"pyro_lvm {lvm.__version__}, torch {torch.__version__}, one thread")
    print(f"batches of {BATCH:,} rows, decay {DECAY}; nats of a row")
    print(f"{'':13}{'rows':>10}{'start':>7}{'passes':>8}{'score':>12}{'seconds':>10}{'MB':>10}{'gap':>11}")
    small, _ = report(few, 0)
    large = [report(many, seed) for seed in range(1 if options.quick else STARTS)]
    for method, result in small.items():
        times = large[0][0][method].megabytes / result.megabytes
        print(f"{method}: {many // few} times the rows take {times:.2f} times the memory")
    worst = max(gap for _, gap in large)
    verdict = "reached" if worst <= GOAL else "not reached"
    print(f"largest gap with {many:,} rows {worst:.3%}, to reach {GOAL:.1%}: {verdict}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
