"""Where a fit starts a model whose start is drawn at random: several draws, a few steps from each, the best one.

References:
    C. Biernacki, G. Celeux, G. Govaert (2003), Choosing starting values for the EM algorithm for getting the highest
        likelihood in multivariate Gaussian mixture models, Computational Statistics and Data Analysis 41.
"""

from __future__ import annotations

import copy
import math
import warnings
from collections.abc import Callable
from typing import Any

import torch

from pyro_lvm import _pyro
from pyro_lvm.infer.nonfinite import NonFiniteLoss
from pyro_lvm.protocols import Inference, Model
from pyro_lvm.training.data import Arguments

__all__ = ["choose_start"]

STARTS, STEPS, ROWS = 5, 10, 4096

# Losses this close are equal, relative: starts that end alike are not to be told apart by rounding.
ROUNDING = 1e-9


def choose_start(model: Model, initialize: Callable[..., None], inference: Inference, arguments: Arguments) -> None:
    """Leave the model at the best of several random starts, and torch's generator where that start left it.

    Args:
        model: A model at its first start; all that its `starts` asks for is tried, five draws or more together.
        initialize: Draws a start anew.
        inference: Untrained, monotone, for all rows; it is copied.
        arguments: The rows; of more than 4096, or of sequences of more steps, the model stays at its first draw.
    """
    rows = arguments.num_rows if arguments.layout is None else arguments.main.shape[:2].numel()
    if rows > ROWS:
        return  # drawing costs more than many steps
    kinds: tuple[dict[str, Any], ...] = getattr(model, "starts", ({},))
    before = torch.get_rng_state()
    initialize()
    if len(kinds) == 1 and torch.equal(before, torch.get_rng_state()):
        return  # nothing is drawn
    tried: list[tuple[float, torch.Tensor, dict[str, Any]]] = []
    for kind in kinds:
        for _ in range(math.ceil(STARTS / len(kinds))):
            state = torch.get_rng_state()
            initialize(**kind)
            with torch.random.fork_rng():
                tried.append((_loss_after_steps(model, inference, arguments), state, kind))
    least = min(loss for loss, *_ in tried)
    _, state, kind = next(trial for trial in tried if trial[0] <= least + ROUNDING * abs(least))
    torch.set_rng_state(state)
    initialize(**kind)


def _loss_after_steps(model: Model, inference: Inference, rows: Arguments) -> float:
    trial = copy.deepcopy(inference, {id(model): model})
    with warnings.catch_warnings(), _pyro.validation(False):
        warnings.simplefilter("ignore")
        try:
            for _ in range(STEPS):
                trial.step(*rows.args, **rows.kwargs)
            loss = trial.loss(*rows.args, **rows.kwargs)
        except NonFiniteLoss:
            return torch.inf
    return torch.inf if math.isnan(loss) else loss
