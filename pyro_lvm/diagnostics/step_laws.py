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

__all__ = ["normal_states", "steps_at"]


def normal_states(fit: Fit, arguments: Arguments) -> bool:
    """Whether a site of a fit's program observes sequences by a law with normal states."""
    return any(hasattr(law, "steps_at") for _, law, _ in laws_of(fit, arguments, thinned(fit, 1)[0]))


def steps_at(
    fit: Fit, arguments: Arguments, place: Tensor, draws: Sequence[dict[str, Tensor]], count: int = 0
) -> StepLaw:
    """What steps of sequences are expected to be given all that is known, by the first law with normal states.

    Args:
        fit: A fit.
        arguments: Sequences.
        place: Which steps of each, shape (n, m).
        draws: Values of all continuous latent sites; an empty dict at a point.
        count: Number of draws of the steps.
    """
    times, found = -(-count // len(draws)), []
    for given in draws:
        law, value = next((law, v) for _, law, v in laws_of(fit, arguments, given) if hasattr(law, "steps_at"))
        found.append(law.steps_at(value, place, times))
    if len(found) == 1:
        return found[0]
    tables = {name: torch.stack([getattr(one, name) for one in found]) for name in found[0]._fields}
    means = {name: table.mean(0) for name, table in tables.items()}
    around = {name: tables[name] - means[name] for name in ("states", "mean")}
    spread = {n: (t.unsqueeze(-1) * t.unsqueeze(-2)).mean(0) for n, t in around.items()}
    means["state_covariance"] += spread["states"]
    means["level_covariance"] += spread["mean"]
    means["covariance"] += spread["mean"]
    drawn = {name: tables[name].transpose(0, 1).flatten(0, 1)[:count] for name in ("samples", "paths")}
    return type(found[0])(**{**means, **drawn})
