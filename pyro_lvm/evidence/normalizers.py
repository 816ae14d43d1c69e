"""Normalizers of the undirected sites of a fit: summed up if small, else estimated once and remembered."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from pyro.poutine.messenger import Messenger

from pyro_lvm import _pyro
from pyro_lvm.distributions.energy import EnergyDistribution
from pyro_lvm.evidence.ais import LogNormalizer, annealed_importance_sampling
from pyro_lvm.handlers.rows import rows

if TYPE_CHECKING:
    from pyro_lvm.training.learned import Learned

__all__ = ["estimate_normalizers", "known_normalizers"]

# A check, not a publication: `annealed_importance_sampling` itself takes fifteen times as many temperatures by default.
CHAINS, TEMPERATURES = 100, 1000


@contextmanager
def known_normalizers(fit: Learned) -> Iterator[dict[str, LogNormalizer]]:
    """Where programs run, the undirected sites too large to be summed up have the fit's estimated normalizers."""
    found = fit.normalizers
    with fit.scope(), _Given(found):
        yield found


def estimate_normalizers(fit: Learned) -> dict[str, LogNormalizer]:
    """Normalizers of sites whose law, one for all rows, neither knows its own nor is small enough to sum up."""
    arguments = fit.prototype()
    with fit.scope(), torch.random.fork_rng(), torch.no_grad(), _pyro.validation(False):
        with rows(search=False), _Laws() as laws:
            fit.program(*arguments.args, **arguments.kwargs)
        torch.manual_seed(fit.seed)
        path = torch.linspace(0, 1, TEMPERATURES, dtype=torch.float64)
        laws_by_site = {name: law.for_annealing() for name, law in laws.found.items()}
        return {name: annealed_importance_sampling(law, CHAINS, path) for name, law in laws_by_site.items()}


class _Laws(Messenger):
    """Collect laws without a normalizer."""

    def __init__(self) -> None:
        super().__init__()
        self.found: dict[str, EnergyDistribution] = {}

    def _pyro_sample(self, msg: Any) -> None:
        law = msg["fn"]
        if not isinstance(law, EnergyDistribution):
            return
        if law.given_log_normalizer is None and not law.is_small and not law.parameter_shape:
            self.found[msg["name"]] = law


class _Given(Messenger):
    def __init__(self, normalizers: dict[str, LogNormalizer]) -> None:
        super().__init__()
        self.normalizers = normalizers

    def _pyro_sample(self, msg: Any) -> None:
        if msg["name"] in self.normalizers and isinstance(msg["fn"], EnergyDistribution):  # the guide's law is another
            msg["fn"] = msg["fn"].with_log_normalizer(self.normalizers[msg["name"]].value)
