r"""Log-likelihood of rows by importance weighting, with the guide as proposal.

.. math:: \log p(x_n) \approx \log \frac1S \sum_s \frac{p(x_n, z_{ns})}{q(z_{ns} \mid x_n)}, \qquad z_{ns} \sim q

On average it is too small, and the less so the more samples there are. Rows are independent given the parameters, so a
table in which every row stands S times gives S samples of each at once, to any program whatever shapes it expects.

Where the guide also draws what all rows share, that is drawn anew for every part of the samples, and the average over
all of them is the predictive density of a row: :math:`\log \int p(x_n \mid \theta) q(\theta) d\theta`.

References:
    Y. Burda, R. Grosse, R. Salakhutdinov (2016), Importance weighted autoencoders, ICLR, equation 8.
    A. Vehtari et al. (2024), Pareto smoothed importance sampling, JMLR 25.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from pyro_lvm import _pyro
from pyro_lvm.diagnostics.psis import pareto_k
from pyro_lvm.evidence.exact import Evidence, nesting
from pyro_lvm.evidence.normalizers import known_normalizers
from pyro_lvm.handlers.rows import rows, settled
from pyro_lvm.infer.by_row import row_log_likelihood
from pyro_lvm.infer.structure import structure
from pyro_lvm.ops.progress import PATIENCE, progress_bar
from pyro_lvm.ops.threads import fitting_threads
from pyro_lvm.ops.whole_number import whole_number
from pyro_lvm.training.choices import closer_guides
from pyro_lvm.training.guide_draws import draws_points
from pyro_lvm.training.labels import LabelledGuide

if TYPE_CHECKING:
    from pyro_lvm.training.data import Arguments
    from pyro_lvm.training.result import Fit

__all__ = ["NUM_SAMPLES", "importance_weighted", "warn_of_tails", "weighted_samples"]

NUM_SAMPLES = 1000
SHARED_DRAWS = 50  # of what all rows share, over which samples are distributed
ENTRIES = 2**22  # of the data in one pass: bounds the memory that networks take
EXACT = 1e-3  # nats: samples that differ by no more than rounding does are of the posterior itself, and have no tail
UNRELIABLE, MANY = 0.7, 0.1  # Pareto shape beyond which a row's error is not to be trusted; share of rows to warn at


def importance_weighted(fit: Fit, arguments: Arguments, num_samples: int = NUM_SAMPLES) -> Evidence:
    """Log-likelihood by row with the guide as proposal; discrete sites that the guide leaves are summed out.

    Args:
        fit: A fit whose guide draws latent sites of every row.
        arguments: Converted data.
        num_samples: Samples of each row.

    Returns:
        Values in nats with their standard errors by the delta method.

    Raises:
        ValueError: The guide does not take these rows.
    """
    from pyro_lvm.diagnostics.latents import thinned

    num_samples = whole_number("evidence", "num_samples", num_samples)
    weights, arguments = arguments.weights, arguments.unweighted()
    shared = min(SHARED_DRAWS, num_samples) if fit.guide_sites[0] and len(thinned(fit, 2)) > 1 else 1
    each_draw = -(-num_samples // shared) if shared > 1 else 1
    # written in place: small tensors kept between passes would leave the memory of the large ones in pieces
    values, errors = torch.full((2, arguments.num_rows), math.nan, dtype=torch.float64, device=arguments.main.device)
    shapes, start = [], 0
    with torch.random.fork_rng(), progress_bar(len(values), "importance weighting", "row", delay=PATIENCE) as bar:
        torch.manual_seed(fit.seed)
        for table in _log_ratios(fit, arguments, num_samples, each_draw if shared > 1 else None):
            value = table.logsumexp(0) - math.log(num_samples)
            relative = torch.where(value.isinf(), 1.0, (table - value).exp())
            part = slice(start, start + len(value))
            values[part] = value
            means = torch.stack([each.mean(0) for each in relative.split(each_draw)])  # within a part they are alike
            if len(means) > 1:
                errors[part] = means.std(0) / math.sqrt(len(means))
            start = part.stop
            shapes += [
                0.0 if num_samples > 1 and np.ptp(column) <= EXACT else pareto_k(column)
                for column in table.T.cpu().numpy()
            ]
            bar.update(len(value))
    source = "laws around the guide's points" if draws_points(fit) else "the guide"
    name = f"importance weighting with {num_samples} samples of {source}"
    if shared > 1:
        name = f"log predictive density over {-(-num_samples // each_draw)} draws, {name}"
    return Evidence(values, errors, name, weights, pareto_k=torch.tensor(shapes, dtype=torch.float64))


def warn_of_tails(fit: Fit, evidence: Evidence, num_samples: int = NUM_SAMPLES) -> None:
    """Say so if the guide's samples miss much of the posterior of many rows."""
    if evidence.pareto_k is None:
        return
    count, bad = len(evidence.pareto_k), int((evidence.pareto_k > UNRELIABLE).sum())
    if bad > MANY * count:
        warnings.warn(
            f"evidence: the guide's samples miss much of the posterior of {bad} of {count} rows, which have a "
            f"Pareto k-hat above {UNRELIABLE}: their log-likelihoods are unreliable and probably too low. Ask for more "
            f"samples, fit.evidence(x, num_samples={10 * num_samples}); if that does not help, {_remedy(fit)}.",
            UserWarning,
            stacklevel=3,
        )


def _remedy(fit: Fit) -> str:
    """What else than more samples brings a guide closer to the posterior."""
    arguments, sites = fit.prototype(), fit.guide_sites[1]
    with fit.scope():
        trace = structure(fit.model, arguments.args, arguments.kwargs, fresh=False)
    others = " or ".join(map(repr, closer_guides(fit.model, fit.guide, trace, sites)))
    return f"train longer, or fit with guide {others}" if others else "train longer"


def weighted_samples(fit: Fit, arguments: Arguments, num_samples: int) -> tuple[Tensor, dict[str, Tensor]]:
    """Samples of the guide given rows, with their weights.

    Args:
        fit: A fit.
        arguments: Converted data.
        num_samples: Samples of each row; each has a draw of its own of what all rows share.

    Returns:
        Log p(x, z) - log q(z | x), nats, shape (num_samples, n), and the values of the guide's sites,
        (num_samples, n, ...); of those that all rows share (num_samples, ...).
    """
    arguments = arguments.unweighted()
    with torch.random.fork_rng(), known_normalizers(fit):
        torch.manual_seed(fit.seed)
        index = torch.arange(arguments.num_rows, device=arguments.main.device)
        guide = _settled_guide(fit, arguments)
        return _samples(fit, guide, arguments, index, num_samples, 1 if fit.guide_sites[0] else None)


def _log_ratios(fit: Fit, arguments: Arguments, num_samples: int, at_most: int | None) -> Iterator[Tensor]:
    """Log p(x, z) - log q(z | x) of samples of the guide, nats, (num_samples, m) for m rows after m others, float64."""
    at_once = max(1, ENTRIES // max(1, arguments.main[0].numel()))
    for first in range(0, arguments.num_rows, at_once):
        block = arguments.rows(slice(first, first + at_once))
        guide = _settled_guide(fit, block)
        for index in torch.arange(block.num_rows, device=block.main.device).split(max(1, at_once // num_samples)):
            yield _samples(fit, guide, block, index, num_samples, at_most)[0]


def _settled_guide(fit: Fit, arguments: Arguments) -> Callable:
    """The guide, having searched for the laws of these rows if it is one that does."""
    guide = fit.labelled_guide
    if guide is None:
        raise ValueError(
            "evidence: expected a fit with a guide, to draw samples from; got none. Fit with inference='svi'."
        )
    if draws_points(fit):
        guide = _with_density(fit)
    with _at_work(fit, arguments):
        return settled(guide, arguments.args, arguments.kwargs)


def _with_density(fit: Fit) -> Callable:
    """What stands for a guide of points where draws are weighted."""
    proposal = getattr(fit.guide, "proposal", None)
    if proposal is None:
        sites = ", ".join(f"'{name}'" for name in fit.guide_sites[1])
        raise ValueError(
            f"evidence: expected a guide that draws {sites} from a density, to average over; got "
            f"{type(fit.guide).__name__}, which has one point for each row. Fit with guide='local'."
        )

    def guide(*args: Any, **kwargs: Any) -> Any:
        return proposal(*args, **kwargs)(*args, **kwargs)

    guide.settle = proposal  # type: ignore[attr-defined]
    return LabelledGuide(guide, fit.model)


def _samples(
    fit: Fit, guide: Callable, arguments: Arguments, index: Tensor, num_samples: int, at_most: int | None
) -> tuple[Tensor, dict[str, Tensor]]:
    """Log-ratios and values of samples of some rows.

    Args:
        fit: A fit.
        guide: Its guide, settled on the arguments.
        arguments: Converted data.
        index: Which of their rows, shape (m,).
        num_samples: Samples of each row.
        at_most: How many of them may stand under one draw of what all rows share.
    """
    m = len(index)
    at_once = max(1, min(ENTRIES // max(1, m * arguments.main[0].numel()), at_most or num_samples))
    parts: list[Tensor] = []
    kept: dict[str, list[Tensor]] = {}
    with _at_work(fit, arguments):
        depth = nesting(fit, arguments)
        for start in range(0, num_samples, at_once):
            count = min(at_once, num_samples - start)
            copies = index.repeat(count)
            with rows(copies, arguments.num_rows):
                ratios, values = _one_pass(fit, guide, arguments.rows(copies), depth)
            parts.append(ratios.reshape(count, m))
            for name, value in values.items():
                own = name in fit.guide_sites[1]
                kept.setdefault(name, []).append(value.reshape(count, m, *value.shape[1:]) if own else value[None])
    return torch.cat(parts), {name: torch.cat(values) for name, values in kept.items()}


@contextmanager
def _at_work(fit: Fit, arguments: Arguments) -> Iterator[None]:
    with fit.scope(), torch.no_grad(), _pyro.validation(False), fitting_threads(arguments.main.numel()):
        yield


def _one_pass(fit: Fit, guide: Callable, arguments: Arguments, depth: int) -> tuple[Tensor, dict[str, Tensor]]:
    """Log-ratios of one sample of every row, and the values of its sites."""
    count = arguments.num_rows
    trace = _pyro.plain_trace(guide, arguments.args, arguments.kwargs)
    density = torch.zeros(count, dtype=torch.float64, device=arguments.main.device)
    values: dict[str, Tensor] = {}
    shared: dict[str, Tensor] = {}
    for name in trace.stochastic_nodes:
        site = trace.nodes[name]
        frame = next((f for f in site["cond_indep_stack"] if f.name == fit.plate and f.vectorized), None)
        if frame is None:
            if not site["infer"].get("is_auxiliary"):
                shared[name] = site["value"]
            continue
        if frame.size != count:
            raise ValueError(
                f"evidence: the guide's plate '{frame.name}' has {frame.size} rows whatever the data, but samples of a "
                "row are drawn side by side. Use a guide that computes its laws from the rows."
            )
        term = torch.as_tensor(site["fn"].log_prob(site["value"], *site["args"], **site["kwargs"])).double()
        if site["mask"] is not None:
            term = torch.where(torch.as_tensor(site["mask"]), term, 0.0)
        term = term.expand(torch.broadcast_shapes(term.shape, (count, *[1] * (-frame.dim - 1))))
        density += term.movedim(frame.dim, 0).reshape(count, -1).sum(-1)
        if not site["infer"].get("is_auxiliary"):
            values[name] = site["value"]
    model = fit.program_at(values)
    joint = row_log_likelihood(model, depth, arguments.args, arguments.kwargs, given=shared, plate=fit.plate)
    return joint.double() - density, {**shared, **values}
