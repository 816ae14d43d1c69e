r"""A normal posterior for every row, with parameters of its own: no network, and one optimisation for each row.

.. math::

    q(z_n) = \mathrm{Normal}(\mu_n, \mathrm{diag}(\sigma_n)^2), \qquad
    (\mu_n, \sigma_n) \approx \arg\max \mathrm{E}_q[\log p(x_n, z_n) - \log q(z_n)]

for all continuous latent sites of a row together, in unconstrained space.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from pyro import poutine
from torch import Tensor

from pyro_lvm.guides.normal import AutoNormal
from pyro_lvm.guides.row_search import climb
from pyro_lvm.guides.row_sites import RowSites, Settled
from pyro_lvm.handlers.rows import rows, rows_at_hand
from pyro_lvm.ops.real_number import real_number
from pyro_lvm.ops.whole_number import whole_number

__all__ = ["LocalGaussian"]

ORDERED, FAR = 4096, 5.0  # draws that show the bulk of a prior, and how many of its widths away others count as
PRIOR_DRAWS = 100  # of all rows together, whose moments are where a search starts


class LocalGaussian(torch.nn.Module):
    r"""Mean and standard deviation of every row of the data, found by search, with all else fixed.

    Every call in training first improves the laws of the rows at hand by `num_steps` steps of the search in
    `row_search`, starting where these rows' last visit ended, and then draws from them: the step that follows moves the
    model alone. Rows that are not of the training data are searched for afresh, by `num_new_steps`, from the moments
    of the prior; so are all rows that come without their numbers, as a stream's.

    It works with any program whose rows have continuous latent sites, and with every objective. Discrete sites of rows
    are summed out. Continuous sites that rows share get an independent normal law, as in `AutoNormal`, which the
    optimizer moves. Sites are independent of each other.

    `lvm.fit` tells the guide which rows a step holds. In Pyro's own SVI pass `num_rows` if every step has all rows in
    one order, else open `lvm.handlers.rows(index, total)` around the step, or let the program's plate subsample.

    Args:
        model: Any Pyro program.
        num_steps: Steps of the search in every visit to a row, >= 1.
        num_new_steps: Steps for a new row, >= 1.
        step_size: In (0, 1].
        num_rows: Rows of the training data; by default what `handlers.rows` says.

    Raises:
        ValueError: An argument is out of range, or the model has no continuous latent site of rows.

    References:
        M. Hoffman, D. Blei, C. Wang, J. Paisley (2013), Stochastic variational inference, JMLR 14, figure 4.
        R. Krishnan, D. Liang, M. Hoffman (2018), On the challenges of learning with inference networks on sparse,
            high-dimensional data, AISTATS.

    Example:
        >>> import pyro_lvm as lvm
        >>> x = lvm.datasets.load("digits234").x
        >>> model = lvm.models.VAE(2, hidden=[16])
        >>> fit = lvm.fit(model, x, guide="local", batch_size=100, max_epochs=2, seed=0, progress=False)
        >>> fit.transform(x[:5]).shape
        torch.Size([5, 2])
    """

    _model: Callable
    shared: AutoNormal
    start: Tensor
    table: Tensor

    # No `PyroModule`: inside of one, `pyro.param` of a model that is a function would be another module's parameter.

    def __init__(
        self,
        model: Callable,
        num_steps: int = 10,
        num_new_steps: int = 100,
        step_size: float = 0.4,
        num_rows: int | None = None,
    ) -> None:
        super().__init__()
        self.__dict__["_model"] = model  # no part of this module: its parameters are not the guide's
        self.num_steps = whole_number("LocalGaussian", "num_steps", num_steps)
        self.num_new_steps = whole_number("LocalGaussian", "num_new_steps", num_new_steps)
        self.step_size = real_number("LocalGaussian", "step_size", step_size, "in (0, 1]")
        self.num_rows = None if num_rows is None else whole_number("LocalGaussian", "num_rows", num_rows)

    @property
    def config(self) -> dict[str, Any]:
        """The constructor's arguments but for the model."""
        return {name: getattr(self, name) for name in ("num_steps", "num_new_steps", "step_size", "num_rows")}

    def forward(self, *args: Any, **kwargs: Any) -> dict[str, Tensor]:
        """Draw every continuous site.

        Args:
            args: The arguments of the model.
            kwargs: Its keyword arguments.

        Returns:
            Values by site.

        Raises:
            ValueError: The rows are of another data set than the guide's.
        """
        sites, shared = self._sites(args, kwargs)
        return {**shared, **sites.draw(self._place(sites))}

    def settle(self, *args: Any, **kwargs: Any) -> Settled:
        """A guide for these rows alone, found as new ones and not searched for again.

        Args:
            args: The arguments of the model.
            kwargs: Its keyword arguments.
        """
        with torch.no_grad(), poutine.block(hide_types=["sample", "param"]), rows():
            sites, shared = self._sites(args, kwargs)
            place = self._place(sites)
        return Settled(self.shared if shared else None, sites, place)

    def _sites(self, args: tuple, kwargs: dict[str, Any]) -> tuple[RowSites, dict[str, Tensor]]:
        """The sites of these rows, given a draw of those that rows share."""
        sites = RowSites("LocalGaussian", self._model, args, kwargs)
        if not sites.shared:
            return sites, {}
        if not hasattr(self, "shared"):
            own = poutine.block(self._model, hide=[site.name for site in sites.sites])
            self.shared = AutoNormal(own, getattr(self._model, "initial_values", None))
        shared = self.shared(*args, **kwargs)
        given = {name: shared[name].detach() for name in sites.shared}
        return RowSites("LocalGaussian", self._model, args, kwargs, given), shared

    def _place(self, sites: RowSites) -> Tensor:
        """Means and log standard deviations of the rows at hand, (n, 2k), improved where that is asked for."""
        hand = rows_at_hand()
        if hand is not None and not hand.search:
            if self.num_rows is not None:
                self._hold(self.num_rows, sites)
            return self._start(sites)
        index, total = sites.index, sites.total
        if index is None and hand is not None and hand.total is not None:
            index, total = hand.index, hand.total
        elif index is None and hand is None and sites.num_rows == self.num_rows:
            index, total = torch.arange(total, device=sites.drawn.device), total
        if index is None:
            return self._climb(sites, self._start(sites), self.num_new_steps, landing=True)
        self._hold(total, sites)
        place = self.table[index]
        if torch.is_grad_enabled():
            place = self._climb(sites, place, self.num_steps)
            self.table[index] = place
        return place

    def _climb(self, sites: RowSites, place: Tensor, num_steps: int, landing: bool = False) -> Tensor:
        return climb(sites.log_joint, place, num_steps, self.step_size, weight=sites.weight, landing=landing)

    def _start(self, sites: RowSites) -> Tensor:
        """Where new rows start: the moments of the prior when training began, or now."""
        start = self.start if hasattr(self, "start") else _prior_moments(sites)
        return start.expand(sites.num_rows, -1)

    def _hold(self, total: int, sites: RowSites) -> None:
        """Make room for all rows before the first step."""
        if self.num_rows not in (None, total):
            raise ValueError(
                f"LocalGaussian: expected the {self.num_rows} rows whose laws it holds; got a data set of {total}. "
                "Fit them anew."
            )
        if not hasattr(self, "table"):
            self.num_rows = total
            self.register_buffer("start", _prior_moments(sites))
            self.register_buffer("table", self.start.repeat(total, 1))


def _prior_moments(sites: RowSites) -> Tensor:
    """Mean and log standard deviation of each latent variable over rows, shape (2k,)."""
    draws = [sites.drawn]
    with torch.no_grad():
        for _ in range(math.ceil(PRIOR_DRAWS / sites.num_rows) - 1):
            draws.append(sites.again().drawn)
    table = torch.cat(draws)
    table = torch.where(table.isfinite(), table, torch.nan)  # a draw may be rounded to the end of its support
    ordered = table[:ORDERED].sort(0).values
    low, middle, high = (ordered[int(part * (len(ordered) - 1))] for part in (0.16, 0.5, 0.84))
    reach = torch.where(high > low, FAR * (high - low), torch.inf)
    table = table.clamp(
        middle.nan_to_num() - reach, middle.nan_to_num() + reach
    )  # draws of laws without moments are where no row is
    mean = table.nanmean(0).nan_to_num()
    scale = (table - mean).square().nanmean(0).sqrt().nan_to_num()
    return torch.cat([mean, torch.where(scale > 0, scale, 1.0).log()])
