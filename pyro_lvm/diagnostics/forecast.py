r"""What follows given sequences: steps to come are steps that are missing.

.. math:: p(x_{T+h} \mid x_{1:T}) = \sum_k p(z_{T+h} = k \mid x_{1:T})\, p(x_{T+h} \mid z_{T+h} = k)

The program is run on sequences lengthened by missing steps, so that covariates and whatever else changes with time
have their say; states and draws are those of the lengthened paths. Laws with normal states tell of those steps by their
`steps_at`.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float, Num
from torch import Tensor

from pyro_lvm.diagnostics.impute import answer
from pyro_lvm.diagnostics.latents import AVERAGED_DRAWS, common_states, possible_rows, thinned
from pyro_lvm.diagnostics.paths import Draws, chains_of, discrete_kinds, how_to_hide_states, ordered
from pyro_lvm.diagnostics.step_laws import normal_states, steps_at
from pyro_lvm.protocols import LatentVariableModel
from pyro_lvm.training.arguments import Arguments
from pyro_lvm.training.labels import labels_of
from pyro_lvm.training.sequences import LENGTHS, along_steps

if TYPE_CHECKING:
    from pyro_lvm.distributions import HMM
    from pyro_lvm.training.result import Fit

__all__ = ["Forecast", "forecast", "lengthened"]


@dataclass(frozen=True, repr=False)
class Forecast:
    """The law of the steps that follow n sequences; of one series, without the axis n.

    Attributes:
        states: Probabilities of the states, (n, steps, K); means of normal ones, (n, steps, k).
        mean: Expected values, (n, steps, ...); of symbols, their probabilities, along a last axis.
        samples: Draws of whole futures, (s, n, steps, ...).
        paths: The states that the draws come from, (s, n, steps), and (s, n, steps, k) if they are normal; numbered as
            in each draw of the parameters.
        covariance: Of normal states: covariances of the values of a step, (n, steps, d, d).
        normal: Whether values are normal, and quantiles so exact, not those of the draws.
    """

    states: Float[Tensor, "*n steps k"]
    mean: Float[Tensor, "*n steps ..."]
    samples: Float[Tensor, "s *n steps ..."]
    paths: Num[Tensor, "s *n steps ..."]
    covariance: Float[Tensor, "*n steps d d"] | None = None
    normal: bool = False

    def __repr__(self) -> str:
        shown = [name for name in PARTS if getattr(self, name) is not None]
        return f"Forecast({', '.join(f'{name}={tuple(getattr(self, name).shape)}' for name in shown)})"

    def quantile(self, probability: float) -> Tensor:
        """A quantile of each value, (n, steps, ...).

        Args:
            probability: Between 0 and 1.

        Raises:
            ValueError: It is not.
        """
        if not 0 <= probability <= 1:
            raise ValueError(f"quantile: expected a probability between 0 and 1; got {probability!r}.")
        if self.normal and self.covariance is not None:
            scale = self.covariance.diagonal(dim1=-2, dim2=-1).sqrt()
            return self.mean + scale * torch.special.ndtri(scale.new_tensor(probability))
        samples = self.samples if self.samples.is_floating_point() else self.samples.to(torch.get_default_dtype())
        return samples.quantile(probability, 0)

    def interval(self, probability: float = 0.9) -> tuple[Tensor, Tensor]:
        """The bounds between which each value lies with a probability, as much beyond on either side.

        Args:
            probability: Between 0 and 1.

        Raises:
            ValueError: It is not.
        """
        return self.quantile((1 - probability) / 2), self.quantile((1 + probability) / 2)

    def first(self) -> Forecast:
        """Of the first sequence only."""
        covariance = None if self.covariance is None else self.covariance[0]
        return Forecast(self.states[0], self.mean[0], self.samples[:, 0], self.paths[:, 0], covariance, self.normal)


PARTS = ("states", "mean", "samples", "paths", "covariance")


def forecast(fit: Fit, arguments: Arguments, steps: int, count: int, covariates: dict[str, Any]) -> Forecast:
    """The law of the steps that follow given sequences; see `Fit.forecast`."""
    hidden = discrete_kinds(fit, arguments)[1]
    if len(hidden) > 1 or not (hidden or normal_states(fit, arguments)):
        raise ValueError(
            f"forecast: expected a model with one hidden Markov site, or sequences of normal states; got "
            f"{', '.join(hidden) or 'none'}. {how_to_hide_states(fit, arguments)}"
        )
    if arguments.main.dim() < 2:
        shape = tuple(arguments.main.shape)
        raise ValueError(f"forecast: expected sequences of shape (n, T, ...); got {shape}. Pass a list of one.")
    draws = thinned(fit, AVERAGED_DRAWS)
    with torch.random.fork_rng(), possible_rows(fit, arguments):
        torch.manual_seed(fit.seed)
        longer, place = lengthened(fit, arguments, steps, covariates)
        if hidden:
            order = common_states(fit, arguments, draws)
            found = _at_once(fit, longer, place, draws, order, count)
            if bool(found.mean.isnan().any()):  # a step's law depends on the values of steps before it
                few = thinned(fit, count)
                order = None if order is None else common_states(fit, arguments, few)
                found = _step_by_step(fit, arguments, steps, covariates, few, order, count)
        else:
            law = steps_at(fit, longer, place, draws, count)
            if law.mean[0].numel() != steps * arguments.main[0, 0].numel():
                raise ValueError(
                    f"forecast: expected a site that observes sequences of {arguments.main[0, 0].numel()} columns; "
                    f"{fit.name} observes {law.mean.shape[-1]} made of them. "
                    + getattr(fit.model, "observing_rows", LatentVariableModel.observing_rows)
                )
            named = {name: getattr(law, name).to(arguments.main) for name in PARTS}
            found = Forecast(**named, normal=len(draws) == 1)
    one = arguments.layout is not None and arguments.layout.form == "one"
    return found.first() if one else found


def _at_once(fit: Fit, longer: Arguments, place: Tensor, draws: Draws, order: Tensor | None, count: int) -> Forecast:
    """Forecasts under given draws of the parameters, of missing steps at given places."""
    times = -(-count // len(draws))
    states, mean = torch.zeros(()), torch.zeros(())
    paths, samples = [], []
    for where, sites in chains_of(fit, longer, draws):
        (chain,) = sites.values()
        table = _future(chain.smooth()[0], place, 1)
        states = states + ordered(table, None if order is None else order[where], 1).sum(0)
        for law, weights in zip(chain.laws, table, strict=True):
            mean = mean + _expected(law, chain.value, weights, place)
        future = _future(chain.sample(times).unsqueeze(-1), place, 1).squeeze(-1)
        paths.append(future)
        samples.append(torch.stack([_emitted(law, future[:, s], place) for s, law in enumerate(chain.laws)], 1))
    futures, drawn = (torch.cat(parts, 1).flatten(0, 1)[:count] for parts in (samples, paths))
    return Forecast(states / len(draws), mean / len(draws), futures, drawn)


def _step_by_step(
    fit: Fit,
    arguments: Arguments,
    steps: int,
    covariates: dict[str, Any],
    draws: Draws,
    order: Tensor | None,
    count: int,
) -> Forecast:
    """The same where a step depends on those before it: futures are drawn a step at a time; means are over draws."""
    n, parts = arguments.num_rows, []
    coming = {name: torch.as_tensor(value) for name, value in covariates.items()}
    coming = {name: v.unsqueeze(0) if len(v) != n else v for name, v in coming.items()}
    for i, given in enumerate(draws):
        times = len(range(i, count, len(draws)))
        rows = arguments.rows(torch.arange(n).repeat(times))
        own = None if order is None else order[i : i + 1]
        one = []
        for h in range(steps):
            now = {name: value[:, h : h + 1].repeat(times, *[1] * (value.dim() - 1)) for name, value in coming.items()}
            longer, place = lengthened(fit, rows, 1, now)
            one.append(_at_once(fit, longer, place, [given], own, 1))
            rows = _filled(longer, one[-1].samples[0], place)
        ((_, sites),) = chains_of(fit, rows, [given])
        (chain,) = sites.values()
        path = chain.sample(1)[0, 0]
        path = _future(path.unsqueeze(-1), place - torch.arange(steps - 1, -1, -1, device=place.device), 1).squeeze(-1)
        tables = [torch.cat([getattr(o, name) for o in one], 1) for name in ("states", "mean")]
        samples = torch.cat([o.samples[0] for o in one], 1)
        parts.append([t.unflatten(0, (times, n)) for t in (*tables, samples, path)])
    states, mean, samples, paths = (torch.cat(p) for p in zip(*parts, strict=True))
    return Forecast(states.mean(0), mean.mean(0), samples, paths)


def lengthened(fit: Fit, arguments: Arguments, steps: int, covariates: dict[str, Any]) -> tuple[Arguments, Tensor]:
    """The arguments with missing steps after the last of each sequence, and where those are, (n, steps)."""
    main = arguments.main
    n, total = main.shape[:2]
    given = arguments.kwargs.get(LENGTHS)
    lengths = torch.full((n,), total, device=main.device) if given is None else given
    place = lengths.unsqueeze(-1) + torch.arange(steps, device=main.device)
    labels = labels_of(fit.model, arguments.kwargs)
    names = [*(f"argument {i}" if i else "x" for i in range(len(arguments.args))), *arguments.kwargs]
    values = []
    for name, value in zip(names, arguments.values, strict=True):
        if not along_steps(value, main):
            values.append(value)
        elif value is main or name in labels:
            value = value if value.is_floating_point() or name in labels else value.to(torch.get_default_dtype())
            filler = torch.full((), torch.nan if value is main or name not in labels else -1, dtype=value.dtype)
            values.append(_put(value, filler.to(value), place))
        else:
            values.append(_put(value, _coming(name, covariates, value, steps), place))
    stray = covariates.keys() - set(names)
    if stray:
        taken = [n for n, v in zip(names, arguments.values, strict=True) if along_steps(v, main) and v is not main]
        raise ValueError(
            f"forecast: expected covariates out of {', '.join(taken) or 'none'}; got '{sorted(stray)[0]}'. Drop it."
        )
    count = len(arguments.args)
    kwargs = dict(zip(arguments.kwargs, values[count:], strict=True))
    if given is not None:
        kwargs[LENGTHS] = given + steps
    return replace(arguments, args=tuple(values[:count]), kwargs=kwargs), place


def _filled(longer: Arguments, step: Tensor, place: Tensor) -> Arguments:
    """The arguments with a step known."""
    main = longer.main
    filled = _put_in(main, step.reshape(len(place), 1, *main.shape[2:]), place)
    return longer.map(lambda value: filled if value is main else value)


def _coming(name: str, covariates: dict[str, Any], past: Tensor, steps: int) -> Tensor:
    """A covariate in the steps to come."""
    shape = (len(past), steps, *past.shape[2:])
    if name not in covariates:
        raise ValueError(
            f"forecast: expected '{name}' in the steps to come, shape {shape}; got none. Pass {name}=... to forecast."
        )
    value = torch.as_tensor(covariates[name]).to(past)
    value = value.unsqueeze(0) if value.dim() == past.dim() - 1 and len(past) == 1 else value
    if tuple(value.shape) != shape:
        raise ValueError(
            f"forecast: expected '{name}' of shape {shape} in the steps to come; got {tuple(value.shape)}."
        )
    return value


def _put(past: Tensor, coming: Tensor, place: Tensor) -> Tensor:
    """Values of the past, then, from each sequence's end, those to come."""
    steps = place.shape[1]
    room = past.new_zeros((len(past), steps, *past.shape[2:]))
    return _put_in(torch.cat([past, room], 1), coming.expand(room.shape), place)


def _put_in(past: Tensor, step: Tensor, place: Tensor) -> Tensor:
    """Values at given places."""
    index = place.reshape(*place.shape, *[1] * (past.dim() - 2)).expand(step.shape)
    return past.scatter(1, index, step.to(past))


def _future(table: Tensor, place: Tensor, trailing: int) -> Tensor:
    """The steps to come of a table with `trailing` axes after that of the steps, and any before the sequences'."""
    index = place.reshape(*place.shape, *[1] * trailing)
    shape = (*table.shape[: -2 - trailing], *place.shape, *table.shape[table.dim() - trailing :])
    return table.gather(-1 - trailing, index.expand(shape))


def _expected(law: HMM, value: Tensor, states: Tensor, place: Tensor) -> Tensor:
    """Expected values in the steps to come, given their states' probabilities."""
    fn = law.emission
    table = answer(fn, value.unsqueeze(value.dim() - fn.event_dim))
    trailing = table.dim() - len(fn.batch_shape)
    table = _at(table, place, trailing)
    return (states.reshape(*states.shape, *[1] * trailing) * table).sum(-1 - trailing)


def _at(table: Tensor, place: Tensor, trailing: int) -> Tensor:
    """A table by state, in the steps to come: if it does not change with time, it is theirs already."""
    time = -2 - trailing
    if table.dim() < -time or table.shape[time] == 1:
        return table
    table = table.expand(len(place), *table.shape[time:])
    return _future(table, place, 1 + trailing)


def _emitted(law: HMM, paths: Tensor, place: Tensor) -> Tensor:
    """Values drawn from the emissions of given paths, (s, n, steps) + event."""
    fn = law.emission
    inner = len(fn.event_shape)
    batch = fn.batch_shape
    if len(batch) < 2 or batch[-2] == 1:
        values = fn.expand(torch.Size((*paths.shape, batch[-1]))).sample()
    else:
        values = _at(fn.sample(paths.shape[:1]).flatten(0, -3 - inner), place.repeat(len(paths), 1), inner)
        values = values.reshape(*paths.shape, *values.shape[2:])
    index = paths.reshape(*paths.shape, 1, *[1] * inner).expand(*paths.shape, 1, *fn.event_shape)
    return values.gather(paths.dim(), index).squeeze(paths.dim())
