"""What a step of a small variational autoencoder costs through `lvm.fit`, beside a training loop written by hand.

`python benchmarks/overhead.py` takes about three minutes; `--quick` a few seconds, and judges nothing. Goal: at most
1.10 times the loop by hand.

How it is measured:

* One hidden layer of 400 units either way, 20 latent dimensions, 784 columns of zeros and ones, batches of 128,
  float32, one thread. All take fresh batches in a shuffled order, and write the loss of every epoch down.
* By hand: PyTorch as its own example has it (`binary_cross_entropy_with_logits`, the closed form of the divergence),
  with fused Adam. Pyro: the same networks by `pyro.module`, `pyro.infer.SVI` with `pyro.optim.Adam`, checks off.
* `lvm.fit` is called as a user does; its steps are those between the ends of its first epoch and its last: with
  batches, history, callbacks and progress, without the start from the data.
* All run in one process in turn, a hundred steps each, round after round; Pyro in every fourth. A ratio is the median
  over rounds of time over time by hand, since machines are faster at one time than at another.

References:
    D. Kingma, M. Welling (2014), Auto-encoding variational Bayes, ICLR, appendices B and C.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits

import pyro_lvm as lvm

COLUMNS, HIDDEN, LATENT, BATCH = 784, 400, 20, 128
BATCHES, EPOCHS, ROUNDS = 50, 3, 40
GOAL = 1.10


class Autoencoder(nn.Module):
    """Both networks."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Sequential(nn.Linear(COLUMNS, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, 2 * LATENT))
        self.decoder = nn.Sequential(nn.Linear(LATENT, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, COLUMNS))

    def loss(self, x: Tensor) -> Tensor:
        """Minus the evidence lower bound, nats."""
        loc, log_variance = self.encoder(x).chunk(2, -1)
        z = loc + (0.5 * log_variance).exp() * torch.randn_like(loc)
        fit = binary_cross_entropy_with_logits(self.decoder(z), x, reduction="sum")
        return fit - 0.5 * (1 + log_variance - loc.pow(2) - log_variance.exp()).sum()

    def model(self, x: Tensor) -> None:
        """The same in Pyro."""
        pyro.module("decoder", self.decoder)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(x.new_zeros(len(x), LATENT), x.new_ones(len(x), LATENT)).to_event(1))
            pyro.sample("x", dist.Bernoulli(logits=self.decoder(z)).to_event(1), obs=x)

    def guide(self, x: Tensor) -> None:
        """Its guide."""
        pyro.module("encoder", self.encoder)
        with pyro.plate("data", len(x)):
            loc, log_variance = self.encoder(x).chunk(2, -1)
            pyro.sample("z", dist.Normal(loc, (0.5 * log_variance).exp()).to_event(1))


def epochs(step: Callable[[Tensor], float], x: Tensor) -> float:
    """Seconds a step, over all epochs but the first."""
    history, ends = [], []
    for _ in range(EPOCHS):
        order, total = torch.randperm(len(x)), 0.0
        for start in range(0, len(x), BATCH):
            total += step(x[order[start : start + BATCH]])
        history.append(total)
        ends.append(time.perf_counter())
    return (ends[-1] - ends[0]) / (BATCHES * (EPOCHS - 1))


def by_hand(x: Tensor) -> float:
    """PyTorch alone."""
    net = Autoencoder()
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-3, fused=True)

    def step(batch: Tensor) -> float:
        optimizer.zero_grad()
        loss = net.loss(batch)
        loss.backward()
        optimizer.step()
        return loss.item()

    return epochs(step, x)


def by_pyro(objective: type[pyro.infer.ELBO]) -> Callable[[Tensor], float]:
    """Pyro's own SVI."""

    def run(x: Tensor) -> float:
        net = Autoencoder()
        pyro.enable_validation(False)
        try:
            with pyro.get_param_store().scope():
                svi = pyro.infer.SVI(net.model, net.guide, pyro.optim.Adam({"lr": 1e-3}), objective())
                return epochs(svi.step, x)
        finally:
            pyro.enable_validation(True)

    return run


def by_fit(x: Tensor) -> float:
    """The front door."""
    ends: list[float] = []
    lvm.fit(
        lvm.models.VAE(LATENT, hidden=[HIDDEN]),
        x,
        inference=lvm.infer.SVI(learning_rate=1e-3),
        batch_size=BATCH,
        max_epochs=EPOCHS,
        callbacks=lambda run: ends.append(time.perf_counter()),
    )
    return (ends[-1] - ends[0]) / (BATCHES * (EPOCHS - 1))


METHODS: dict[str, Callable[[Tensor], float]] = {
    "by hand": by_hand,
    "lvm.fit": by_fit,
    "Pyro, TraceMeanField_ELBO": by_pyro(pyro.infer.TraceMeanField_ELBO),
    "Pyro, Trace_ELBO": by_pyro(pyro.infer.Trace_ELBO),
}


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="two rounds")
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    x = (torch.rand(BATCH * BATCHES, COLUMNS) < torch.rand(COLUMNS)).float()
    times: dict[str, list[float]] = {name: [] for name in METHODS}
    ratios: dict[str, list[float]] = {name: [] for name in METHODS}
    for turn in range(2 if options.quick else options.rounds):
        for name, method in METHODS.items():
            if turn % 4 == 0 or not name.startswith("Pyro"):
                times[name].append(method(x))
                ratios[name].append(times[name][-1] / times["by hand"][-1])
    print(f"{'a step':28s} {'ms':>7s} {'times by hand':>14s}")
    for name, values in times.items():
        ratio = statistics.median(ratios[name])
        judged = name == "lvm.fit" and not options.quick
        goal = f"  goal <= {GOAL:.2f}: {'reached' if ratio <= GOAL else 'MISSED'}" if judged else ""
        print(f"{name:28s} {1000 * statistics.median(values):7.2f} {ratio:14.3f}{goal}")


if __name__ == "__main__":
    main()
