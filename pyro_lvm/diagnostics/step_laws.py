r"""What laws with normal states say of steps of sequences, averaged over draws of the parameters.

.. math::

    \mathrm{V}[x_t] = \mathrm{E}_\theta \mathrm{V}[x_t \mid \theta] + \mathrm{V}_\theta \mathrm{E}[x_t \mid \theta]
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from pyro_lvm.diagnostics.inner_latents import laws_of
from pyro_lvm.diagnostics.latents import thinned
from pyro_lvm.training.arguments import Arguments

if TYPE_CHECKING:
    from pyro_lvm.distributions.linear_gaussian_chain import StepLaw
    from pyro_lvm.training.result import Fit

__all__ = ["has_step_law", "steps_at"]


def has_step_law(fit: Fit, arguments: Arguments) -> bool:
    """Whether a site of a fit's program observes sequences by a law with normal states."""
    return any(hasattr(law, "steps_at") for _, law, _ in laws_of(fit, arguments, thinned(fit, 1)[0]))


def steps_at(
    fit: Fit, arguments: Arguments, place: Tensor, draws: Sequence[dict[str, Tensor]], count: int = 0
) -> StepLaw:
    """What steps of sequences are expected to be given all that is known, by a law with normal states.

    Args:
        fit: A fit.
        arguments: Sequences.
        place: Which steps of each, shape (n, m).
        draws: Values of all continuous latent sites; an empty dict at a point.
        count: Number of draws of the steps.

    Raises:
        ValueError: There is no such law of the sequences as they are given.
    """
    times, found = -(-count // len(draws)), []
    for given in draws:
        laws = [(law, value) for _, law, value in laws_of(fit, arguments, given) if hasattr(law, "steps_at")]
        if len(laws) != 1 or laws[0][1].reshape(-1).shape != arguments.main.reshape(-1).shape:
            got = ", ".join(str(tuple(value.shape)) for _, value in laws) or "none"
            raise ValueError(
                f"forecast: expected one site that observes sequences of shape {tuple(arguments.main.shape)} as they "
                f"are; got {got}. Use a model that observes the columns themselves."
            )
        found.append(laws[0][0].steps_at(laws[0][1], place, times))
    if len(found) == 1:
        return found[0]
    law = type(found[0])
    tables = {name: torch.stack([getattr(one, name) for one in found]) for name in law._fields}
    means = {name: table.mean(0) for name, table in tables.items()}
    around = {name: tables[name] - means[name] for name in ("states", "mean")}
    spread = {n: (t.unsqueeze(-1) * t.unsqueeze(-2)).mean(0) for n, t in around.items()}
    means["state_covariance"] += spread["states"]
    means["level_covariance"] += spread["mean"]
    means["covariance"] += spread["mean"]
    drawn = {name: tables[name].transpose(0, 1).flatten(0, 1)[:count] for name in ("samples", "paths")}
    return law(**{**means, **drawn})
