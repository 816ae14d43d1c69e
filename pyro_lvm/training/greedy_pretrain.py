r"""Greedy pretraining of deep belief nets: one machine after the other, each on the hidden units of the one below.

Learning the law of :math:`h^{(l)}` anew, with all below it kept, raises the bound

.. math:: \log p(x) \ge \mathrm{E}_{q(h \mid x)}\Bigl[\log p(x \mid h^{(1)})
    + \sum_{k < l} \log p(h^{(k)} \mid h^{(k+1)}) + \log p(h^{(l)}) - \log q(h \mid x)\Bigr]

by as much as the new law fits the draws of q better than the machine below did.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, cast

import torch

from pyro_lvm.diagnostics.row_latents import row_draws
from pyro_lvm.training.callbacks import Callback
from pyro_lvm.training.data import as_arguments
from pyro_lvm.training.fingerprint import remember
from pyro_lvm.training.options import SEEDS, check_options, choose_device, choose_seed, list_of_callbacks
from pyro_lvm.training.result import Fit
from pyro_lvm.training.scope import in_turn
from pyro_lvm.training.start import start
from pyro_lvm.training.train import SVI_STEPS, train

__all__ = ["greedy_pretrain"]

LEAST_EPOCHS = 30


@in_turn
def greedy_pretrain(
    model: Any,
    data: Any,
    guide: Any = None,
    inference: Any = None,
    *,
    machine_inference: Any = None,
    below: Fit | None = None,
    max_epochs: int | None = None,
    batch_size: int = 100,
    seed: int | None = None,
    device: str | torch.device = "auto",
    callbacks: Callback | Sequence[Callback] = (),
    progress: bool = True,
) -> Fit:
    """Learn a deep belief net layer by layer.

    The first machine learns the rows, the next draws of its hidden units given the rows, and so on. All but the last
    become directed layers, their weights those of the guide too. A machine with as many hidden units as the one below
    has visible ones starts as that one upside down, and so with its bound. What comes out is ready to be fine-tuned:

        fit = lvm.greedy_pretrain(lvm.models.DeepBeliefNet((500, 500, 2000)), x)
        fit.resume(x, max_epochs=30, batch_size=100)

    Args:
        model: A `DeepBeliefNet`, or another model with its `machine`, `prepare` and `place`; it is copied.
        data: Rows of zeros and ones, shape (n, d), as for `lvm.fit`.
        guide: As for `lvm.fit`; a guide of one's own needs the method `place` of `RecognitionNet`.
        inference: What `resume` fine-tunes by, as for `lvm.fit`; by default "up-down".
        machine_inference: What each machine is trained by, a name or an object; by default the catalog's.
        below: A pretrained net of fewer layers, or a trained `RBM`, whose layers are taken over.
        max_epochs: Passes over the rows for each machine; by default 30, or of few rows as many as take 2000 steps: in
            fewer the units of a machine are still alike.
        batch_size: Rows per step.
        seed: Makes the run reproducible; by default drawn from torch's generator.
        device: As for `lvm.fit`.
        callbacks: Functions, or one, called with the run after every epoch of each machine; one that returns True
            ends the training of that machine.
        progress: Show a progress bar for each machine if someone is watching.

    Returns:
        A fit of the whole net. After Ctrl-C, machines that were not reached are as they started; its `stopped` says
        which one was being trained.

    Raises:
        TypeError: The model is not made of machines.
        ValueError: Data, model and options do not fit together.

    References:
        G. Hinton, S. Osindero, Y.-W. Teh (2006), A fast learning algorithm for deep belief nets, section 5.

    Example:
        >>> import pyro_lvm as lvm
        >>> x = (lvm.datasets.load("digits234").x > 0.5).float()
        >>> fit = lvm.greedy_pretrain(lvm.models.DeepBeliefNet((8, 4)), x, max_epochs=2, seed=0, progress=False)
        >>> len(fit.resume(x, max_epochs=2, progress=False).history["loss"])
        2
    """
    check_options(model, 1, max_epochs, batch_size, None, None, None)
    if not hasattr(model, "machine"):
        raise TypeError(
            f"greedy_pretrain: expected a model made of machines, as DeepBeliefNet; got {type(model).__name__}. "
            "Use lvm.fit."
        )
    where, seed = choose_device(device, data, model), choose_seed(seed)
    rows = as_arguments(data, model, where)
    net = start(model, guide, inference, rows, seed, where, 0, 1)
    if not hasattr(net.guide, "place"):
        raise TypeError(
            f"greedy_pretrain: expected a guide that takes machines, as RecognitionNet; got {type(net.guide).__name__}."
        )
    for _ in remember(net, [rows]):
        pass
    max_epochs = max_epochs or max(LEAST_EPOCHS, math.ceil(SVI_STEPS / rows.num_batches(batch_size)))
    count = len(cast(Any, net.model).hidden)
    first = 0 if below is None else _take_over(net, below)
    previous = None if below is None else getattr(below.model, "top", below.model)
    net.stopped = "pretrained"
    try:
        for level in range(first, count):
            with torch.random.fork_rng():
                torch.manual_seed((seed + level) % SEEDS)
                drawn = row_draws(net, net.guide, rows)[f"h{level}"] if level else rows.main
            machine = cast(Any, net.model).machine(level)
            units = as_arguments(drawn, machine)
            part = start(machine, None, machine_inference, units, (seed + level) % SEEDS, where, 0, 1)
            if previous is not None:
                cast(Any, net.model).prepare(part.model, previous)
            train(
                part,
                units,
                None,
                max_epochs=max_epochs,
                batch_size=batch_size,
                tol=None,
                patience=None,
                callbacks=list_of_callbacks(callbacks),
                progress=progress,
                label=f"layer {level + 1}/{count}",
            )
            previous = part.model
            _place(net, level, previous)
            if part.stopped == "interrupted":
                raise KeyboardInterrupt
    except KeyboardInterrupt:  # also while the units of a layer are drawn
        net.stopped = f"interrupted in layer {level + 1} of {count}"
    return net


def _place(net: Fit, level: int, machine: Any) -> None:
    for program in cast(Any, (net.model, net.guide)):
        program.place(level, machine)


def _take_over(net: Fit, below: Fit) -> int:
    """Copy the layers of a net of fewer layers, or of one machine; how many they are.

    Raises:
        ValueError: The layers are not the net's lowest.
    """
    model, lower = cast(Any, net.model), cast(Any, getattr(below, "model", below))
    machine = getattr(lower, "top", lower)
    if type(machine) is not type(model.machine(0)):
        raise ValueError(
            "greedy_pretrain: expected below to be a fit of a net of fewer layers, or of a "
            f"{type(model.machine(0)).__name__}; got {type(machine).__name__}."
        )
    found = getattr(lower, "hidden", (getattr(lower, "num_hidden", 0),))
    columns = getattr(lower, "data_dim", getattr(lower, "num_visible", None))
    if columns != model.data_dim or found != model.hidden[:-1][: len(found)]:
        raise ValueError(
            f"greedy_pretrain: expected below to have {model.data_dim} columns and the lowest of the hidden layers "
            f"{model.hidden}, but not all; got {columns} columns and layers {found}. Pass hidden={(*found, 500)}."
        )
    for ours, theirs in ((net.model, lower), (net.guide, below.guide)):
        for name in ("decoder", "recognition"):
            for one, other in zip(getattr(ours, name, ()), getattr(theirs, name, ()), strict=False):
                one.load_state_dict(other.state_dict())
    _place(net, len(found) - 1, machine)
    return len(found)
