r"""Categorical probabilities from stick-breaking fractions: the mixing law of a truncated Dirichlet process.

.. math:: \pi_k = v_k \prod_{j < k} (1 - v_j), \quad k < T; \qquad \pi_T = \prod_{j < T} (1 - v_j)
"""

from __future__ import annotations

from typing import Any

import torch
from pyro.distributions import Categorical
from torch import Tensor
from torch.distributions import constraints

__all__ = ["StickBreaking"]


class StickBreaking(Categorical):
    """A categorical law whose parameters are the fractions broken off a stick, one after another.

    Args:
        fractions: In (0, 1), shape batch + (T - 1,); the last of the T states takes what is left.

    References:
        J. Sethuraman (1994), A constructive definition of Dirichlet priors, Statistica Sinica 4.
        H. Ishwaran, L. James (2001), Gibbs sampling methods for stick-breaking priors, JASA 96, equation 4.

    Example:
        >>> import torch
        >>> from pyro_lvm.distributions import StickBreaking
        >>> StickBreaking(torch.tensor([0.5, 0.5])).probs
        tensor([0.5000, 0.2500, 0.2500])
    """

    arg_constraints = {"fractions": constraints.independent(constraints.unit_interval, 1)}  # noqa: RUF012

    def __init__(self, fractions: Tensor, validate_args: bool | None = None) -> None:
        self.fractions = fractions
        tiny = torch.finfo(fractions.dtype).tiny
        left = torch.log1p(-fractions).clamp_min(2 * torch.log(torch.tensor(tiny)).item())
        logits = torch.nn.functional.pad(fractions.clamp_min(tiny).log(), (0, 1))
        logits = logits + torch.nn.functional.pad(left.cumsum(-1), (1, 0))
        super().__init__(logits=logits, validate_args=False)
        self._validate_args = (
            torch.distributions.Distribution._validate_args if validate_args is None else validate_args
        )

    def expand(self, batch_shape: Any, _instance: Any = None) -> StickBreaking:
        """The same law over a larger batch."""
        batch = torch.Size(batch_shape)
        return StickBreaking(self.fractions.expand(*batch, self.fractions.shape[-1]), validate_args=False)
