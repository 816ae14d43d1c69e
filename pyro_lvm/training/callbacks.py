"""What happens between epochs: early stopping, checkpoints, the progress bar. Each is a function of the run."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from pyro_lvm.ops.progress import progress_bar

if TYPE_CHECKING:
    from pyro_lvm.training.loop import Run

__all__ = ["Callback", "Checkpoint", "EarlyStopping", "Progress"]

Callback = Callable[["Run"], "bool | None"]
"""Called after every epoch; True ends the training."""


class EarlyStopping:
    """Stop when the mean loss of the last `patience` epochs is no better than that of the `patience` before them.

    Args:
        tol: Smallest relative improvement that counts.
        least: Smallest improvement that counts, nats.
        patience: Length of the two windows, in epochs.
        key: Which history to watch.
    """

    def __init__(self, tol: float, patience: int, key: str = "loss", least: float = 0.0) -> None:
        self.tol, self.least = tol, least
        self.patience = patience
        self.key = key
        self.skipped = 0

    def __call__(self, run: Run) -> bool:
        """Whether to stop."""
        if getattr(run.inference, "loss_may_rise", False):
            self.skipped = len(run.history[self.key])
            return False
        losses = run.history[self.key][self.skipped :]
        w = self.patience
        if len(losses) < 2 * w or run.epochs_done < 2 * w:
            return False
        before, after = sum(losses[-2 * w : -w]) / w, sum(losses[-w:]) / w
        if before - after < max(self.tol * abs(before), self.least):
            run.converged = True
            return True
        return False


class Checkpoint:
    """Save the run to a folder now and then, so that a crash loses little.

    Args:
        folder: Where to save.
        every: Epochs between two saves.
    """

    def __init__(self, folder: str | Path, every: int = 50) -> None:
        self.folder = Path(folder)
        self.every = every

    def __call__(self, run: Run) -> None:
        """Save if it is time."""
        if len(run.history["loss"]) % self.every == 0:
            run.result().save(self.folder)


class Progress:
    """A progress bar with loss and rate; silent where nobody watches."""

    def __init__(self, enabled: bool, total: int, description: str) -> None:
        self.bar = progress_bar(total, description, "epoch", enabled)

    def __call__(self, run: Run) -> None:
        """Advance by one epoch."""
        self.bar.update(1)
        loss = run.history["loss"][-1]
        if math.isfinite(loss):
            self.bar.set_postfix_str(f"loss {loss:.6g}", refresh=False)

    def close(self) -> None:
        """Take the bar off the screen."""
        self.bar.close()
