"""A deep belief net on statically binarized MNIST: the bound after each layer, and after fine-tuning.

`PYRO_LVM_DATA=folder python benchmarks/deep_belief_net.py` learns 500, 500 and 2000 units layer by layer, then all of
them together by wake-sleep; `--quick` takes about two minutes and judges nothing. The data are
`folder/mnist_static_binarized/mnist_sm_binary.npz`.

How it is measured: every machine learns for `--epochs` passes over the first 50,000 training rows in batches of 100,
by persistent contrastive divergence at a rate that falls over the second half; fine-tuning takes `--tune` passes. The
bound is the mean over the first `--rows` test rows of log p(x, h) - log q(h | x) at one draw of the guide, in nats;
`weighted` is the importance-weighted log-likelihood with `--samples` samples a row. The normalizer of the top machine
is estimated by annealed importance sampling with 100 chains and 1,000 temperatures: too few to quote the figures,
enough to compare them. The first line is a single machine, whose log-likelihood is no bound. The goal is that each
layer raises the bound.

References:
    R. Salakhutdinov, I. Murray (2008), On the quantitative analysis of deep belief networks, ICML, section 6.
"""

from __future__ import annotations

import argparse
import itertools
import os
import time
import warnings
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

import pyro_lvm as lvm

BATCH, TRAIN = 100, 50_000


def rows() -> tuple[Tensor, Tensor]:
    """Training and test rows, zeros and ones in float32."""
    packed = np.load(Path(os.environ["PYRO_LVM_DATA"]) / "mnist_static_binarized" / "mnist_sm_binary.npz")
    train, test = (torch.from_numpy(np.unpackbits(packed[part], axis=1)).float() for part in ("train", "test"))
    return train[:TRAIN], test


def line(name: str, fit: lvm.Fit, test: Tensor, samples: int, begin: float) -> float:
    """Print a line of the table; the bound."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # single draws have no error, and many have heavy weights
        bound = fit.evidence(test, num_samples=1)
        weighted = fit.evidence(test, num_samples=samples)
    value = bound.total / bound.num_rows
    normalizers = ", ".join(f"{n.value:.2f} ({n.standard_error:.2f})" for n in fit.normalizers.values())
    print(
        f"{name:22} {value:9.2f} {weighted.total / weighted.num_rows:9.2f} {normalizers:>15} "
        f"{time.perf_counter() - begin:7.0f}",
        flush=True,
    )
    return value


def main() -> None:
    """Train layer by layer, and print a line for each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--hidden", type=int, nargs="+", default=[500, 500, 2000])
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--tune", type=int, default=10)
    parser.add_argument("--rate", type=float, default=0.003)
    parser.add_argument("--rows", type=int, default=1000, help="test rows that are scored")
    parser.add_argument("--samples", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--quick", action="store_true")
    options = parser.parse_args()
    train, test = rows()
    test, epochs, tune, hidden = test[: options.rows], options.epochs, options.tune, tuple(options.hidden)
    if options.quick:
        train, test, epochs, tune, hidden = train[:2000], test[:50], 2, 1, (50, 50, 50)

    def machines() -> lvm.infer.SVI:
        loss = lvm.infer.ContrastiveDivergence(persistent=True)
        return lvm.infer.SVI(loss=loss, learning_rate=options.rate, schedule="linear")

    begin = time.perf_counter()
    print(f"{'hidden':22} {'bound':>9} {'weighted':>9} {'log Z':>15} {'seconds':>7}", flush=True)
    fit = lvm.fit(
        lvm.models.RBM(hidden[0]), train, inference=machines(), batch_size=BATCH, max_epochs=epochs, seed=options.seed
    )
    bounds = [line(str(hidden[0]), fit, test, options.samples, begin)]
    loss = lvm.infer.ContrastiveDivergence(persistent=True, base=lvm.infer.WakeSleep())
    for depth in range(2, len(hidden) + 1):
        fit = lvm.greedy_pretrain(
            lvm.models.DeepBeliefNet(hidden[:depth]),
            train,
            inference=lvm.infer.SVI(loss=loss, learning_rate=options.rate / 10, schedule="linear"),
            machine_inference=machines(),
            below=fit,
            max_epochs=epochs,
            batch_size=BATCH,
            seed=options.seed,
        )
        bounds.append(line(", ".join(map(str, hidden[:depth])), fit, test, options.samples, begin))
    if tune:
        fit.resume(train, max_epochs=tune, batch_size=BATCH)
        bounds.append(line("fine-tuned", fit, test, options.samples, begin))
    rises = all(after > before for before, after in itertools.pairwise(bounds))
    if not options.quick:
        print(f"each line raises the bound: {'yes' if rises else 'no'}")


if __name__ == "__main__":
    main()
