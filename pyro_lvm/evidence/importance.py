r"""Log-likelihood of rows by importance weighting, with the guide as proposal.

.. math:: \log p(x_n) \approx \log \frac1S \sum_s \frac{p(x_n, z_{ns})}{q(z_{ns} \mid x_n)}, \qquad z_{ns} \sim q

On average it is too small, and the less so the more samples there are. Rows are independent given the parameters, so a
table in which every row stands S times gives S samples of each at once, to any program whatever shapes it expects.

References:
    Y. Burda, R. Grosse, R. Salakhutdinov (2016), Importance weighted autoencoders, ICLR, equation 8.
    A. Vehtari et al. (2024), Pareto smoothed importance sampling, JMLR 25.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import numpy as np
import torch
from pyro import poutine
from torch import Tensor

from pyro_lvm import _pyro
from pyro_lvm.diagnostics.psis import pareto_k
from pyro_lvm.evidence.exact import Evidence, nesting
from pyro_lvm.handlers.rows import rows, settled
from pyro_lvm.infer.by_row import row_log_likelihood
from pyro_lvm.ops.threads import fitting_threads
from pyro_lvm.ops.whole_number import whole_number

if TYPE_CHECKING:
    from pyro_lvm.training.data import Arguments
    from pyro_lvm.training.result import Fit

__all__ = ["NUM_SAMPLES", "importance_weighted", "log_ratios"]

NUM_SAMPLES = 1000
ENTRIES = 2**22  # of the data in one pass: bounds the memory that networks take
EXACT = 1e-3  # nats: samples that differ by no more than rounding does are of the posterior itself, and have no tail
UNRELIABLE, MANY = 0.7, 0.1  # Pareto shape beyond which a row's error is not to be trusted; share of rows to warn at


def importance_weighted(fit: Fit, arguments: Arguments, num_samples: int = NUM_SAMPLES) -> Evidence:
    """Log-likelihood by row with the guide as proposal; discrete sites that the guide leaves are summed out.

    Args:
        fit: A fit whose guide draws latent sites of every row, and no others.
        arguments: Converted data.
        num_samples: Samples of each row.

    Returns:
        Values in nats with their standard errors by the delta method.

    Raises:
        ValueError: The guide draws sites that rows share, or does not take these rows.
    """
    num_samples = whole_number("evidence", "num_samples", num_samples)
    weights, arguments = arguments.weights, arguments.unweighted()
    values, errors, shapes = [], [], []
    with torch.random.fork_rng():
        torch.manual_seed(fit.seed)
        for table in log_ratios(fit, arguments, num_samples):
            value = table.logsumexp(0) - math.log(num_samples)
            relative = torch.where(value.isinf(), 1.0, (table - value).exp())
            values.append(value)
            errors.append(relative.std(0) / math.sqrt(num_samples) if num_samples > 1 else value * math.nan)
            shapes += [0.0 if np.ptp(column) <= EXACT else pareto_k(column) for column in table.T.cpu().numpy()]
    bad = sum(shape > UNRELIABLE for shape in shapes)
    if bad > MANY * len(shapes):
        warnings.warn(
            f"evidence: {bad} of {len(shapes)} rows have a Pareto k-hat above {UNRELIABLE}, so their values are "
            "unreliable and probably too low. Raise num_samples, or use a richer guide.",
            UserWarning,
            stacklevel=2,
        )
    name = f"importance weighting with {num_samples} samples of the guide"
    return Evidence(torch.cat(values), torch.cat(errors), name, weights)


def log_ratios(fit: Fit, arguments: Arguments, num_samples: int) -> Iterator[Tensor]:
    """Log p(x, z) - log q(z | x) of samples of the guide, nats, (num_samples, m) for m rows after m others, float64."""
    if fit.guide is None:
        raise ValueError(
            "evidence: expected a fit with a guide, to draw samples from; got none. Fit with inference='svi'."
        )
    at_once = max(1, ENTRIES // max(1, arguments.main[0].numel()))
    each = max(1, at_once // num_samples)
    for first in range(0, arguments.num_rows, at_once):
        block = arguments.rows(slice(first, first + at_once))
        with _at_work(fit, block):
            depth = nesting(fit, block)
            guide = settled(fit.guide, block.args, block.kwargs)
        for index in torch.arange(block.num_rows, device=block.main.device).split(each):
            parts = []
            with _at_work(fit, block):
                for start in range(0, num_samples, at_once):
                    copies = index.repeat(min(at_once, num_samples - start))
                    with rows(copies, block.num_rows):
                        parts.append(_one_pass(fit, guide, block.rows(copies), depth).reshape(-1, len(index)))
            yield torch.cat(parts)


@contextmanager
def _at_work(fit: Fit, arguments: Arguments) -> Iterator[None]:
    with fit.scope(), torch.no_grad(), _pyro.validation(False), fitting_threads(arguments.main.numel()):
        yield


def _one_pass(fit: Fit, guide: Callable, arguments: Arguments, depth: int) -> Tensor:
    """One sample of every row."""
    count = arguments.num_rows
    trace = _pyro.plain_trace(guide, arguments.args, arguments.kwargs)
    density = torch.zeros(count, dtype=torch.float64, device=arguments.main.device)
    values = {}
    for name in trace.stochastic_nodes:
        site = trace.nodes[name]
        frame = next((f for f in site["cond_indep_stack"] if f.name == fit.plate and f.vectorized), None)
        if frame is None:
            raise ValueError(
                f"evidence: site '{name}' of the guide is shared by all rows, beside sites of every row, which "
                "importance weighting by row cannot score. Make it a parameter of the model."
            )
        if frame.size != count:
            raise ValueError(
                f"evidence: the guide's plate '{fit.plate}' has {frame.size} rows whatever the data; got "
                f"{count}. Use a guide that computes its laws from the rows."
            )
        term = torch.as_tensor(site["fn"].log_prob(site["value"], *site["args"], **site["kwargs"])).double()
        if site["mask"] is not None:
            term = torch.where(torch.as_tensor(site["mask"]), term, 0.0)
        term = term.expand(torch.broadcast_shapes(term.shape, (count, *[1] * (-frame.dim - 1))))
        density += term.movedim(frame.dim, 0).reshape(count, -1).sum(-1)
        if not site["infer"].get("is_auxiliary"):
            values[name] = site["value"]
    model = poutine.condition(fit.program, values)
    joint = row_log_likelihood(model, depth, arguments.args, arguments.kwargs, plate=fit.plate)
    return joint.double() - density
