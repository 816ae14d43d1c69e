r"""Closed forms of the Dirichlet and Beta families: concentrations from mean logarithms.

.. math:: \psi(a_j) - \psi(\textstyle\sum_i a_i) = \frac{\sum_n w_n \log x_{nj}}{\sum_n w_n}

Both concentrations of a Beta law are solved for together where they have parameters with the same blocks; else each
takes a Newton step in 1 / a given the other, in which its equation is nearly linear, until nothing moves.

References:
    T. Minka (2000), Estimating a Dirichlet distribution, section 1.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from pyro_lvm.infer.m_step import Argument, ExponentialFamily, Joint, Reference, Statistics, View, closed_form_of
from pyro_lvm.ops.cells import compact
from pyro_lvm.ops.special import LARGEST_CONCENTRATION, dirichlet_concentration

__all__: list[str] = []


def _finite_log(value: Tensor) -> Tensor:
    return value.clamp_min(torch.finfo(value.dtype).tiny).log()


@closed_form_of(torch.distributions.Dirichlet)
class _Dirichlet(ExponentialFamily):
    arguments = (
        Argument(
            "concentration",
            lambda fn: compact(fn.concentration, 1),
            lambda s, now: (s["sum_0"], s["total"]),
            lambda logs, total: dirichlet_concentration(logs / total.unsqueeze(-1)),
            (View("concentration"), View("log concentration", torch.log, torch.exp)),
            event_dim=1,
        ),
    )
    event_dim = 1

    def trailing(self, fn: Any) -> tuple[tuple[int, ...], ...]:
        return (tuple(fn.event_shape),)

    def sufficient(self, value: Tensor, fn: Any, reference: Reference | None) -> tuple[Tensor, ...]:
        return (_finite_log(value),)

    def natural(self, fn: Any, reference: Reference | None) -> tuple[tuple[Tensor, ...], Tensor]:
        a = compact(fn.concentration, 1).double()
        return (a - 1,), torch.lgamma(a).sum(-1) - torch.lgamma(a.sum(-1))


def _newton(logs: str, this: str, other: str) -> Any:
    """Slope and curvature of the likelihood in one concentration; weight, and weight times its current value."""

    def accumulate(s: Statistics, now: dict[str, Tensor]) -> tuple[Tensor, ...]:
        a, b = now[this].double(), now[other].double()
        slope = s[logs] + s["total"] * (torch.digamma(a + b) - torch.digamma(a))
        curvature = s["total"] * (torch.polygamma(1, a) - torch.polygamma(1, a + b))
        return slope, a * curvature, s["total"], s["total"] * a

    return accumulate


def _newton_step(slope: Tensor, curvature: Tensor, total: Tensor, weighted: Tensor) -> Tensor:
    """The current value over 1 - slope / (a curvature), at most ten times as large or as small."""
    return (weighted / total / (1 - slope / curvature).clamp(0.1, 10.0)).clamp_max(LARGEST_CONCENTRATION)


def _jointly(log: Tensor, log_rest: Tensor, total: Tensor) -> tuple[Tensor, Tensor]:
    a, b = dirichlet_concentration(torch.stack([log, log_rest], -1) / total.unsqueeze(-1)).unbind(-1)
    return a, b


def _concentration(name: str, logs: str, other: str) -> Argument:
    views = (View(name), View(f"log {name}", torch.log, torch.exp))
    return Argument(name, lambda fn: compact(getattr(fn, name)), _newton(logs, name, other), _newton_step, views)


@closed_form_of(torch.distributions.Beta)
class _Beta(ExponentialFamily):
    arguments = (
        _concentration("concentration1", "sum_0", "concentration0"),
        _concentration("concentration0", "sum_1", "concentration1"),
    )
    joint = Joint(("concentration1", "concentration0"), lambda s: (s["sum_0"], s["sum_1"], s["total"]), _jointly)
    sweeps = 100

    def trailing(self, fn: Any) -> tuple[tuple[int, ...], ...]:
        return ((), ())

    def sufficient(self, value: Tensor, fn: Any, reference: Reference | None) -> tuple[Tensor, ...]:
        return _finite_log(value), _finite_log(1 - value)

    def natural(self, fn: Any, reference: Reference | None) -> tuple[tuple[Tensor, ...], Tensor]:
        a, b = compact(fn.concentration1).double(), compact(fn.concentration0).double()
        return (a - 1, b - 1), torch.lgamma(a) + torch.lgamma(b) - torch.lgamma(a + b)
