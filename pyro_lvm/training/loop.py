"""The way of a batch: enter the fit's scope, hand batches to the inference, write the loss down."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from pyro_lvm import _pyro
from pyro_lvm.handlers.minibatch import minibatch
from pyro_lvm.handlers.rows import rows
from pyro_lvm.infer.nonfinite import NonFiniteLoss
from pyro_lvm.protocols import Inference
from pyro_lvm.training.callbacks import Callback
from pyro_lvm.training.data import Arguments
from pyro_lvm.training.fingerprint import remember
from pyro_lvm.training.interruption import Interruption, Unfinished
from pyro_lvm.training.last_good import LastGood
from pyro_lvm.training.scope import Scope
from pyro_lvm.training.stream import Stream

if TYPE_CHECKING:
    from pyro_lvm.training.result import Fit

__all__ = ["Run"]


@dataclass
class Run:
    """A training run in progress: what callbacks see.

    Attributes:
        data: All rows, or a stream of batches.
        history: Loss of every epoch so far, in nats over all rows; the run may have been resumed.
        epochs_done: Epochs since this call.
        converged: Set by whoever stops the run because nothing improves any more.
        stopped: Why the run ended.
    """

    inference: Inference
    data: Arguments | Stream
    scope: Scope
    result: Callable[[], Fit]
    validation: Arguments | None = None
    batch_size: int | None = None
    plate: str = "data"
    history: dict[str, list[float]] = field(default_factory=lambda: {"loss": []})
    epochs_done: int = 0
    converged: bool = False
    stopped: str = ""
    _broken: bool = field(default=False, repr=False)
    _interruption: Interruption = field(default_factory=Interruption, repr=False)

    def train(self, max_epochs: int, callbacks: Sequence[Callback]) -> None:
        """Run epochs until a callback stops them, the limit is reached, or the user interrupts.

        An epoch that was interrupted is finished first, and counts as one.
        """
        ranks = getattr(self.inference, "loss_ranks", True)
        best = _Best(self) if self.validation is not None and ranks else None
        # A full pass of EM or coordinate ascent watches over itself.
        good = None if getattr(self.inference, "full_batch", True) else LastGood(self.result())
        release = getattr(self.inference, "release", lambda: None)
        try:
            with self._interruption:
                self._epochs(max_epochs, callbacks, good, best)
        except KeyboardInterrupt:
            self.stopped = "interrupted"
        except NonFiniteLoss as error:
            if not self.history["loss"]:
                if good is not None:
                    good.restore(broken=True)
                raise
            self._broke_down(f"stopped at epoch {len(self.history['loss']) + 1}: {error}")
        finally:
            release()
        if good is not None and good.restore(self._broken) and not self._broken:
            self._broke_down(f"stopped after epoch {len(self.history['loss'])}: parameters became infinite or NaN.")
        if best is not None:
            best.restore()

    def _epochs(
        self, max_epochs: int, callbacks: Sequence[Callback], good: LastGood | None, best: _Best | None
    ) -> None:
        for _ in range(max_epochs):
            steps = self._epoch()
            self.epochs_done += 1
            if self.epochs_done == 1 and hasattr(self.inference, "expect_steps"):  # a stream's length is known now
                self.inference.expect_steps(steps * (max_epochs - 1))
            if good is not None:
                good.after(steps)
            if best is not None:
                best.update()
            if any([callback(self) for callback in callbacks]):  # noqa: C419 - every callback must be called
                self.stopped = "converged" if self.converged else "stopped by a callback"
                return
            self._interruption.check()
        self.stopped = "reached max_epochs"

    def _broke_down(self, how: str) -> None:
        self.stopped, self.converged, self._broken = how, False, True
        warnings.warn(
            f"fit: {how} The last good state is kept; try a smaller learning rate or rescale the data.",
            RuntimeWarning,
            stacklevel=5,
        )

    def _epoch(self) -> int:
        """One pass over the data; the number of steps."""
        epoch = self._resumed()
        done, losses, counts = len(epoch.losses), epoch.losses, epoch.counts
        total = self._total()
        largest = 0
        steps = self.data.num_batches(self.batch_size) if isinstance(self.data, Arguments) else None
        reached = torch.get_rng_state()
        torch.set_rng_state(epoch.rng_state)
        batches = self.data.batches(self.batch_size)
        counting = self._counting(total)
        # Entered once an epoch, as they take longer than the step of a small model.
        with _pyro.validation(False), counting or nullcontext(), self.scope.learning():
            for i, batch in enumerate(batches if self.epochs_done else remember(self.result(), batches)):
                first = not self.epochs_done and i == done
                if counting and batch.num_rows > largest:
                    largest = batch.num_rows
                    if self.data.num_rows is None:  # epochs may differ
                        counting.total = max(counting.total, largest)
                    counting.batch_size = self._expected_rows(largest, counting.total)
                if i < done:
                    if i == done - 1:
                        torch.set_rng_state(reached)
                    continue
                with _pyro.validation(True) if first else nullcontext(), rows(self._index(batch), total):
                    loss = self.inference.step(*batch.args, **batch.kwargs)
                if not math.isfinite(loss):
                    raise NonFiniteLoss(f"the loss became {loss}.")
                losses.append(loss)
                counts.append(batch.num_rows)
                if self._interruption.asked and len(losses) != steps:
                    self.result().unfinished = epoch
                    raise KeyboardInterrupt
        if getattr(self.inference, "full_batch", False):
            getattr(self.inference.model, "canonicalise", lambda: None)()
        unknown = isinstance(self.data, Stream) and self.data.rows_per_batch is None
        self.result().last_epoch = (len(counts), sum(counts)) if unknown else (0, 0)
        self.history["loss"].append(sum(losses) / (1 if total is None else len(losses)))
        if self.validation is not None:
            score: Callable[..., float] = getattr(self.inference, "held_out_loss", None) or self.inference.loss
            with rows():
                value = score(*self.validation.args, **self.validation.kwargs)
            self.history.setdefault("validation_loss", []).append(value)
        return len(losses)

    def _resumed(self) -> Unfinished:
        """The epoch that was interrupted, or a new one."""
        begun, self.result().unfinished = self.result().unfinished, None
        return begun or Unfinished(torch.get_rng_state(), self.batch_size, self.data.num_rows)

    def _total(self) -> int | None:
        """Rows of an epoch; of a stream that does not tell, as many as it gave in the last one.

        Averages over batches do not depend on it, and must not see batches of two epochs count differently.
        """
        known = self.data.num_rows
        averaged = getattr(self.inference, "decay", None) is not None
        return known if known is not None or averaged else self.result().last_epoch[1] or None

    def _counting(self, total: int | None) -> minibatch | None:
        """A context that lets batches count for all rows, where their number is known and a batch may hold fewer."""
        whole = isinstance(self.data, Arguments) and (self.batch_size is None or self.batch_size >= self.data.num_rows)
        return None if total is None or whole else minibatch(total=total, plate=self.plate)

    def _expected_rows(self, largest: int, total: int) -> float:
        """Rows of a batch on average over an epoch.

        Of a stream that only its last epoch can tell, as many as then; in its first one, as if all but the last were as
        large as the largest so far.
        """
        if isinstance(self.data, Arguments):
            return total / self.data.num_batches(self.batch_size)
        steps, rows = self.result().last_epoch
        known = self.data.rows_per_batch or (rows / steps if steps else None)
        return known or total / math.ceil(total / largest)

    def _index(self, batch: Arguments) -> Tensor | None:
        """Which rows a batch holds; a stream's come without numbers."""
        if batch.index is None and isinstance(self.data, Arguments):
            return torch.arange(batch.num_rows, device=batch.main.device)
        return batch.index


class _Best:
    """The parameters at the lowest validation loss."""

    def __init__(self, run: Run) -> None:
        self.run = run
        self.loss = math.inf
        self.values: dict[str, torch.Tensor] = {}

    def update(self) -> None:
        loss = self.run.history["validation_loss"][-1]
        if loss < self.loss:
            self.loss = loss
            self.values = {name: tensor.detach().clone() for name, tensor in self.run.result().tensors().items()}

    def restore(self) -> None:
        tensors = self.run.result().tensors()
        for name, value in self.values.items():
            tensors[name].data.copy_(value)
