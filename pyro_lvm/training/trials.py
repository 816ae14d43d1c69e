"""Where EM starts a model whose start is drawn at random: several draws, a few steps from each, the best one.

References:
    C. Biernacki, G. Celeux, G. Govaert (2003), Choosing starting values for the EM algorithm for getting the highest
        likelihood in multivariate Gaussian mixture models, Computational Statistics and Data Analysis 41.
"""

from __future__ import annotations

import copy
import math
import warnings
from collections.abc import Callable

import torch

from pyro_lvm import _pyro
from pyro_lvm.infer.em import EM
from pyro_lvm.infer.nonfinite import NonFiniteLoss
from pyro_lvm.ops.threads import fitting_threads
from pyro_lvm.protocols import Model
from pyro_lvm.training.data import Arguments

__all__ = ["choose_start"]

STARTS, STEPS, ROWS = 5, 10, 4096


def choose_start(model: Model, initialize: Callable[[], None], em: EM, arguments: Arguments) -> None:
    """Leave the model at the best of several random starts, and torch's generator where that start left it.

    Args:
        model: A model at its first start.
        initialize: Draws a start anew.
        em: Untrained; it is copied.
        arguments: The rows; of more than 4096, or of sequences of more steps, the model stays at its first draw.
    """
    rows = arguments.num_rows if arguments.layout is None else arguments.main.shape[:2].numel()
    if rows > ROWS:
        return  # drawing costs more than many steps
    before = torch.get_rng_state()
    initialize()
    if torch.equal(before, torch.get_rng_state()):
        return  # nothing is drawn
    states, losses = [], []
    for _ in range(STARTS):
        states.append(torch.get_rng_state())
        initialize()
        with torch.random.fork_rng():
            losses.append(_loss_after_steps(model, em, arguments))
    torch.set_rng_state(states[losses.index(min(losses))])
    initialize()


def _loss_after_steps(model: Model, em: EM, rows: Arguments) -> float:
    trial = copy.deepcopy(em, {id(model): model})
    with warnings.catch_warnings(), _pyro.validation(False), fitting_threads(rows.main.numel()):
        warnings.simplefilter("ignore")
        try:
            for _ in range(STEPS):
                trial.step(*rows.args, **rows.kwargs)
            loss = trial.loss(*rows.args, **rows.kwargs)
        except NonFiniteLoss:
            return torch.inf
    return torch.inf if math.isnan(loss) else loss
