"""Importance-weighted test log-likelihood of a linear sigmoid belief net on statically binarized MNIST.

`PYRO_LVM_DATA=folder python benchmarks/sigmoid_belief_net.py --inference nvil` trains 200 units in one layer by the
score function with a network as baseline, `--inference relax` with a learned control variate, `--inference wake-sleep`
by wake-sleep; `--quick` takes about a minute and judges nothing. The data are
`folder/mnist_static_binarized/mnist_sm_binary.npz`.

How it is measured: the budget and the options of an inference stand in `SETTINGS`, and `--epochs`, `--rate` and
`--schedule` override them. Training sees the first 50,000 training rows in batches of 100, with Adam. A figure is the
mean over the first `--rows` test rows, by default all 10,000, of the importance-weighted log-likelihood in nats with
`--samples` samples a row: a lower bound on average, so that fewer samples look worse. Nothing is chosen by the test
rows: the settings were, by `--validation`, which scores the last 10,000 training rows instead.

References:
    A. Mnih, K. Gregor (2014), Neural variational inference and learning in belief networks, ICML, table 1.
"""

from __future__ import annotations

import argparse
import os
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

import pyro_lvm as lvm

BATCH, TRAIN = 100, 50_000


@dataclass(frozen=True)
class Settings:
    """How an inference trains, and the published figure in nats a row, if there is one."""

    objective: Callable[[], Any]
    epochs: int
    rate: float
    schedule: str | None
    goal: float | None


SETTINGS = {
    "wake-sleep": Settings(lvm.infer.WakeSleep, epochs=30, rate=3e-3, schedule="linear", goal=-120.8),
    "nvil": Settings(lvm.infer.NVIL, epochs=36, rate=3e-3, schedule="linear", goal=-113.1),
    "relax": Settings(lvm.infer.RELAX, epochs=36, rate=3e-3, schedule="linear", goal=None),
}


def rows() -> tuple[Tensor, Tensor, Tensor]:
    """Training, validation and test rows, zeros and ones in float32."""
    packed = np.load(Path(os.environ["PYRO_LVM_DATA"]) / "mnist_static_binarized" / "mnist_sm_binary.npz")
    train, test = (torch.from_numpy(np.unpackbits(packed[part], axis=1)).float() for part in ("train", "test"))
    return train[:TRAIN], train[TRAIN:], test


def main() -> None:
    """Train, score, and print one line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--inference", choices=SETTINGS, default="wake-sleep")
    parser.add_argument("--epochs", type=int)
    parser.add_argument("--rate", type=float)
    parser.add_argument("--schedule", choices=("constant", "linear", "cosine"))
    parser.add_argument("--rows", type=int, default=10_000, help="rows that are scored")
    parser.add_argument("--samples", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--validation", action="store_true", help="score the last 10,000 training rows, to choose by")
    parser.add_argument("--checkpoint", help="folder that keeps the fit")
    parser.add_argument("--quick", action="store_true")
    options = parser.parse_args()
    settings = SETTINGS[options.inference]
    epochs, rate = options.epochs or settings.epochs, options.rate or settings.rate
    schedule = None if options.schedule == "constant" else options.schedule or settings.schedule
    train, validation, test = rows()
    name, scored = ("validation", validation) if options.validation else ("test", test)
    scored = scored[: options.rows]
    if options.quick:
        train, scored, epochs = train[:5000], scored[:20], 1
    begin = time.perf_counter()
    fit = lvm.fit(
        lvm.models.SigmoidBeliefNet(200),
        train,
        guide="recognition-net",
        inference=lvm.infer.SVI(loss=settings.objective(), learning_rate=rate, schedule=schedule),
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
        evidence = fit.evidence(scored, num_samples=options.samples)
    error = float(evidence.values.std()) / len(scored) ** 0.5
    judged = settings.goal is not None and not options.quick and not options.validation
    goal = f"; published {settings.goal:.1f}" if judged else ""
    print(
        f"{options.inference}, rate {rate:g} {schedule or 'constant'}, {epochs} epochs of {len(train)} rows: "
        f"{evidence.total / evidence.num_rows:.2f} nats a row (s.e. {error:.2f}"
        f" over rows) on {len(scored)} {name} rows with {options.samples} samples "
        f"(bound {-fit.history['loss'][-1] / len(train):.2f} in training){goal}; "
        f"{trained:.0f} s, {1000 * trained / steps:.1f} ms a step"
    )


if __name__ == "__main__":
    main()
