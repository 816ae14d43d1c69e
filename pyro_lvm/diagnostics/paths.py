r"""Hidden paths of given sequences: posteriors of every step, most probable paths, draws of whole paths.

A posterior over parameters is a set of draws. The program is run once for each; the chains' tables are stacked, and
the kernel sees all draws at once.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pyro.distributions as dist
import torch
from torch import Tensor

from pyro_lvm import _pyro
from pyro_lvm.evidence.exact import nesting
from pyro_lvm.handlers.hidden_states import states_of
from pyro_lvm.infer.enumeration import weigh
from pyro_lvm.infer.factors import Factor, trace_factors
from pyro_lvm.infer.m_step import innermost
from pyro_lvm.infer.nonfinite import NonFiniteLoss
from pyro_lvm.infer.structure import structure
from pyro_lvm.ops import chains
from pyro_lvm.ops.threads import fitting_threads
from pyro_lvm.training.choices import discrete_sites
from pyro_lvm.training.data import Arguments

if TYPE_CHECKING:
    from pyro_lvm.distributions import HMM
    from pyro_lvm.training.result import Fit

__all__ = [
    "Chains",
    "chains_of",
    "decoded",
    "discrete_kinds",
    "drawn",
    "how_to_hide_states",
    "log_likelihoods",
    "ordered",
    "smoothed",
]

CELLS = 2**22
"""Numbers that the tables of the draws worked on together may hold, 32 MB; three times as much in their posteriors."""

Draws = Sequence[dict[str, Tensor]]


@dataclass(frozen=True)
class Chains:
    """A hidden Markov site under several draws.

    Attributes:
        laws: The site's distribution under each draw.
        value: What it observes, batch + (T,) + event.
        initial: Log-probabilities of the chain's first position, (s,) + batch + (S,), nats; mostly S = K.
        transition: Log-probabilities of moves, (s,) + batch + (1 or T - 1, S, S), nats.
        emission: Log-densities of steps by position, (s,) + batch + (T, S), nats.
        lengths: Steps of every sequence, batch; None if all are alike.
        weights: Posterior of the program's other discrete sites, which make up the leading axes of the batch, (s,) +
            batch; None if there are none.
    """

    laws: list[HMM]
    value: Tensor
    initial: Tensor
    transition: Tensor
    emission: Tensor
    lengths: Tensor | None
    weights: Tensor | None

    @property
    def tables(self) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
        """What the kernel takes."""
        return self.initial, self.transition, self.emission, self._spread(self.lengths)

    def _spread(self, lengths: Tensor | None) -> Tensor | None:
        return None if lengths is None else lengths.expand(self.emission.shape[:-2])

    def smooth(self, pairwise: bool = False) -> tuple[Tensor, Tensor]:
        """Posteriors of states, (s,) + plates + (T, K), and of pairs if asked for, (s,) + plates + (T - 1, K, K).

        Raises:
            NonFiniteLoss: A sequence has probability zero.
        """
        found = chains.smooth(*self.tables, pairwise=pairwise)
        _require_possible(found.log_likelihood)
        law = self.laws[-1]
        marginals, moves = law.collect(found.marginals), law.collect(law.collect(found.transitions), -2)
        return self._averaged(marginals, 2), self._averaged(moves, 3 if pairwise else 2)

    def viterbi(self) -> Tensor:
        """Most probable paths, (s,) + batch + (T,); -1 in padding.

        Raises:
            NonFiniteLoss: A sequence has probability zero.
        """
        paths, log_joint = chains.viterbi(*self.tables)
        _require_possible(log_joint)
        return self.laws[-1].states_on(paths)

    def sample(self, num_samples: int) -> Tensor:
        """Paths drawn from their posteriors, (num_samples, s) + batch + (T,); -1 in padding.

        Raises:
            NonFiniteLoss: A sequence has probability zero.
        """
        _require_possible(chains.log_likelihood(*self.tables))
        return self.laws[-1].states_on(chains.sample(*self.tables, num_samples=num_samples))

    def _averaged(self, table: Tensor, trailing: int) -> Tensor:
        """Sum out the program's other discrete sites."""
        if self.weights is None:
            return table
        weights = self.weights / self.weights.flatten(1, -2).sum(1).reshape(
            len(self.weights), *[1] * (self.weights.dim() - 2), -1
        )
        weighted = weights.reshape(*weights.shape, *[1] * trailing) * table
        return weighted.flatten(1, self.weights.dim() - 2).sum(1)


def _require_possible(log_probability: Tensor) -> None:
    if not bool(torch.isfinite(log_probability).all()):
        raise NonFiniteLoss("a sequence has probability zero.")


def discrete_kinds(fit: Fit, arguments: Arguments) -> tuple[list[str], list[str]]:
    """Names of the discrete sites of a fit's program that are enumerated, and of its hidden paths."""
    with fit.scope(), _pyro.validation(False):
        trace = structure(fit.program, arguments.args, arguments.kwargs, fresh=False)
    hidden = [name for site in trace.nodes.values() if (name := states_of(site)) is not None]
    return discrete_sites(trace), hidden


def how_to_hide_states(
    fit: Fit, arguments: Arguments, otherwise: str = "Observe sequences by lvm.distributions.HMM."
) -> str:
    """What to do for a program's sequences to have hidden paths, if they have a law that keeps its own from us."""
    with fit.scope(), _pyro.validation(False):
        trace = structure(fit.program, arguments.args, arguments.kwargs, fresh=False)
    for name, site in trace.nodes.items():
        if site["type"] == "sample" and isinstance(innermost(site["fn"]), dist.DiscreteHMM):
            return f"Site '{name}' keeps its states to itself; give it lvm.distributions.HMM.from_discrete_hmm(law)."
    return otherwise


def chains_of(fit: Fit, arguments: Arguments, draws: Draws) -> Iterator[tuple[slice, dict[str, Chains]]]:
    """The hidden Markov sites under the given draws, in parts that fit into memory, each with its place.

    Args:
        fit: A fit.
        arguments: Sequences.
        draws: Values of all continuous latent sites; an empty dict at a point.
    """
    arguments = arguments.unweighted()
    with fit.scope(), torch.no_grad(), _pyro.validation(False), fitting_threads(arguments.main.numel()):
        depth = nesting(fit, arguments)
        waiting: list[dict[str, _One]] = []
        start = cells = 0
        for i, given in enumerate(draws):
            found = _run(fit, arguments, given, depth)
            waiting.append(found)
            cells += sum(one.tables[2].numel() for one in found.values())
            if i + 1 == len(draws) or cells + cells // len(waiting) > CELLS:
                yield slice(start, i + 1), {name: _stacked([w[name] for w in waiting]) for name in found}
                waiting, start, cells = [], i + 1, 0


@dataclass(frozen=True)
class _One:
    law: HMM
    value: Tensor
    tables: tuple[Tensor, Tensor, Tensor]
    weights: Tensor | None


def _run(fit: Fit, arguments: Arguments, given: dict[str, Tensor], depth: int) -> dict[str, _One]:
    model = fit.program_at(given)
    trace, factors = trace_factors(model, depth, arguments.args, arguments.kwargs)
    mixed = any(factor.enumerated for factor in factors.values())
    if mixed:
        weigh(trace, factors)
    return {
        name: _One(factor.fn, factor.value, _tables(factor), factor.weights if mixed else None)
        for factor in factors.values()
        if (name := states_of(factor.site)) is not None
    }


def _tables(factor: Factor) -> tuple[Tensor, Tensor, Tensor]:
    """A chain's tables, all with as many axes of the batch."""
    initial, transition, emission = factor.fn.tables(factor.value)
    batch = emission.dim() - 2
    return (
        initial.reshape(*[1] * (batch + 1 - initial.dim()), *initial.shape),
        transition.reshape(*[1] * (batch + 3 - transition.dim()), *transition.shape),
        emission,
    )


def _stacked(ones: Sequence[_One]) -> Chains:
    initial, transition, emission = (torch.stack(tables) for tables in zip(*(o.tables for o in ones), strict=True))
    last = ones[-1]
    weights = None if last.weights is None else torch.stack([o.weights for o in ones if o.weights is not None])
    return Chains([o.law for o in ones], last.value, initial, transition, emission, last.law.lengths, weights)


def log_likelihoods(fit: Fit, arguments: Arguments, draws: Draws) -> Tensor | None:
    """Log-likelihood of every sequence under every draw, (draws, n), nats; None if rows are more than hidden chains."""
    with fit.scope(), _pyro.validation(False):
        trace = structure(fit.program, arguments.args, arguments.kwargs, fresh=False)
    sites = [site for name, site in trace.nodes.items() if site["type"] == "sample" and name not in draws[0]]
    if not sites or any(states_of(s) is None or s["mask"] is not None or _plates(s) != [fit.plate] for s in sites):
        return None
    parts = []
    for _, found in chains_of(fit, arguments, draws):
        parts.append(torch.stack([chains.log_likelihood(*chain.tables) for chain in found.values()]).sum(0))
    return torch.cat(parts)


def _plates(site: Any) -> list[str]:
    return [frame.name for frame in site["cond_indep_stack"] if frame.vectorized]


def smoothed(fit: Fit, arguments: Arguments, draws: Draws, order: Tensor | None = None) -> dict[str, Tensor]:
    """Posterior of every step's state, averaged over draws, plates + (T, K); 0 in padding.

    Args:
        fit: A fit.
        arguments: Sequences.
        draws: Draws of the continuous sites.
        order: The states of each draw in a common order, (draws, K); as they are if None.
    """
    total: dict[str, Tensor] = {}
    for where, sites in chains_of(fit, arguments, draws):
        for name, chain in sites.items():
            part = ordered(chain.smooth()[0], None if order is None else order[where], 1).sum(0)
            total[name] = total[name] + part if name in total else part
    return {name: table / len(draws) for name, table in total.items()}


def decoded(fit: Fit, arguments: Arguments, draws: Draws, order: Tensor | None = None) -> dict[str, Tensor]:
    r"""Most probable paths, plates + (T,); -1 in padding.

    Under one draw the posterior of a path is a Markov chain, and this is Viterbi's path. The average over several is
    none; it is decoded through the Markov chain that has its pairwise marginals, the closest in Kullback-Leibler
    divergence.

    Args:
        fit: A fit.
        arguments: Sequences.
        draws: Draws of the continuous sites.
        order: The states of each draw in a common order, (draws, K); as they are if None.
    """
    single: dict[str, Tensor] = {}
    total: dict[str, list[Tensor]] = {}
    lengths: dict[str, Tensor | None] = {}
    for where, sites in chains_of(fit, arguments, draws):
        for name, chain in sites.items():
            if len(draws) == 1 and chain.weights is None:
                single[name] = chain.viterbi()[0]
                continue
            states, pairs = chain.smooth(pairwise=True)
            rank = None if order is None else order[where]
            parts = [ordered(states, rank, 1).sum(0), ordered(pairs, rank, 2).sum(0)]
            total[name] = [a + b for a, b in zip(total[name], parts, strict=True)] if name in total else parts
            lengths[name] = chain.lengths
    for name, (states, pairs) in total.items():
        first = states.select(-2, 0).log()
        moves = (pairs / states.narrow(-2, 0, pairs.shape[-3]).unsqueeze(-1).clamp_min(1e-300)).log()
        single[name] = chains.viterbi(first, moves, torch.zeros_like(states), lengths[name])[0]
    return single


def drawn(fit: Fit, arguments: Arguments, draws: Draws, count: int) -> dict[str, Tensor]:
    """Paths drawn from their posteriors, (count,) + plates + (T,), the i-th under draw i modulo their number."""
    times = -(-count // len(draws))
    paths: dict[str, list[Tensor]] = {}
    for _, sites in chains_of(fit, arguments, draws):
        for name, chain in sites.items():
            paths.setdefault(name, []).append(chain.sample(times))
    return {name: torch.cat(parts, 1).flatten(0, 1)[:count] for name, parts in paths.items()}


def ordered(table: Tensor, order: Tensor | None, axes: int) -> Tensor:
    """A table by draw with the states along its last axes in a common order."""
    if order is None:
        return table
    for axis in range(-axes, 0):
        index = order.to(table.device).reshape(len(order), *[1] * (table.dim() - 2), -1).movedim(-1, axis)
        table = table.gather(axis, index.expand(*table.shape))
    return table
