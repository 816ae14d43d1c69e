"""A deep belief net on statically binarized MNIST: the bound after each layer.

`PYRO_LVM_DATA=folder python benchmarks/deep_belief_net.py` learns 100, 800 and 200 units layer by layer, in about five
minutes of CPU time; `--tune 5` then learns all of them together by wake-sleep; `--quick` takes a few seconds and judges
nothing. The data are `folder/mnist_static_binarized/mnist_sm_binary.npz`.

How it is measured:

* Each machine learns from the first 50,000 training rows in batches of 100, by persistent contrastive divergence, for
  its own number of passes (`--epochs`) at its own rate (`--rate`), which falls to zero over the second half. Those
  above the first start as the one below upside down, so with its bound: at rates of a machine that starts from nothing
  they would lose more of it than they gain. Fine-tuning takes `--tune` passes.
* `bound` is the mean over all 10,000 test rows of log p(x, h) - log q(h | x), in nats, averaged over `--draws` draws of
  the guide; the first line is a single machine, whose log-likelihood is no bound.
* `gain` is the bound less that of the line before, row by row; its standard error holds the spread over rows and the
  errors of both normalizers. The goal is that each layer raises the bound by more than two standard errors.
* `weighted` is the importance-weighted log-likelihood of the same rows with `--samples` samples a row.
* log Z of the top machine is estimated by annealed importance sampling with its number of `--chains` and the 14,501
  temperatures of Salakhutdinov and Murray, from independent units on its larger side: a machine upside down has the
  same normalizer, and chains of many units hardly get stuck. With the thousand temperatures of `fit.evidence`, which
  suffice for a check, weights are so uneven that the standard errors themselves cannot be trusted.
* Nothing is chosen by the test rows: the settings were by the last 10,000 training rows, which `--validation` scores.

References:
    R. Salakhutdinov, I. Murray (2008), On the quantitative analysis of deep belief networks, ICML, section 6.
"""

from __future__ import annotations

import argparse
import math
import os
import time
import warnings
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

import pyro_lvm as lvm
from pyro_lvm.evidence.ais import LogNormalizer, annealed_importance_sampling

BATCH, TRAIN = 100, 50_000
ERRORS = 2  # a layer has to gain more than so many standard errors


@dataclass(frozen=True)
class Measured:
    """What is known of a net.

    Attributes:
        bounds: Of every row, nats, shape (n,).
        weighted: Importance-weighted log-likelihood, nats a row.
        normalizer: Of the top machine.
    """

    bounds: Tensor
    weighted: float
    normalizer: LogNormalizer

    def gain(self, before: Measured) -> tuple[float, float]:
        """By how much the bound is larger, and the standard error of that, nats."""
        change = self.bounds - before.bounds
        of_rows = float(change.std()) / math.sqrt(len(change))
        error = math.hypot(of_rows, self.normalizer.standard_error, before.normalizer.standard_error)
        return float(change.mean()), error


def rows() -> tuple[Tensor, Tensor, Tensor]:
    """Training, validation and test rows, zeros and ones in float32."""
    packed = np.load(Path(os.environ["PYRO_LVM_DATA"]) / "mnist_static_binarized" / "mnist_sm_binary.npz")
    train, test = (torch.from_numpy(np.unpackbits(packed[part], axis=1)).float() for part in ("train", "test"))
    return train[:TRAIN], train[TRAIN:], test


def measure(
    fit: lvm.Fit, scored: Tensor, draws: int, samples: int, chains: int, temperatures: Tensor | None
) -> Measured:
    """The bound of every row and the weighted log-likelihood, under a normalizer estimated with care."""
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # single draws have no error, and many have heavy weights
        law = getattr(fit.model, "top", fit.model).law().for_annealing()
        normalizer = annealed_importance_sampling(law, chains, temperatures)
        bound = fit.evidence(scored.repeat(draws, 1), num_samples=1)
        weighted = fit.evidence(scored, num_samples=samples)
    rough = [one.value for one in fit.normalizers.values()]  # none of a machine small enough to be summed up
    shift = rough[0] - normalizer.value if rough else 0.0  # linear in every figure
    bounds = bound.values.reshape(draws, -1).mean(0) + shift
    return Measured(bounds, weighted.total / weighted.num_rows + shift, normalizer)


def line(name: str, found: Measured, before: Measured | None, begin: float) -> bool:
    """Print a line of the table; whether the bound rose by more than its error."""
    gain, error = (math.inf, 0.0) if before is None else found.gain(before)
    rise = " " * 15 if before is None else f"{gain:7.2f} ({error:.2f}) "
    log_z = f"{found.normalizer.value:.2f} ({found.normalizer.standard_error:.2f})"
    print(
        f"{name:16} {float(found.bounds.mean()):9.2f} {rise} {found.weighted:9.2f} {log_z:>15} "
        f"{found.normalizer.effective_sample_size:5.0f} {time.process_time() - begin:8.0f}",
        flush=True,
    )
    return gain > ERRORS * error


def main() -> None:
    """Train layer by layer, and print a line for each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--hidden", type=int, nargs="+", default=[100, 800, 200])
    parser.add_argument("--epochs", type=int, nargs="+", default=[20, 10, 20], help="passes for each machine")
    parser.add_argument("--rate", type=float, nargs="+", default=[0.003, 0.0003, 0.0001], help="of each machine")
    parser.add_argument("--chains", type=int, nargs="+", default=[400, 800, 200], help="for each log Z")
    parser.add_argument("--tune", type=int, default=0)
    parser.add_argument("--tune-rate", type=float, default=0.0001)
    parser.add_argument("--rows", type=int, default=10_000, help="rows that are scored")
    parser.add_argument("--draws", type=int, default=4)
    parser.add_argument("--samples", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--validation", action="store_true", help="score the last 10,000 training rows, to choose by")
    parser.add_argument("--quick", action="store_true")
    options = parser.parse_args()
    for option in (options.epochs, options.rate, options.chains):
        if len(option) != len(options.hidden):
            parser.error("--hidden, --epochs, --rate and --chains need an entry for each machine.")
    train, validation, test = rows()
    name, scored = ("validation", validation) if options.validation else ("test", test)
    scored, hidden, temperatures = scored[: options.rows], tuple(options.hidden), None
    if options.quick:
        train, scored, hidden = train[:2000], scored[:50], (50, 50, 50)
        options.epochs, options.chains, options.tune = [2] * 3, [100] * 3, 1
        options.rate, temperatures = [0.003, 0.001, 0.001], torch.linspace(0, 1, 1000, dtype=torch.float64)

    def machines(rate: float) -> lvm.infer.SVI:
        loss = lvm.infer.ContrastiveDivergence(persistent=True)
        return lvm.infer.SVI(loss=loss, learning_rate=rate, schedule="linear")

    def measured(fit: lvm.Fit, depth: int) -> Measured:
        return measure(fit, scored, options.draws, options.samples, options.chains[depth - 1], temperatures)

    torch.manual_seed(options.seed)
    begin, shared = time.process_time(), {"batch_size": BATCH, "seed": options.seed}
    print(f"{len(scored)} {name} rows, nats a row, standard errors in brackets")
    print(f"{'hidden':16} {'bound':>9} {'gain':>15} {'weighted':>9} {'log Z':>15} {'ESS':>5} {'CPU s':>8}", flush=True)
    fit = lvm.fit(
        lvm.models.RBM(hidden[0]), train, inference=machines(options.rate[0]), max_epochs=options.epochs[0], **shared
    )
    before = measured(fit, 1)
    line(str(hidden[0]), before, None, begin)
    loss, rises = lvm.infer.ContrastiveDivergence(persistent=True, base=lvm.infer.WakeSleep()), []
    for depth in range(2, len(hidden) + 1):
        fit = lvm.greedy_pretrain(
            lvm.models.DeepBeliefNet(hidden[:depth]),
            train,
            inference=lvm.infer.SVI(loss=loss, learning_rate=options.tune_rate, schedule="linear"),
            machine_inference=machines(options.rate[depth - 1]),
            below=fit,
            max_epochs=options.epochs[depth - 1],
            **shared,
        )
        found = measured(fit, depth)
        rises.append(line(", ".join(map(str, hidden[:depth])), found, before, begin))
        before = found
    if not options.quick:
        print(f"each layer raises the bound by more than {ERRORS} standard errors: {'yes' if all(rises) else 'NO'}")
    if options.tune:
        fit.resume(train, max_epochs=options.tune, batch_size=BATCH)
        line("fine-tuned", measured(fit, len(hidden)), before, begin)


if __name__ == "__main__":
    main()
