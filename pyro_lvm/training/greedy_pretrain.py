r"""Greedy pretraining of deep belief nets: one machine after the other, each on the hidden units of the one below.

Learning the law of :math:`h^{(l)}` anew, with all below it kept, raises the bound

.. math:: \log p(x) \ge \mathrm{E}_{q(h \mid x)}\Bigl[\log p(x \mid h^{(1)})
    + \sum_{k < l} \log p(h^{(k)} \mid h^{(k+1)}) + \log p(h^{(l)}) - \log q(h \mid x)\Bigr]

by as much as the new law fits the draws of q better than the machine below did. They are drawn anew for every epoch.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor

from pyro_lvm.diagnostics.row_latents import row_draws
from pyro_lvm.training.callbacks import Callback
from pyro_lvm.training.data import Arguments, as_arguments
from pyro_lvm.training.fingerprint import remember
from pyro_lvm.training.loop import Run
from pyro_lvm.training.options import SEEDS, check_options, choose_device, choose_seed, list_of_callbacks
from pyro_lvm.training.pretraining import Pretraining
from pyro_lvm.training.result import Fit
from pyro_lvm.training.scope import in_turn
from pyro_lvm.training.start import start
from pyro_lvm.training.train import SVI_STEPS, train

__all__ = ["greedy_pretrain", "pretrain"]

LEAST_EPOCHS = 30
EPOCH = 2**10  # between the seeds of two epochs' draws: more than there are layers; of a seed only 32 bits count


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

    The first machine learns the rows, the next draws of its hidden units given the rows, new ones in every epoch, and
    so on. All but the last become directed layers, their weights those of the guide too. A machine with as many hidden
    units as the one below has visible ones starts as that one upside down, and so with its bound. What comes out is
    ready to be fine-tuned:

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
        which one was being trained, and its `resume`, also from a file, trains that one and those above it first.

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
    level = 0 if below is None else _take_over(net, below)
    net.pretraining = Pretraining(max_epochs, batch_size, machine_inference, level, below)
    pretrain(net, rows, list_of_callbacks(callbacks), progress)
    return net


def pretrain(net: Fit, rows: Arguments, callbacks: Sequence[Callback], progress: bool) -> None:
    """Train the machines of a net that are still to be trained, from where its pretraining stands.

    Args:
        net: Its `pretraining` is followed, and None in the end; after Ctrl-C it says where to go on.
        rows: The rows, without known values of sites.
        callbacks: Called after every epoch.
        progress: Show a progress bar for each machine.

    Raises:
        ValueError: A file did not hold what the machines are trained by.
    """
    plan, model = cast(Pretraining, net.pretraining), cast(Any, net.model)
    if isinstance(plan.inference, dict):
        raise ValueError(
            "resume: the layers of this net were pretrained by an inference with parts of your own, which files do not "
            "hold. Call lvm.greedy_pretrain again."
        )
    count = len(model.hidden)
    try:
        while plan.level < count:
            part = _begin(net, plan, rows)
            done = len(part.history["loss"])
            if part.stopped in ("", "interrupted") and done < plan.max_epochs:
                units = as_arguments(_units(net, rows, plan.level, done), part.model)
                train(
                    part,
                    units,
                    None,
                    max_epochs=plan.max_epochs - done,
                    batch_size=plan.batch_size,
                    tol=None,
                    patience=None,
                    callbacks=[*([partial(_redraw, net, rows, plan.level, units)] if plan.level else []), *callbacks],
                    progress=progress,
                    label=f"layer {plan.level + 1}/{count}",
                )
                if part.stopped == "interrupted":
                    _place(net, plan.level, part.model)
                    raise KeyboardInterrupt
            _place(net, plan.level, part.model)
            plan.level, plan.begun = plan.level + 1, False
        net.pretraining, net.stopped = None, "pretrained"
    except KeyboardInterrupt:  # also while the units of a layer are drawn
        net.stopped = f"interrupted in layer {plan.level + 1} of {count}"


def _units(net: Fit, rows: Arguments, level: int, epoch: int) -> Tensor:
    """What a machine learns in an epoch: the rows, or a draw of the hidden units below it given them."""
    if not level:
        return rows.main
    with torch.random.fork_rng():
        torch.manual_seed((net.seed + level + EPOCH * epoch) % SEEDS)
        return row_draws(net, cast(Any, net.guide), rows)[f"h{level}"]


def _redraw(net: Fit, rows: Arguments, level: int, units: Arguments, run: Run) -> None:
    """Draw anew for the next epoch: a machine that saw one draw again and again would learn its noise by heart."""
    units.main.copy_(_units(net, rows, level, len(run.history["loss"])))


def _begin(net: Fit, plan: Pretraining, rows: Arguments) -> Fit:
    """The machine of the layer at hand: as far as it was trained, or at its start."""
    if plan.begun:
        return cast(Fit, plan.machine)
    machine = cast(Any, net.model).machine(plan.level)
    units = as_arguments(_units(net, rows, plan.level, 0), machine)
    part = start(machine, None, plan.inference, units, (net.seed + plan.level) % SEEDS, net.device, 0, 1)
    if plan.machine is not None:
        cast(Any, net.model).prepare(part.model, _top(plan.machine))
    plan.machine, plan.begun = part, True
    return part


def _place(net: Fit, level: int, machine: Any) -> None:
    for program in cast(Any, (net.model, net.guide)):
        program.place(level, machine)


def _top(fit: Any) -> Any:
    """The topmost machine of a net's fit, or the machine of its own."""
    model = getattr(fit, "model", fit)
    return getattr(model, "top", model)


def _take_over(net: Fit, below: Fit) -> int:
    """Copy the layers of a net of fewer layers, or of one machine; how many they are.

    Raises:
        ValueError: The layers are not the net's lowest.
    """
    model, lower = cast(Any, net.model), cast(Any, getattr(below, "model", below))
    machine = _top(below)
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
