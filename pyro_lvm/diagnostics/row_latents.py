"""Sites that a guide draws for every row: posterior means and draws."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from pyro_lvm import _pyro
from pyro_lvm.handlers.rows import settled
from pyro_lvm.ops.threads import fitting_threads
from pyro_lvm.training.data import Arguments

if TYPE_CHECKING:
    from pyro_lvm.training.result import Fit

__all__ = ["row_draws", "row_guide", "row_means"]

MEAN_DRAWS = 200  # where a mean is not known: an error of a fourteenth of the posterior's standard deviation


def row_means(fit: Fit, arguments: Arguments) -> dict[str, Tensor]:
    """The guide's mean of every site of rows, shape (n, ...); of zeros and ones the probabilities.

    Given what the guide drew before it, a site's mean is mostly known: that is averaged over runs, and exact if it does
    not move from run to run. Sites whose laws do not tell their means are averaged themselves.

    Args:
        fit: A fit whose guide draws sites of rows.
        arguments: Converted data.

    Raises:
        ValueError: The guide needs other arguments.
    """
    total: dict[str, Tensor] = {}
    with torch.random.fork_rng():
        torch.manual_seed(fit.seed)
        guide = row_guide(fit, arguments)
        for count in range(1, MEAN_DRAWS + 1):
            means = {name: _mean(site) for name, site in _run(fit, guide, arguments).items()}
            if count == 2 and all(torch.equal(mean, total[name]) for name, mean in means.items()):
                return means
            total = {name: total[name] + mean if name in total else mean for name, mean in means.items()}
    return {name: values / MEAN_DRAWS for name, values in total.items()}


def row_guide(fit: Fit, arguments: Arguments) -> Callable | None:
    """The guide, having searched for the laws of these rows if it is one that does."""
    arguments = arguments.unweighted()  # what a row is does not depend on how often it counts
    with fit.scope(), torch.no_grad(), _pyro.validation(False), fitting_threads(arguments.main.numel()):
        return fit.guide and settled(fit.guide, arguments.args, arguments.kwargs)


def row_draws(fit: Fit, guide: Callable | None, arguments: Arguments) -> dict[str, Tensor]:
    """One draw of every site of rows, shape (n, ...), by the random state there is; `guide` is from `row_guide`."""
    return {name: site["value"] for name, site in _run(fit, guide, arguments).items()}


def _run(fit: Fit, guide: Callable | None, arguments: Arguments) -> dict[str, Any]:
    if guide is None:
        return {}
    arguments = arguments.unweighted()
    with fit.scope(), torch.no_grad(), _pyro.validation(False), fitting_threads(arguments.main.numel()):
        trace = _pyro.plain_trace(guide, arguments.args, arguments.kwargs)
    return {name: trace.nodes[name] for name in fit.guide_sites[1]}


def _mean(site: Any) -> Tensor:
    try:
        return site["fn"].mean.expand(site["value"].shape)
    except NotImplementedError:
        return site["value"].to(torch.get_default_dtype()) if not site["value"].is_floating_point() else site["value"]
