r"""Second, simpler implementations of what the package computes, for programs small enough to afford them.

Nothing here uses enumeration, tensor variable elimination or a closed form: a program is run once per state with its
discrete site set to that state, and Pyro's plain log-densities are added up. Everything is differentiable.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import pyro.distributions as dist
import torch
from jaxtyping import Float
from pyro import poutine
from torch import Tensor

from pyro_lvm.distributions import HMM
from pyro_lvm.ops.clusters import cluster_moments
from pyro_lvm.testing.chain_oracles import all_paths

__all__ = [
    "Columns",
    "Conditioned",
    "Repeated",
    "broad_answers",
    "broad_bits",
    "broad_columns",
    "broad_counts",
    "broad_positives",
    "broad_reals",
    "broad_shares",
    "broad_steps",
    "condition_on_states",
    "grid",
    "log_evidence_ratios",
    "parameters",
]

# Points of the midpoint rule, whose error falls fast for densities that are smooth on the scale of their spacing.
GRID_POINTS = 8000


@dataclass(frozen=True)
class Conditioned:
    r"""The joint density of a program with at most one discrete latent site, one column per state of that site.

    Attributes:
        terms: :math:`\log p(x_n, z_n = k)`, shape (n, K), nats; K = 1 if nothing is latent.
        shared: Log-density of the sites outside the plate of the rows (priors), scalar, nats.
        site: Name of the discrete site; None if nothing is latent.
    """

    terms: Float[Tensor, "n K"]
    shared: Float[Tensor, ""]
    site: str | None

    @property
    def rows(self) -> Float[Tensor, " n"]:
        """Log-likelihood of every row, shape (n,), nats."""
        return self.terms.logsumexp(-1)

    @property
    def responsibilities(self) -> Float[Tensor, "n K"]:
        """Posterior of the discrete site, shape (n, K)."""
        return self.terms.softmax(-1)


def condition_on_states(
    model: Callable, *args: Any, given: dict[str, Tensor] | None = None, **kwargs: Any
) -> Conditioned:
    """Run a program once per state of its discrete site, that site set to the state in every row.

    Args:
        model: A Pyro program whose only latent sites are those in `given` and at most one discrete site per row. Rows
            must be independent given the sites in `given`.
        args: The model's arguments.
        given: Values of the other latent sites, by name.
        kwargs: The model's keyword arguments.

    Raises:
        ValueError: The program has more than one other latent site.
    """
    program = poutine.condition(model, given or {})
    trace = poutine.trace(program).get_trace(*args, **kwargs)
    latent = [name for name in trace.stochastic_nodes if type(trace.nodes[name]["fn"]).__name__ != "_Subsample"]
    if len(latent) > 1:
        raise ValueError(f"condition_on_states: expected at most one latent site; got {', '.join(latent)}.")
    if not latent:
        rows, shared = _by_row(trace)
        return Conditioned(rows.unsqueeze(-1), shared, None)
    (site,) = latent
    node = trace.nodes[site]
    support = node["fn"].enumerate_support(expand=False).flatten()
    columns, shared = [], torch.zeros(())
    for state in support:
        everywhere = poutine.condition(program, {site: state.expand_as(node["value"])})
        rows, shared = _by_row(poutine.trace(everywhere).get_trace(*args, **kwargs))
        columns.append(rows)
    return Conditioned(torch.stack(columns, -1), shared, site)


def _by_row(trace: Any) -> tuple[Tensor, Tensor]:
    """Log-densities of a trace added up by index of the plate that most sites share, and of the sites outside it."""
    sites = [
        site for site in trace.nodes.values() if site["type"] == "sample" and type(site["fn"]).__name__ != "_Subsample"
    ]
    stacks = [{f.name: f for f in site["cond_indep_stack"] if f.vectorized} for site in sites]
    names = [name for stack in stacks for name in stack]
    if not names:
        raise ValueError("condition_on_states: expected a plate of rows; the program opens none.")
    plate = "data" if "data" in names else max(names, key=names.count)
    rows: list[Tensor] = []
    shared: list[Tensor] = [torch.zeros(())]
    for site, stack in zip(sites, stacks, strict=True):
        density = _log_density(site)
        if site["mask"] is not None:
            density = torch.where(torch.as_tensor(site["mask"]), density, torch.zeros_like(density))
        if plate not in stack:
            shared.append(density.sum())
            continue
        frame = stack[plate]
        if density.dim() < -frame.dim:
            density = density.reshape((1,) * (-frame.dim - density.dim()) + tuple(density.shape))
        if density.shape[frame.dim] != frame.size:
            shape = list(density.shape)
            shape[frame.dim] = frame.size
            density = density.expand(shape)
        rows.append(density.movedim(frame.dim, 0).reshape(frame.size, -1).sum(-1))
    return torch.stack(rows).sum(0), torch.stack([s.to(rows[0].dtype) for s in shared]).sum()


def _log_density(site: dict[str, Any]) -> Tensor:
    """Log-density of a site's value; of sequences from hidden Markov chains, by adding up all paths of states."""
    fn, value = site["fn"], site["value"]
    if not isinstance(fn, HMM):
        return fn.log_prob(value, *site["args"], **site["kwargs"])
    initial, transition, emission = fn.tables(value)
    lengths = [value.shape[1]] * len(value) if fn.lengths is None else fn.lengths.tolist()
    batch = emission.shape[:1]
    chains = zip(
        initial.expand(*batch, -1), transition.expand(*batch, *transition.shape[-3:]), emission, lengths, strict=True
    )
    found = [all_paths(first, moves[: max(1, t - 1)], e[:t]) for first, moves, e, t in chains]
    return torch.stack([paths.log_likelihood for paths in found])


def parameters(model: Callable, *args: Any, **kwargs: Any) -> dict[str, Tensor]:
    """The unconstrained tensor behind every learned `param` site of a program, by name."""
    with poutine.trace(param_only=True) as capture:
        model(*args, **kwargs)
    found = {}
    for name, site in capture.trace.nodes.items():
        if site["type"] == "param":
            value = site["value"]
            tensor = value.unconstrained() if hasattr(value, "unconstrained") else value
            if tensor.requires_grad:
                found[name] = tensor
    return found


def log_evidence_ratios(model: Callable, guide: Callable, num_draws: int, *args: Any, **kwargs: Any) -> Tensor:
    r"""Log importance ratios :math:`\log p(x, \theta_s) - \log q(\theta_s)` of draws from a guide.

    Args:
        model: A Pyro program as `condition_on_states` takes it, given the guide's sites.
        guide: A guide with a density, over the model's continuous sites.
        num_draws: Number S of draws.
        args: The arguments of model and guide.
        kwargs: Their keyword arguments.

    Returns:
        Nats, shape (S, 1). The mean of their exponentials over draws estimates the evidence p(x) without bias. If the
        guide draws sites of rows only, shape (S, n): the same of every row by itself, which varies far less.
    """
    ratios = []
    with torch.no_grad():
        for _ in range(num_draws):
            trace = poutine.trace(guide).get_trace(*args, **kwargs)
            given = {
                name: trace.nodes[name]["value"]
                for name in trace.stochastic_nodes
                if not trace.nodes[name]["infer"].get("is_auxiliary")
            }
            joint = condition_on_states(model, *args, given=given, **kwargs)
            sites = [trace.nodes[n] for n in given if type(trace.nodes[n]["fn"]).__name__ != "_Subsample"]
            if sites and all(any(f.name == "data" for f in site["cond_indep_stack"]) for site in sites):
                ratios.append(joint.rows - _by_row(trace)[0])
            else:
                ratios.append((joint.rows.sum() + joint.shared - trace.log_prob_sum()).reshape(1))
    return torch.stack(ratios)


def broad_reals(rows: Float[Tensor, "n d"]) -> Any:
    """A multivariate Student-t distribution, 4 degrees of freedom, about the rows with twice their covariance."""
    rows = rows.double()
    covariance = torch.cov(rows.T, correction=0).reshape(rows.shape[1], -1)
    degrees = torch.tensor(4.0).to(rows)
    return dist.MultivariateStudentT(degrees, rows.mean(0), torch.linalg.cholesky(2 * covariance))


def broad_counts(rows: Float[Tensor, "n d"]) -> Any:
    """Independent negative binomial columns with the rows' means and at least three times their variances."""
    rows = rows.double()
    mean = rows.mean(0).clamp_min(0.1)
    variance = torch.maximum(3 * rows.var(0), 3 * mean)
    count = mean.square() / (variance - mean)
    return dist.NegativeBinomial(count, probs=1 - mean / variance).to_event(1)


def broad_bits(rows: Float[Tensor, "n d"]) -> Any:
    """Independent fair coins."""
    return dist.Bernoulli(torch.full_like(rows[0].double(), 0.5)).to_event(1)


def broad_answers(rows: Float[Tensor, "n d"]) -> Any:
    """Independent columns of answers 0 to the largest in the rows, all equally likely."""
    counts = rows.amax(0).long() + 1
    return Columns(tuple(dist.Categorical(torch.ones(int(c)).double()).expand([1]).to_event(1) for c in counts))


def broad_positives(rows: Float[Tensor, "n d"]) -> Any:
    """Independent half-Cauchy columns: finite at zero, heavy tails."""
    return dist.HalfCauchy(rows.double().median(0).values).to_event(1)


def broad_steps(num_steps: int, num_clusters: int = 3) -> Callable[[Tensor], Repeated]:
    """A proposal for sequences of real vectors: independent steps, each from Student's t laws about their clusters.

    Args:
        num_steps: Steps of a sequence.
        num_clusters: Clusters of steps.
    """

    def proposal(rows: Tensor) -> Repeated:
        steps = rows.double().reshape(len(rows) * num_steps, -1)
        share, loc, within = cluster_moments(steps, num_clusters)
        degrees = torch.tensor(4.0).to(steps)
        law = dist.MultivariateStudentT(degrees, loc, torch.linalg.cholesky(2 * within))
        return Repeated(dist.MixtureSameFamily(dist.Categorical(share), law), num_steps)

    return proposal


def broad_shares(num_columns: int) -> Callable[[Tensor], Repeated]:
    """A proposal for rows made of groups of columns that sum to one total: multinomial, in the proportions of all rows.

    Args:
        num_columns: Columns in a group.
    """

    def proposal(rows: Tensor) -> Repeated:
        counts = rows.double().reshape(-1, num_columns)
        law = dist.Multinomial(int(counts[0].sum()), counts.sum(0))
        return Repeated(law, rows.shape[1] // num_columns)

    return proposal


def broad_columns(kinds: Sequence[str]) -> Callable[[Tensor], Columns]:
    """A proposal for tables of mixed columns.

    Args:
        kinds: The kind of every column, as `pyro_lvm.models.HeterogeneousMixture` names them.
    """
    proposals: dict[str, Callable[[Tensor], Any]] = {
        "normal": broad_reals,
        "bernoulli": broad_bits,
        "categorical": broad_answers,
        "poisson": broad_counts,
        **dict.fromkeys(("exponential", "lognormal", "gamma"), broad_positives),
    }
    return lambda rows: Columns(tuple(proposals[kind](rows[:, [j]]) for j, kind in enumerate(kinds)))


def grid(kind: str, column: Float[Tensor, " n"]) -> tuple[Float[Tensor, " m"], float]:
    """Values over which a density of a column of some kind sums or integrates to one, and the width of each.

    Args:
        kind: As `pyro_lvm.models.HeterogeneousMixture` names them.
        column: Values of the column, which tell its scale.
    """
    column = column.double()
    top, spread = float(column.max()), float(column.std())
    values = {"bernoulli": 2, "categorical": int(top) + 1, "poisson": 10 * int(top) + 50}
    if kind in values:
        return torch.arange(values[kind]).double(), 1.0
    low = float(column.mean()) - 20 * spread if kind == "normal" else 0.0
    width = (top + 20 * spread - low) / GRID_POINTS
    return low + width * (torch.arange(GRID_POINTS).double() + 0.5), width


@dataclass(frozen=True)
class Repeated:
    """Rows made of independent parts of one law."""

    law: Any
    times: int

    def sample(self, shape: tuple[int, ...]) -> Tensor:
        """Rows of all parts, float64."""
        return self.law.sample((*shape, self.times)).double().flatten(-2)

    def log_prob(self, x: Tensor) -> Tensor:
        """Log-density of rows, nats."""
        return self.law.log_prob(x.unflatten(-1, (self.times, -1))).sum(-1)


@dataclass(frozen=True)
class Columns:
    """Independent columns, each with a law of its own, over rows of shape (1,)."""

    laws: tuple[Any, ...]

    def sample(self, shape: tuple[int, ...]) -> Tensor:
        """Rows of all columns, float64, `shape` + (d,)."""
        return torch.cat([law.sample(shape).double() for law in self.laws], -1)

    def log_prob(self, x: Tensor) -> Tensor:
        """Log-density of rows, nats."""
        parts = [law.log_prob(x[..., [j]]) for j, law in enumerate(self.laws)]
        return torch.stack(parts).sum(0)
