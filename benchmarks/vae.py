"""Importance-weighted test log-likelihood of variational autoencoders on statically binarized MNIST.

`PYRO_LVM_DATA=folder python benchmarks/vae.py` trains 12 epochs of 50,000 rows in batches of 128 (4,692 steps: the goal
is set for 5,000); `--long` trains 51 (19,941 of 20,000); `--guide inverse-autoregressive` and `--importance K` swap the
guide and the objective; `--quick` takes under a minute and judges nothing. The data are
`folder/mnist_static_binarized/mnist_sm_binary.npz`.

How it is measured: the model has 128 latent dimensions and two hidden layers of 512 either way; Adam, learning rate
0.001; the first 50,000 training rows. A figure is the mean over all 10,000 test rows of the importance-weighted
log-likelihood in nats with `--samples` samples a row: a lower bound on average, so that fewer samples look worse.
Nothing is chosen by the test rows.

References:
    D. Kingma, M. Welling (2014), Auto-encoding variational Bayes, ICLR.
    Y. Burda, R. Grosse, R. Salakhutdinov (2016), Importance weighted autoencoders, ICLR.
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

BATCH, TRAIN = 128, 50_000
SHORT, LONG = 12, 51
GOALS = {SHORT: -107.0, LONG: -100.0}


def rows() -> tuple[Tensor, Tensor]:
    """Training and test rows, zeros and ones in float32."""
    packed = np.load(Path(os.environ["PYRO_LVM_DATA"]) / "mnist_static_binarized" / "mnist_sm_binary.npz")
    train, test = (torch.from_numpy(np.unpackbits(packed[part], axis=1)).float() for part in ("train", "test"))
    return train[:TRAIN], test


def main() -> None:
    """Train, score, and print one line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--guide", default="amortized")
    parser.add_argument("--importance", type=int, default=1, metavar="K", help="samples of the training objective")
    parser.add_argument("--epochs", type=int, help=f"by default {SHORT}")
    parser.add_argument("--long", action="store_true")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--samples", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--checkpoint", help="folder that keeps the fit")
    options = parser.parse_args()
    epochs = options.epochs or (LONG if options.long else SHORT)
    train, test = rows()
    if options.quick:
        train, test, epochs = train[:5000], test[:500], 1
    loss = lvm.infer.ImportanceWeighted(options.importance) if options.importance > 1 else None
    begin = time.perf_counter()
    fit = lvm.fit(
        lvm.models.VAE(128),
        train,
        guide=options.guide,
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
    mean = evidence.total / evidence.num_rows
    goal = "" if options.quick or options.importance > 1 else f"; goal {GOALS.get(epochs, float('nan')):.1f}"
    print(
        f"{options.guide}, importance {options.importance}, {steps} steps: {mean:.2f} nats a row with "
        f"{options.samples} samples (bound {-fit.history['loss'][-1] / len(train):.2f} in training){goal}; "
        f"{trained:.0f} s, {1000 * trained / steps:.1f} ms a step"
    )


if __name__ == "__main__":
    main()
