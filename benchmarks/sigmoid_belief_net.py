"""Importance-weighted test log-likelihood of a linear sigmoid belief net on statically binarized MNIST.

`PYRO_LVM_DATA=folder python benchmarks/sigmoid_belief_net.py --inference wake-sleep` trains 200 units in one layer;
`--inference svi` learns by the score function instead; `--quick` takes about a minute and judges nothing. The data are
`folder/mnist_static_binarized/mnist_sm_binary.npz`.

How it is measured: the budget is `--epochs` passes, 100 by default, over the first 50,000 training rows in batches of
100, with Adam at a learning rate of 0.001 and one draw of the guide for each row. A figure is the mean over the first
`--rows` test rows, by default all 10,000, of the importance-weighted log-likelihood in nats with `--samples` samples a
row: a lower bound on average, so that fewer samples look worse. Nothing is chosen by the test rows. The goals are
published figures, whose budgets are longer.

References:
    A. Mnih, K. Gregor (2014), Neural variational inference and learning in belief networks, ICML, table 1.
"""

from __future__ import annotations

import argparse
import os
import time
import warnings
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

import pyro_lvm as lvm

BATCH, TRAIN = 100, 50_000
GOALS = {"wake-sleep": -120.8, "svi": -113.1}


def rows() -> tuple[Tensor, Tensor]:
    """Training and test rows, zeros and ones in float32."""
    packed = np.load(Path(os.environ["PYRO_LVM_DATA"]) / "mnist_static_binarized" / "mnist_sm_binary.npz")
    train, test = (torch.from_numpy(np.unpackbits(packed[part], axis=1)).float() for part in ("train", "test"))
    return train[:TRAIN], test


def main() -> None:
    """Train, score, and print one line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--inference", choices=GOALS, default="wake-sleep")
    parser.add_argument("--epochs", type=int, default=100)
    parser.add_argument("--rows", type=int, default=10_000, help="test rows that are scored")
    parser.add_argument("--samples", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--checkpoint", help="folder that keeps the fit")
    parser.add_argument("--quick", action="store_true")
    options = parser.parse_args()
    train, test = rows()
    test, epochs = test[: options.rows], options.epochs
    if options.quick:
        train, test, epochs = train[:5000], test[:20], 1
    loss = lvm.infer.WakeSleep() if options.inference == "wake-sleep" else None
    begin = time.perf_counter()
    fit = lvm.fit(
        lvm.models.SigmoidBeliefNet(200),
        train,
        guide="recognition-net",
        inference=lvm.infer.SVI(loss=loss, learning_rate=1e-3),
        batch_size=BATCH,
        max_epochs=epochs,
        tol=0.0,
        patience=10**6,
        seed=options.seed,
        checkpoint=options.checkpoint,
    )
    trained = time.perf_counter() - begin
    steps = epochs * -(-len(train) // BATCH)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # many rows have heavy weights: values are too low, not too high
        evidence = fit.evidence(test, num_samples=options.samples)
    goal = "" if options.quick else f"; published {GOALS[options.inference]:.1f}"
    print(
        f"{options.inference}, {epochs} epochs of {len(train)} rows, {steps} steps: "
        f"{evidence.total / evidence.num_rows:.2f} nats a row on {len(test)} test rows with {options.samples} samples "
        f"(bound {-fit.history['loss'][-1] / len(train):.2f} in training){goal}; "
        f"{trained:.0f} s, {1000 * trained / steps:.1f} ms a step"
    )


if __name__ == "__main__":
    main()
